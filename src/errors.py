"""The error a user can mend himself."""

import sys
from typing import NoReturn


class InputError(ValueError):
    """Something given by the user cannot work; the message says what was given and what would work.

    The command line prints it as one line and exits with code 2, without a traceback.
    """


def cause_of(error: BaseException) -> BaseException:
    """What the user is to be told of an error: jsonargparse wraps what a constructor raises."""
    cause = error
    while not isinstance(cause, InputError) and isinstance(cause, ValueError) and cause.__cause__:
        cause = cause.__cause__
    return cause


def report(error: BaseException, rank: int = 0) -> NoReturn:
    """Print an error as one line and exit with code 2; of several processes, all but the first say which they are."""
    message = str(error).rpartition("InputError: ")[2]  # what a worker process raised brings its traceback
    line = f"error{f' (rank {rank})' if rank else ''}: {' '.join(message.split())}\n"
    sys.stderr.write(line)  # whole: between print's text and its end of line another process may write
    sys.exit(2)


def raised_by_library(error: BaseException) -> bool:
    """Whether Lightning itself raised an error, and not a class it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("lightning.")
