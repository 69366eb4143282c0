"""Writes predictions to a table, one row per input, in input order."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from src.engine.data.images import flatten, read_image
from src.engine.deploy.inference import NOT_FINITE, is_finite, mask_image
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

    Everything is written to a hidden folder beside the table, and renamed at the end if it is complete. With several
    processes, each writes its share there; at the end the first process merges them.

    Args:
        path: absolute path of the table, .csv, .jsonl or .parquet. Masks are in the folder PATH_masks, for `out.csv`
            `out_masks`.
        total: number of inputs, for the progress bar.
        draws: also write images with their boxes, to the folder PATH_pictures.

    `rows` (inputs), `errors` and `notes` are counts, set in the first process at the end.

    Raises:
        InputError: the table has another suffix, exists at the end, or cannot be written.
    """

    def __init__(self, path: Path, total: int | None = None, draws: bool = False) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"--output {path.name}: give a name that ends in {', '.join(SUFFIXES)}")
        self.path = path
        self.beside = [path.with_name(f"{path.stem}_{kind}") for kind in ("masks", "pictures")]
        for folder in self.beside:
            if folder.exists():
                raise InputError(f"{folder} already exists: give another --output")
        self.total = total
        self.draws = draws
        self.rows = self.errors = self.notes = 0
        self.first_errors: list[str] = []
        self.folder: Any = None  # where all processes write
        self._writer: _Writer | None = None
        self._bar: Any = None
        self._seen = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        made: Any = None
        if trainer.is_global_zero:
            try:
                with _writing(self.path):
                    made = Path(mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
            except InputError as error:
                made = error
        made = trainer.strategy.broadcast(made)
        if isinstance(made, InputError):
            raise made
        is_hidden = not trainer.is_global_zero
        self._bar = tqdm(total=self.total, unit=" inputs", desc="Predicting", dynamic_ncols=True, disable=is_hidden)
        self.folder = made
        Interruption().install()  # Lightning's handler of SIGTERM does not stop a prediction
        own = self._part(trainer.global_rank) if trainer.world_size > 1 else self.folder / self.path.name
        with _writing(self.path):
            self._writer = _Writer(own)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], *_: Any
    ) -> None:
        predicted = iter([] if outputs is None else outputs)
        for name, path, error, note in zip(*(batch[key] for key in ("names", "paths", "errors", "notes")), strict=True):
            values = {} if error else next(predicted)
            error = error or ("" if is_finite(values) else NOT_FINITE)
            columns = {} if error else self._flatten(values, name, path, trainer)
            row = {"input": _valid(name), **columns, "error": _valid(error), "note": note}
            self._write(row, counts=trainer.world_size == 1)
            self._seen += 1
        self._bar.update(len(batch["names"]) * trainer.world_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._writer is not None
        with _writing(self.path):
            self._writer.close()
            self._bar.close()
            trainer.strategy.barrier()
            if not trainer.is_global_zero:
                return
            if trainer.world_size > 1:
                self._writer = _Writer(self.folder / self.path.name)
                with ExitStack() as stack:
                    paths = map(self._part, range(trainer.world_size))
                    parts = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
                    for line in filter(None, chain.from_iterable(zip_longest(*parts))):  # one of each in turn
                        self._write(json.loads(line), counts=True)
                self._writer.close()
            if taken := next((path for path in (self.path, *self.beside) if os.path.lexists(path)), None):
                kept, self.folder = self.folder, None  # not removed
                raise InputError(f"{taken} was written by another run meanwhile: the predictions are in {kept}")
            for folder in self.beside:
                if (written := self.folder / folder.name).exists():
                    written.rename(folder)
            self.path.open("xb").close()  # replaces nothing
            self._writer.path.replace(self.path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.folder is None:
            return
        self._bar.close()
        launcher: Any = trainer.strategy.launcher
        if isinstance(exception, Interrupted) and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGTERM)  # the other processes, which may not have got it
        shutil.rmtree(self.folder, ignore_errors=True)

    def _flatten(self, row: dict[str, Any], name: str, path: Any, trainer: Trainer) -> dict[str, Any]:
        """The columns of a row; a mask (H, W) is written to a file, and boxes are drawn on the image at `path`."""
        columns: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, dict):
                columns |= {f"{SINGULAR.get(key, key)}_{part}": one for part, one in value.items()}
            elif isinstance(value, Tensor):
                columns[key] = self._save(mask_image(value), "masks", name, trainer)
            else:
                columns[key] = value
        if self.draws:
            columns["picture"] = self._save(box_image(path, columns["boxes"]), "pictures", name, trainer)
        if taken := columns.keys() & {"input", "error", "note"}:
            raise InputError(f"a prediction is named {taken.pop()}, like a column of every table: rename it")
        return columns

    def _save(self, image: Image.Image, kind: str, name: str, trainer: Trainer) -> str:
        """Write an image to the folder of its kind; returns its path in the table."""
        number = self._seen * trainer.world_size + trainer.global_rank + 1
        stem = _valid(Path(name).stem).encode()[:STEM].decode(errors="ignore")
        file = Path(f"{self.path.stem}_{kind}", f"{number:06}_{stem}.png")
        with _writing(self.path):
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)  # a process that fails removes it
            image.save(self.folder / file)
        return str(file)

    def _part(self, rank: int) -> Path:
        return Path(self.folder, f"{self.path.name}.{rank}.jsonl")

    def _write(self, row: dict[str, Any], counts: bool) -> None:
        """Write a row of the table, which `counts`, or of the part of one process."""
        assert self._writer is not None
        with _writing(self.path):
            boxes = row.pop("boxes", None) if counts else None
            for box in [{}] if boxes is None else boxes or [dict.fromkeys(BOX)]:
                self._writer.write({"input": row["input"], **box, **row})
        if counts:
            self.rows += 1
            self.errors += bool(row["error"])
            self.notes += bool(row["note"])
            if row["error"] and len(self.first_errors) < 3:
                self.first_errors.append(f"{row['input']}: {row['error']}")


