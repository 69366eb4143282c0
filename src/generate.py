"""Generate text with a trained language model: `python -m src.generate --help`."""

from src.engine.cli.command import run_command
from src.engine.deploy.generating import generate


def main() -> None:
    """Run the command line."""
    run_command(generate)


if __name__ == "__main__":
    main()
