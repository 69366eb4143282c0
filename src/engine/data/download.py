"""Fetching files from the network: a time limit, and one error for all that can go wrong."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

TIMEOUT = 10.0  # seconds without an answer


class DownloadError(Exception):
    """A file could not be fetched; the message says why, in one line."""


@contextmanager
def downloading() -> Iterator[None]:
    """Give up after `TIMEOUT` seconds without an answer.

    Raises:
        DownloadError: whatever torch's and torchvision's own download functions raise.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        reasons = re.findall(r"<urlopen error (.*?)>", str(error))
        raise DownloadError(reasons[-1] if reasons else " ".join(str(error).split())) from error
    finally:
        socket.setdefaulttimeout(before)
