"""What differs between runs, with a picture of their curves; runs of a folder, sorted by a metric. Without torch."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from src import ROOT
from src.engine.cli.command import command_parser, new_output, parse_words
from src.engine.runs.checkpoint import configuration_files
from src.engine.system.classes import flat, nearest
from src.engine.system.errors import InputError
from src.engine.system.metric_names import STAGE, final_names, shown, stage_of

MAX_POINTS = 2000  # of a curve
LOWER = {"loss", "error", "err", "mae", "mse", "rmse", "mape", "nll", "perplexity", "seconds", "mb", "wer", "cer"}
HIGHER = {"acc", "accuracy", "f1", "auc", "auroc", "ap", "map", "map50", "iou", "miou", "dice", "r2", "recall", "kappa"}
HIGHER |= {"precision", "bleu", "second"}

Curve = tuple[list[int], list[float]]  # steps and values


@dataclass
class PastRun:
    """A run folder on the disk; `problem` says why it is unfinished or broken: a broken one has no settings."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        """The path, relative to the working directory if it is in it."""
        return os.path.relpath(self.folder) if self.folder.is_relative_to(Path.cwd()) else str(self.folder)


def compare(args: list[str]) -> int:
    """Print the table, and write the picture; return the exit code.

    Raises:
        InputError: there are not two runs to compare, none has the metric, or the picture cannot be written.
    """
    options = _parse(args)
    if options.best:
        _print_best(options.best, options.mode, [find_folder(given) for given in options.runs or [ROOT / "logs"]])
        return 0
    named = Path(options.output) if options.output else None
    output = new_output("--output", str(named if named.suffix else f"{named}.png")) if named else None
    runs = [read_run(find_folder(given)) for given in options.runs]
    for run in runs:
        if not run.settings:
            raise InputError(f"{run.name} is {run.problem}: give a run folder such as logs/default/version_0")
    _print_differences(runs)
    for run in runs:
        if run.problem:
            print(f"{run.name} is {run.problem}")
    path = _draw(runs, output)
    print(f"curves: {path}" if path else "no curves: TensorBoard has no metric of training or validation of these runs")
    return 0


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.compare", "What differs between runs: settings, results and curves.")
    parser.add_argument("runs", nargs="*", help="run folders; with --best folders to search (default: logs)")
    parser.add_argument(
        "--best", metavar="METRIC", help="list all runs in the folders, best first, as in --best val/acc"
    )
    default = "as the runs chose their best checkpoint, else by the metric's name"
    parser.add_argument("--mode", choices=["min", "max"], help=f"which value is best (default: {default})")
    parser.add_argument("--output", help="picture of the curves (default: the next free logs/compare_N.png)")
    options = parse_words(parser, args)
    if options.best and options.output:
        raise InputError(f"--output {options.output}: --best draws no picture")
    if options.mode and not options.best:
        raise InputError(f"--mode {options.mode} needs --best and a metric, as in --best val/acc")
    if not options.best and len(options.runs) < 2:
        count = "only one run" if options.runs else "nothing"
        raise InputError(f"{count} to compare: give at least two run folders, or --best, as in --best val/acc logs")
    return options


def _print_differences(runs: Sequence[PastRun]) -> None:
    settings = list(dict.fromkeys(name for run in runs for name in run.settings))
    results = final_names({name for run in runs for name in run.metrics})
    rows = _differing(settings, [run.settings for run in runs], str)
    more = _differing(results, [run.metrics for run in runs], shown)
    head = ["", *(run.name for run in runs)]
    _print_table(head, rows or [["(no setting differs)"]], more or [["(no result differs)"]])


def _differing(names: Sequence[str], runs: Sequence[dict[str, Any]], show: Callable[[Any], str]) -> list[list[str]]:
    """A row for each name whose values differ."""
    found = {name: [run.get(name, "") for run in runs] for name in names}
    return [[name, *map(show, values)] for name, values in found.items() if len({*map(repr, values)}) > 1]


def _print_best(metric: str, mode: str | None, folders: list[Path]) -> None:
    own = ([folder] if (folder / "config.yaml").is_file() else runs_in(folder) for folder in folders)
    runs = [read_run(path) for paths in own for path in paths]
    if not runs:
        raise InputError(f"{', '.join(map(str, folders))}: no run in it; train one first with python -m src.train")
    numbers = [{name: one for name, one in run.metrics.items() if isinstance(one, float | int)} for run in runs]
    having = [run for run, own in zip(runs, numbers, strict=True) if math.isfinite(own.get(metric, math.nan))]
    if not having:
        known = final_names({name for own in numbers for name in own})
        hint = nearest(metric, known) or f"; they have {', '.join(known) or 'no metric'}"
        raise InputError(f"--best {metric}: no run has it{hint}")
    mode = mode or _mode(metric, having)
    having.sort(key=lambda run: run.metrics[metric], reverse=mode == "max")
    best = "lowest" if mode == "min" else "highest"
    rows = []
    for run in having:
        values = [shown(run.metrics.get(name, "")) for name in (metric, "best_epoch")]
        rows.append([*values, run.name, run.problem.partition(":")[0]])
    _print_table([f"{metric} ({best} first)", "best epoch", "run", ""], rows)
    for run in (run for run in runs if run not in having):
        lack = f"has {metric} {run.metrics[metric]}" if metric in run.metrics else f"has no {metric}"
        print(f"{run.name} {f'is {run.problem}' if run.problem else lack}")


def _mode(metric: str, runs: Sequence[PastRun]) -> str:
    """Whether `min` or `max` is the best: as the runs chose their best checkpoint, else by the name of the metric."""
    words = set(re.split(r"[\W_]+", metric.lower()))
    chosen = (run.settings for run in runs if run.settings.get("checkpoint.monitor") == metric)
    modes = {str(settings.get("checkpoint.mode")) for settings in chosen}
    modes = modes or ({"min"} if words & LOWER else set()) | ({"max"} if words & HIGHER else set())
    if len(modes) != 1 or not modes <= {"min", "max"}:
        raise InputError(f"--best {metric}: is the lowest or the highest value the best? give --mode min or --mode max")
    return modes.pop()


def _print_table(head: list[str], *parts: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console  # lazy import: keeps --help fast
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE_HEAD)
    for part in parts:
        for row in part:
            table.add_row(*row)
        table.add_section()
    # Not folded to 80 columns in a pipe or file, so that it can be searched.
    Console(width=None if sys.stdout.isatty() else 1000, markup=False, highlight=False).print(table)


def _draw(runs: Sequence[PastRun], output: Path | None) -> Path | None:
    """Draw the curves, one plot per metric, a colour per run: solid for validation, dashed for training."""
    found = [curves(run.folder) for run in runs]
    logged = {name: stage_of(name) for one in found for name in one if not name.startswith("final/")}
    plots: dict[str, list[str]] = {}
    for name, stage in logged.items():
        is_whole = not name.endswith("_step") or name.removesuffix("_step") not in logged
        if stage in ("train", "val") and is_whole:
            plots.setdefault(STAGE.sub("", name).strip("/_- "), []).append(name)
    shown = sorted(plots, key=lambda plot: all(logged[name] == "train" for name in plots[plot]))
    if not shown:
        return None
    from matplotlib.figure import Figure  # lazy import: keeps --help fast

    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * lines + 0.3 * len(runs)), layout="constrained")
    for number, plot in enumerate(shown):
        axes = figure.add_subplot(lines, columns, number + 1, title=plot, xlabel="step")
        for index, (run, own) in enumerate(zip(runs, found, strict=True)):
            for name in (name for name in plots[plot] if name in own):
                is_training = logged[name] == "train"
                style = {"linestyle": "--" if is_training else "-", "marker": "." if len(own[name][0]) < 20 else ""}
                label = "" if is_training and len(plots[plot]) > 1 else run.name
                axes.plot(*own[name], color=f"C{index % 10}", linewidth=1, label=label, **style)  # type: ignore[arg-type]
    legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes[::-1]]
    handles = {text: line for legend in legends for line, text in legend}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", title="dashed: training")
    folder = ROOT / "logs"
    try:
        folder.mkdir(exist_ok=True)
        path = output or _free_path(folder)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f"{output or folder} cannot be written ({error.strerror}): give another --output") from error
    except ValueError as error:  # of another format
        reason = str(error).partition(" (")[0]
        raise InputError(f"--output {output}: {reason}: give a name that ends with .png") from error
    return path


def _free_path(folder: Path) -> Path:
    """A new empty file `compare_N.png`."""
    for number in count():
        path = folder / f"compare_{number}.png"
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            break
    return path


def read_run(folder: Path) -> PastRun:
    """Read the newest configuration and the metrics of a run."""
    run = PastRun(folder.absolute())
    tree, problem = _read([folder / "config.yaml", *configuration_files(folder)][-1], yaml.safe_load)
    if not problem:
        run.settings = flat(tree)
        run.metrics, problem = _read(folder / "metrics.json", json.loads)
    if problem == "it has no metrics.json":
        run.problem = "unfinished: it has no metrics yet"
    elif problem:
        run.problem = f"broken: {problem}"
    elif "total_seconds" not in run.metrics:
        run.problem = "unfinished: its metrics are those of its last validation"
    return run


def _read(path: Path, parse: Callable[[str], Any]) -> tuple[dict[str, Any], str]:
    """The content of a file, and what is wrong with it ("" if nothing)."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, f"it has no {path.name}"
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:100]
        return {}, f"{path.name} cannot be read ({reason})"
    return (found, "") if found and isinstance(found, dict) else ({}, f"{path.name} holds no names and values")


def runs_in(folder: Path) -> Iterator[Path]:
    """The run folders, `version_N`, in a folder and its subfolders, sorted."""
    for path in sorted(
        folder.iterdir(), key=lambda path: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", path.name)]
    ):
        if path.is_dir() and not path.is_symlink():
            if re.fullmatch(r"version_\d+", path.name):
                yield path
            else:
                yield from runs_in(path)


def curves(folder: Path) -> dict[str, Curve]:
    """The curves that a run has logged to TensorBoard, by name."""
    from tensorboard.backend.event_processing import event_accumulator  # lazy import: keeps --help fast

    most = {"scalars": MAX_POINTS, "tensors": 1, "images": 1}
    events = event_accumulator.EventAccumulator(str(folder), size_guidance=most)
    events.Reload()
    found = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {name: ([one.step for one in points], [one.value for one in points]) for name, points in found.items()}


def find_folder(given: str) -> Path:
    """A folder that a user names; raises InputError if there is none."""
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise InputError(f"{given}: no such folder; give one such as logs/default/version_0")
    return folder
