"""The file of a search: its keys, its space, and the values of a trial."""

import json
import math
from pathlib import Path
from typing import Any

from optuna import Study, distributions

from src.engine.cli.config import Option, full_option
from src.engine.runs.checkpoint import PATHS
from src.engine.system.classes import nearest, short
from src.engine.system.errors import InputError

KINDS = ("float", "int", "categorical")
KNOWN: dict[str, type] = {"options": dict, "space": dict, "n_trials": int}  # keys of a search file, and their types
KNOWN |= dict.fromkeys(("recipe", "sampler", "pruner", "metric", "direction"), str)
# Options that may differ between the trials of a mean, besides paths of the data.
ELSEWHERE = ("accelerator", "default_root_dir", "devices", "enable_progress_bar", "num_workers")
REPEATED = ("seed_everything", "data.fold")  # settings whose values are repetitions: the report gives means


def check_spec(spec: dict[str, Any], given: str) -> None:
    """Raise InputError if a key is not known, has a value of another type, or the space has no usable range."""
    if {"model", "data"} & spec.keys():
        raise InputError(f"{given} is a recipe: give it with --recipe, and with --config a search file with a space")
    for key, value in spec.items():
        if key not in KNOWN:
            raise InputError(f"{given}: {key} is not known{nearest(str(key), KNOWN)}")
        if value is not None and type(value) is not KNOWN[key]:
            raise InputError(f"{given}: {key} {json.dumps(value)}: expected {KNOWN[key].__name__}")
    if (trials := spec.get("n_trials")) is not None and trials < 1:
        raise InputError(f"{given}: n_trials {trials} is too small: give at least 1")
    space = spec.get("space")
    if not space:
        example = "{optimizer.lr: {float: [1e-4, 0.1]}}"
        raise InputError(f"{given}: space is missing: give names and ranges, as in {example}")
    before: dict[str, Any] = {}
    for name, one in space.items():
        _check_entry(one, before, f"{given}: {name}")
        before[name] = one


def _check_entry(entry: Any, before: dict[str, Any], given: str) -> None:
    """Raise InputError if an entry of a space is not a range, or depends on others than those before it."""
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        raise InputError(f"{given} needs one of {', '.join(KINDS)}, as in {{float: [0.1, 0.9]}}")
    if unknown := next((key for key in entry if key not in (*KINDS, "log", "step", "when")), None):
        raise InputError(f"{given}: {unknown} is not known: give {', '.join(KINDS)}, log, step or when")
    kind, values, step = kinds[0], entry[kinds[0]], entry.get("step", 1)
    if kind == "categorical":
        if not isinstance(values, list) or not values:
            raise InputError(f"{given}: categorical needs a list of values")
    else:
        numbers: list[Any] = [*values, step] if isinstance(values, list) and len(values) == 2 else [None]
        right = (int,) if kind == "int" else (int, float)
        if not all(type(one) in right and -math.inf < one < math.inf for one in numbers):
            raise InputError(f"{given}: {values} is not a range of {kind}: give [lowest, highest], and a step above 0")
        try:
            _distribution(entry)
        except (ValueError, ArithmeticError) as error:
            raise InputError(f"{given}: {values} is not a range of {kind}: {error}") from error
    when = entry.get("when", {})
    if not isinstance(when, dict):
        raise InputError(f"{given}: when {when}: give names and values, as in {{optimizer: AdamW}}")
    for other, wanted in when.items():
        if other not in before:
            raise InputError(f"{given}: {other} must be in space, before {given.rpartition(' ')[2]}")
        if wanted == []:
            raise InputError(f"{given}: when {other} has no value: give one, or a list of them")
        known = before[other].get("categorical")
        if known and (wrong := [value for value in _choices(wanted) if value not in known]):
            raise InputError(f"{given}: when {other} is {wrong[0]!r}, which is not among {short(known)}")


def by_name(options: list[Option]) -> dict[str, str]:
    """The values of command-line options by dotted name, such as `model.net.width`."""
    words = (full_option(flag, value).replace(".init_args", "") for flag, value in options)
    pairs = (word.removeprefix("--").partition("=") for word in words)
    return {name.removesuffix(".class_path"): value for name, _, value in pairs}


