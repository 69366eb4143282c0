"""The file of a search: its keys, its space, and the values of a trial."""

import json
import math
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from src.engine.cli.config import Option, full_option
from src.engine.runs.checkpoint import PATHS
from src.engine.system.classes import flat, nearest, short
from src.engine.system.errors import InputError

KINDS = ("float", "int", "categorical")
DISTRIBUTIONS: dict[str, Any] = dict(
    zip(KINDS, (FloatDistribution, IntDistribution, CategoricalDistribution), strict=True)
)
KNOWN: dict[str, type] = {"options": dict, "space": dict, "n_trials": int}  # keys of a search file, and their types
KNOWN |= dict.fromkeys(("recipe", "sampler", "pruner", "metric", "direction"), str)
# Options that may differ between the trials of a mean, besides paths of the data.
ELSEWHERE = ("accelerator", "default_root_dir", "devices", "enable_progress_bar", "num_workers")
REPEATED = ("seed_everything", "data.fold")  # settings whose values are repetitions: the report gives means


def check_types(spec: dict[str, Any], given: str) -> None:
    """Raise InputError if a key is not known or has a value of another type."""
    if {"model", "data"} & spec.keys():
        raise InputError(
            f"{given} is a recipe: give it with --recipe, and with --config a search file, with the key space"
        )
    for key, value in spec.items():
        if key not in KNOWN:
            raise InputError(f"{given}: {key} is not known{nearest(str(key), KNOWN)}")
        if value is None:
            continue
        if type(value) is not KNOWN[key]:
            raise InputError(f"{given}: {key} {json.dumps(value)}: expected {KNOWN[key].__name__}")
        if key == "n_trials" and spec[key] < 1:
            raise InputError(f"{given}: n_trials {value} is too small: give at least 1")


def check_space(spec: dict[str, Any], given: str) -> None:
    """Raise InputError if the space is missing or has a name without a usable range."""
    space = spec.get("space")
    if not space:
        raise InputError(
            f"{given}: space is missing: give names and ranges, as in {{optimizer.lr: {{float: [1e-4, 0.1]}}}}"
        )
    for name, one in space.items():
        kinds = [kind for kind in KINDS if isinstance(one, dict) and kind in one]
        if len(kinds) != 1:
            raise InputError(f"{given}: {name} needs one of {', '.join(KINDS)}, as in {{float: [0.1, 0.9]}}")
        values = one[kinds[0]]
        if unknown := next((key for key in one if key not in (*KINDS, "log", "step", "when")), None):
            raise InputError(f"{given}: {name}: {unknown} is not known: give {', '.join(KINDS)}, log, step or when")
        if kinds[0] == "categorical":
            if not isinstance(values, list) or not values:
                raise InputError(f"{given}: {name}: categorical needs a list of values")
        else:
            right = (int,) if kinds[0] == "int" else (int, float)
            numbers = isinstance(values, list) and len(values) == 2 and all(type(one) in right for one in values)
            if not numbers or not -math.inf < values[0] <= values[1] < math.inf or (one.get("log") and values[0] <= 0):
                raise InputError(f"{given}: {name}: {values} is not a range of {kinds[0]}: give [lowest, highest]")
            if one.get("log") and "step" in one:
                raise InputError(f"{given}: {name}: give log or step, not both")
            if type(step := one.get("step", 1)) not in right or not 0 < step < math.inf:
                raise InputError(f"{given}: {name}: step {step}: give {kinds[0]} above 0")
        if not isinstance(one.get("when", {}), dict):
            raise InputError(f"{given}: {name}: when {one['when']}: give names and values, as in {{optimizer: AdamW}}")
        for other in one.get("when", {}):
            if other not in space or list(space).index(other) >= list(space).index(name):
                raise InputError(f"{given}: {name}: {other} must be in space, before {name}")
            wanted = one["when"][other]
            if wanted == []:
                raise InputError(f"{given}: {name}: when {other} has no value: give one, or a list of them")
            known = space[other].get("categorical")
            for value in _choices(wanted) if known else ():
                if value not in known:
                    raise InputError(f"{given}: {name}: when {other} is {value!r}, which is not among {short(known)}")


