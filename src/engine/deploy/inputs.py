"""Files of the user's own to predict on, read one after the other."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.datasets.folder import IMG_EXTENSIONS

from src.engine.data.images import UNREADABLE, read_image
from src.engine.data.loading import already_a_batch
from src.engine.data.tables import TABLES, stream_column
from src.engine.system.errors import InputError

Prepare = Callable[[list[Any]], tuple[tuple[Any, ...], list[str]]]


class Input(NamedTuple):
    """One input: its name; a text, or the path of an image; and what is wrong with it, if anything."""

    name: str
    value: Any
    error: str = ""


def images_of(paths: list[str]) -> Iterator[Input]:
    """The images of files and folders; of a folder every image file in it, sorted, folder by folder."""
    for given in paths:
        path = Path(given).expanduser()
        if not path.is_dir():
            yield Input(given, path)
            continue
        found = False
        for folder, inner, names in os.walk(path):
            inner.sort()
            for name in sorted(names):
                if name.lower().endswith(IMG_EXTENSIONS):
                    found = True
                    yield Input(str(Path(folder) / name), Path(folder) / name)
        if not found:
            yield Input(given, None, "no image in this folder")


def texts_of(paths: list[str], column: str) -> Iterator[Input]:
    """The texts of tables, in a column, and of other files, one a line; named by file and row, from 1."""
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            yield Input(given, None, "a folder; give files")
            continue
        number = 0
        try:
            for number, text in enumerate(_rows(path, column), start=1):
                is_text = isinstance(text, str) and text.strip()
                yield Input(f"{given}:{number}", text, "" if is_text else _complaint(text))
        except (InputError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            yield Input(f"{given}:{number + 1}" if number else given, None, " ".join(reason.split()))


def _rows(path: Path, column: str) -> Iterator[Any]:
    if path.suffix.lower() in TABLES:
        yield from stream_column(path, column)
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield error


def _complaint(value: Any) -> str:
    if isinstance(value, UnicodeDecodeError):
        return f"not UTF-8 at byte {value.start + 1} of the line"
    if value is None or isinstance(value, str):
        return "the text is empty"
    return f"{type(value).__name__}, not a text"


class PreparedInputs(IterableDataset[dict[str, Any]]):
    """Batches of a process's share of some inputs, in their order.

    Args:
        inputs: gives all of them anew; of these the process takes every `world`th from number `rank`.
        prepare: makes tensors and notes of a list of images or texts.
        batch_size: inputs a batch.
        rank: number of the process.
        world: number of processes.

    A batch has `names`, `errors` and `notes`, one each for every input, and `inputs`, tensors of those without an
    error, or None.
    """

    def __init__(
        self, inputs: Callable[[], Iterator[Input]], prepare: Prepare, batch_size: int, rank: int, world: int
    ) -> None:
        self.inputs = inputs
        self.prepare = prepare
        self.batch_size = batch_size
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = islice(self.inputs(), self.rank, None, self.world)
        for place, chunk in enumerate(iter(lambda: list(islice(mine, self.batch_size)), [])):
            if place % count == number:
                yield self._batch(chunk)

    def _batch(self, chunk: list[Input]) -> dict[str, Any]:
        good, errors = [], []
        for one in chunk:
            error = one.error
            if not error:
                try:
                    good.append(read_image(one.value) if isinstance(one.value, Path) else one.value)
                except UNREADABLE as problem:
                    error = _reason(one.value, problem)
            errors.append(error)
        inputs, found = self.prepare(good) if good else (None, [])
        notes = iter(found)
        return {
            "names": [one.name for one in chunk],
            "errors": errors,
            "notes": ["" if error else next(notes) for error in errors],
            "inputs": inputs,
        }


def _reason(path: Path, problem: Exception) -> str:
    if isinstance(problem, FileNotFoundError):
        return "no such file"
    if not path.stat().st_size:
        return "the file is empty"
    detail = " ".join(str(problem).split()).replace(str(path), "the file").replace("'the file'", "the file")
    return f"not an image that can be read: {detail[:200]}"


class InputsDataModule(LightningDataModule):
    """Inputs to predict on, shared among processes one by one.

    Args:
        inputs: gives all of them anew.
        prepare: makes tensors and notes of a list of images or texts.
        batch_size: inputs a batch of each process.
        num_workers: processes that read and prepare; 0 does it in the predicting process.
    """

    def __init__(
        self, inputs: Callable[[], Iterator[Input]], prepare: Prepare, batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.prepare = prepare
        self.batch_size = batch_size
        self.num_workers = num_workers

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        assert self.trainer is not None
        place = (self.trainer.global_rank, self.trainer.world_size)
        mine = PreparedInputs(self.inputs, self.prepare, self.batch_size, *place)
        return DataLoader(mine, batch_size=None, num_workers=self.num_workers, collate_fn=already_a_batch)
