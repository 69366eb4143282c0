"""An Optuna study whose trials are ordinary training runs."""

import argparse
import inspect
import io
import json
import math
import os
import socket
import sys
import time
import warnings
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from src import ROOT
from src.engine.cli import config
from src.engine.cli.cli import StarterCLI
from src.engine.runs.checkpoint import configurations
from src.engine.runs.run_record import is_finished, read_metrics
from src.engine.runs.runs import TRIALS, checkpoints_of, runs_of
from src.engine.search.pruning import Pruning
from src.engine.search.space import (
    REPEATED,
    by_name,
    check_choices,
    check_same,
    check_space,
    check_types,
    first_values,
    metric_and_direction,
    says_where,
    suggest,
)
from src.engine.system.addresses import is_address
from src.engine.system.classes import nearest
from src.engine.system.errors import InputError, cause_of
from src.engine.system.hooks import bare_flags, hooks
from src.engine.system.interruption import Interrupted, Interruption
from src.engine.system.metric_names import stage_of
from src.engine.training.checks import DEFAULT_MONITOR

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

    spec: dict[str, Any]
    folder: Path
    study: optuna.Study
    metric: str
    more: list[config.Option]
    seed: int
    is_over: bool = False


def open_search(options: argparse.Namespace, probes: bool = True) -> Search:
    """Read a search; open its study, or create it.

    Args:
        options: command-line options of `src.tune`.
        probes: whether to check every name of the space by building a run. Workers skip this: their parent has done it.

    Raises:
        InputError: a name or range of the search is invalid, or the study cannot be opened.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats, plots
    path, spec = config.load_config(options.config, dotted=True)
    check_types(spec, options.config)
    spec = {name: value for name, value in spec.items() if value is not None}  # null: as if left out
    spec = {"recipe": "configs/default.yaml", "options": {}, "n_trials": 30, **spec}
    spec |= {name: value for name in ("recipe", "n_trials", "sampler", "pruner") if (value := getattr(options, name))}
    check_space(spec, options.config)
    given = by_name(options.more)
    if any(name.removeprefix("trainer.") == "fast_dev_run" for name in {**spec["options"], **given}):
        raise InputError(
            "--fast_dev_run: a trial needs its run folder: leave it out; for a quick check give --n_trials 1 and"
            " --trainer.limit_train_batches 2"
        )
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
    spec["first"] = [] if is_one else ["--trainer.devices=1"]  # options may say which device
    name = f"{path.stem}_{Path(options.recipe).stem}" if options.recipe else path.stem
    roots = (options.root, spec["options"].get("trainer.default_root_dir"))
    root = next(filter(None, (*roots, (recipe.get("trainer") or {}).get("default_root_dir"))), ROOT / "logs")
    if is_address(root):
        raise InputError(f"--trainer.default_root_dir {root}: a search needs a folder on this machine")
    folder = runs_of(Path(root), options.name or name)
    if any(folder.glob("version_*")):
        raise InputError(f"{folder} holds runs of src.train: give another name, as in --name {folder.name}-search")
    cli = _build_run(spec, {}, options.more, folder, probe=True)  # report errors before the first trial
    if cli.trainer.world_size > 1:  # its other processes would start trials of their own
        raise InputError(
            f"a trial trains in one process, not in {cli.trainer.world_size}: give --devices 1 --num_nodes 1"
        )
    for check in hooks("check_trial"):
        check(cli.config)
    firsts = first_values(spec["space"])
    if probes:
        try:
            _build_run(spec, firsts, options.more, folder, probe=True)
        except Exception:  # perhaps only these values do not fit together
            for one in firsts.items():
                _build_run(spec, dict([one]), options.more, folder, probe=True)
    metric, direction = metric_and_direction(spec, cli.best, options.config)
    try:
        (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give --trainer.default_root_dir") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    repeated = {name: one for name, one in spec["space"].items() if name in REPEATED}  # the report has their mean
    # Without those that a pruner stops, which are the worst, or with those that a sampler repeats, which are the best,
    # a mean would be too good.
    usual = ("GridSampler", "NopPruner") if repeated else ("TPESampler", "SuccessiveHalvingPruner")
    spec = {**dict(zip(("sampler", "pruner"), usual, strict=True)), **spec}
    if repeated and not all("categorical" in one for one in spec["space"].values()):
        raise InputError(f"{options.config}: a mean over {', '.join(repeated)} needs every entry of space categorical")
    for what, does in (("sampler", "repeats some trials"), ("pruner", "stops the worst trials")) if repeated else ():
        if spec[what] not in usual:
            raise InputError(
                f"{what} {spec[what]} {does}: the mean over {', '.join(repeated)} needs each once: leave {what} out"
            )
    sampler = _instantiate(optuna.samplers, spec["sampler"], "sampler", options.seed, spec["space"])
    if spec["sampler"] == "GridSampler":
        size = math.prod(len(one["categorical"]) for one in spec["space"].values())
        if size < spec["n_trials"] and probes:
            print(f"n_trials {spec['n_trials']}: the space has {size} combinations, each runs once", file=sys.stderr)
        spec["n_trials"] = min(size, spec["n_trials"])
    pruner = _instantiate(optuna.pruners, spec["pruner"], "pruner", None, None)
    try:
        file = str(folder / "study.log")
        storage = _open_database(options.storage) if options.storage else JournalStorage(JournalFileBackend(file))
        study = optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            study_name=folder.name,
            direction=direction,
            load_if_exists=True,
        )
    except Exception as error:  # every database has its own exceptions
        where = f"--storage {options.storage}" if options.storage else f"study {file}"
        raise InputError(f"{where} cannot be used: {' '.join(str(error).split())[:200]}") from error
    compared = {"metric": metric, "direction": direction}
    check_same(study, "compared", {**compared, "direction": study.direction.name.lower()}, compared, folder)
    if repeated:
        same = {"recipe": spec["recipe"], "options": spec["options"], **repeated}
        check_same(study, "same", same, same, folder)
        own = {name: value for name, value in given.items() if not says_where(name)}
        check_same(study, "given", own, own, folder)
        ended = study.get_trials(deepcopy=False, states=DONE)
        if ended and not any("grid_id" in trial.system_attrs for trial in ended):
            raise InputError(f"{folder} holds trials of a sampler that repeats some: give another --name")
    check_choices(study, spec["space"], folder)
    if spec["sampler"] == "GridSampler":  # which goes on by the number of its combinations
        check_same(study, "grid", spec["space"], spec["space"], folder)
    return Search(spec, folder, study, study.user_attrs.get("metric", metric), options.more, options.seed)


def _open_database(url: str) -> Any:
    """Open a database; a trial whose machine stops sending heartbeats is tried once more."""
    open_it = partial(
        optuna.storages.RDBStorage, url, heartbeat_interval=HEARTBEAT, heartbeat_stale_trial_callback=_queue_again
    )
    try:
        return open_it()
    except SQLAlchemyError:  # another machine was creating the same tables
        time.sleep(1)
        return open_it()


def _instantiate(module: Any, name: str, what: str, seed: int | None, space: Any) -> Any:
    own = (one for one in module.__all__ if one.endswith(what.title()) and not one.startswith("Base"))
    known = sorted({*own} - {"CmaEsSampler"})  # which unpickles what is in the study
    if name not in known:
        raise InputError(f"--{what} {name}: no such {what}{nearest(name, known) or f'; known: {known}'}")
    if name == "GridSampler":
        if not all("categorical" in one for one in space.values()):
            raise InputError("--sampler GridSampler: every entry of space must be categorical")
        return _Grid({key: one["categorical"] for key, one in space.items()}, seed=seed)
    cls, arguments = getattr(module, name), dict(ARGUMENTS.get(name, {}))
    if seed is not None and "seed" in inspect.signature(cls).parameters:
        arguments["seed"] = seed
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--{what} {name} needs arguments, which a search cannot give ({error}): give another"
        ) from error


def _build_run(
    spec: dict[str, Any],
    values: dict[str, Any],
    more: list[config.Option],
    folder: Path,
    resume: str = "",
    probe: bool = False,
) -> StarterCLI:
    """Build the run for some values. `resume`: continue the run in this folder; `probe`: check only, no folder."""
    words = ["fit"] if stage_of(str(spec.get("metric"))) != "test" else []
    words += [f"--config={spec['recipe']}", "--quiet", *spec["first"]]
    for name, value in {**spec["options"], **values}.items():
        words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    words += [f"{flag}={value}" for flag, value in more]
    words = [word.removesuffix("=true") if word.partition("=")[0] in bare_flags() else word for word in words]
    words += [f"--trainer.default_root_dir={folder}", f"--name={TRIALS}"]
    if resume:
        words = [word for word in words if not word.startswith(("--config", "--name"))]
        words += [f"--run={resume}", "--ckpt_path=last"]
    if probe:
        words.append("--fast_dev_run")
    return StarterCLI(words, time.perf_counter())


def run_trials(options: argparse.Namespace, probes: bool) -> tuple[Search, int]:
    """Run trials until the study has enough. Returns the search, and the signal that stopped it or 0."""
    search = open_search(options, probes)
    return search, _take_trials(search, options.timeout)


def _take_trials(search: Search, timeout: float | None) -> int:
    """Run trials until there are enough. Returns the signal that stopped them, or 0."""
    end = time.monotonic() + timeout if timeout else None
    lock = FileLock(search.folder / ".ask")
    Interruption().install()  # so that a trial that is being built is tried again
    while not search.is_over and (end is None or time.monotonic() < end):
        try:
            lock.acquire()  # until the trial has its values: otherwise processes could start too many trials
            _retry_broken_trials(search)
            if not _needs_more(search):
                break
            run, report = partial(_run_trial, search, lock), partial(_print_trial, search)
            search.study.optimize(run, n_trials=1, catch=(Exception,), callbacks=[report], gc_after_trial=True)
        except Interrupted as stop:
            for trial in trials_of(search, (TrialState.RUNNING,)):
                if trial.user_attrs.get("process") == _this_process():
                    _queue_again(search.study, trial, is_stopped=True)
                    search.study.tell(trial.number, state=TrialState.FAIL)
            return stop.signum
        finally:
            lock.release(force=True)
    return 0


def _needs_more(search: Search) -> bool:
    trials = trials_of(search)
    counted = sum("again" not in trial.user_attrs for trial in trials)  # a trial that is tried again counts once
    return counted < search.spec["n_trials"] or any(trial.state == TrialState.WAITING for trial in trials)


def trials_of(search: Search, states: Any = None) -> list[FrozenTrial]:
    return search.study.get_trials(deepcopy=False, states=states)


def _retry_broken_trials(search: Search) -> None:
    """Retry trials whose process has died, once each, from the last checkpoint if there is one."""
    optuna.storages.fail_stale_trials(search.study)  # trials of other machines
    for trial in trials_of(search, (TrialState.RUNNING,)):
        # Do not check the run's lock instead: it is free once the run has ended, before the study has the result.
        if _is_gone(trial.user_attrs.get("process", "")):
            _queue_again(search.study, trial)
            search.study.tell(trial.number, state=TrialState.FAIL)


def _is_gone(process: str) -> bool:
    """Whether a process `host:pid` of this machine has ended; False for other machines. It is asked between trials."""
    host, _, pid = process.rpartition(":")
    if host != socket.gethostname():
        return False
    if int(pid) == os.getpid():  # an earlier process had the same number, as in a container that was started again
        return True
    try:
        with suppress(PermissionError):  # it runs, as another user
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _queue_again(study: optuna.Study, trial: FrozenTrial, is_stopped: bool = False) -> None:
    """Queue a trial again: each time that it is stopped by a signal, but only once if it is broken."""
    known = {one.user_attrs.get("again") for one in study.get_trials(deepcopy=False)}
    if (is_stopped or "again" not in trial.user_attrs) and trial.number not in known:
        old = trial.user_attrs
        run = old.get("run") or old.get("broken", "")  # stopped while it was built
        text = old.get("config") or old.get("broken_config", "")
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number, "broken": run, "broken_config": text})


def _run_trial(search: Search, lock: FileLock, trial: optuna.Trial) -> float:
    if (name := search.spec["sampler"]) not in ("GridSampler", "QMCSampler"):  # need one seed for the whole study
        # One seed per trial: otherwise the processes of a study would all draw the same values.
        search.study.sampler = _instantiate(
            optuna.samplers, name, "sampler", (search.seed * 100_003 + trial.number) % 2**32, None
        )
    trial.set_user_attr("process", _this_process())
    broken = trial.user_attrs.get("broken", "")
    # Another machine may have the run of another trial in a folder of that name.
    is_own = bool(broken) and trial.user_attrs.get("broken_config") in configurations(Path(broken))
    resume = broken if is_own and any(checkpoints_of(Path(broken))) and not is_finished(Path(broken)) else ""
    try:
        values = suggest(trial, search.spec["space"])
        lock.release()
        cli = _build_run(search.spec, values, search.more, search.folder, resume)
        assert cli.record is not None
        trial.set_user_attr("run", str(cli.record.folder))
        trial.set_user_attr("config", cli.record.config)
        pruning = Pruning(trial, search.metric)
        cli.trainer.callbacks.append(pruning)  # type: ignore[attr-defined]
        with redirect_stdout(io.StringIO()):  # hide the table of each run
            cli.run()
        _follow_run(search, cli)
        value = _final_metric(search, cli.record.folder)
        trial.set_user_attr("metrics", read_metrics(cli.record.folder))
    except (Exception, SystemExit) as error:
        cause = cause_of(error)
        trial.set_user_attr("error", f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}")
        raise RuntimeError from error
    trial.set_user_attr("steps", cli.trainer.global_step)
    if pruning.pruned:
        raise optuna.TrialPruned
    return value


def _follow_run(search: Search, cli: StarterCLI) -> None:
    """Take the metric that a run has chosen to select its best checkpoint, if neither search nor recipe names one."""
    best: Any = cli.trainer.checkpoint_callback
    is_named = search.metric != DEFAULT_MONITOR or search.spec.get("metric") or "checkpoint.monitor" in cli.given
    if not is_named and getattr(best, "monitor", None) and best.mode == cli.best.mode:
        search.metric = best.monitor
        search.study.set_user_attr("metric", best.monitor)  # for the other processes, and the report


def _final_metric(search: Search, folder: Path) -> float:
    """The final metric of a run; a validation metric is that of its best checkpoint."""
    metrics = read_metrics(folder)
    if search.metric not in metrics:
        logged = ", ".join(metrics)
        search.is_over = not trials_of(search, (TrialState.COMPLETE,))  # the others would lack it too
        raise InputError(f"metric {search.metric} is not logged; logged: {logged}: give metric and direction")
    return float(metrics[search.metric])


def _print_trial(search: Search, _: optuna.Study, trial: FrozenTrial) -> None:
    """Print a finished trial as one line."""
    value = f"{trial.value:.4f}" if trial.value is not None else trial.user_attrs.get("error", trial.state.name.lower())
    shown = ", ".join(f"{name} {value}" for name, value in trial.params.items())
    print(f"trial {trial.number}: {search.metric} {value} ({shown})", file=sys.stderr, flush=True)


def print_progress(search: Search, workers: list[Any]) -> None:
    """Wait for the workers, printing how many trials have ended."""
    printed = -1
    while any(worker.poll() is None for worker in workers):
        ended = len(trials_of(search, DONE))
        if ended != printed:
            print(f"{ended} of {search.spec['n_trials']} trials", file=sys.stderr, flush=True)
            printed = ended
        time.sleep(1)
