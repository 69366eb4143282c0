"""Copies run folders to an address such as s3://bucket/logs, and back (fsspec)."""

import random
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from src import ROOT
from src.engine.runs.runs import claim_folder, version
from src.engine.system.errors import InputError
from src.engine.system.remote import file_system, is_address, reading

LEFT_OUT = re.compile(r"\.lock|\.job|.*\.tmp|\..*")  # of this machine only


class RunCopy(Callback):
    """Copies what has changed in a run folder, after each checkpoint and at the end of the run.

    Args:
        folder: the run folder.
        address: where runs are copied to; this one is at `<address>/<name>/version_N`.

    Raises:
        InputError: another run is at the address.
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
                raise InputError(f"{self.address} holds another run: give another --name")

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
            found = [path for path in self.folder.rglob("*") if path.is_file() and not LEFT_OUT.fullmatch(path.name)]
            files = {path.relative_to(self.folder).as_posix(): path for path in found}
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


def local_root(root: Path | str | None) -> Path:
    """The folder of runs on this machine: `logs/` if runs are copied to an address."""
    return ROOT / "logs" if root is None or is_address(root) else Path(root)


def claim_at(parent: Path, address: str) -> Path:
    """Create a run folder whose number is free on this machine and at an address.

    A file with a name of its own marks the number; of several runs that mark one at the same time none takes it.

    Raises:
        InputError: the address cannot be written.
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

    Raises:
        InputError: there is no such run, or another run has that folder here.
    """
    with reading(given):
        system, path = file_system(given.rstrip("/"))
        files = {name[len(path) + 1 :]: info for name, info in system.find(path, detail=True).items()}
        if "config.yaml" not in files:
            raise InputError(f"--run {given}: no run is there; give the address of a folder such as version_0")
        folder = ROOT.joinpath("logs", *Path(path).parts[-2:])
        wanted = {name: info["size"] for name, info in files.items() if not Path(name).name.startswith("claim-")}
        if folder.exists():
            here = {name: (folder / name).stat().st_size for name in wanted if (folder / name).is_file()}
            if here != wanted or (folder / "config.yaml").read_bytes() != system.cat(f"{path}/config.yaml"):
                raise InputError(f"--run {given}: {folder} is here and differs: give --run {folder}, or move it away")
            return folder
        partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        for name in wanted:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{path}/{name}", str(partial / name))
        partial.rename(folder)
        return folder
