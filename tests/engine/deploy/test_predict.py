"""The command that predicts on a user's own files, as the user meets it."""

import csv
import gzip
import json
import os
import re
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from src import predict as command
from src.engine.data import tables
from src.engine.deploy.predicting import predict
from src.engine.system.errors import InputError, SampleError
from tests.conftest import program
from tests.engine.deploy.served import of, one_line, toy_samples
from tests.engine.deploy.toys import ToyTexts
from tests.forked import CONTEXT
from tests.toy import ToyData


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Images of the test part as files, and what they are."""
    folder = tmp_path_factory.mktemp("files")
    images, labels = toy_samples(40)
    for number, image in enumerate(images):
        image.save(folder / f"{number:03}.png")
    return folder, labels


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_folder_of_images_becomes_a_table(toy_checkpoint: str, files: Any, tmp_path: Path, suffix: str) -> None:
    folder, wanted = files
    output = tmp_path / f"out{suffix}"
    assert predict([*of(toy_checkpoint), str(folder), "--output", str(output), "--batch_size", "7"]) == 0
    rows = rows_of(output)
    assert [row["input"] for row in rows] == [str(folder / f"{number:03}.png") for number in range(40)]
    names = [f"probability_{label}" for label in ToyData.labels]
    assert list(rows[0]) == ["input", "label", *names, "error", "note"]
    for row in rows:
        values = [float(row[name]) for name in names]
        assert sum(values) == pytest.approx(1, abs=1e-3)
        assert row["label"] == ToyData.labels[int(np.argmax(values))]
    assert [row["label"] for row in rows] == wanted
    assert not list(tmp_path.glob(".out*"))


def test_images_of_any_size_and_mode_are_read_and_notes_are_kept(
    toy_notes: str, files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wanted = files
    changes = {
        "large": lambda image: image.resize((300, 300), Image.Resampling.NEAREST),
        "deep": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
        "palette": lambda image: image.convert("P"),
        "colour": lambda image: image.convert("RGB"),
        "cmyk": lambda image: image.convert("RGB").convert("CMYK"),
    }
    made = tmp_path / "made"
    for name, change in changes.items():
        (made / name).mkdir(parents=True)
        for path in folder.glob("*.png"):
            change(Image.open(path)).save(made / name / f"{path.stem}{'.tif' if name == 'cmyk' else '.png'}")
    output = tmp_path / "out.csv"
    assert predict([*of(toy_notes), *(str(made / name) for name in changes), "--output", str(output)]) == 0
    rows = rows_of(output)
    for number, name in enumerate(changes):
        part = rows[40 * number : 40 * number + 40]
        assert [row["label"] for row in part] == wanted, name
        assert {row["note"] for row in part} == {"scaled" if name == "large" else ""}, name
    assert re.search(r"^40 .*column note$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.slow
def test_what_is_no_image_is_a_row_with_an_error_and_the_run_goes_on(
    toy_checkpoint: str, files: Any, tmp_path: Path
) -> None:
    folder, _ = files
    (tmp_path / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "empty.jpg").touch()
    half = (folder / "000.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "nothing").mkdir()
    given = [tmp_path / "garbage.png", folder / "001.png", tmp_path / "empty.jpg", tmp_path / "missing.png"]
    given += [tmp_path / "half.png", tmp_path / "nothing", folder / "002.png"]
    output = tmp_path / "out.csv"
    words = (*of(toy_checkpoint), *map(str, given), "--output", str(output))
    done = program(*words, module="src.predict", REAL_INTERPRETER="1")
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


TEXTS = ["a fine film", "an awful film", "", "good, really fine", "bad\tand awful"]


@pytest.fixture
def text_files(tmp_path: Path) -> list[str]:
    """The same texts as lines and in tables."""
    (tmp_path / "lines.txt").write_bytes("\n".join(TEXTS).encode() + b"\nbad \xff bytes\n")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["number", "words"], *enumerate(TEXTS)])
    parquet.write_table(pa.table({"words": [*TEXTS[:2], None, *TEXTS[3:]]}), tmp_path / "table.parquet")
    (tmp_path / "table.jsonl").write_text("".join(json.dumps({"words": text}) + "\n" for text in TEXTS))
    return [str(tmp_path / name) for name in ("lines.txt", "table.csv", "table.parquet", "table.jsonl")]


def test_texts_of_lines_and_tables_are_classified(toy_texts: str, text_files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert predict([*of(toy_texts), *text_files, "--output", str(output)]) == 3
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


def test_no_path_stops_the_rows_of_others(toy_texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good.csv", "~$good.csv"):  # an office program's name for a file that is open
        (tmp_path / name).write_text("words\na fine film\n")
    assert predict([*of(toy_texts), "good.csv", "~$good.csv", "a fine film " * 30, "--output", "out.csv"]) == 3
    assert [row["label"] for row in rows_of(tmp_path / "out.csv")] == ["good", "good", ""]


def test_a_text_that_cannot_be_prepared_is_an_error_in_its_row_only(
    toy_texts: str, text_files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ToyTexts.prepare

    def strict(self: ToyTexts, inputs: list[str]) -> Any:
        if bad := [text for text in inputs if "awful" in text]:
            raise SampleError(f"{bad[0]!r} is not allowed")
        return prepare(self, inputs)

    monkeypatch.setattr(ToyTexts, "prepare", strict)
    output = tmp_path / "out.jsonl"
    assert predict([*of(toy_texts), text_files[0], "--output", str(output)]) == 3
    rows = rows_of(output)
    assert {text: row["error"] for text, row in zip(TEXTS, rows, strict=False) if "awful" in text} == {
        text: f"{text!r} is not allowed" for text in TEXTS if "awful" in text
    }
    assert [row["label"] for row in rows] == ["good", None, None, "good", None, None]


def test_files_that_the_data_reads_are_predicted_row_by_row(
    toy_texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> Iterator[str]:
        yield from path.read_text().split("/")
        raise InputError("the file is incomplete")

    monkeypatch.setattr(ToyTexts, "readers", {".own": read}, raising=False)
    (tmp_path / "texts.own").write_text("a fine film/an awful film")
    output = tmp_path / "out.csv"
    assert predict([*of(toy_texts), str(tmp_path / "texts.own"), "--output", str(output)]) == 3
    rows = rows_of(output)
    assert [row["label"] for row in rows] == ["good", "bad", ""]
    assert rows[2]["error"] == "the file is incomplete; rows from 3 on are not predicted"


def test_a_table_that_breaks_off_is_an_error_behind_its_good_rows(toy_texts: str, tmp_path: Path) -> None:
    table = tmp_path / "broken.csv"
    table.write_text("words,label\na fine film,1\nan awful film,0,surplus\n")
    (tmp_path / "other.csv").write_text("speech\na fine film\n")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and nothing more")
    given = [str(tmp_path / name) for name in ("broken.csv", "other.csv", "no.parquet")]
    output = tmp_path / "out.csv"
    assert predict([*of(toy_texts), *given, "--output", str(output)]) == 3
    rows = rows_of(output)
    errors = [row["error"] for row in rows if row["error"]]
    assert re.search("row 2.*; rows from 1 on are not predicted$", errors[0])
    assert "has no column words, it has speech: give --text_column" in errors[1]
    assert "not a .parquet file that can be read" in errors[2]
    named = tmp_path / "named.csv"
    assert predict([*of(toy_texts), given[1], "--output", str(named), "--text_column", "speech"]) == 0
    assert rows_of(named)[0]["label"] == "good"


def test_an_incomplete_file_is_a_row_and_nothing_else_is_said(
    toy_texts: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    packed = gzip.compress("".join(f"film {number**9}\n" for number in range(500)).encode())
    (tmp_path / "cut.txt.gz").write_bytes(packed[:300])
    output = tmp_path / "out.csv"
    assert predict([*of(toy_texts), str(tmp_path / "cut.txt.gz"), "--output", str(output)]) == 3
    (tmp_path / "none.txt.gz").write_bytes(packed[:12])
    assert "Compressed file ended before" in rows_of(output)[-1]["error"]
    assert predict([*of(toy_texts), str(tmp_path / "none.txt.gz"), "--output", str(tmp_path / "none.csv")]) == 3
    assert not any("returned None" in str(one.message) for one in recwarn)


def test_classes_are_named_where_the_task_takes_their_names(
    toy_matcher: str, toy_checkpoint: str, files: Any, tmp_path: Path
) -> None:
    folder, wanted = files
    output = tmp_path / "out.csv"
    words = [str(folder), "--output", str(output), "--labels", "right side", "left side", "middle"]
    with pytest.raises(InputError, match="Classifier has fixed classes: give it no labels"):
        predict([*of(toy_checkpoint), *words])
    assert predict([*of(toy_matcher), *words]) == 0
    rows = rows_of(output)
    assert [row["label"].removesuffix(" side") for row in rows] == wanted
    assert list(rows[0])[2:5] == ["probability_right side", "probability_left side", "probability_middle"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 40])
def test_two_processes_write_each_input_once_in_order(
    toy_checkpoint: str, files: Any, tmp_path: Path, count: int
) -> None:
    folder, _ = files
    given = [str(path) for path in sorted(folder.iterdir())[:count]]
    alone, shared = tmp_path / "alone.csv", tmp_path / "shared.parquet"
    words = (*of(toy_checkpoint), "--accelerator=cpu", "--precision=32-true", "--batch_size=3", *given)
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


def test_processes_that_cannot_count_together_are_refused(toy_checkpoint: str, files: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"--strategy ddp_spawn: its processes cannot be stopped, continued or counted together: give ddp",
    ):
        predict([*of(toy_checkpoint), str(files[0]), "--strategy=ddp_spawn", "--output", str(tmp_path / "out.csv")])


def measure(words: list[str], answer: Connection) -> None:
    """Predict, and send the most memory that this process has had, in KB."""
    tables.STREAM_BYTES = 2**14  # pyarrow reads 32 such blocks ahead
    assert predict(words) == 0
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    answer.send(int(found[1]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_texts(toy_texts: str, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        table, output = tmp_path / f"{rows}.csv", tmp_path / f"{rows}.out.csv"
        with table.open("w") as file:
            file.write("words\n")
            file.writelines(
                f"a fine film with number {number} of very many that are in this long table\n" for number in range(rows)
            )
        ours, theirs = CONTEXT.Pipe()
        words = [*of(toy_texts), str(table), "--output", str(output), "--batch_size", "512"]
        process = CONTEXT.Process(target=measure, args=(words, theirs))
        process.start()
        process.join()
        assert len(output.read_text().splitlines()) == rows + 1
        return int(ours.recv())

    few, many = peak(5_000), peak(60_000)  # the rows of the second table would take 20 MB and more
    assert many < few + 10_000  # KB


CANNOT = [
    ((), r"no inputs given"),
    (("{image}",), r"--output is missing: give the table to write"),
    (("{image}", "--output", "out.txt"), r"--output out.txt: give a name that ends in .csv, .jsonl, .parquet"),
    (("{image}", "--output", "{image}.csv"), r"already exists: give another name"),
    (("{image}", "--output", "no/such/out.csv"), r"there is no folder .*no/such; make it"),
    (("missing.png", "--output", "out.csv"), r"missing.png: no such file or folder"),
    (("{image}", "--output", "out.csv", "--batch_size", "0"), r"--batch_size 0 is too small"),
    (("{image}", "--output", "out.csv", "--batch_sise", "1"), r"no such option.*--batch_size"),
    (("{image}", "--output", "out.csv", "--accelerator", "gpu"), r"--accelerator gpu: this machine has none"),
    (("{image}", "--output", "out.csv", "--ckpt_path", "no.ckpt"), r"--ckpt_path no.ckpt: no such file"),
    (("{image}", "--output", "out.csv", "--devices", "0"), r"error: .*devices='0'"),
    (("{image}", "--output", "out.csv", "--precision", "12"), r"error: Precision '12' is invalid"),
    (("a pasted text " * 30, "--output", "out.csv"), r"a pasted text .*: no such file or folder"),
    (
        ("{image}", "--output", "out.csv", "--ckpt_path", "a" * 300),
        r"error: a{200} cannot be used \(File name too long",
    ),
]


@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_ends_the_command_with_one_line(
    toy_checkpoint: str,
    files: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "000.png"
    image.write_bytes((files[0] / "000.png").read_bytes())
    Path(f"{image}.csv").write_text("mine")
    given = [word.replace("{image}", str(image)) for word in words]
    assert re.search(message, one_line(command.main, monkeypatch, capsys, *of(toy_checkpoint), *given))
    assert Path(f"{image}.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png", "000.png.csv"]


def test_a_worker_that_dies_is_one_error_and_no_table(
    toy_checkpoint: str,
    files: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "src.engine.deploy.inputs.PreparedInputs.__iter__", lambda self: os.kill(os.getpid(), signal.SIGKILL)
    )
    words = (*of(toy_checkpoint), str(files[0]), "--output", str(tmp_path / "out.csv"))
    line = one_line(command.main, monkeypatch, capsys, *words, "--num_workers", "1")
    assert re.match(r"error: a process that loads data has died.* Give a smaller num_workers$", line)
    assert not list(tmp_path.iterdir())


def test_a_language_model_is_refused(toy_writer: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a language model, which only continues texts"):
        predict([*of(toy_writer), str(tmp_path), "--output", str(tmp_path / "out.csv")])


def test_a_folder_with_looping_and_broken_links_works_and_what_is_skipped_is_counted(
    toy_checkpoint: str, files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes((files[0] / f"{number:03}.png").read_bytes())
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "clip.gif").write_bytes(b"GIF89a")
    output = tmp_path / "out.csv"
    assert predict([*of(toy_checkpoint), str(folder), "--output", str(output)]) == 0
    assert [Path(row["input"]).name for row in rows_of(output)] == ["0.png", "1.png", "2.png"]
    wanted = "Skipped files that are not images: 1 .gif, 2 broken links, 1 looping links"
    assert capsys.readouterr().err.count(wanted) == 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_files_of_texts_that_cannot_be_read_are_one_row_and_strange_ones_are_reported(
    toy_texts: str, tmp_path: Path, messages: list[str], workers: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "rows.csv").write_text("words\n")
    (tmp_path / "wide.txt").write_text("a fine film\n", encoding="utf-16")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfa fine film\n")
    (tmp_path / "lines.csv").write_text('words\na fine film\n"an awful\nfilm"\n')
    (tmp_path / "bad.jsonl").write_text('{"words": "a fine film"}\n\n{"words": "an awful film"}\n{\n')
    given = [str(tmp_path / name) for name in sorted(path.name for path in tmp_path.iterdir())]
    output = tmp_path / "out.csv"
    assert predict([*of(toy_texts), *given, "--output", str(output), "--num_workers", workers]) == 3
    rows = [(Path(row["input"]).name, row["label"], row["error"]) for row in rows_of(output)]
    assert [(name, label) for name, label, _ in rows] == [
        *(("bad.jsonl:1", "good"), ("bad.jsonl:2", "bad"), ("bad.jsonl:3", ""), ("empty.txt", "")),
        *(("lines.csv:1", "good"), ("lines.csv:2", "bad"), ("marked.txt:1", "good"), ("rows.csv", "")),
        ("wide.txt", ""),
    ]
    errors = {name: error for name, _, error in rows if error}
    assert "row 3: " in errors["bad.jsonl:3"]
    assert errors["empty.txt"] == errors["rows.csv"] == "nothing in this file"
    assert "wide.txt seems to be UTF-16" in errors["wide.txt"]
    if workers == "0":  # otherwise printed by another process
        assert [line for line in messages if "rows that span several lines: 1, first row 2" in line]
