"""The command that predicts on a user's own files, as the user meets it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps
from pyarrow import parquet

from src import ROOT
from src.engine.cli.command import run_command
from src.vision.digits import INVERTED
from src.engine.system.errors import InputError
from src.predict import predict
from src.vision.mnist import MNISTDataModule
from tests.conftest import pictures, program


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Digits of the test part as files, and what they are."""
    folder = tmp_path_factory.mktemp("digit_files")
    data = MNISTDataModule(source="sample")
    data.setup("test")
    for number in range(40):
        Image.fromarray(data.test_set.images[number].numpy()).save(folder / f"{number:03}.png")
    return folder, data.test_set.targets[:40].tolist()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_folder_of_images_becomes_a_table(digits: str, digit_files: Any, tmp_path: Path, suffix: str) -> None:
    folder, targets = digit_files
    output = tmp_path / f"out{suffix}"
    assert predict(["--ckpt_path", digits, str(folder), "--output", str(output), "--batch_size", "7"]) == 0
    rows = rows_of(output)
    assert [row["input"] for row in rows] == [str(folder / f"{number:03}.png") for number in range(40)]
    assert list(rows[0]) == ["input", "label", *(f"probability_{digit}" for digit in range(10)), "error", "note"]
    right = 0
    for row, target in zip(rows, targets, strict=True):
        values = [float(row[f"probability_{digit}"]) for digit in range(10)]
        assert sum(values) == pytest.approx(1, abs=1e-3)
        assert row["label"] == str(int(np.argmax(values)))
        right += row["label"] == str(target)
    assert right >= 32
    assert not list(tmp_path.glob(".out*"))


