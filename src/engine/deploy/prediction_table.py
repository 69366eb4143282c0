"""Writes predictions to a table, one row per input, in input order."""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from src.engine.system.errors import InputError

SUFFIXES = (".csv", ".jsonl", ".parquet")
ROWS = 8192  # rows per group of a Parquet file


class PredictionTable(Callback):
    """Writes name, label, class probabilities, error and note of every input.

    With several processes, each writes its share to a temporary file; at the end the first process merges them.

    Args:
        path: absolute path of the table, .csv, .jsonl or .parquet; the file appears when it is complete.
        labels: names of the classes, in the order of the probabilities.
        total: number of inputs, for the progress bar.

    `rows`, `errors` and `notes` are counts, set in the first process at the end.

    Raises:
        InputError: the table has another suffix, or cannot be written.
    """

    def __init__(self, path: Path, labels: list[str], total: int | None = None) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"--output {path.name}: give a name that ends in {', '.join(SUFFIXES)}")
        self.path = path
        self.names = [f"probability_{label}" for label in labels]
        self.labels = labels
        self.total = total
        self.rows = self.errors = self.notes = 0
        self.first_errors: list[str] = []
        self._writer: _Writer | None = None
        self._bar: Any = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        suffix = self.path.suffix.lower() if trainer.world_size == 1 else ".jsonl"
        self._writer = _Writer(self._part(trainer.global_rank), suffix, self.names)
        if trainer.is_global_zero:
            self._bar = tqdm(total=self.total, unit=" inputs", desc="Predicting", dynamic_ncols=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._writer is not None
        probabilities = iter([] if outputs is None else outputs.float().cpu().tolist())
        likeliest = iter([] if outputs is None else outputs.argmax(dim=1).tolist())
        for name, error, note in zip(batch["names"], batch["errors"], batch["notes"], strict=True):
            values = [None] * len(self.names) if error else next(probabilities)
            label = None if error else self.labels[next(likeliest)]
            row = {"input": name, "label": label, **dict(zip(self.names, values, strict=True))}
            self._write(self._writer, {**row, "error": error, "note": note}, counts=trainer.world_size == 1)
        if self._bar is not None:
            self._bar.update(len(batch["names"]) * trainer.world_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._writer is not None
        self._writer.close()
        if self._bar is not None:
            self._bar.close()
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        try:
            if trainer.world_size > 1:
                whole = self.path.with_name(f".{self.path.name}.whole")
                self._writer = _Writer(whole, self.path.suffix.lower(), self.names)
                for row in _merged_rows([self._part(rank) for rank in range(trainer.world_size)]):
                    self._write(self._writer, row, counts=True)
                self._writer.close()
            _rename_new(self._writer.path, self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        finally:
            self.remove_parts(trainer.world_size)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
        self.remove_parts(trainer.world_size)

    def remove_parts(self, world: int) -> None:
        """Remove the temporary files of all processes."""
        whole = self.path.with_name(f".{self.path.name}.whole")
        for path in (whole, *(self._part(rank) for rank in range(world))):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.{rank}")

    def _write(self, writer: "_Writer", row: dict[str, Any], counts: bool) -> None:
        try:
            writer.write(row)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if counts:
            self.rows += 1
            self.errors += bool(row["error"])
            self.notes += bool(row["note"])
            if row["error"] and len(self.first_errors) < 3:
                self.first_errors.append(f"{row['input']}: {row['error']}")


class _Writer:
    """Writes rows to a .csv, .jsonl or .parquet file."""

    def __init__(self, path: Path, suffix: str, probabilities: list[str]) -> None:
        self.path = path
        self.suffix = suffix
        self.columns = ["input", "label", *probabilities, "error", "note"]
        self.buffer: list[dict[str, Any]] = []
        try:
            if suffix == ".parquet":
                import pyarrow as pa
                from pyarrow import parquet

                types = [pa.float32() if name in probabilities else pa.string() for name in self.columns]
                self.schema = pa.schema(zip(self.columns, types, strict=True))
                self.table = parquet.ParquetWriter(path, self.schema)
            else:
                self.file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise _unwritable(path, error) from error
        if suffix == ".csv":
            self.csv = csv.DictWriter(self.file, self.columns)
            self.csv.writeheader()

    def write(self, row: dict[str, Any]) -> None:
        if self.suffix == ".csv":
            self.csv.writerow(
                {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
            )
        elif self.suffix == ".jsonl":
            self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            self.buffer.append(row)
            if len(self.buffer) == ROWS:
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self.table.write_table(pa.Table.from_pylist(self.buffer, self.schema))
        self.buffer = []

    def close(self) -> None:
        try:
            if self.suffix == ".parquet":
                self._flush()
                self.table.close()
            else:
                self.file.close()
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _merged_rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of all files, one of each in turn."""
    files = [path.open(encoding="utf-8") for path in paths]
    try:
        while True:
            for file in files:
                line = file.readline()
                if not line:
                    return
                yield json.loads(line)
    finally:
        for file in files:
            file.close()


def _rename_new(source: Path, target: Path) -> None:
    """Rename a file, replacing nothing.

    Raises:
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("xb"):
            pass
        source.replace(target)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"--output {path} cannot be written ({error.strerror or error}): free space, or give another")
