"""Serve a trained model over HTTP, with a page to try it: `python -m src.serve --help`."""

import argparse
import os
import signal
import socket
import sys

from src.engine.cli.command import add_checkpoint, check_minimum, command_parser, parse_words, require
from src.engine.system.errors import InputError


def serve(args: list[str]) -> None:
    """Serve until a signal comes.

    Raises:
        InputError: an option or the checkpoint cannot be used, or the address cannot be had.
    """
    options = _parse(args)
    from src.engine.deploy.service import run_service  # lazy import: keeps --help fast

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(0))  # until the server has its own, and when it has ended
    run_service(options)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.serve", "Serve a trained model over HTTP, with a page to try it.")
    add_checkpoint(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", choices=["127.0.0.1", "0.0.0.0", "::"], help="who may ask (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="%(default)s")
    parser.add_argument(
        "--token",
        default=os.environ.get("SERVE_TOKEN"),
        help="what requests must bring as `Authorization: Bearer TOKEN` (none, or the variable SERVE_TOKEN)",
    )
    parser.add_argument("--max_body_mb", type=float, default=10.0, help="largest request, in MB (%(default)s)")
    parser.add_argument("--max_batch_size", type=int, default=32, help="requests computed together (%(default)s)")
    parser.add_argument("--batch_timeout", type=float, default=0.005, help="seconds a batch waits (%(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds a request may take (%(default)s)")
    parser.add_argument("--accelerator", default="auto", help="as of src.train (%(default)s)")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], help="what the hardware has")
    options = parse_words(parser, args)
    require("src.serve", "deploy", "uvicorn", "starlette", "multipart")
    check_minimum(options, max_body_mb=0.001, max_batch_size=1, batch_timeout=0.0, timeout=0.1)
    if not 1024 <= options.port <= 65535:
        raise InputError(f"--port {options.port} is out of range: give 1024 to 65535")
    if options.token == "":
        raise InputError("--token is empty: give one, or leave it out")
    family = socket.AF_INET6 if options.host == "::" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind((options.host, options.port))
        except OSError as error:
            raise InputError(
                f"--port {options.port} of {options.host} cannot be had ({error.strerror}): give another, such as"
                f" --port {options.port + 1}"
            ) from error
    return options
