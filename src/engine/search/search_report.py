"""Results of a search."""

import html
import math
import shlex
import statistics
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from src import ROOT
from src.engine.cli.saved_config import dump
from src.engine.runs.run_record import read_metrics, without_password
from src.engine.search.search import DONE, Search, trials_of
from src.engine.search.space import REPEATED
from src.engine.system.metric_names import final_names, shown, stage_of

MIN_TRIALS = 20  # complete ones, for the importance of options


def finish(search: Search, signum: int) -> int:
    """Print the results and, after a signal, the command that continues the search; return the exit code."""
    if signum or search.is_broken:
        reason = " by the error of the last trial" if search.is_broken else ""
        words = without_password(shlex.join(sys.argv[1:]))
        print(f"stopped{reason}; continue with: python -m src.tune {words}", file=sys.stderr)
    _print_results(search)
    if signum:
        return 128 + signum
    return 0 if not search.is_broken and trials_of(search, (TrialState.COMPLETE, TrialState.PRUNED)) else 1


def _print_results(search: Search) -> None:
    """Print the best five trials and importances; write `best.yaml` and plots."""
    console = Console(width=None if sys.stdout.isatty() else 1000, markup=False)
    trials = trials_of(search)
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    counts = {state: sum(trial.state == state for trial in trials) for state in (*DONE, TrialState.RUNNING)}
    console.print(", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count) or "no trials")
    if not ended:
        return
    ended.sort(key=lambda trial: _cost(search, [trial]))
    table = Table("trial", search.study.user_attrs.get("metric", search.metric), *search.spec["space"], "run")
    for trial in ended[:5]:
        params = (str(trial.params.get(name, "")) for name in search.spec["space"])
        table.add_row(str(trial.number), shown(trial.value), *params, trial.user_attrs.get("run", ""))
    console.print(table)
    choices = _choices(search, ended) if {*REPEATED} & search.spec["space"].keys() else []
    for summary in _means(search, choices) if choices else ():
        console.print(summary)
    # Of fewer trials, or equal ones, importances would say nothing, and of one option always 1.
    if len(ended) >= MIN_TRIALS and len({trial.value for trial in ended}) > 1:
        with suppress(Exception):
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importances = optuna.importance.get_param_importances(search.study, evaluator=evaluator)
            names = [name for name in importances if name not in REPEATED]
            for name in names if len(names) > 1 else ():
                console.print(f"importance {name} {importances[name]:.2f}")
    best = choices[0][1][0] if choices else ended[0]
    with suppress(OSError):
        text = best.user_attrs.get("config") or Path(best.user_attrs["run"], "config.yaml").read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        if "data.fold" in search.spec["space"]:
            tree["data"]["init_args"].pop("fold", None)
        tree["name"] = f"{search.folder.name}-best"
        parent = search.folder.parent
        tree["trainer"]["default_root_dir"] = None if parent == ROOT / "logs" else str(parent)
        (search.folder / "best.yaml").write_text(f"# The best choice of a search.\n{dump(tree)}")
        command = f"python -m src.train --config {shlex.quote(str(search.folder / 'best.yaml'))}"
        console.print(f"train the best choice: {command}", soft_wrap=True, markup=False, highlight=False)
    _plot(search, console)


def _choices(search: Search, trials: list[Any]) -> list[tuple[str, list[Any]]]:
    """Trials grouped by all settings except seed and fold, best mean first; those without all seeds and folds last."""
    groups: dict[str, list[Any]] = {}
    for trial in trials:
        choice = ", ".join(f"{name} {value}" for name, value in trial.params.items() if name not in REPEATED)
        group = groups.setdefault(choice, [])
        if all(trial.params != other.params for other in group):  # a grid repeats those whose `when` does not apply
            group.append(trial)
    # A seed with which training diverges must not make a mean better.
    return sorted(groups.items(), key=lambda one: (-len(one[1]), _cost(search, one[1])))


def _cost(search: Search, trials: list[Any]) -> float:
    """The mean value of trials, negative if the highest is the best."""
    mean = statistics.mean(trial.value for trial in trials)
    return -mean if search.study.direction == optuna.study.StudyDirection.MAXIMIZE else mean


def _means(search: Search, choices: list[tuple[str, list[Any]]]) -> Iterator[str]:
    """Mean and standard deviation of each metric over seeds and folds, for each choice of the other settings."""
    metric = search.study.user_attrs.get("metric", search.metric)
    space = search.spec["space"]
    sizes = {name: len(one["categorical"]) for name, one in space.items()}
    is_whole = search.spec["n_trials"] >= math.prod(sizes.values())
    wanted = math.prod(size for name, size in sizes.items() if name in REPEATED) if is_whole else 0
    for others, group in choices:
        attributes = [trial.user_attrs for trial in sorted(group, key=lambda one: one.number)]
        # Stored with the trial, because another machine may have a run in a folder of the same name.
        found = [one.get("metrics") or read_metrics(Path(one["run"])) for one in attributes]
        names = [name for name in final_names(found[0]) if stage_of(name)]
        for name in (metric, *(name for name in names if name != metric)):
            if values := [one[name] for one in found if isinstance(one.get(name), float)]:
                deviation = f", standard deviation {shown(statistics.stdev(values))}" if len(values) > 1 else ""
                runs = f"{len(values)}{f' of {wanted}' if len(values) < wanted else ''} runs"
                text = f"{name}: mean {shown(statistics.mean(values))}{deviation}, {runs}"
                yield f"{f'{others}, ' if others else ''}{text}: {', '.join(map(shown, values))}"


def _plot(search: Search, console: Console) -> None:
    from optuna import visualization

    parts: list[str] = []
    warnings.filterwarnings("ignore", module="optuna.*")
    for name in ("optimization_history", "intermediate_values", "parallel_coordinate", "slice"):
        with suppress(Exception):  # not every plot works for every study
            figure = getattr(visualization, f"plot_{name}")(search.study)
            parts.append(figure.to_html(full_html=False, include_plotlyjs="inline" if not parts else False))
    title = html.escape(search.folder.name)
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{''.join(parts)}"
    with suppress(OSError):  # the disk may be full
        (search.folder / "study.html").write_text(page, encoding="utf-8")
        console.print(f"plots: {search.folder / 'study.html'}")
