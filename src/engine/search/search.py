"""An Optuna study whose trials are ordinary training runs."""

import argparse
import inspect
import json
import math
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from src import ROOT
from src.engine.cli import config
from src.engine.cli.cli import StarterCLI
from src.engine.runs.run_record import without_password
from src.engine.runs.runs import TRIALS, runs_of
from src.engine.search.space import (
    REPEATED,
    by_name,
    check_choices,
    check_same,
    check_spec,
    metric_and_direction,
    values_with,
    what_is_trained,
)
from src.engine.system.addresses import is_address
from src.engine.system.classes import flat, nearest
from src.engine.system.errors import InputError
from src.engine.system.hooks import bare_flags, hooks
from src.engine.system.metric_names import stage_of
from src.engine.system.quiet import silence_known_warnings

# Optuna's default reduction factor of 4 prunes most trials at their first report.
ARGUMENTS = {"SuccessiveHalvingPruner": {"min_resource": 1, "reduction_factor": 2}}
HEARTBEAT = 30  # seconds between heartbeats; a trial is lost after twice as long without one
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class _Grid(optuna.samplers.GridSampler):
    """Optuna's GridSampler, without its error when the last trial is a retry of a broken one."""

    def after_trial(self, *_: Any) -> None:
        """Leave it to the search when to stop."""


@dataclass
class Search:
    """A search, from its file and the command line, and its study."""

    options: argparse.Namespace
    spec: dict[str, Any]
    folder: Path
    study: optuna.Study
    metric: str
    is_over: bool = False
    is_broken: bool = False
    """Whether the machine made it stop."""


