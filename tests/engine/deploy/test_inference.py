"""What a checkpoint may say of its data, what a model may return, and inputs of unusual kinds."""

import csv
import io
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.runs import runs
from src.engine.runs.runs import find_checkpoint
from src.engine.system.addresses import local_name
from src.engine.system.errors import InputError
from src.tasks.classifier import Classifier
from tests.conftest import Run, picture
from tests.engine.deploy.conftest import changed
from tests.engine.deploy.served import TRUSTED, of
from tests.engine.deploy.toys import ToyTexts
from tests.toy import ToyData


class UnitData(ToyData):
    """As `ToyData`, but measures in a unit, which is in the note of each image; `root` is not used."""

    def __init__(self, unit: str = "m", root: str = "") -> None:
        super().__init__()
        self.unit = unit

    def notes(self, inputs: list[Image.Image]) -> list[str]:
        return [f"in {self.unit}" for _ in inputs]


@pytest.fixture
def run_in_units(toy_checkpoint: str, tmp_path: Path) -> Path:
    """A run folder in `logs` whose data has the unit km/h."""
    folder = tmp_path / "logs" / "toy" / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = torch.load(toy_checkpoint, weights_only=True)
    config = yaml.safe_load(checkpoint["config"])
    config["data"] = {"class_path": f"{__name__}.UnitData", "init_args": {"unit": "km/h"}}
    checkpoint["config"] = yaml.safe_dump(config)
    (folder / "config.yaml").write_text(checkpoint["config"])
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


def notes_of(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return [row["note"] for row in csv.DictReader(file)]


def test_a_saved_value_that_looks_like_a_path_is_refused_from_elsewhere(run_in_units: Path) -> None:
    path = str(run_in_units / "checkpoints" / "last.ckpt")
    with pytest.raises(
        InputError,
        match=r"^--data\.unit is missing: its saved value is or looks like a path; paths are read only from",
    ):
        Inference(path, trust=[TRUSTED])
    assert Inference(path, data={"unit": "m/s"}, trust=[TRUSTED]).data.unit == "m/s"


@pytest.mark.parametrize(("value", "reason"), [(0, "batch_size 0 is too small"), ("big", "TypeError")])
def test_a_wrong_argument_of_the_data_is_not_blamed_on_the_checkpoint(
    toy_checkpoint: str, value: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=rf"^--ckpt_path \S+ with --data\.batch_size {value}: {reason}"):
        Inference(toy_checkpoint, data={"batch_size": value}, trust=["tests.toy"])


def test_a_saved_path_from_elsewhere_is_left_out(run_in_units: Path) -> None:
    path = run_in_units / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] = checkpoint["config"].replace("unit: km/h", "root: /nowhere")
    torch.save(checkpoint, path)
    assert Inference(str(path), trust=[TRUSTED]).missing_paths == ["data.root"]


@pytest.mark.parametrize("words", [("--data.unit", "km/h"), ("--data.unit=km/h",)])
@pytest.mark.parametrize("is_first", [True, False])
def test_predict_takes_such_a_value_wherever_the_inputs_are(
    words: tuple[str, ...], is_first: bool, run_in_units: Path, tmp_path: Path
) -> None:
    image, output = str(picture(tmp_path / "a.png", 90, "L")), tmp_path / "out.csv"
    given = (*words, image) if is_first else (image, *words)
    checkpoint = of(str(run_in_units / "checkpoints" / "last.ckpt"))
    assert predict([*checkpoint, *given, "--output", str(output)]) == 0
    assert notes_of(output) == ["in km/h"]


def test_only_an_address_is_another_name_on_this_machine() -> None:
    assert [local_name(name) for name in ("best", "./best", "~/a.ckpt")] == ["best", "./best", "~/a.ckpt"]


