"""Shared by the benchmarks: options, alternating measurements, table and results file."""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from src.engine.system.hardware import choose_precision

RESULTS = Path(__file__).with_name("results.json")
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Row:
    """One line of the table.

    Args:
        what: name of the measurement.
        unit: unit of the values.
        ours: values of this project.
        other: name of the baseline.
        theirs: values of the baseline, measured alternately with ours.
        target: target value, in words.
    """

    what: str
    unit: str
    ours: list[float]
    other: str = ""
    theirs: list[float] = field(default_factory=list)
    target: str = ""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)] if self.theirs else []


def parse(description: str, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Parse the common options and those of one benchmark; makes Ctrl-C print one line instead of a traceback."""
    sys.excepthook = _report_exception
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="measured runs of each side; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a short test: one pair, little data")
    parser.add_argument("--results", type=Path, help=f"file to add the results to, such as {RESULTS.name}")
    for name, options in more:
        parser.add_argument(name, **options)
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} is too small: give at least 1")
    if getattr(options, "data_dir", None) and not Path(options.data_dir).is_dir():
        parser.error(f"--data_dir {options.data_dir}: no such folder; leave it out to use the sample")
    if options.results and options.results.exists():
        try:
            json.loads(options.results.read_text(encoding="utf-8"))["rows"]
        except (ValueError, KeyError, TypeError):
            parser.error(f"--results {options.results} has no results: give another file, or remove it")
    if options.quick:
        options.pairs = 1
    return options


def _report_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"{Path(sys.argv[0]).name}: stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def has_domain(domain: str) -> bool:
    """Whether a domain (`vision`, `text` or `multimodal`) has not been deleted."""
    return (ROOT / "src" / domain / "__init__.py").is_file()


DATA_DIR = ("--data_dir", {"help": "folder with the full data; default: the sample"})


def alternate(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> tuple[list[float], list[float]]:
    """Measure both alternately, A B A B ...; the first pair does not count, unless it is the only one."""
    count = pairs + 1 if pairs > 1 else 1
    progress = track(range(count), "pairs", console=Console(stderr=True), transient=True, refresh_per_second=1)
    values = [(ours(), theirs()) for _ in progress][-pairs:]
    return [a for a, _ in values], [b for _, b in values]


def show(rows: list[Row], results: Path | None = None) -> None:
    """Print the rows and add them to a file; one of another machine, precision or other versions is kept beside it."""
    table = Table("what", "unit", "ours", "baseline", "value of baseline", "ratio", "target")
    for row in rows:
        cells = [spread(row.ours), row.other, spread(row.theirs), spread(row.ratios)]
        table.add_row(row.what, row.unit, *cells, row.target)
    Console(width=160).print(table)
    if results is None:
        return
    known = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    if known.get("machine") != describe():
        if known:
            paths = (results.with_stem(f"{results.stem}_{number}") for number in itertools.count(1))
            kept = next(path for path in paths if not path.exists())
            results.rename(kept)
            print(f"{results} had results of another machine or other versions: they are now in {kept}")
        known = {**known, "machine": describe(), "rows": {}}
    for row in rows:
        known["rows"][row.what] = {
            "date": date.today().isoformat(),
            "unit": row.unit,
            "ours": row.ours,
            "beside": row.other,
            "theirs": row.theirs,
            "ratio": row.ratios,
            "asked for": row.target,
        }
    results.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def spread(values: list[float]) -> str:
    """Median and range."""
    if not values:
        return ""
    median = statistics.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2 if median >= 2 else 4
    text = f"{median:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def describe() -> dict[str, Any]:
    """Hardware and versions of this machine."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "capabilities": torch.backends.cpu.get_cpu_capability(),
        "precision": choose_precision("cpu")[0],
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