def open_search(options: argparse.Namespace, probes: bool = True) -> Search:
    """Read a search; open its study, or create it. `probes`: check each name by building a run, as workers need not.

    Raises:
        InputError: a name or range of the search is invalid, or the study cannot be opened.
    """
    silence_known_warnings()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats, plots
    path, spec = config.load_config(options.config, dotted=True)
    check_spec(spec, options.config)
    spec = {name: value for name, value in spec.items() if value is not None}  # null: as if left out
    spec = {"recipe": "configs/default.yaml", "options": {}, "n_trials": 30, **spec}
    spec |= {name: value for name in ("recipe", "n_trials", "sampler", "pruner") if (value := getattr(options, name))}
    given = by_name(options.more)
    if any(name.removeprefix("trainer.") == "fast_dev_run" for name in {**spec["options"], **given}):
        instead = "--name quick --n_trials 1 --trainer.limit_train_batches 2"
        raise InputError(f"--fast_dev_run: a trial needs its run folder: for a quick check give {instead}")
    searched = by_name([(f"--{name}", "") for name in spec["space"]])
    if both := next((name for name in given if name in searched), None):
        raise InputError(f"--{both}: {options.config} searches it: remove it there, or from the command line")
    try:
        recipe = config.load_config(spec["recipe"])[1]
    except InputError as error:
        where = "--recipe " if options.recipe else f"{options.config}: recipe: "
        raise InputError(f"{where}{str(error).removeprefix('--config ')}") from error
    devices = (recipe.get("trainer") or {}).get("devices")
    is_one = isinstance(devices, list) and len(devices) == 1 and "trainer.accelerator" not in given
    spec["more"] = options.more
    spec["first"] = [] if is_one else ["--trainer.devices=1"]  # options may say which device
    cli = build_run(spec, {})  # report errors before the first trial
    root = cli.config.trainer.default_root_dir or ROOT / "logs"
    if is_address(root):
        raise InputError(f"--trainer.default_root_dir {root}: a search needs a folder on this machine")
    name = f"{path.stem}_{Path(options.recipe).stem}" if options.recipe else path.stem
    folder = runs_of(Path(root), options.name or name)
    if any(folder.glob("version_*")):
        raise InputError(f"{folder} holds runs of src.train: give another name, as in --name {folder.name}-search")
    if (processes := cli.trainer.world_size) > 1:  # the others would start trials of their own
        raise InputError(f"a trial trains in one process, not in {processes}: give --devices 1 --num_nodes 1")
    if where := cli.config.checkpoint.dirpath:
        raise InputError(f"--checkpoint.dirpath {where}: each trial keeps its checkpoints in its run: leave it out")
    for check in hooks("check_trial"):
        check(cli.config)
    checked: set[str] = set()
    for name in spec["space"] if probes else ():
        if name not in checked:
            values = values_with(spec["space"], name)
            try:
                build_run(spec, values)
                checked |= values.keys()
            except Exception:  # perhaps only these values do not fit together
                build_run(spec, values_with(spec["space"], name, alone=True))
    metric, direction = metric_and_direction(spec, cli.best, options.config)
    if stage_of(metric) == "test" and (chosen := ", ".join(name for name in spec["space"] if name not in REPEATED)):
        problem = f"metric {metric} would choose {chosen} by the test part"
        raise InputError(f"{options.config}: {problem}: give a metric of validation")
    try:
        (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give --trainer.default_root_dir") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    repeated = {name: one for name, one in spec["space"].items() if name in REPEATED}  # the report has their mean
    # A mean needs each trial once: a pruner stops the worst, other samplers repeat the best, and it would be too good.
    usual = {"sampler": "GridSampler", "pruner": "NopPruner"}
    spec = {**(usual if repeated else {"sampler": "TPESampler", "pruner": "SuccessiveHalvingPruner"}), **spec}
    if other := next((what for what in usual if repeated and spec[what] != usual[what]), None):
        does = {"sampler": "repeats some trials", "pruner": "stops the worst trials"}[other]
        mean = f"the mean over {', '.join(repeated)}"
        raise InputError(f"{other} {spec[other]} {does}: {mean} needs each once: leave {other} out")
    sampler = instantiate("sampler", spec, options.seed)
    if spec["sampler"] == "GridSampler":
        size = math.prod(len(one["categorical"]) for one in spec["space"].values())
        if size < spec["n_trials"] and probes:
            print(f"n_trials {spec['n_trials']}: the space has {size} combinations, each runs once", file=sys.stderr)
        spec["n_trials"] = min(size, spec["n_trials"])
    pruner = instantiate("pruner", spec)
    try:
        file = str(folder / "study.log")
        storage = _open_database(options.storage) if options.storage else JournalStorage(Journal(file))
        made: Any = {"storage": storage, "sampler": sampler, "pruner": pruner, "study_name": folder.name}
        study = optuna.create_study(**made, direction=direction, load_if_exists=True)
    except Exception as error:  # every database has its own exceptions
        where = f"--storage {without_password(options.storage)}" if options.storage else f"study {file}"
        raise InputError(f"{where} cannot be used: {' '.join(str(error).split())[:200]}") from error
    same = {
        "compared": {"metric": metric, "direction": direction},
        "same": {**what_is_trained(flat(recipe)), "options": what_is_trained(spec["options"]), **repeated},
        "given": what_is_trained(given),
    }
    for attribute, settings in same.items():
        check_same(study, attribute, settings, folder)
    check_choices(study, spec["space"], folder)
    if spec["sampler"] == "GridSampler":  # which goes on by the number of its combinations
        ended = study.get_trials(deepcopy=False, states=DONE)
        if ended and not any("grid_id" in trial.system_attrs for trial in ended):
            raise InputError(f"{folder} holds trials of another sampler: give another --name")
        check_same(study, "grid", spec["space"], folder)
    return Search(options, spec, folder, study, study.user_attrs.get("metric", metric))


def _open_database(url: str) -> Any:
    """Open a database; a trial whose machine stops sending heartbeats is tried once more."""
    options: Any = {"heartbeat_interval": HEARTBEAT, "heartbeat_stale_trial_callback": queue_again}
    try:
        return optuna.storages.RDBStorage(url, **options)
    except SQLAlchemyError:  # another machine was creating the same tables
        time.sleep(1)
        return optuna.storages.RDBStorage(url, **options)


class Journal(JournalFileBackend):
    """Optuna's file, without an end that a full disk has cut short: Optuna would read nothing after it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        path = Path(self._file_path)
        with get_lock_file(self._lock), path.open("rb+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.truncate(path.read_bytes().rfind(b"\n") + 1)
        super().append_logs(logs)


def instantiate(what: str, spec: dict[str, Any], seed: int | None = None) -> Any:
    """The sampler or pruner of a search."""
    module: Any = {"sampler": optuna.samplers, "pruner": optuna.pruners}[what]
    own = (one for one in module.__all__ if one.endswith(what.title()) and not one.startswith("Base"))
    # The first unpickles what is in the study, the second ends an `optimize` of all trials.
    known = sorted({*own} - {"CmaEsSampler", "BruteForceSampler"})
    name, space = spec[what], spec["space"]
    if name not in known:
        raise InputError(f"--{what} {name}: not one to use here{nearest(name, known) or f'; known: {known}'}")
    if name == "GridSampler":
        if not all("categorical" in one for one in space.values()):
            means = " for the mean over seeds or folds" if {*REPEATED} & space.keys() else ""
            raise InputError(f"--sampler GridSampler{means}: every entry of space must be categorical")
        # One order for all machines and commands: a trial takes the combination of its number.
        return _Grid({key: one["categorical"] for key, one in space.items()}, seed=0)
    cls, arguments = getattr(module, name), dict(ARGUMENTS.get(name, {}))
    if seed is not None and "seed" in inspect.signature(cls).parameters:
        arguments["seed"] = seed
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        problem = f"needs arguments, which a search cannot give ({error})"
        raise InputError(f"--{what} {name} {problem}: give another") from error


def build_run(spec: dict[str, Any], values: dict[str, Any], folder: Path | None = None, resume: str = "") -> StarterCLI:
    """Build the run for some values in the folder of a search; without one only check. `resume`: the run to go on."""
    words = ["fit"] if stage_of(str(spec.get("metric"))) != "test" else []
    words += [f"--config={spec['recipe']}", "--quiet", *spec["first"]]
    for name, value in {**spec["options"], **values}.items():
        words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    words += [f"{flag}={value}" for flag, value in spec["more"]]
    words = [word.removesuffix("=true") if word.partition("=")[0] in bare_flags() else word for word in words]
    words += [f"--trainer.default_root_dir={folder}", f"--name={TRIALS}"] if folder else ["--fast_dev_run"]
    if resume:
        words = [word for word in words if not word.startswith(("--config", "--name"))]
        words += [f"--run={resume}", "--ckpt_path=last"]
    return StarterCLI(words, time.perf_counter())


def trials_of(search: Search, states: Any = None) -> list[FrozenTrial]:
    return search.study.get_trials(deepcopy=False, states=states)


def queue_again(study: optuna.Study, trial: FrozenTrial | optuna.Trial, is_stopped: bool = False) -> None:
    """Queue a trial again: each time that it is stopped by a signal, but only once if it is broken."""
    known = {one.user_attrs.get("again") for one in study.get_trials(deepcopy=False)}
    if (is_stopped or "again" not in trial.user_attrs) and trial.number not in known:
        old = trial.user_attrs
        run = old.get("run") or old.get("broken", "")  # stopped while it was built
        text = old.get("config") or old.get("broken_config", "")
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number, "broken": run, "broken_config": text})
