"""Silences messages that users cannot act on."""

import logging
import os
import sys
import threading
import warnings
from types import TracebackType

from lightning.pytorch.utilities.rank_zero import rank_zero_module


def silence_known_warnings() -> None:
    """Silence Lightning's tips, deprecation warnings that only Lightning (2.6) and peft (0.21) can fix, one of batches
    without predictions, and errors that worker processes and threads print a second time.
    """
    rank_zero_module.log.addFilter(lambda record: not record.getMessage().startswith("💡 Tip"))
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning, r"lightning\.pytorch\.util")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "predict returned None", UserWarning)
    sys.excepthook = _skip_closed_pipes
    threading.excepthook = _skip_system_errors


def hide_information() -> None:
    """Make Lightning and this project log only warnings and errors."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)


def drop_output() -> None:
    """Discard standard output: its reader has ended, as in `| head`, or in `| tee` after Ctrl-C."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _skip_closed_pipes(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Hide errors of worker threads that fail to send batches after a run ended; workers inherit this hook."""
    in_thread = threading.current_thread() is not threading.main_thread()
    if not (in_thread and isinstance(error, ConnectionError | EOFError)):
        sys.__excepthook__(kind, error, trace)


def _skip_system_errors(args: threading.ExceptHookArgs) -> None:
    """On a full disk TensorBoard's thread fails first; the main thread then raises the same error."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)