def test_images_of_any_size_and_mode_are_read_and_scans_are_inverted(
    digits: str, digit_files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = digit_files
    plain = tmp_path / "plain.csv"
    predict(["--ckpt_path", digits, str(folder), "--output", str(plain)])
    wanted = [row["label"] for row in rows_of(plain)]
    changes = {
        "large": lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
        "scan": lambda image: ImageOps.expand(ImageOps.invert(image.resize((140, 140))), (90, 20), "white").convert(
            "RGB"
        ),
        "sheet16": lambda image: Image.fromarray(65535 - np.asarray(image).astype(np.uint16) * 257),
        "palette": lambda image: image.convert("P"),
        "alpha": lambda image: Image.merge("LA", (Image.new("L", image.size, 0), image)),
        "cmyk": lambda image: ImageOps.invert(image).convert("RGB").convert("CMYK"),
    }
    for name, change in changes.items():
        made, output = tmp_path / name, tmp_path / f"{name}.csv"
        made.mkdir()
        suffix = ".tif" if name == "cmyk" else ".png"
        for path in folder.glob("*.png"):
            change(Image.open(path)).save(made / f"{path.stem}{suffix}")
        capsys.readouterr()
        assert predict(["--ckpt_path", digits, str(made), "--output", str(output)]) == 0
        rows = rows_of(output)
        same = sum(row["label"] == label for row, label in zip(rows, wanted, strict=True))
        assert same >= (32 if name in ("large", "scan") else 40), name
        inverted = name in ("scan", "sheet16", "alpha", "cmyk")
        assert {row["note"] for row in rows} == {INVERTED if inverted else ""}, name
        assert ("40 were dark ink on a light ground and were inverted" in capsys.readouterr().err) == inverted


def test_what_is_no_image_is_a_row_with_an_error_and_the_run_goes_on(
    digits: str, digit_files: Any, tmp_path: Path
) -> None:
    folder, _ = digit_files
    (tmp_path / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "empty.jpg").touch()
    half = (folder / "000.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "nothing").mkdir()
    given = [tmp_path / "garbage.png", folder / "001.png", tmp_path / "empty.jpg", tmp_path / "missing.png"]
    given += [tmp_path / "half.png", tmp_path / "nothing", folder / "002.png"]
    output = tmp_path / "out.csv"
    done = program("--ckpt_path", digits, *map(str, given), "--output", str(output), module="src.predict")
    assert done.returncode == 3, done.stderr
    assert "5 of 7 inputs could not be used" in done.stderr
    assert "Predicting" in done.stderr
    assert "Traceback" not in done.stderr
    rows = rows_of(output)
    assert [row["input"] for row in rows] == list(map(str, given))
    assert [bool(row["error"]) for row in rows] == [True, False, True, True, True, True, False]
    assert [bool(row["label"]) for row in rows] == [False, True, False, False, False, False, True]
    assert rows[2]["error"] == "the file is empty"
    assert rows[3]["error"] == "no such file"
    assert rows[5]["error"] == "no image in this folder"


TEXTS = ["a fine film", "an awful film", "", "good, really good", "bad\tand awful"]


@pytest.fixture
def text_files(tmp_path: Path) -> list[str]:
    """The same texts as lines and in tables."""
    (tmp_path / "lines.txt").write_bytes("\n".join(TEXTS).encode() + b"\nbad \xff bytes\n")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["number", "text"], *enumerate(TEXTS)])
    parquet.write_table(pa.table({"text": [*TEXTS[:2], None, *TEXTS[3:]]}), tmp_path / "table.parquet")
    (tmp_path / "table.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return [str(tmp_path / name) for name in ("lines.txt", "table.csv", "table.parquet", "table.jsonl")]


def test_texts_of_lines_and_tables_are_classified(sentiments: str, text_files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert predict(["--ckpt_path", sentiments, *text_files, "--output", str(output)]) == 3
    rows = rows_of(output)
    assert [row["input"].rpartition("/")[2] for row in rows] == [
        *(f"lines.txt:{number}" for number in range(1, 7)),
        *(f"{name}:{number}" for name in ("table.csv", "table.parquet", "table.jsonl") for number in range(1, 6)),
    ]
    assert rows[5]["error"] == "not UTF-8 at byte 5 of the line"
    for part in (rows[:5], rows[6:11], rows[11:16], rows[16:]):
        assert [row["label"] for row in part] == ["good", "bad", None, "good", "bad"]
        assert part[2]["error"] == "the text is empty"
        assert part[0]["probability_good"] == pytest.approx(rows[0]["probability_good"], abs=0.02)


def test_a_table_that_breaks_off_is_an_error_behind_its_good_rows(sentiments: str, tmp_path: Path) -> None:
    table = tmp_path / "broken.csv"
    table.write_text("text,label\na fine film,1\nan awful film,0,surplus\n")
    (tmp_path / "other.csv").write_text("words\na fine film\n")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and nothing more")
    given = [str(tmp_path / name) for name in ("broken.csv", "other.csv", "no.parquet")]
    output = tmp_path / "out.csv"
    assert predict(["--ckpt_path", sentiments, *given, "--output", str(output)]) == 3
    rows = rows_of(output)
    errors = [row["error"] for row in rows if row["error"]]
    assert re.search("row 2", errors[0])
    assert "has no column text, it has words: give --text_column" in errors[1]
    assert "not a .parquet file that can be read" in errors[2]
    named = tmp_path / "named.csv"
    assert predict(["--ckpt_path", sentiments, given[1], "--output", str(named), "--text_column", "words"]) == 0
    assert rows_of(named)[0]["label"] == "good"


def test_images_in_colour_are_seen_as_validation_sees_them(tmp_path: Path) -> None:
    from tests.conftest import fit

    pictures(tmp_path / "pictures")
    words = ("--config=configs/vision/image_folder.yaml", f"--data.path={tmp_path / 'pictures'}", "--max_epochs=1")
    checkpoint = fit(tmp_path, *words, "--model.net=CNN")
    output = tmp_path / "out.csv"
    assert predict(["--ckpt_path", checkpoint, str(tmp_path / "pictures"), "--output", str(output)]) == 0
    classes = sorted(path.name for path in (tmp_path / "pictures").glob("[!.]*"))
    assert list(rows_of(output)[0])[2:-2] == [f"probability_{name}" for name in classes]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 40])
