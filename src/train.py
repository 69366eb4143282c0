"""Train, validate, test or predict: `python -m src.train --help`."""

import os
import sys
import time


def main() -> None:
    """Run what the command line asks for; without a word, train and then test the best checkpoint."""
    started = time.perf_counter()
    if sys.stderr.isatty() and "LOCAL_RANK" not in os.environ:
        print("Loading torch and Lightning ...", file=sys.stderr)
    try:
        from src.engine.cli.program import run  # the import takes most of the start, and counts into the total time

        run(started)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
