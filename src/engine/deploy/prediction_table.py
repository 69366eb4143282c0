"""Writes predictions to a table, one row per input, in input order."""

import csv
import json
import shutil
import signal
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from src.engine.data.images import flatten, read_image
from src.engine.deploy.inference import NOT_FINITE, Row, is_finite, mask_image
from src.engine.system.errors import InputError
from src.engine.system.interruption import Interrupted, Interruption

SUFFIXES = (".csv", ".jsonl", ".parquet")
ROWS = 8192  # rows per group of a Parquet file
STEM = 200  # largest number of bytes of an input's name in that of its mask or picture
# A dict in a row becomes one column per key: `probabilities` becomes `probability_a`, `probability_b`.
SINGULAR = {"probabilities": "probability", "areas": "area"}
BOX: dict[str, Any] = {"label": "", "score": 0.0, "x1": 0.0, "y1": 0.0, "x2": 0.0, "y2": 0.0}  # columns, with examples


class PredictionTable(Callback):
    """Writes name, predictions, error and note of every input; masks are written as PNG files.

    `boxes` in a prediction become one row per box, and a row without box if there are none.

    Each process writes its share to a temporary folder; at the end the first process merges them into the table.

    Args:
        path: absolute path of the table, .csv, .jsonl or .parquet; the file appears when it is complete. Masks are
            written to the folder PATH_masks, for `out.csv` `out_masks`.
        total: number of inputs, for the progress bar.
        draws: also write images with their boxes, to the folder PATH_pictures.

    `rows` (inputs), `errors` and `notes` are counts, set in the first process at the end.

    Raises:
        InputError: the table has another suffix, or cannot be written.
    """

    def __init__(self, path: Path, total: int | None = None, draws: bool = False) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"--output {path.name}: give a name that ends in {', '.join(SUFFIXES)}")
        self.path = path
        self.masks, self.pictures = (f"{path.stem}_{kind}" for kind in ("masks", "pictures"))
        self.total = total
        self.draws = draws
        self.rows = self.errors = self.notes = 0
        self.first_errors: list[str] = []
        self._check_new()
        self._folder: Path | None = None  # temporary, the same in all processes
        self._part: Any = None
        self._bar: Any = tqdm(disable=True)
        self._seen = 0

    def _check_new(self) -> None:
        for name in (self.path.name, self.masks, self.pictures):
            if self.path.with_name(name).exists():
                raise InputError(f"{self.path.with_name(name)} already exists: give another --output")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Interruption().install()  # Lightning's handler of SIGTERM does not stop a prediction
        name = ""
        with self._write_errors():
            if trainer.is_global_zero:
                name = tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}-")
            self._folder = Path(trainer.strategy.broadcast(name))
            self._part = (self._folder / str(trainer.global_rank)).open("w", encoding="utf-8")
        self._bar = tqdm(
            total=self.total,
            unit=" inputs",
            desc="Predicting",
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
        )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        predicted = iter([] if outputs is None else outputs)
        for name, error, note in zip(batch["names"], batch["errors"], batch["notes"], strict=True):
            values = {} if error else next(predicted)
            error = error or ("" if is_finite(values) else NOT_FINITE)
            columns = {} if error else self._flatten(values, name, trainer)
            row = {"input": _valid(name), **columns, "error": _valid(error), "note": note}
            with self._write_errors():
                self._part.write(json.dumps(row, default=_plain) + "\n")
            self._seen += 1
        self._bar.update(len(batch["names"]) * trainer.world_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._folder is not None
        self._bar.close()
        with self._write_errors():
            self._part.close()
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts = [self._folder / str(rank) for rank in range(trainer.world_size)]
        first = next((row for row in _merged(parts) if not row["error"]), {"input": "", "error": "", "note": ""})
        with self._write_errors():
            _write_table(self._folder / self.path.name, _per_box(first)[0], self._counted(_merged(parts)))
            self._check_new()
            for name in (self.masks, self.pictures, self.path.name):
                if (self._folder / name).exists():
                    (self._folder / name).rename(self.path.with_name(name))
        shutil.rmtree(self._folder, ignore_errors=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._bar.close()
        launcher: Any = trainer.strategy.launcher
        if isinstance(exception, Interrupted) and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGTERM)  # the other processes, which may not have got it
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"--output {self.path} cannot be written ({error.strerror or error}): free some space, or give another"
                " --output"
            ) from error

    def _flatten(self, row: Row, name: str, trainer: Trainer) -> Row:
        """The columns of a row; a mask (H, W) is written to a file."""
        columns: Row = {}
        for key, value in row.items():
            if isinstance(value, dict):
                columns |= {f"{SINGULAR.get(key, key)}_{part}": one for part, one in value.items()}
            elif isinstance(value, Tensor):
                columns[key] = self._save(mask_image(value), self.masks, name, trainer)
            else:
                columns[key] = value
        if self.draws:
            columns["picture"] = self._save(box_image(name, columns["boxes"]), self.pictures, name, trainer)
        if taken := columns.keys() & {"input", "error", "note"}:
            raise InputError(
                f"a prediction is named {taken.pop()}, which is already a column of every table: rename it"
            )
        return columns

    def _save(self, image: Image.Image, folder: str, name: str, trainer: Trainer) -> str:
        """Write an image to a folder; returns its path in the table."""
        assert self._folder is not None
        number = self._seen * trainer.world_size + trainer.global_rank + 1
        stem = _valid(Path(name).stem).encode()[:STEM].decode(errors="ignore")
        file = f"{folder}/{number:06}_{stem}.png"
        with self._write_errors():
            (self._folder / folder).mkdir(exist_ok=True)
            image.save(self._folder / file)
        return file

    def _counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows of the table, from those of the inputs."""
        for row in rows:
            self.rows += 1
            self.errors += bool(row["error"])
            self.notes += bool(row["note"])
            if row["error"] and len(self.first_errors) < 3:
                self.first_errors.append(f"{row['input']}: {row['error']}")
            yield from _per_box(row)


def _valid(name: str) -> str:
    """A file's name that UTF-8 can write: what is not valid in it becomes `\\udce9` or the like."""
    return name.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    """A number or an array of NumPy as Python's; anything else as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _merged(paths: list[Path]) -> Iterator[Row]:
    """The rows of all files, one of each in turn."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        yield from map(json.loads, filter(None, chain.from_iterable(zip_longest(*files))))


