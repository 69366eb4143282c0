"""Search hyperparameters; each trial is a normal run: `python -m src.tune --help`."""

from src.engine.cli.command import run_command
from src.engine.search.tuning import tune


def main() -> None:
    """Run the command line."""
    run_command(tune)


if __name__ == "__main__":
    main()
