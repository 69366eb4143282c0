"""DataModules that read files of their own kind, in predict, export and serve."""

import csv
import io
from pathlib import Path

import pytest

from src import serve as command
from src.engine.deploy.predicting import predict
from tests.engine.deploy.conftest import TOYS, changed
from tests.engine.deploy.exports import SUFFIXES, check_format
from tests.engine.deploy.served import browser, free_port, of, one_line, service, toy_samples
from tests.toy import ToyImages


@pytest.fixture(scope="module")
def toy_files(toy_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy checkpoint, of data that reads pixels from files of numbers."""
    return changed(toy_checkpoint, tmp_path_factory.mktemp("toy_files") / "last.ckpt", data=f"{TOYS}.FileData")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three good files and three that cannot be used."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number, pixels in enumerate(ToyImages(3, seed=2).pixels):
        (folder / f"{number}.numbers").write_text(" ".join(map(str, pixels.flatten().tolist())))
    (folder / "empty.numbers").write_text("")
    (folder / "short.numbers").write_text("1 2 3")
    (folder / "picture.png").write_text("another kind")
    return folder


def test_files_are_predicted_with_their_notes_and_errors(toy_files: str, files: Path) -> None:
    output = files.parent / "out.csv"
    assert predict([*of(toy_files), str(files), "gone.numbers", "--output", str(output)]) == 3
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["input"]).stem for row in rows] == ["0", "1", "2", "empty", "short", "gone"]
    errors = ["", "", "", "the file is empty", "it has 3 numbers, not 64", "no such file"]
    assert [row["error"] for row in rows] == errors
    assert [row["label"] for row in rows[:3]] == toy_samples(3)[1]
    assert [row["note"] for row in rows] == ["64 numbers"] * 3 + [""] * 3


@pytest.mark.slow
@pytest.mark.parametrize("form", SUFFIXES)
def test_an_exported_model_contains_the_features(
    form: str, toy_files: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    check_format(toy_files, form, tmp_path / "model", files / "1.numbers", monkeypatch)


@pytest.mark.slow
def test_files_are_served_and_a_page_has_what_the_data_adds(toy_files: str, files: Path) -> None:
    with service(toy_files) as one, browser() as page:
        assert one.predict((files / "0.numbers").read_bytes()).json["note"] == "64 numbers"
        answer = one.predict((files / "short.numbers").read_bytes())
        assert (answer.status, answer.json["detail"]) == (
            422,
            "not a usable file: it has 3 numbers, not 64; send a file: .numbers",
        )
        page.goto(f"http://127.0.0.1:{one.port}/")
        assert page.locator("#file").get_attribute("accept") == ".numbers"
        assert page.locator("#added").text_content() == "added"
        page.set_input_files("#file", files / "2.numbers")
        page.wait_for_selector(".best")


@pytest.mark.slow
def test_texts_are_the_classes_of_a_model_that_has_none(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(toy_checkpoint, tmp_path / "last.ckpt", f"{TOYS}.UnnamedData", f"{TOYS}.ToyMatcher")
    said = one_line(command.main, monkeypatch, capsys, *of(path), "--port", str(free_port()))
    assert said == "error: ToyMatcher has no classes: give --labels, one text per class"
    with service(path, "--labels", "right", "left") as one:
        file = io.BytesIO()
        images, names = toy_samples(1)
        images[0].save(file, "PNG")
        assert one.predict(file.getvalue()).json["label"] == names[0]