def _valid(name: str) -> str:
    """A file's name that UTF-8 can write: what is not valid in it becomes `\\udce9` or the like."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Writer:
    """Writes rows to a .csv, .jsonl or .parquet file; the first row without error gives the columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.suffix = path.suffix.lower()
        self.columns: list[str] = []
        self.buffer: list[dict[str, Any]] = []  # rows before the columns are known, or before the next group of rows
        self.csv: Any = None
        self.table: Any = None
        self.file = path.open("wb")

    def write(self, row: dict[str, Any]) -> None:
        self.buffer.append(row)
        if not self.columns and not row["error"]:
            self._start(row)
        if self.columns and (self.suffix != ".parquet" or len(self.buffer) == ROWS):
            self._flush()

    def _start(self, row: dict[str, Any]) -> None:
        self.columns = list(row)
        if self.suffix == ".csv":
            self.csv = csv.DictWriter(io.TextIOWrapper(self.file, "utf-8", newline="", write_through=True), row)
            self.csv.writeheader()
        elif self.suffix == ".parquet":
            import pyarrow as pa
            from pyarrow import parquet

            self.schema = pa.schema(
                [(name, _parquet_type(BOX.get(name, value) if value is None else value)) for name, value in row.items()]
            )
            self.table = parquet.ParquetWriter(self.file, self.schema)

    def _flush(self) -> None:
        rows = [{name: row.get(name) for name in self.columns} for row in self.buffer]
        self.buffer = []
        if self.suffix == ".csv":
            self.csv.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
        elif self.suffix == ".jsonl":
            self.file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
        elif rows:
            import pyarrow as pa

            self.table.write_table(pa.Table.from_pylist(rows, self.schema))

    def close(self) -> None:
        if not self.columns:  # no input could be used
            self._start({"input": "", "error": "", "note": ""})
        self._flush()
        if self.table is not None:
            self.table.close()
        self.file.close()


def box_image(path: Path, boxes: list[dict[str, Any]]) -> Image.Image:
    """An image file with boxes drawn on it, each class in a colour of its own."""
    image = flatten(read_image(path, {})).convert("RGB")
    drawing = ImageDraw.Draw(image)
    size = max(12, round(max(image.size) / 60))  # of the letters, in pixels
    for box in boxes:
        corners = box["x1"], box["y1"], box["x2"], box["y2"]
        colour = f"hsl({zlib.crc32(box['label'].encode()) % 360}, 90%, 60%)"
        drawing.rectangle(corners, outline=colour, width=max(1, round(max(image.size) / 400)))
        place = box["x1"], max(box["y1"], size)  # inside of the picture
        drawing.text(place, f"{box['label']} {box['score']:.2f}", colour, anchor="lb", font_size=size)
    return image


def _parquet_type(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(_parquet_type(value[0] if value else ""))
    return {float: pa.float32(), int: pa.int64(), bool: pa.bool_()}.get(type(value), pa.string())


def _shown(value: Any) -> Any:
    """A value as a cell of a CSV file; a list is separated by blanks, and text with blanks in it is quoted."""
    if isinstance(value, list):
        return " ".join(shlex.quote(str(one)) if {*" '\"\\"} & {*str(one)} else str(one) for one in value)
    return f"{value:.6g}" if isinstance(value, float) else value


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"--output {path} cannot be written ({error.strerror or error})"
        raise InputError(f"{reason}: free some space, or give another --output") from error