def by_name(options: list[Option]) -> dict[str, str]:
    """The values of command-line options by dotted name, such as `model.net.width`."""
    words = (full_option(flag, value).replace(".init_args", "") for flag, value in options)
    pairs = (word.removeprefix("--").partition("=") for word in words)
    return {name.removesuffix(".class_path"): value for name, _, value in pairs}


def says_where(name: str) -> bool:
    """Whether a setting says where to train, not what."""
    last = name.rpartition(".")[2]
    return last in ELSEWHERE or (name.startswith("data.") and PATHS.search(last) is not None)


def _range(one: dict[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """Kind of a range, and its positional and keyword arguments for Optuna."""
    if "categorical" in one:
        return "categorical", [one["categorical"]], {}
    kind = "int" if "int" in one else "float"
    return kind, one[kind], {key: one[key] for key in ("log", "step") if key in one}


def suggest(trial: Any, space: dict[str, Any]) -> dict[str, Any]:
    """Suggest the values of a trial; names whose `when` does not apply are left out."""
    found: dict[str, Any] = {}
    for name, one in space.items():
        if not _applies(one, found):
            continue
        kind, values, options = _range(one)
        found[name] = getattr(trial, f"suggest_{kind}")(name, *values, **options)
    return found


def first_values(space: dict[str, Any]) -> dict[str, Any]:
    """The first value of each entry that does not depend on another."""
    given = {name: one for name, one in space.items() if not one.get("when")}
    return {name: _first(one) for name, one in given.items()}


def _first(entry: dict[str, Any]) -> Any:
    """The first value of an entry."""
    return next(entry[kind] for kind in KINDS if kind in entry)[0]


def conditional_values(space: dict[str, Any], name: str, alone: bool = False) -> dict[str, Any]:
    """Values of a trial that has an entry: those that its `when` asks for, else the first of each entry.

    `alone`: only of that entry and those that its `when` names.
    """
    wanted: dict[str, Any] = {}
    for one in reversed(list(space)[: list(space).index(name) + 1]):
        if one == name or one in wanted:
            conditions = space[one].get("when", {}).items()
            wanted |= {key: _choices(value)[0] for key, value in conditions}
    found: dict[str, Any] = {}
    for key, one in space.items():
        if _applies(one, found):
            found[key] = wanted.get(key, _first(one))
    return {key: value for key, value in found.items() if not alone or key in {*wanted, name}}


def _choices(wanted: Any) -> list[Any]:
    """What a `when` asks for: one value, which may be null, or a list."""
    return wanted if isinstance(wanted, list) else [wanted]


def _applies(entry: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the values that were found for other entries are those of the entry's `when`."""
    conditions = entry.get("when", {}).items()
    return all(found.get(key) in _choices(value) for key, value in conditions)


def what_is_trained(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe by option name, without those that say where to train."""
    return {name: value for name, value in flat(recipe).items() if not says_where(name)}


def check_same(study: Study, attribute: str, first: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """Refuse trials whose settings `own` differ from those that the study keeps, or from `first` if it keeps none."""
    kept = study.user_attrs.get(attribute)
    before = first if kept is None else json.loads(kept)
    if isinstance(options := before.get("options"), dict):  # a study of before has all of them
        before["options"] = {name: value for name, value in options.items() if not says_where(name)}
    study.set_user_attr(attribute, json.dumps(before))
    for name in {**before, **own}:
        old, new = before.get(name), own.get(name)
        if new not in (old, study.user_attrs.get(name, old)):  # a run may have chosen the metric
            raise InputError(f"{folder} holds trials with {name} {short(old)}, not {short(new)}: give another --name")


def check_choices(study: Study, space: dict[str, Any], folder: Path) -> None:
    """Refuse choices, or kinds of ranges, that differ from those of earlier trials: Optuna would fail in each trial."""
    for name, before in {key: one for trial in study.trials for key, one in trial.distributions.items()}.items():
        if name not in space:
            continue
        kind, values, options = _range(space[name])
        try:
            check_distribution_compatibility(before, DISTRIBUTIONS[kind](*values, **options))
        except ValueError as error:
            choices = f" of {short([*before.choices])}" if hasattr(before, "choices") else ""
            raise InputError(
                f"{folder} holds trials with another type, log or other choices of {name}{choices}: give another --name"
            ) from error


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
