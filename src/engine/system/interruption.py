"""What SIGTERM and Ctrl-C do: a training step is finished and saved first, anything else ends at once."""

import signal
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """The run was told to stop.

    Args:
        signum: the signal that said so; a shell knows the program's end by 128 more.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {'Ctrl-C' if signum == signal.SIGINT else signal.Signals(signum).name}")


class Interruption:
    """Takes the signals of this process.

    `received` is the one that a run has still to act on, 0 if none; while `waits`, it is kept there, else `Interrupted`
    is raised where the program stands. A second Ctrl-C never waits.
    """

    def __init__(self) -> None:
        self.received = 0
        self.waits = False

    def install(self) -> None:
        """Take the signals over; Lightning takes them in every stage, so this is done again in each."""
        with suppress(ValueError):  # only the main thread may
            for signum in SIGNALS:
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        is_second = signum == signal.SIGINT and self.received == signum
        if self.waits and not is_second:
            self.received = self.received or signum
            return
        self.waits = False
        raise Interrupted(signum)
