"""Reads the files to predict on."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from src.engine.data.images import UNREADABLE, Ranges, image_error, image_files, read_image
from src.engine.data.loading import already_a_batch
from src.engine.data.tables import TABLES, open_utf8, stream_column
from src.engine.system.errors import InputError

Prepare = Callable[[list[Any]], tuple[tuple[Any, ...], list[str]]]


class Input(NamedTuple):
    """One input: name, value (a text or the path of an image) and error, if it cannot be used."""

    name: str
    value: Any
    error: str = ""


def find_images(paths: list[str], skipped: Counter[str] | None = None) -> Iterator[Input]:
    """Image files; folders give all image files in them and in their subfolders, sorted; for `skipped` see there."""
    for given in paths:
        path = Path(given).expanduser()
        if not path.is_dir():
            yield Input(given, path)
            continue
        found = False
        for file in image_files(path, skipped):
            found = True
            yield Input(str(file), file)
        if not found:
            yield Input(given, None, "no image in this folder")


def read_texts(paths: list[str], column: str) -> Iterator[Input]:
    """Texts from a column of tables, or the lines of other files; named by file and row, counted from 1."""
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            yield Input(given, None, "a folder; give files")
            continue
        number = 0
        try:
            for number, text in enumerate(_rows(path, column), start=1):
                is_text = isinstance(text, str) and text.strip()
                yield Input(f"{given}:{number}", text, "" if is_text else _text_error(text))
        except (InputError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            row = re.search(r"\brow (\d+)", reason)  # pyarrow reads ahead
            yield Input(f"{given}:{row[1]}" if row else given, None, " ".join(reason.split()))
        else:
            if not number:
                yield Input(given, None, "no text in this file")


def _rows(path: Path, column: str) -> Iterator[Any]:
    if path.suffix.lower() in TABLES:
        yield from stream_column(path, column)
        return
    with open_utf8(path) as file:
        for line in file:
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield error


def _text_error(value: Any) -> str:
    if isinstance(value, UnicodeDecodeError):
        return f"not UTF-8 at byte {value.start + 1} of the line"
    if value is None or isinstance(value, str):
        return "the text is empty"
    return f"{type(value).__name__}, not a text"


class PreparedInputs(IterableDataset[dict[str, Any]]):
    """Batches of the inputs of one process, in order: every `world`-th input, starting at `rank`.

    Args:
        inputs: returns a new iterator over the inputs of all processes.
        prepare: a list of images or texts -> tensors and notes.
        batch_size: inputs per batch.
        rank: number of this process, from 0.
        world: number of processes.
        ranges: see `read_image`.

    A batch has `names`, `errors` and `notes`, one per input, and `inputs`, the tensors of inputs without error, or None
    if there are none.
    """

    def __init__(
        self,
        inputs: Callable[[], Iterator[Input]],
        prepare: Prepare,
        batch_size: int,
        rank: int,
        world: int,
        ranges: Ranges | None = None,
    ) -> None:
        self.inputs = inputs
        self.prepare = prepare
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.ranges = ranges

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = islice(self.inputs(), self.rank, None, self.world)
        for index, chunk in enumerate(iter(lambda: list(islice(mine, self.batch_size)), [])):
            if index % count == number:
                yield self._batch(chunk)

    def _batch(self, chunk: list[Input]) -> dict[str, Any]:
        good, errors = [], []
        for one in chunk:
            error = one.error
            if not error:
                try:
                    good.append(read_image(one.value, self.ranges) if isinstance(one.value, Path) else one.value)
                except UNREADABLE as problem:
                    error = image_error(one.value, problem)
            errors.append(error)
        inputs, good_notes = self.prepare(good) if good else (None, [])
        notes = iter(good_notes)
        return {
            "names": [one.name for one in chunk],
            "errors": errors,
            "notes": ["" if error else next(notes) for error in errors],
            "inputs": inputs,
        }


class InputsDataModule(LightningDataModule):
    """Inputs to predict on, distributed over the processes one by one.

    Args:
        inputs: returns a new iterator over all inputs.
        prepare: a list of images or texts -> tensors and notes.
        batch_size: inputs per batch of each process.
        num_workers: processes that read and prepare inputs; 0: the predicting process does it.
        ranges: see `read_image`.
    """

    def __init__(
        self,
        inputs: Callable[[], Iterator[Input]],
        prepare: Prepare,
        batch_size: int,
        num_workers: int,
        ranges: Ranges | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.prepare = prepare
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.ranges = ranges

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        assert self.trainer is not None
        place = (self.trainer.global_rank, self.trainer.world_size)
        mine = PreparedInputs(self.inputs, self.prepare, self.batch_size, *place, self.ranges)
        return DataLoader(mine, batch_size=None, num_workers=self.num_workers, collate_fn=already_a_batch)
