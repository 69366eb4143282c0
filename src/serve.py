"""Serve a trained model over HTTP, with a web page to try it: `python -m src.serve --help`."""

from src.engine.cli.command import run_command
from src.engine.deploy.serving import serve


def main() -> None:
    """Run the command line."""
    run_command(serve)


if __name__ == "__main__":
    main()
