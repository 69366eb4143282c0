"""Files at addresses such as s3://, gs://, hf:// and https://, read through copies on this machine (fsspec).

An address is copied to `data/remote/` before it is used, and copied again if it has changed since.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from src import ROOT
from src.engine.system.errors import InputError

# What tells one version of a file from another; without any of these a file is copied every time.
VERSIONS: tuple[str, ...] = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated")
VERSIONS += ("created", "md5Hash", "Content-MD5", "generation", "blob_id")


def is_address(given: Any) -> bool:
    """Whether a text is an address and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(given)) is not None


def local_path(given: str | Path) -> Path:
    """The path of a file or folder; what an address names is copied first.

    Raises:
        InputError: the address cannot be read.
    """
    address = str(given)
    if not is_address(address):
        return Path(given).expanduser()
    with reading(address):
        system, path = file_system(address)
        details = {path: {"type": "directory"} if address.endswith("/") else system.info(path)}
        if is_folder := details[path].get("type") == "directory":
            details = _details(system, system.find(path, detail=True))
        if not details:
            raise FileNotFoundError
        _transfer(system, address, details)
        place = _place(system, path)
        kept = {_place(system, one) for one in details}
        for file in place.rglob("*") if is_folder else ():
            if file.is_file() and file not in kept:
                file.unlink()  # it is gone at the address
        return place


def local_paths(names: Sequence[str], table: str) -> list[Path]:
    """The paths of files that a table names, relative to the table or as addresses; those at addresses are copied.

    Raises:
        InputError: a file cannot be read.
    """
    parent = table.rpartition("/")[0] if is_address(table) else ""
    wanted = [name if is_address(name) else f"{parent}/{name}" if parent else name for name in names]
    if not any(map(is_address, wanted)):
        return [Path(table).expanduser().parent / name for name in names]
    with reading(table if parent else next(filter(is_address, wanted))):
        found: dict[str, Any] = {}
        for address in filter(is_address, wanted):
            system, path = file_system(address)
            found.setdefault(address.partition("://")[0], (system, {}))[1][address] = path
        copies: dict[str, Path] = {}
        for system, paths in found.values():
            _transfer(system, f"what {table} names", _details(system, {path: {} for path in paths.values()}))
            copies |= {address: _place(system, path) for address, path in paths.items()}
    return [copies.get(name) or Path(table).expanduser().parent / name for name in wanted]


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec  # lazy import: most runs use files of this machine

    system, path = fsspec.core.url_to_fs(address)
    return system, path


@contextmanager
def reading(address: str, done: str = "read") -> Iterator[None]:
    """Turn the errors of any file system into an InputError.

    Args:
        address: for messages.
        done: what is done there.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each file system has its own exceptions
        cause = error.__cause__ or error
        is_missing = isinstance(cause, FileNotFoundError) or "404" in str(cause)
        reason = "no such file" if is_missing else " ".join(str(cause).split())[:200] or type(cause).__name__
        raise InputError(f"{address} cannot be {done}: {reason}") from error


def _place(system: Any, path: str) -> Path:
    """Where the copy of a file or folder is."""
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    clean, _, query = path.rpartition("://")[2].partition("?")
    parts = [part for part in clean.split("/") if part]
    if ".." in parts:
        raise InputError(f"{path} leads out of its folder: give an address without '..'")
    if query:
        parts.insert(-1, sha256(query.encode()).hexdigest()[:16])
    return ROOT.joinpath("data", "remote", protocol, *(re.sub(r"[^\w.+= -]", "_", part) for part in parts))


def _details(system: Any, found: dict[str, Any]) -> dict[str, Any]:
    """What a file system says about files; asked again for those of a list without versions."""
    if all(_version(info) for info in found.values()):
        return found

    def info(path: str) -> Any:
        with reading(system.unstrip_protocol(path)):
            return system.info(path)

    with ThreadPoolExecutor(16) as pool:
        return dict(zip(found, pool.map(info, found), strict=True))


def _version(info: dict[str, Any]) -> str:
    return ", ".join(str(info[name]) for name in VERSIONS if info.get(name))


def _transfer(system: Any, what: str, details: dict[str, Any]) -> None:
    """Copy the files that are not here yet in this version."""
    record = ROOT / "data" / "remote" / f".{sha256(what.encode()).hexdigest()[:16]}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    versions = {path: _version(info) for path, info in details.items()}
    with FileLock(f"{record}.lock"):  # the processes of a run copy once
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        stale = [
            path
            for path, version in versions.items()
            if not version or known.get(path) != version or _size(_place(system, path)) != details[path].get("size")
        ]
        if not stale:
            return
        from lightning.pytorch.utilities.rank_zero import rank_zero_info  # lazy import: keeps --help of commands fast

        rank_zero_info(f"Copying {len(stale):,} of {len(details):,} files of {what} to {record.parent}")
        with tempfile.TemporaryDirectory(dir=record.parent, prefix=".copy-") as folder:
            copies = [str(Path(folder) / str(number)) for number in range(len(stale))]
            system.get(stale, copies)
            for path, copy in zip(stale, copies, strict=True):
                _place(system, path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(copy, _place(system, path))
        record.write_text(json.dumps({**known, **versions}), encoding="utf-8")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
