"""SIGTERM and Ctrl-C: a training step or its validation is finished and saved first, all else stops at once."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """The run was stopped by the signal `signum`; the exit code is 128 + signum."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {'Ctrl-C' if signum == signal.SIGINT else signal.Signals(signum).name}")


def exit_after(stop: Interrupted, *lines: str) -> NoReturn:
    """Say that a signal has stopped the program, print more lines, and exit; another Ctrl-C has no effect."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # Ctrl-C has ended `2>&1 | tee` too
        print(stop, *lines, sep="\n", file=sys.stderr, flush=True)
    sys.exit(128 + stop.signum)


class Interruption:
    """Handles SIGTERM and Ctrl-C in this process.

    While `waits` is True, a signal is only stored in `received` (0 if none) for the run to act on; otherwise
    `Interrupted` is raised at once. A second Ctrl-C always raises.
    """

    def __init__(self) -> None:
        self.received = 0
        self.waits = False
        self._process = os.getpid()

    def install(self) -> None:
        """Install the signal handlers. Lightning replaces them in every stage, so call this again in each."""
        with suppress(ValueError):  # signal.signal works in the main thread only
            for signum in SIGNALS:
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork, such as a data worker: on Ctrl-C only the main process acts
            if signum != signal.SIGINT:
                os._exit(128 + signum)
            return
        is_second = signum == signal.SIGINT and self.received == signum
        if self.waits and not is_second:
            self.received = self.received or signum
            return
        self.waits = False
        raise Interrupted(signum)
