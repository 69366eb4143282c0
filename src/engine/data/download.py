"""Downloads with a time limit and a single error class."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

TIMEOUT = 10.0  # seconds without an answer


class DownloadError(Exception):
    """A download failed; the message gives the reason in one line."""


@contextmanager
def downloading() -> Iterator[None]:
    """Stop downloads that get no answer for `TIMEOUT` seconds.

    Raises:
        DownloadError: a download function of torch or torchvision failed.
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
