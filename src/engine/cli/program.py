"""Runs what a command line asks for, and says how it ended."""

import os
import sys
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src.engine.cli.cli import StarterCLI
from src.engine.runs.runs import checkpoints_of, relative
from src.engine.system.errors import InputError, cause_of, machine_fault, raised_by_lightning, raised_in, report
from src.engine.system.interruption import Interrupted
from src.engine.system.quiet import silence_known_warnings
from src.engine.training.compilation import cannot_compile, is_of_compiler
from src.engine.training.finite_loss import NotFiniteError


def run(started: float) -> None:
    """Build and run what `sys.argv` asks for; what the user can fix is one line and exit code 2."""
    args = sys.argv[1:]
    silence_known_warnings()
    cli: StarterCLI | None = None
    try:
        words = args
        while True:
            cli = StarterCLI(words, started)
            if (folder := cli.run_folder or cli.evaluated) is not None:
                sys.argv += ["--run", str(folder)]  # for processes that Lightning starts with the same words
            try:
                cli.run()
                break
            except NotFiniteError as error:
                words = cli.retry_after(error, args)
    except Interrupted as stop:
        _leave(cli, stop)
    except Exception as error:
        cause = cause_of(error)
        refused = MisconfigurationException | ModuleNotFoundError | ValueError | RuntimeError
        is_fixable = isinstance(cause, InputError) or raised_in(cause, "forward")
        is_fixable = is_fixable or (isinstance(cause, refused) and raised_by_lightning(cause))
        if cli is not None and cli.compilation is not None and is_of_compiler(cause):
            cause, is_fixable = cannot_compile(cause), True
        if (fault := machine_fault(cause, cli.record.folder if cli and cli.record else None)) is not None:
            cause, is_fixable = InputError("; ".join(filter(None, (fault, _how_to_go_on(cli))))), True
        if "--debug" in args or not is_fixable:
            raise
        report(cause, getattr(rank_zero_only, "rank", 0))


def _how_to_go_on(cli: StarterCLI | None) -> str:
    """The command that goes on with a run, where it has saved something."""
    if cli is None or cli.record is None or not any(checkpoints_of(cli.record.folder)):
        return ""
    return f"go on with: python -m src.train --ckpt_path last --run {relative(cli.record.folder)}"


def _leave(cli: StarterCLI | None, stop: Interrupted) -> NoReturn:
    """End a run that was told to stop, with the command that goes on with it."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        os._exit(0)  # the first process says how the run ended; Lightning would kill it for another code of this one
    print(f"{stop}", file=sys.stderr)
    if cli is not None:
        cli.stop_processes()
        if command := _how_to_go_on(cli):
            print(command, file=sys.stderr)
    sys.stderr.flush()
    sys.exit(128 + stop.signum)
