"""Runs the command line of `src.train`: retries, signals and one-line errors."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.runs.runs import checkpoints_of, relative
from src.engine.system import errors
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks
from src.engine.system.interruption import Interrupted, exit_after
from src.engine.system.quiet import silence_known_warnings
from src.engine.training.finite_loss import NotFiniteError


def run(started: float) -> None:
    """Run the command line in `sys.argv`; an error that the user can fix is one line and exit code 2."""
    args = sys.argv[1:]
    silence_known_warnings()
    cli: StarterCLI | None = None
    try:
        if not (ROOT / "configs").is_dir():
            raise InputError(f"{ROOT} has no configs/: install the project with pip install --editable PATH")
        words = args
        while True:
            cli = StarterCLI(words, started)
            if (folder := cli.run_folder or (None if cli.from_path else cli.evaluated)) is not None:
                sys.argv += ["--run", str(folder)]  # for the processes that Lightning starts with the same arguments
            try:
                cli.run()
                break
            except NotFiniteError as error:
                if not (retries := hooks("retry_arguments")):
                    raise
                words = retries[0](cli, error, args)
    except Interrupted as stop:
        _exit_after_signal(cli, stop)
    except Exception as error:
        cause = errors.cause_of(error)
        if cli is not None and (signum := cli.interruption.received) and "DataLoader worker" in str(cause):
            _exit_after_signal(cli, Interrupted(signum))  # a scheduler has ended the processes that load data too
        refused = MisconfigurationException | ModuleNotFoundError | ValueError | RuntimeError
        is_fixable = isinstance(cause, InputError) or errors.raised_in(cause, "forward")
        if errors.raised_by_lightning(cause) and (isinstance(cause, refused) or "dataloader" in str(cause)):
            hint, is_fixable = _hint(cli, str(cause)), True
            cause = InputError(f"{str(cause).rstrip('.')}; {hint}") if hint else cause
        for input_error in hooks("input_error"):
            if cli is not None and (fixable := input_error(cause, cli.config)) is not None:
                cause, is_fixable = fixable, True
        if (fault := errors.machine_fault(cause, cli.record.folder if cli and cli.record else None)) is not None:
            more = "" if fault.startswith("too little memory") else _continue_command(cli)
            cause, is_fixable = InputError("; ".join(filter(None, (fault, more)))), True
        elif cli is not None and not is_fixable and (cli.from_path or errors.raised_in_restore(cause)):
            cause, is_fixable = InputError(cli.blame_checkpoint(cause)), True
        if "--debug" in args or not is_fixable:
            raise
        try:
            errors.report(cause, getattr(rank_zero_only, "rank", 0))
        finally:
            _end_processes(cli, 5)  # they report the error too, and may end with this process


def _hint(cli: StarterCLI | None, message: str) -> str:
    """What to do about an error of Lightning."""
    if re.search(r"method|dataloader|must be implemented", message):
        return errors.GUIDE
    if "Early stopping conditioned on metric" in message:
        return "give the monitor of a metric that is logged, or leave EarlyStopping out"
    return _continue_command(cli) if "metric" in message else ""


def _continue_command(cli: StarterCLI | None) -> str:
    """The command that continues a run, or "" if it has saved no checkpoint."""
    if cli is None or cli.record is None or not any(checkpoints_of(cli.record.folder)):
        return ""
    stage = f" {cli.stage}" if cli.stage else ""
    run = shlex.quote(relative(cli.record.folder))
    return f"continue with: python -m src.train{stage} --ckpt_path last --run {run}"


def _end_processes(cli: StarterCLI | None, seconds: float) -> None:
    """Wait for each process that Lightning started, at most some seconds, and kill what is left."""
    trainer = getattr(cli, "trainer", None)  # an error may come before it
    started = getattr(trainer and trainer.strategy.launcher, "procs", [])
    processes = list(started)
    started.clear()  # else Lightning's observer may see that one of them failed, and kill this process
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()


def _exit_after_signal(cli: StarterCLI | None, stop: Interrupted) -> NoReturn:
    """Exit after a signal, and print the command that continues the run."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        os._exit(0)  # any other code makes Lightning kill the first process, which reports the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_processes(cli, 2)
    exit_after(stop, *filter(None, [_continue_command(cli)]))
