"""Runs what a command line asks for, and says how it ended."""

import errno
import os
import re
import sys
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_module, rank_zero_only

from src.callbacks.compilation import cannot_compile, is_of_compiler
from src.callbacks.finite_loss import NotFiniteError
from src.checkpoint import UnwritableError
from src.cli import StarterCLI
from src.errors import InputError, cause_of, raised_by_library, report
from src.interruption import Interrupted
from src.runs import checkpoints_of, relative


def run(started: float) -> None:
    """Build and run what `sys.argv` asks for; what the user can mend is one line and exit code 2."""
    args = sys.argv[1:]
    leave_out_what_nobody_can_act_on()
    threading.excepthook = _leave_to_main
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
        mendable = isinstance(cause, InputError) or (isinstance(cause, refused) and raised_by_library(cause))
        if cli is not None and cli.compilation is not None and is_of_compiler(cause):
            cause, mendable = cannot_compile(cause), True
        if (fault := fault_of_machine(cause, cli.record.folder if cli and cli.record else None)) is not None:
            cause, mendable = InputError("; ".join(filter(None, (fault, _how_to_go_on(cli))))), True
        if "--debug" in args or not mendable:
            raise
        report(cause, getattr(rank_zero_only, "rank", 0))


def leave_out_what_nobody_can_act_on() -> None:
    """Lightning's advertisements, a deprecation in torch that Lightning 2.6 itself has to follow, errors told twice."""
    rank_zero_module.log.addFilter(lambda record: not record.getMessage().startswith("💡 Tip"))
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning, r"lightning\.pytorch\.util")
    sys.excepthook = _leave_to_reader


def fault_of_machine(error: BaseException, folder: Path | None = None) -> str | None:
    """What went wrong around a run with this folder, in the user's words, or None where nothing that is known did."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and folder is not None and not folder.is_dir():
        return f"run folder {folder} is gone, deleted or renamed while the run was going"
    if isinstance(error, UnwritableError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        nameless = "what was printed" if folder is None else "the run folder"
        return f"{error.filename or nameless} cannot be written ({error.strerror}): make room"
    if isinstance(error, RuntimeError) and (found := re.search(r"DataLoader worker \(pid.*", text)):
        return f"a process that loads data has died, often for lack of memory: {found[0]} Give a smaller num_workers"
    if isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset|refused)|Broken pipe|gloo", text):
        return f"another process of this run has ended ({text[:120]})"
    return None


def _leave_to_main(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets a full disk first, and the main thread then raises the same."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _leave_to_reader(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker, which inherits this, hands over batches in a thread; where nobody takes them the run says why."""
    in_thread = threading.current_thread() is not threading.main_thread()
    if not (in_thread and isinstance(error, ConnectionError | EOFError)):
        sys.__excepthook__(kind, error, trace)


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