def _per_box(row: Row) -> list[Row]:
    """A row for each of its boxes, or one without box; the row itself if it is not of boxes."""
    if "boxes" not in row:
        return [row]
    rest = {name: value for name, value in row.items() if name != "boxes"}
    return [{"input": row["input"], **box, **rest} for box in row["boxes"] or [dict.fromkeys(BOX)]]


def _write_table(path: Path, example: Row, rows: Iterator[Row]) -> None:
    """Write rows to a .csv, .jsonl or .parquet file, with the columns of an example."""
    rows = ({name: row.get(name) for name in example} for row in rows)
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        types = {name: _parquet_type(BOX.get(name) if value is None else value) for name, value in example.items()}
        schema = pa.schema(types)
        with path.open("wb") as binary, parquet.ParquetWriter(binary, schema) as table:
            for group in iter(lambda: list(islice(rows, ROWS)), []):
                table.write_table(pa.Table.from_pylist(group, schema))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(example))
            writer.writeheader()
            writer.writerows({name: _shown(value) for name, value in row.items()} for row in rows)


def box_image(name: str, boxes: list[dict[str, Any]]) -> Image.Image:
    """An image file with boxes drawn on it, each class in a colour of its own."""
    image = flatten(read_image(Path(name).expanduser())).convert("RGB")
    drawing = ImageDraw.Draw(image)
    for box in boxes:
        corners = box["x1"], box["y1"], box["x2"], box["y2"]
        colour = f"hsl({zlib.crc32(box['label'].encode()) % 360}, 90%, 60%)"
        drawing.rectangle(corners, outline=colour, width=max(1, round(max(image.size) / 400)))
        drawing.text(corners[:2], f"{box['label']} {box['score']:.2f}", colour, anchor="lb")
    return image


def _parquet_type(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(_parquet_type(value[0] if value else ""))
    return {float: pa.float32(), int: pa.int64(), bool: pa.bool_()}.get(type(value), pa.string())


def _shown(value: Any) -> Any:
    """A value as a cell of a CSV file; a list is separated by blanks, and text with blanks in it is quoted."""
    if isinstance(value, list):
        return " ".join(f"'{one}'" if " " in str(one) else str(one) for one in value)
    return f"{value:.6g}" if isinstance(value, float) else value
