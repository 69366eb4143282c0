"""Runs the trials of a search, and stops bad ones early."""

import io
import math
import os
import socket
import sys
import time
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import FrozenTrial, TrialState

from src.engine.cli.cli import StarterCLI
from src.engine.runs.checkpoint import configurations
from src.engine.runs.run_record import is_finished, read_metrics
from src.engine.runs.runs import checkpoints_of, lock_run
from src.engine.search.search import DONE, Search, build_run, instantiate, queue_again, trials_of
from src.engine.search.space import suggest
from src.engine.system.errors import FULL, InputError, UnwritableError, cause_of
from src.engine.system.interruption import Interrupted, Interruption
from src.engine.system.metric_names import shown
from src.engine.training.checks import DEFAULT_MONITOR, changes_accumulation


def run_trials(search: Search) -> int:
    """Run trials until the study has enough. Returns the signal that stopped them, or 0."""
    timeout = search.options.timeout
    end = time.monotonic() + timeout if timeout else None
    lock = FileLock(search.folder / ".ask")
    Interruption().install()  # so that a trial that is being built is tried again
    while not search.is_over and (end is None or time.monotonic() < end):
        try:
            lock.acquire()  # until the trial has its values: otherwise processes could start too many trials
            _retry_broken_trials(search)
            if not needs_more(search):
                break
            run, report = partial(_run_trial, search, lock), partial(_print_trial, search)
            search.study.optimize(run, n_trials=1, catch=(Exception,), callbacks=[report], gc_after_trial=True)
        except (OSError, AssertionError) as error:  # Optuna 5.0 hides the first behind the second
            cause = error if isinstance(error, OSError) else error.__context__
            if getattr(cause, "errno", 0) not in FULL:
                raise
            print(f"{search.folder} cannot be written, the disk is full: free some space", file=sys.stderr)
            search.is_broken = True
            return 0
        except ValueError as error:
            if "Cannot tell a" not in str(error):
                raise
            print("another machine has taken this trial: this one was not heard of for a minute", file=sys.stderr)
        except Interrupted as stop:
            for trial in trials_of(search, (TrialState.RUNNING,)):
                if trial.user_attrs.get("process") == _this_process():
                    queue_again(search.study, trial, is_stopped=True)
                    search.study.tell(trial.number, state=TrialState.FAIL)
            return stop.signum
        finally:
            lock.release(force=True)
    return 0


def needs_more(search: Search) -> bool:
    trials = trials_of(search)
    counted = sum("again" not in trial.user_attrs for trial in trials)  # a trial that is tried again counts once
    return counted < search.spec["n_trials"] or any(trial.state == TrialState.WAITING for trial in trials)


def _retry_broken_trials(search: Search) -> None:
    """Retry trials whose process has died, once each, from the last checkpoint if there is one."""
    optuna.storages.fail_stale_trials(search.study)  # trials of other machines
    for trial in trials_of(search, (TrialState.RUNNING,)):
        # Do not check the run's lock instead: it is free once the run has ended, before the study has the result.
        if _is_gone(trial.user_attrs):
            queue_again(search.study, trial)
            search.study.tell(trial.number, state=TrialState.FAIL)


def _is_gone(trial: dict[str, Any]) -> bool:
    """Whether the process `host:pid` of a trial has ended; called between trials.

    On another host, such as an earlier container, it counts as ended if the trial's run is unfinished and unused. With
    a database, heartbeats decide instead: such trials have already failed.
    """
    host, _, pid = trial.get("process", "").rpartition(":")
    if host != socket.gethostname():
        return "run" in trial and "beats" not in trial and _is_free(Path(trial["run"]))
    if int(pid) == os.getpid():  # an earlier process had the same number, as in a container that was started again
        return True
    try:
        with suppress(PermissionError):  # it runs, as another user
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def _is_free(run: Path) -> bool:
    """Whether no process uses a run that is unfinished."""
    with suppress(InputError):  # in use
        if run.is_dir() and not is_finished(run):
            lock_run(run).release()
            return True
    return False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _run_trial(search: Search, lock: FileLock, trial: optuna.Trial) -> float:
    if search.spec["sampler"] != "GridSampler":  # which needs one seed for the whole study
        # One seed per trial: otherwise the processes of a study would all draw the same values.
        seed = (search.options.seed * 100_003 + trial.number) % 2**32
        search.study.sampler = instantiate("sampler", search.spec, seed)
    trial.set_user_attr("process", _this_process())
    if search.options.storage:  # it notices machines that stop
        trial.set_user_attr("beats", True)
    broken = trial.user_attrs.get("broken", "")
    # Another machine may have the run of another trial in a folder of that name.
    is_own = bool(broken) and trial.user_attrs.get("broken_config") in configurations(Path(broken))
    resume = broken if is_own and any(checkpoints_of(Path(broken))) and not is_finished(Path(broken)) else ""
    try:
        values = suggest(trial, search.spec["space"])
        lock.release()
        cli = build_run(search.spec, values, search.folder, resume)
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
        with suppress(OSError, optuna.exceptions.UpdateFinishedTrialError):  # a full disk, or another machine has it
            trial.set_user_attr("error", f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}")
        if isinstance(cause, UnwritableError | torch.AcceleratorError) or getattr(cause, "errno", 0) in FULL:
            # The machine's fault: later trials would fail too, so stop. The same command retries this one; after a GPU
            # error only once, as its values may be the cause.
            search.is_over = search.is_broken = True
            queue_again(search.study, trial, is_stopped=not isinstance(cause, torch.AcceleratorError))
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
    if metrics[search.metric] is None:
        raise InputError(f"{search.metric} is NaN or infinite")
    return float(metrics[search.metric])


def _print_trial(search: Search, _: optuna.Study, trial: FrozenTrial) -> None:
    """Print a finished trial as one line."""
    value = shown(trial.value) if trial.value is not None else trial.user_attrs.get("error", trial.state.name.lower())
    params = ", ".join(f"{name} {value}" for name, value in trial.params.items())
    pruned = " pruned" if trial.state == TrialState.PRUNED else ""
    print(f"trial {trial.number}{pruned}: {search.metric} {value} ({params})", file=sys.stderr, flush=True)


def print_progress(search: Search, workers: list[Any]) -> None:
    """Wait for the workers, printing how many trials have ended."""
    printed = -1
    while None in [worker.poll() for worker in workers]:  # each is asked, so that none stays a zombie
        ended = len(trials_of(search, DONE))
        if ended != printed:
            print(f"{ended} of {search.spec['n_trials']} trials", file=sys.stderr, flush=True)
            printed = ended
        time.sleep(1)


class Pruning(Callback):
    """Reports a trial's metric after each validation, and stops its run if the study's pruner decides to."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self.trial = trial
        self.metric = metric
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        each, every = trainer.check_val_every_n_epoch or 1, trainer.val_check_batch
        validations = (trainer.current_epoch + 1) // each
        if every is not None and not math.isinf(every):  # else by time, or with a loader without a length
            validations = round(done / (every * each))  # so far, also in a continued run
        self.trial.report(trainer.callback_metrics[self.metric].item(), max(1, validations))
        total = trainer.estimated_stepping_batches
        # Pruning would save nothing.
        is_last = 0 < total <= trainer.global_step and not changes_accumulation(trainer)
        if not is_last and self.trial.should_prune():
            self.pruned = trainer.should_stop = True
