"""Predict on your own files: `python -m src.predict --help`."""

from src.engine.cli.command import run_command
from src.engine.deploy.predicting import predict


def main() -> None:
    """Run the command line."""
    run_command(predict)


if __name__ == "__main__":
    main()
