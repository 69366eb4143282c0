"""Shared by the small commands: option parsing, checks, error reports and exit codes."""

import argparse
import importlib.util
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.engine.system import errors
from src.engine.system.classes import nearest
from src.engine.system.errors import InputError
from src.engine.system.hooks import bare_flags
from src.engine.system.interruption import Interrupted, Interruption, exit_after

PLACES = ("inputs", "runs", "folder")  # what commands take without an option


def run_command(command: Callable[[list[str]], int | None], message: str = "Loading torch and Lightning ...") -> None:
    """Run a command with `sys.argv`; an error that the user can fix is one line and exit code 2."""
    if message and sys.stderr.isatty():
        print(message, file=sys.stderr)
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if is_first:
        Interruption().install()
    else:  # it would end alone, while the first process waits for it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.exit(command(sys.argv[1:]))
    except (Interrupted, KeyboardInterrupt) as error:
        stop = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        if not is_first:
            sys.exit(128 + stop.signum)
        exit_after(stop)
    except BrokenPipeError:
        from src.engine.system.quiet import drop_output  # lazy import: keeps --help fast

        drop_output()  # else Python would write what is left, and fail, at exit
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        cause = errors.cause_of(error)
        # By name: importing Lightning would take seconds.
        is_refused = isinstance(cause, ValueError | TypeError) or type(cause).__name__ == "MisconfigurationException"
        is_refused = is_refused and errors.raised_by_lightning(cause)
        if isinstance(cause, InputError) or errors.raised_in(cause, "forward") or is_refused:
            errors.report(cause)
        if (fault := errors.machine_fault(cause)) is None:
            raise
        errors.report(InputError(fault))


def command_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser for `parse_words`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


def parse_words(parser: argparse.ArgumentParser, args: list[str], also: str | None = None) -> argparse.Namespace:
    """Parse a command line. Other options whose names start with `also` are in `more`, as pairs of flag and value.

    Raises InputError if an option is unknown or has a wrong value; the message suggests the nearest option.
    """
    usage = re.sub(r"\x1b\[[\d;]*m", "", parser.format_usage())  # Python 3.14 colours it
    flags = ["--help", *re.findall(r"(?<!\w)--\w[\w.-]*", usage)]
    words, more = (args, []) if also is None else _set_aside(args, f"--{also}", flags)
    try:
        options, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise InputError(str(error).removeprefix("argument ")) from error
    options.more = more
    for word in unknown:
        if word != f"--{also}":
            raise InputError(f"{word}: {_no_option(flags, options, word.partition('=')[0])}")
    return options


def _no_option(flags: list[str], options: argparse.Namespace, word: str) -> str:
    places = [name for name in PLACES if name in vars(options)]
    if not word.startswith("-"):
        takes_several = any(isinstance(getattr(options, name), list) for name in places)
        way = "give all inputs in one place" if takes_several else "give it after its option (see --help)"
        return f"no option takes it: {way}, and a text with blanks in quotes"
    if word.removeprefix("--") in places:
        return f"no such option: leave the word {word} out and give only its values"
    return f"no such option{nearest(word, flags)}"


def _set_aside(args: list[str], prefix: str, flags: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Split a command line into words for argparse, and the options with a prefix that are not among its `flags`.

    argparse would read their values as inputs. The bare prefix marks their places: it ends the values before it.
    """
    words: list[str] = []
    found: list[tuple[str, str]] = []
    left = list(args)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if not flag.startswith(prefix) or flag in flags:
            words.append(word)
            continue
        if not equals and left and left[0] != "-h" and not left[0].startswith("--"):
            value = left.pop(0)
        elif not equals and (flag in bare_flags() or flag.endswith("fast_dev_run")):
            value = "true"
        elif not equals:
            raise InputError(f"{flag}: give a value, or leave it out")
        found.append((flag, value))
        if prefix != "--" and words and words[0].startswith("--"):
            words.append(prefix)
    return words, found


def data_options(options: argparse.Namespace) -> dict[str, Any]:
    """The values of options such as `--data.path`, keyed by argument name."""
    from src.engine.cli.config import parse_option

    return {flag.removeprefix("--data."): parse_option(flag, value) for flag, value in options.more}


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a checkpoint and set arguments of its DataModule."""
    which = "a path, or `best` or `last` of the newest run; default: %(default)s"
    parser.add_argument("--ckpt_path", default="best", help=which)
    trust = "module outside this project whose classes the checkpoint may use; repeatable"
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE", help=trust)
    parser.add_argument(
        "--data.NAME", action="append", dest="_", metavar="VALUE", help="arguments of its data, as in src.train"
    )


def check_minimum(options: argparse.Namespace, **minimum: float) -> None:
    """Raise InputError if an option is below its minimum or not finite."""
    for name, limit in minimum.items():
        value = getattr(options, name)
        if value is not None and not limit <= value < math.inf:
            wrong = "is too small" if value < limit else "is not finite"
            raise InputError(f"--{name} {value} {wrong}: give at least {limit}")


def new_output(option: str, given: str) -> Path:
    """The absolute path of a file to write. Raises InputError if the path exists, or its folder does not."""
    path = Path(given).expanduser().absolute()
    if path.exists() or path.is_symlink():  # perhaps to a file that is not there yet
        raise InputError(f"{option} {given} already exists: give another name, or remove it")
    if not path.parent.is_dir():
        raise InputError(f"{option} {given}: there is no folder {path.parent}; make it first")
    return path


def require(command: str, extra: str, *packages: str) -> None:
    """Raise InputError if a package that a command needs is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{command} needs the package {package}: install it with pip install -e '.[{extra}]'")
