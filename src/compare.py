"""Compare runs, or list those of a folder by a metric: `python -m src.compare --help`."""

from src.engine.cli.command import run_command
from src.engine.search.comparing import compare


def main() -> None:
    """Run the command line."""
    run_command(compare, message="")


if __name__ == "__main__":
    main()
