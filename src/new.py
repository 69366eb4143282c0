"""Make a project of your own from this template: `python -m src.new --help`."""

from src.engine.cli.command import run_command
from src.engine.new.creating import new


def main() -> None:
    """Run the command line."""
    run_command(new, message="")


if __name__ == "__main__":
    main()
