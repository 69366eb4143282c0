"""Files and runs at addresses such as s3://, gs://, hf:// and https:// (fsspec).

A file is copied to `data/remote/` before it is used, and copied again if it has changed since. A run folder is copied
to its address after each checkpoint.
"""

import json
import random
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from src import ROOT
from src.engine.data.loading import announce
from src.engine.runs import runs
from src.engine.runs.runs import claim_folder, version
from src.engine.system.addresses import is_address
from src.engine.system.errors import InputError

# What tells one version of a file from another; without any of these a file is copied every time.
VERSIONS: tuple[str, ...] = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated")
VERSIONS += ("created", "md5Hash", "Content-MD5", "generation", "blob_id")
LEFT_OUT = re.compile(r".*\.tmp|\..*")  # of this machine only


def copy_of(address: str) -> Path:
    """The path of a copy of a file or folder at an address; raises InputError if it cannot be read."""
    with reading(address):
        system, path = file_system(address)
        details = {path: {"type": "directory"} if address.endswith("/") else system.info(path)}
        if details[path].get("type") == "directory":
            details = _details(system, system.find(path, detail=True))
        if not details:
            raise FileNotFoundError
        copies = _transfer(system, address, details)
        place = _place(system, path)
        for file in {path for path in place.rglob("*") if path.is_file()} - {*copies.values()}:
            file.unlink()  # it is gone at the address
        return place


def copies_of(names: Sequence[str], table: str) -> list[Path]:
    """The paths of files that a table names, relative to the table or as addresses; those at addresses are copied."""
    parent = table.rpartition("/")[0] if is_address(table) else ""
    wanted = [name if is_address(name) else f"{parent}/{name}" if parent else name for name in names]
    with reading(table if parent else next(filter(is_address, wanted))):
        found: dict[Any, dict[str, str]] = {}  # by server
        for address in filter(is_address, wanted):
            system, path = file_system(address)
            found.setdefault(system, {})[address] = path
        copies: dict[str, Path] = {}
        for system, paths in found.items():
            places = _transfer(system, f"what {table} names", _details(system, {path: {} for path in paths.values()}))
            copies |= {address: places[path] for address, path in paths.items()}
    return [copies.get(name) or Path(table).expanduser().parent / name for name in wanted]


def use_copies(path: str | None, run: str | None, root: Any) -> tuple[str | None, str | None, Any]:
    """Checkpoint, run and folder of runs of a command line, on this machine in place of an address."""
    if path in ("auto", "last") and not run and is_address(root):
        other = f"for one of {root}, give --run with its address, such as .../default/version_0"
        rank_zero_info(f"--ckpt_path {path} looks for runs on this machine only: {other}")
    path = str(copy_of(path)) if path and is_address(path) else path
    run = str(fetch_run(run)) if run and is_address(run) else run
    return path, run, ROOT / "logs" if is_address(root) else root


def claim_run(root: Any, name: str) -> Path:
    """Create the folder of a new run on this machine."""
    if is_address(root):
        return runs.claim_run(ROOT / "logs", name, partial(claim_at, address=root))
    return runs.claim_run(root, name)


def run_callbacks(folder: Path, root: Any) -> list[Callback]:
    """The callback that copies a run, if its root is an address."""
    return [RunCopy(folder, root)] if is_address(root) else []


def after_run(trainer: Any) -> None:
    """Copy what is left of a run; raises InputError if that fails, unless the run itself has failed."""
    has_failed = sys.exc_info()[0] is not None
    for one in (one for one in trainer.callbacks if isinstance(one, RunCopy)):
        problem = one.copy()
        if problem and not has_failed:
            raise InputError(problem)
        if not has_failed:
            rank_zero_info(f"Copied to {one.address}")
        elif problem:
            announce(problem)


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec  # lazy import: most runs use files of this machine

    system, path = fsspec.core.url_to_fs(address)
    return system, path


@contextmanager
def reading(address: str, done: str = "read") -> Iterator[None]:
    """Turn the errors of any file system into an InputError: the address cannot be `done`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each file system has its own exceptions
        cause = error.__cause__ or error
        is_missing = isinstance(cause, FileNotFoundError) or "404" in str(cause)
        reason = "no such file" if is_missing else " ".join(str(cause).split())[:200] or type(cause).__name__
        raise InputError(f"{address} cannot be {done}: {reason}") from error


class RunCopy(Callback):
    """Copies what has changed in a run folder to `<address>/<name>/version_N`, after each checkpoint and at the end.

    Raises InputError if another run is at the address.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = f"{address.rstrip('/')}/{folder.parent.name}/{folder.name}"
        self._copied: dict[str, tuple[int, int]] = {}
        self._checkpoints = 0
        with reading(self.address):
            self._system, self._path = file_system(self.address)
            there, own = f"{self._path}/config.yaml", folder / "config.yaml"
            if self._system.exists(there) and not (own.exists() and self._system.cat(there) == own.read_bytes()):
                raise InputError(f"{self.address} holds another run: give another --trainer.default_root_dir")

    @rank_zero_only
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        with suppress(OSError):  # no checkpoint yet
            changed = (self.folder / "checkpoints").stat().st_mtime_ns
            if changed != self._checkpoints:
                self._checkpoints = changed
                if problem := self.copy():
                    rank_zero_warn(f"{problem}; trying again after the next checkpoint")

    def copy(self) -> str:
        """Copy what has changed since the last time; returns what went wrong, or ""."""
        try:
            found = [(path.relative_to(self.folder).as_posix(), path) for path in self.folder.rglob("*")]
            files = {name: path for name, path in found if path.is_file() and not _is_left_out(name)}
            if "config.yaml" in self._copied.keys() - files.keys():
                return f"{self.folder} is gone, deleted or renamed: {self.address} keeps what was copied before"
            for name, path in files.items():
                state = (path.stat().st_mtime_ns, path.stat().st_size)
                if self._copied.get(name) != state:
                    self._system.makedirs(f"{self._path}/{name}".rpartition("/")[0], exist_ok=True)
                    self._system.put_file(str(path), f"{self._path}/{name}")
                    self._copied[name] = state
            for name in self._copied.keys() - files.keys():  # such as an older best checkpoint
                self._system.rm_file(f"{self._path}/{name}")
                del self._copied[name]
        except Exception as error:  # each file system has its own exceptions
            return f"{self.folder} could not be copied to {self.address}: {' '.join(str(error).split())[:200]}"
        return ""