def test_a_checkpoint_of_an_own_run_is_trusted_by_its_path_too(
    run_in_units: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    path = run_in_units / "checkpoints" / "last.ckpt"
    assert find_checkpoint(str(path)) == find_checkpoint("last") == (path, run_in_units)
    assert Inference(str(path)).data.unit == "km/h"
    elsewhere = Path(shutil.copytree(run_in_units, tmp_path / "version_0")) / "checkpoints" / "last.ckpt"
    assert find_checkpoint(str(elsewhere)) == (elsewhere, None)


def rows(predictions: Any, count: int, task: Any = None) -> list[dict[str, Any]]:
    """The rows of a plain module, or of another task, for a number of inputs."""
    fake: Any = SimpleNamespace(task=task or LightningModule(), labels=[])
    return Inference.rows(fake, predictions, count)


def row_of(value: Any) -> dict[str, Any]:
    """The row of a task that writes this value."""
    task = SimpleNamespace(prediction_rows=lambda predictions, labels: [{"value": value}])
    (found,) = rows(None, 1, task)
    return found


def test_another_number_of_rows_than_inputs_is_one_line() -> None:
    assert rows(torch.zeros(2), 2) == [{"output": 0.0}] * 2
    for count in (1, 3):
        with pytest.raises(InputError, match=rf"^LightningModule gives 2 rows for {count} inputs: give one row per"):
            rows(torch.zeros(2), count)
    with pytest.raises(InputError, match=r"^SimpleNamespace gives 1 rows for 2 inputs: give one row per input"):
        rows(None, 2, SimpleNamespace(prediction_rows=lambda predictions, labels: [{}]))


def test_a_model_that_leaves_out_a_row_writes_no_table(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Classifier.prediction_rows
    monkeypatch.setattr(Classifier, "prediction_rows", lambda *given: whole(*given)[1:])
    images = [str(picture(tmp_path / "images" / f"{number}.png", 90, "L")) for number in range(3)]
    with pytest.raises(InputError, match="Classifier gives 2 rows for 3 inputs"):
        predict([*of(toy_checkpoint), *images, "--output", str(tmp_path / "out.csv")])
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


NUMBERS = {
    "count": torch.tensor(3),
    "size": torch.tensor(0.5, dtype=torch.bfloat16),
    "share": np.float32(0.25),
    "is_rare": np.bool_(True),
    "ids": [np.int64(1), torch.tensor(2)],
}
PLAIN = {"count": 3, "size": 0.5, "share": 0.25, "is_rare": True, "ids": [1, 2]}


def test_numbers_of_torch_and_numpy_become_plain_ones() -> None:
    found = row_of({**NUMBERS, "pair": (np.array(7), torch.tensor(8))})["value"]
    assert found == {**PLAIN, "pair": [7, 8]}
    assert [type(one) for one in found.values()] == [int, float, float, bool, list, list]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_numbers_of_torch_and_numpy_are_written(
    suffix: str, toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "prediction_rows", lambda *_: [NUMBERS])
    image, output = str(picture(tmp_path / "a.png", 90, "L")), tmp_path / f"out{suffix}"
    assert predict([*of(toy_checkpoint), image, "--output", str(output)]) == 0
    (row,) = parquet.read_table(output).to_pylist() if suffix == ".parquet" else [json.loads(output.read_text())]
    assert {name: row[name] for name in PLAIN} == PLAIN


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 2), torch.zeros(3).long(), np.zeros(3), np.zeros((2, 2), int), [torch.zeros(1)]]
)
def test_an_array_in_a_row_that_is_no_mask_is_one_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"^SimpleNamespace: value is an array \(.*\): give lists, .*, or a mask"):
        row_of(value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_a_mask_in_a_row_stays_a_tensor(dtype: torch.dtype) -> None:
    mask = torch.ones(2, 3, dtype=dtype)
    assert row_of(mask)["value"] is mask


class Collector(LightningModule):
    """Keeps what it has predicted, under a name that methods of tasks have, too."""

    def __init__(self, net: nn.Module, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net
        self.predictions: list[Tensor] = []

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.predictions.append(self.net(batch))
        return self.predictions[-1]


def test_a_plain_module_may_have_a_list_of_predictions(toy_checkpoint: str, tmp_path: Path) -> None:
    checkpoint = changed(toy_checkpoint, tmp_path / "last.ckpt", "tests.toy.ToyData", f"{__name__}.Collector")
    image, output = str(picture(tmp_path / "a.png", 90, "L")), tmp_path / "out.jsonl"
    assert predict([*of(checkpoint), image, "--output", str(output)]) == 0
    assert len(json.loads(output.read_text())["output"]) == 3


def test_data_may_have_a_list_of_features(toy_texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyTexts, "features", ["words"], raising=False)
    inference = Inference(toy_texts, trust=[TRUSTED])
    inputs, _ = inference.prepare(["a fine film", "an awful film"])
    assert [row["label"] for row in inference.rows(inference.predictions(inputs), 2)] == ["good", "bad"]


def test_the_features_of_the_data_stay_as_they_are(toy_texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = nn.Linear(1, 1)
    monkeypatch.setattr(ToyTexts, "features", own, raising=False)
    inference = Inference(toy_texts, trust=[TRUSTED]).double()
    assert inference.data.features is own
    assert (own.weight.dtype, inference.features.weight.dtype) == (torch.float32, torch.float64)


class Watcher(pickle.Pickler):
    """Notes the modules and weights in what it pickles."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.seen: list[Any] = []

    def persistent_id(self, one: Any) -> None:
        self.seen += [one] if isinstance(one, nn.Module | nn.Parameter) else []


@pytest.mark.parametrize("more", [(), ("--truth=folder",)])
def test_what_worker_processes_get_has_no_weights(
    more: tuple[str, ...], toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[DataLoader[Any]] = []
    monkeypatch.setattr(Trainer, "predict", lambda _, model, loader, **options: given.append(loader))
    image = str(picture(tmp_path / "left" / "a.png", 90, "L"))
    predict([*of(toy_checkpoint), image, *more, "--output", str(tmp_path / "out.csv")])
    watcher = Watcher()
    watcher.dump(given[0].dataset)
    assert not watcher.seen


def test_a_json_file_and_a_pipe_are_inputs_like_others(toy_texts: str, tmp_path: Path) -> None:
    table, pipe, output = tmp_path / "table.json", tmp_path / "pipe", tmp_path / "out.csv"
    table.write_text('[{"words": "a fine film"}]')
    os.mkfifo(pipe)
    words = "\N{ZERO WIDTH NO-BREAK SPACE}a fine film\nan awful film\n"
    threading.Thread(target=pipe.write_text, args=(words,), daemon=True).start()
    assert predict([*of(toy_texts), str(table), str(pipe), "--output", str(output)]) == 3
    with output.open(newline="") as file:
        found = [(Path(row["input"]).name, row["label"], row["error"]) for row in csv.DictReader(file)]
    wrong = "a .json file: name it .jsonl if it has one object per line, or give another table"
    assert found == [("table.json", "", wrong), ("pipe:1", "good", ""), ("pipe:2", "bad", "")]


@pytest.mark.parametrize("more", [("--num_workers", "2"), ("--devices", "2")])
def test_a_pipe_is_read_by_one_process_only(more: tuple[str, ...], toy_texts: str, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for given in (str(pipe), "/dev/stdin"):
        with pytest.raises(InputError, match=f"{given}: only one process can read it: leave out --num_workers and"):
            predict([*of(toy_texts), given, *more, "--output", str(tmp_path / "out.csv")])


def test_inputs_at_addresses_are_named_by_them_and_one_that_is_missing_is_a_row(
    toy_texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, output = tmp_path / "copy.txt", tmp_path / "out.csv"
    copy.write_text("a fine film\n")

    def local(given: str) -> str:
        if given == "s3://films/gone.txt":
            raise InputError(f"{given} cannot be read: no such file")
        return str(copy) if given == "s3://films/a.txt" else given

    monkeypatch.setattr("src.engine.deploy.predicting.local_name", local)
    words = ["s3://films/gone.txt", "s3://films/a.txt", str(copy.parent / "none.txt")]
    assert predict([*of(toy_texts), *words, "--output", str(output)]) == 3
    with output.open(newline="") as file:
        found = [(row["input"], row["label"], row["error"]) for row in csv.DictReader(file)]
    assert found[:2] == [
        ("s3://films/gone.txt", "", "s3://films/gone.txt cannot be read: no such file"),
        ("s3://films/a.txt:1", "good", ""),
    ]
    with pytest.raises(InputError, match=r"^s3://films/gone.txt cannot be read: no such file$"):
        predict([*of(toy_texts), words[0], "--output", str(tmp_path / "other.csv")])


@pytest.mark.slow
def test_the_newest_run_is_known_by_its_folder_wherever_its_checkpoints_are(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("fit", "--max_epochs=1", f"--checkpoint.dirpath={tmp_path / 'large' / 'disk'}")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert find_checkpoint("best") == (tmp_path / "large" / "disk" / "best.ckpt", run.folder)
