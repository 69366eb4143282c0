"""Reads the files to predict on."""

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from src.engine.data.files import IMG_EXTENSIONS, file_error, find_files, open_utf8
from src.engine.data.images import UNREADABLE, image_error, original_size, read_image, read_mask
from src.engine.data.tables import TABLES, stream_columns, suffix_of
from src.engine.deploy.prepare import table_row
from src.engine.system.errors import InputError, SampleError

Prepare = Callable[[list[Any]], tuple[tuple[Any, ...], list[str]]]
Targets = Callable[[list[Any], tuple[Any, ...]], Any]
Readers = Mapping[str, Callable[[Path], Iterator[str]]]


class Input(NamedTuple):
    """One input: name, value (text, path of an image, or numbers by column), error if it cannot be used, true value.

    The true value is that of a column, a list of those of several columns, a folder's name, or the path of a mask.
    """

    name: str
    value: Any
    error: str = ""
    truth: Any = None


def find_images(
    paths: list[str],
    truth: str | None = None,
    skipped: Counter[str] | None = None,
    suffixes: tuple[str, ...] = IMG_EXTENSIONS,
    labels: Sequence[str] = (),
) -> Iterator[Input]:
    """Image files; folders give all image files in them and in their subfolders, sorted.

    Args:
        paths: files and folders.
        truth: a folder of masks with the names of the images, or `folder`: each image's folder is its class.
        skipped: see `find_files`.
        suffixes: endings of the files to find; default: those of images.
        labels: names of classes; class folders may have subfolders.
    """
    masks = Path(truth) if truth and Path(truth).is_dir() else None

    def true_value(file: Path, folder: Path) -> Any:
        if masks:
            return masks / file.relative_to(folder).with_suffix(".png")
        above = [*file.relative_to(folder).parent.parts, Path(os.path.abspath(folder)).name]
        return next((name for name in above if name in labels), Path(os.path.abspath(file)).parent.name)

    for given in paths:
        path = Path(os.path.expanduser(given))  # unlike pathlib's, raises no errors
        if not os.path.isdir(path):
            yield Input(given, path, truth=truth and true_value(path, path.parent))
            continue
        files = list(find_files(path, suffixes, skipped))
        yield from (Input(str(file), file, truth=truth and true_value(file, path)) for file in files)
        if not files:
            what = "image" if suffixes is IMG_EXTENSIONS else f"{' or '.join(suffixes)} file"
            yield Input(given, None, f"no {what} in this folder")


def read_texts(
    paths: list[str], column: str, truth: Sequence[str] = (), readers: Readers | None = None
) -> Iterator[Input]:
    """Texts from a column of tables, or the lines of other files; named by file and row, counted from 1.

    `truth` are the tables' columns of true values, `readers` read the texts of files with other suffixes, by suffix.
    """
    options = {column: "--text_column", **dict.fromkeys(truth, "--truth")}
    for name, (text, *true), error in _rows(paths, options, readers):
        yield Input(name, text, error or _text_error(text), _one_or_list(true))


def read_table_rows(paths: list[str], data: Any, truth: Sequence[str] = ()) -> Iterator[Input]:
    """Rows of tables for a DataModule; named by file and row, counted from 1; `truth`: columns of true values."""
    columns = list(data.columns)
    options = dict.fromkeys(columns, "a table with all columns of the run") | dict.fromkeys(truth, "--truth")
    for name, values, error in _rows(paths, options):
        row = dict[str, Any]()
        try:
            row = {} if error else table_row(data, dict(zip(columns, values, strict=False)))
        except SampleError as problem:
            error = str(problem)
        yield Input(name, row, error, _one_or_list(values[len(columns) :]))