def _is_left_out(name: str) -> bool:
    """Whether a file of a run, or a folder that it is in, is of this machine only."""
    parts = name.removesuffix("/.metadata").split("/")  # the index of a sharded checkpoint
    return any(map(LEFT_OUT.fullmatch, parts))


def claim_at(parent: Path, address: str) -> Path:
    """Create a run folder whose number is free on this machine and at an address.

    A file with a unique name claims the number; if several runs claim it at the same time, none gets it.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return claim_folder(parent)
    with reading(address, "written"):
        system, path = file_system(f"{address.rstrip('/')}/{parent.name}")
        while True:
            system.makedirs(path, exist_ok=True)
            system.invalidate_cache()
            names = [Path(one).name for one in system.ls(path, detail=False)]
            taken = [version(Path(name)) for name in names if re.fullmatch(r"version_\d+", name)]
            folder = claim_folder(parent, max(taken, default=-1))
            there = f"{path}/{folder.name}"
            mark = f"{there}/claim-{uuid.uuid4().hex}"
            system.makedirs(there, exist_ok=True)
            system.pipe_file(mark, b"of a run that copies itself to this folder")
            system.invalidate_cache()
            if [Path(one).name for one in system.ls(there, detail=False)] == [Path(mark).name]:
                return folder
            system.rm_file(mark)
            folder.rmdir()
            time.sleep(random.random())


def fetch_run(given: str) -> Path:
    """The folder on this machine of a run at an address; copied to `logs/` if it is not here.

    Raises InputError if there is no such run, or another run has that folder here.
    """
    with reading(given):
        system, path = file_system(given.rstrip("/"))
        found = _details(system, system.find(path, detail=True))  # a list of a web server has no sizes
        files = {name[len(path) + 1 :]: info for name, info in found.items()}
        if odd := next((name for name in files if {"..", ""} & {*re.split(r"[/\\]", name)}), None):
            raise InputError(f"--run {given}: {odd} leads out of its folder")
        if "config.yaml" not in files:
            raise InputError(f"--run {given}: no run is there; give the address of a folder such as version_0")
        folder = ROOT.joinpath("logs", *Path(path).parts[-2:])
        wanted = {name: info["size"] for name, info in files.items() if not Path(name).name.startswith("claim-")}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # the processes of a run copy once
            if folder.exists():
                here = {name: (folder / name).stat().st_size for name in wanted if (folder / name).is_file()}
                if here != wanted or (folder / "config.yaml").read_bytes() != system.cat(f"{path}/config.yaml"):
                    raise InputError(f"--run {given}: {folder} is here and differs: give --run {folder}")
                return folder
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as partial:
                copy = Path(partial) / "run"
                for name in wanted:
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(f"{path}/{name}", str(copy / name))
                copy.rename(folder)
            return folder


def _place(system: Any, path: str) -> Path:
    """Where the copy of a file or folder is."""
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    clean, _, query = path.rpartition("://")[2].partition("?")
    parts = [part for part in clean.split("/") if part]
    if ".." in parts:
        raise InputError(f"{path} leads out of its folder: give an address without '..'")
    if query:
        parts.insert(-1, sha256(query.encode()).hexdigest()[:16])
    if isinstance(host := getattr(system, "host", None), str):  # else it is in the path
        parts.insert(0, host)
    return ROOT.joinpath("data", "remote", protocol, *parts)


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


def _transfer(system: Any, what: str, details: dict[str, Any]) -> dict[str, Path]:
    """Copy the files that are not here yet in this version; returns where each is."""
    record = ROOT / "data" / "remote" / f".{sha256(what.encode()).hexdigest()[:16]}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    versions = {path: _version(info) for path, info in details.items()}
    with FileLock(f"{record}.lock"):  # the processes of a run copy once
        known: dict[str, str] = {}
        with suppress(OSError, ValueError):  # missing, or half-written
            known = json.loads(record.read_text(encoding="utf-8"))
        places = {path: _place(system, path) for path in details}
        here = {path: place.stat().st_size for path, place in places.items() if place.is_file()}
        sizes = {path: info.get("size") for path, info in details.items()}
        same = {path for path, version in versions.items() if version and known.get(path) == version}
        stale = [path for path in versions if path not in same or here.get(path, -1) != sizes[path]]
        if not stale:
            return places
        rank_zero_info(f"Copying {len(stale):,} of {len(details):,} files of {what} to {record.parent}")
        with tempfile.TemporaryDirectory(dir=record.parent, prefix=".copy-") as folder:
            copies = [str(Path(folder) / str(number)) for number in range(len(stale))]
            system.get(stale, copies)
            for path, copy in zip(stale, copies, strict=True):
                places[path].parent.mkdir(parents=True, exist_ok=True)
                shutil.move(copy, places[path])
        new = record.with_suffix(".tmp")
        new.write_text(json.dumps({**known, **versions}), encoding="utf-8")
        new.replace(record)
        return places
