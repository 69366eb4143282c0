"""Export a trained model to a format that other programs load: `python -m src.export --help`."""

from src.engine.cli.command import run_command
from src.engine.deploy.exporting import export


def main() -> None:
    """Run the command line."""
    run_command(export)


if __name__ == "__main__":
    main()
