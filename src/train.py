"""Train, validate, test or predict: `python -m src.train --help`."""

import time


def main() -> None:
    """Run what the command line asks for; without a word, train and then test the best checkpoint."""
    started = time.perf_counter()
    from src.cli import run  # the import takes most of the start, and counts into the total time

    run(started)


if __name__ == "__main__":
    main()
