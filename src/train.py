"""Train, validate, test or predict: `python -m src.train --help`."""

import os
import sys
import time

from src.engine.cli.overview import show


def main() -> None:
    """Run the command line; default: train, then test the best checkpoint."""
    started = time.perf_counter()
    if show(sys.argv[1:]):
        return
    if sys.stderr.isatty() and "LOCAL_RANK" not in os.environ:
        print("Loading torch and Lightning ...", file=sys.stderr)
    try:
        from src.engine.cli.program import run  # slow import, counted in the run's total time

        run(started)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