def what_is_trained(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, without those that say where to train."""

    def says_where(name: str) -> bool:
        last = name.rpartition(".")[2]
        return last in ELSEWHERE or (name.startswith("data.") and PATHS.search(last) is not None)

    return {name: value for name, value in settings.items() if not says_where(name)}


def _kind(entry: dict[str, Any]) -> str:
    return next(kind for kind in KINDS if kind in entry)


def _range(entry: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments of a range for Optuna."""
    if "categorical" in entry:
        return [entry["categorical"]], {}
    return entry[_kind(entry)], {key: entry[key] for key in ("log", "step") if key in entry}


def _distribution(entry: dict[str, Any]) -> Any:
    values, options = _range(entry)
    return getattr(distributions, f"{_kind(entry).title()}Distribution")(*values, **options)


def suggest(trial: Any, space: dict[str, Any]) -> dict[str, Any]:
    """Suggest the values of a trial; names whose `when` does not apply are left out."""
    found: dict[str, Any] = {}
    for name, entry in space.items():
        if _applies(entry, found):
            values, options = _range(entry)
            found[name] = getattr(trial, f"suggest_{_kind(entry)}")(name, *values, **options)
    return found


def values_with(space: dict[str, Any], name: str, alone: bool = False) -> dict[str, Any]:
    """Values of a trial that has an entry: those that its `when` asks for, else the first of each entry.

    `alone`: only of that entry and those that its `when` names.
    """
    wanted: dict[str, Any] = {}
    for one in reversed(list(space)[: list(space).index(name) + 1]):
        if one == name or one in wanted:
            wanted |= {key: _choices(value)[0] for key, value in space[one].get("when", {}).items()}
    found: dict[str, Any] = {}
    for key, entry in space.items():
        if _applies(entry, found):
            found[key] = wanted.get(key, entry[_kind(entry)][0])
    return {key: value for key, value in found.items() if not alone or key in {*wanted, name}}


def _choices(wanted: Any) -> list[Any]:
    """What a `when` asks for: one value, which may be null, or a list."""
    return wanted if isinstance(wanted, list) else [wanted]


def _applies(entry: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the values that were found for other entries are those of the entry's `when`."""
    return all(found.get(key) in _choices(value) for key, value in entry.get("when", {}).items())


def check_same(study: Study, attribute: str, own: dict[str, Any], folder: Path) -> None:
    """Refuse trials whose settings `own` differ from those that the study keeps; a new study keeps these."""
    kept = study.user_attrs.get(attribute)
    before = own if kept is None else json.loads(kept)
    if isinstance(options := before.get("options"), dict):  # a study of before has all of them
        before["options"] = what_is_trained(options)
    study.set_user_attr(attribute, json.dumps(before))
    for name in {**before, **own}:
        old, new = before.get(name), own.get(name)
        if new not in (old, study.user_attrs.get(name, old)):  # a run may have chosen the metric
            raise InputError(f"{folder} holds trials with {name} {short(old)}, not {short(new)}: give another --name")


def check_choices(study: Study, space: dict[str, Any], folder: Path) -> None:
    """Refuse choices, or kinds of ranges, that differ from those of earlier trials: Optuna would fail in each trial."""
    earlier = {name: one for trial in study.trials for name, one in trial.distributions.items()}
    for name, before in ((name, one) for name, one in earlier.items() if name in space):
        try:
            distributions.check_distribution_compatibility(before, _distribution(space[name]))
        except ValueError as error:
            other = f"another type, log or other choices of {name}"
            choices = f" of {short([*before.choices])}" if hasattr(before, "choices") else ""
            raise InputError(f"{folder} holds trials with {other}{choices}: give another --name") from error


def metric_and_direction(spec: dict[str, Any], checkpoint: Any, given: str) -> tuple[str, Any]:
    """Metric and direction of a search. Default: those that select the recipe's best checkpoint."""
    directions = {"min": "minimize", "max": "maximize"}
    metric, direction = spec.get("metric") or checkpoint.monitor, spec.get("direction")
    if not metric:
        raise InputError(f"{given}: the recipe's checkpoint has no monitor: give metric and direction")
    if direction is None and metric == checkpoint.monitor:
        direction = directions[checkpoint.mode]
    if direction not in directions.values():
        problem = "is missing" if direction is None else f"{direction} is not known"
        raise InputError(f"{given}: direction {problem}: give minimize or maximize for {metric}")
    return metric, direction
