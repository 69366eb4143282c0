"""Train, validate, test or predict: `python -m src.train --help`."""

import gc
import os
import signal
import sys
import time

from src.engine.system.hooks import find_part
from src.engine.system.interruption import Interrupted, exit_after


def main() -> None:
    """Run the command line; default: train, then test the best checkpoint."""
    started = time.perf_counter()
    overview = find_part("overview")  # answers --help without importing torch
    if overview and overview.show(sys.argv[1:]):
        return
    if sys.stderr.isatty() and "LOCAL_RANK" not in os.environ:
        print("Loading torch and Lightning ...", file=sys.stderr)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # Ctrl-C would end it alone, while the first process waits for it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        gc.disable()  # during the slow imports: garbage collection would take a seventh of their time
        try:
            from src.engine.cli.program import run  # counted in the run's total time
        finally:
            gc.enable()

        run(started)
    except KeyboardInterrupt:
        exit_after(Interrupted(signal.SIGINT))


if __name__ == "__main__":
    main()