def test_two_processes_write_each_input_once_in_order(
    digits: str, digit_files: Any, tmp_path: Path, count: int
) -> None:
    folder, _ = digit_files
    given = [str(path) for path in sorted(folder.iterdir())[:count]]
    alone, shared = tmp_path / "alone.csv", tmp_path / "shared.parquet"
    words = ("--ckpt_path", digits, "--accelerator=cpu", "--precision=32-true", "--batch_size=3", *given)
    assert predict([*words, "--output", str(alone)]) == 0
    two = ("--devices=2", "--strategy=ddp", "--output", str(shared))
    done = program(*words, *two, module="src.predict", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "Tip:" not in done.stderr
    assert "LeafSpec" not in done.stderr
    assert [(row["input"], row["label"]) for row in rows_of(shared)] == [
        (row["input"], row["label"]) for row in rows_of(alone)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.csv", "shared.parquet"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_texts(sentiments: str, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        table = tmp_path / f"{rows}.csv"
        with table.open("w") as file:
            file.write("text\n")
            file.writelines(
                f"a fine film with number {number} of very many that are in this long table\n" for number in range(rows)
            )
        command = (
            "import re, sys; from pathlib import Path; from src.predict import predict; predict(sys.argv[1:]);"
            " print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
        )
        words = ["--ckpt_path", sentiments, str(table), "--output", str(tmp_path / f"{rows}.out.csv")]
        done = subprocess.run(
            [sys.executable, "-c", command, *words], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert len((tmp_path / f"{rows}.out.csv").read_text().splitlines()) == rows + 1
        return int(done.stdout.split()[-1])

    few, many = peak(2_000), peak(60_000)  # the second table alone has 4 MB, its rows as objects a hundred
    assert many < few + 40_000  # KB


CANNOT = [
    ((), r"no inputs given"),
    (("{image}",), r"--output is missing: give the table to write"),
    (("{image}", "--output", "out.txt"), r"--output out.txt: give a name that ends in .csv, .jsonl, .parquet"),
    (("{image}", "--output", "{image}.csv"), r"is there already: give another name"),
    (("{image}", "--output", "no/such/out.csv"), r"there is no folder .*no/such; make it"),
    (("missing.png", "--output", "out.csv"), r"missing.png: no such file or folder"),
    (("{image}", "--output", "out.csv", "--batch_size", "0"), r"--batch_size 0 is too small"),
    (("{image}", "--output", "out.csv", "--batch_sise", "1"), r"no such option.*--batch_size"),
    (("{image}", "--output", "out.csv", "--accelerator", "gpu"), r"--accelerator gpu: this machine has none"),
    (("{image}", "--output", "out.csv", "--ckpt_path", "no.ckpt"), r"--ckpt_path no.ckpt: no such file"),
]


@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_is_one_error(
    digits: str, digit_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "000.png"
    image.write_bytes((digit_files[0] / "000.png").read_bytes())
    Path(f"{image}.csv").write_text("mine")
    given = [word.replace("{image}", str(image)) for word in words]
    with pytest.raises(InputError, match=message):
        predict(["--ckpt_path", digits, *given])
    assert Path(f"{image}.csv").read_text() == "mine"
    assert not (tmp_path / "out.csv").exists()


def test_a_worker_that_dies_is_one_error_and_no_table(
    digits: str,
    digit_files: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "src.engine.deploy.inputs.PreparedInputs.__iter__", lambda self: os.kill(os.getpid(), signal.SIGKILL)
    )
    words = ["predict", "--ckpt_path", digits, str(digit_files[0]), "--output", str(tmp_path / "out.csv")]
    monkeypatch.setattr(sys, "argv", [*words, "--num_workers", "1"])
    with pytest.raises(SystemExit) as stop:
        run_command(predict)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"error: a process that loads data has died.* Give a smaller num_workers$", line)
    assert not list(tmp_path.iterdir())


def test_a_language_model_is_refused(writer: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a language model: give it to src\.generate"):
        predict(["--ckpt_path", writer, str(tmp_path), "--output", str(tmp_path / "out.csv")])


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_ends_the_program_with_one_line(
    digits: str, digit_files: Any, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    image = tmp_path / "000.png"
    image.write_bytes((digit_files[0] / "000.png").read_bytes())
    Path(f"{image}.csv").write_text("mine")
    given = [word.replace("{image}", str(image)) for word in words]
    done = program("--ckpt_path", digits, *given, module="src.predict", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png", "000.png.csv"]
