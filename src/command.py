"""What the small commands share: how they read their words, and how they end."""

import argparse
import sys
from collections.abc import Callable

from src.errors import InputError, report


def run_command(command: Callable[[list[str]], int | None]) -> None:
    """Run a command on the words it was given; what the user can mend is one line and exit code 2."""
    if sys.stderr.isatty():
        print("Loading torch and Lightning ...", file=sys.stderr)
    try:
        sys.exit(command(sys.argv[1:]))
    except InputError as error:
        report(error)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


def command_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser for `parse_words`."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, exit_on_error=False, allow_abbrev=False
    )


def parse_words(parser: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
    """The options of a command line.

    Raises:
        InputError: one cannot be taken; the message names what comes near.
    """
    try:
        options, unknown = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(str(error).removeprefix("argument ")) from error
    if unknown:
        from src.config import nearest

        known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        raise InputError(f"{unknown[0]}: no such option{nearest(unknown[0], known)}")
    return options