def _one_or_list(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _rows(
    paths: list[str], columns: dict[str, str], readers: Readers | None = None
) -> Iterator[tuple[str, tuple[Any, ...], str]]:
    """Name, values and error of each row; for `columns` see `stream_columns`."""
    for given in paths:
        path = Path(os.path.expanduser(given))  # unlike pathlib's, raises no errors
        if os.path.isdir(path):
            yield given, (None,) * len(columns), "a folder; give files"
            continue
        number = 0
        try:
            is_table = suffix_of(path) in TABLES
            rows = stream_columns(path, columns) if is_table else _lines(path, len(columns), readers or {})
            for number, values in enumerate(rows, start=1):
                yield f"{given}:{number}", values, ""
        except (InputError, OSError, EOFError, zlib.error) as error:  # the last two: an incomplete .gz
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            row = re.search(r"\brow (\d+)", reason)  # pyarrow reads ahead
            reason += f"; rows from {number + 1} on are not predicted" if row or number else ""
            yield f"{given}:{row[1]}" if row else given, (None,) * len(columns), " ".join(reason.split())
        else:
            if not number:
                yield given, (None,) * len(columns), "nothing in this file"


def _lines(path: Path, columns: int, readers: Readers) -> Iterator[tuple[Any, ...]]:
    if columns > 1:
        raise InputError(f"not a table: give {', '.join(TABLES)}")
    suffix = suffix_of(path)
    if suffix == ".json" and suffix not in readers:
        raise InputError("a .json file: name it .jsonl if it has one object per line, or give another table")
    if reader := readers.get(suffix):
        yield from ((text,) for text in reader(path))
        return
    with open_utf8(path) as file:
        for line in file:
            try:
                yield (line.decode("utf-8").rstrip("\r\n"),)
            except UnicodeDecodeError as error:
                yield (error,)


def _text_error(value: Any) -> str:
    if isinstance(value, UnicodeDecodeError):
        return f"not UTF-8 at byte {value.start + 1} of the line"
    if not isinstance(value, str | None):
        return f"{type(value).__name__}, not a text"
    return "" if value and value.strip() else "the text is empty"


@dataclass(eq=False)
class PreparedInputs(IterableDataset[dict[str, Any]]):
    """Batches of the inputs of one process, in order: every `world`-th input, starting at `rank`.

    Args:
        inputs: returns a new iterator over the inputs of all processes.
        prepare: a list of raw inputs -> tensors and notes.
        prepare_targets: a list of true values and the prepared inputs -> targets; None: there are none.
        batch_size: inputs per batch.
        rank: number of this process, from 0.
        world: number of processes.
        read: reads an image; see `reader`.

    A batch has `names`, `errors`, `notes` and `paths` (None if it is no file), one per input; `inputs`, the tensors of
    inputs without error, or None if there are none, their `targets`, or None, and the `sizes` of images, width and
    height.
    """

    inputs: Callable[[], Iterator[Input]]
    prepare: Prepare
    prepare_targets: Targets | None
    batch_size: int
    rank: int = 0
    world: int = 1
    read: Callable[[Path], Any] = read_image

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = islice(self.inputs(), self.rank, None, self.world)
        for index, chunk in enumerate(iter(lambda: list(islice(mine, self.batch_size)), [])):
            if index % count == number:
                yield self._batch(chunk)

    def _batch(self, chunk: list[Input], alone: bool = False) -> dict[str, Any]:
        read = [self._read(one, alone) for one in chunk]
        errors = [error for _, error in read]
        good = [value for value, error in read if not error]
        truths = [self._truth(one) for one, error in zip(chunk, errors, strict=True) if not error]
        try:
            inputs, good_notes = self.prepare(good) if good else (None, [])
        except SampleError:
            return self._batch(chunk, alone=True)
        notes = iter(good_notes)
        return {
            "names": [one.name for one in chunk],
            "paths": [one.value if isinstance(one.value, Path) else None for one in chunk],
            "errors": errors,
            "notes": ["" if error else next(notes) for error in errors],
            "inputs": inputs,
            "sizes": [original_size(one) for one in good if isinstance(one, Image.Image)],
            "targets": self.prepare_targets(truths, inputs) if inputs and self.prepare_targets else None,
        }

    def _read(self, one: Input, prepares: bool) -> tuple[Any, str]:
        """The raw input, and why it cannot be used; if `prepares`, also because `prepare` refuses it."""
        value, error = one.value, one.error
        try:
            if isinstance(value, Path) and not error:
                value = self.read(value)
        except UNREADABLE as problem:
            error = (file_error if isinstance(problem, SampleError) else image_error)(one.value, problem)
        try:
            if prepares and not error:
                self.prepare([value])
        except SampleError as problem:
            error = str(problem)
        return value, error

    def _truth(self, one: Input) -> Any:
        if self.prepare_targets is None:
            return None
        try:
            return read_mask(one.truth) if isinstance(one.truth, Path) else one.truth
        except UNREADABLE as problem:
            raise InputError(f"--truth: mask {one.truth}: {image_error(one.truth, problem)}") from problem
