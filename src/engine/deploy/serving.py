"""Serve a trained model over HTTP, with a page to try it: `python -m src.serve --help`."""

import argparse
import errno
import os
import re
import signal
import socket
import sys

from src.engine.cli.command import add_checkpoint, check_minimum, command_parser, parse_words, require
from src.engine.system.errors import InputError

LARGEST_BODY_MB = 200  # larger ones would never be decoded


def serve(args: list[str]) -> None:
    """Serve until a signal arrives.

    Raises:
        InputError: an option or the checkpoint cannot be used, or the port is taken.
    """
    options = _parse(args)
    from src.engine.deploy.service import run_service  # lazy import: keeps --help fast

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(0))  # before the server sets its handlers, and after it ends
    run_service(options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.serve", "Serve a trained model over HTTP, with a page to try it.")
    add_checkpoint(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", choices=["127.0.0.1", "0.0.0.0", "::"], help="address; default: %(default)s"
    )
    parser.add_argument("--port", type=int, default=8000, help="1024 to 65535; default: %(default)s")
    parser.add_argument(
        "--token",
        default=os.environ.get("SERVE_TOKEN"),
        help="requests must send `Authorization: Bearer TOKEN`; default: the variable SERVE_TOKEN, or none",
    )
    largest = f"largest request, in MB, up to {LARGEST_BODY_MB}; default: %(default)s"
    parser.add_argument("--max_body_mb", type=float, default=10.0, help=largest)
    parser.add_argument("--max_batch_size", type=int, default=32, help="most requests per batch; default: %(default)s")
    parser.add_argument(
        "--batch_timeout", type=float, default=0.005, help="seconds to wait for more requests; default: %(default)s"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds per request; default: %(default)s")
    parser.add_argument("--labels", nargs="+", help="one text per class, for a model of images and texts")
    parser.add_argument("--accelerator", default="auto", help="as in src.train; default: %(default)s")
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="default: the best that the hardware supports"
    )
    options = parse_words(parser, args, also="data.")
    require("src.serve", "deploy", "uvicorn", "httptools", "starlette", "python_multipart")
    check_minimum(options, max_body_mb=0.001, max_batch_size=1, batch_timeout=0.0, timeout=0.1)
    if options.max_body_mb > LARGEST_BODY_MB:
        raise InputError(f"--max_body_mb {options.max_body_mb} is too large: give at most {LARGEST_BODY_MB}")
    if not 1024 <= options.port <= 65535:
        raise InputError(f"--port {options.port} is out of range: give 1024 to 65535")
    if options.token is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", options.token):
        given, way = (
            ("--token", "leave it out") if "--token" in " ".join(args) else ("variable SERVE_TOKEN", "unset it")
        )
        raise InputError(f"{given}: give printable ASCII that neither begins nor ends with a space, or {way}")
    family = socket.AF_INET6 if options.host == "::" else socket.AF_INET
    try:
        socket.create_server((options.host, options.port), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno != errno.EADDRINUSE:
            raise InputError(f"--host {options.host} cannot be used ({reason}): give another") from error
        other = options.port + 1 if options.port < 65535 else 8000
        taken = f"--port {options.port} of {options.host} cannot be used ({reason})"
        raise InputError(f"{taken}: give another, such as --port {other}") from error
    return options
