"""Creates, finds and locks run folders: `logs/<recipe>/version_N`, each used by one process at a time."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from src import ROOT
from src.engine.runs.checkpoint import best_states, configurations, read_checkpoint
from src.engine.runs.run_record import is_finished
from src.engine.system.addresses import at_address, is_address
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks

# Worker processes of a killed run notice it after 5 seconds, and hold its lock until then.
WORKER_SECONDS = 8
TRIALS = "trials"  # folder of a search's trials, in that of the search: no trial is ever the newest run


def claim_folder(parent: Path, after: int = -1, stem: str = "version") -> Path:
    """Create the folder `parent/<stem>_N` with the next free N above `after`, safe when many runs start at once.

    Only the first process of a run creates it; the Trainer sends the path to the others. Raises InputError if it cannot
    be created.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return parent / f"{stem}_-1"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = max([after, *map(version, _versions(parent, stem))])
        while True:
            number += 1
            folder = parent / f"{stem}_{number}"
            with suppress(FileExistsError):  # another run was faster
                folder.mkdir()
                return folder
    except OSError as error:
        hint = "" if stem == "version" else "the checkpoint's path with --ckpt_path, and "
        raise InputError(
            f"run folder {parent} cannot be written ({error.strerror}): give {hint}another folder with"
            " --trainer.default_root_dir"
        ) from error


def check_root(root: str | Path | None) -> None:
    """Raise InputError if runs cannot be written there: without its part, an address would be a folder such as s3:."""
    if is_address(root):
        at_address(hooks("run_callbacks"), root)


def claim_run(root: str | Path | None, name: str, claim: Callable[[Path], Path] = claim_folder) -> Path:
    """Create the folder of a new run, in `logs/` by default; raises InputError in a folder that is not for runs."""
    parent = runs_of(Path(root or ROOT / "logs"), name)
    if (parent / TRIALS).is_dir():
        raise InputError(f"{parent} holds a search: give another name, as in --name {parent.name}-run")
    return claim(parent)


def runs_of(root: Path, name: str) -> Path:
    """The folder that holds the runs with this name; raises InputError if it is not a plain folder name."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):  # YAML reads 2024 as a number
        raise InputError(f"--name {name} is not the name of a folder: give a plain one, such as mine")
    return root.expanduser().absolute() / name


def version(folder: Path) -> int:
    """N of version_N."""
    return int(folder.name.rpartition("_")[2])


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that contains a checkpoint, or None."""
    parent = checkpoint.expanduser().absolute().parent
    folder = parent.parent
    return folder if (folder / "config.yaml").is_file() and parent.name == "checkpoints" else None


def newest_run(root: Path, name: str | None = None) -> Path:
    """The run with the newest checkpoint, optionally only among runs with this name; raises InputError without one."""
    parents = [runs_of(root, name)] if name else [*root.expanduser().absolute().glob("*")]
    found = [(path, next(checkpoints_of(path), None)) for parent in parents for path in _versions(parent)]
    times = {path: checkpoint.stat().st_mtime for path, checkpoint in found if checkpoint}
    if not times:
        raise InputError(
            f"no run with a checkpoint in {parents[0] if name else root}: train one first with python -m"
            f" src.train{' and the same --config or --name' if name else ''}, or give the path of a checkpoint to"
            " --ckpt_path"
        )
    return max(times, key=lambda path: (times[path], version(path)))


def checkpoint_of(folder: Path, which: str) -> Path:
    """The `best` or `last` checkpoint of a run; raises InputError if it has none."""
    found = list(checkpoints_of(folder))
    path = folder / "checkpoints" / f"{which}.ckpt"
    is_there = path in found
    if which == "best" and found and (not is_there or {one.stem for one in found} - {"best", "last"}):
        # The run uses another file name, perhaps since it was continued; or a callback saves more.
        states = best_states(read_checkpoint(str(found[0])))
        states = states[:1] if is_there else states
        best = [Path(state["best_model_path"]) for state in states if state["best_model_path"]]
        found += [one for one in best if one.exists()]  # in a folder that its callback names
        path = next((one for other in best for one in found if one.name == other.name), path)
    if path not in found:
        have = ", ".join(sorted(other.name for other in found)) or "none"
        way = "--ckpt_path last, or a path" if "last.ckpt" in have.split(", ") else "a path to --ckpt_path"
        raise InputError(f"run {folder} has no {which} checkpoint, it has {have}: give {way}")
    return path


def find_checkpoint(given: str) -> tuple[Path, Path | None]:
    """The path of a checkpoint, and the folder of its run if it is one of the user's own, which are in `logs/`.

    Raises InputError if there is no run with that checkpoint.
    """
    if given not in ("best", "last"):
        path = Path(given).expanduser()
        run = run_of(path)
        return path, run if run and run.resolve().is_relative_to((ROOT / "logs").resolve()) else None
    folder = newest_run(ROOT / "logs")
    return checkpoint_of(folder, given), folder


def lock_run(folder: Path, wait: float = 0) -> FileLock:
    """Lock a run folder until this process ends; wait at most `wait` seconds for another process to release it.

    Raises InputError if another process uses the folder, or it cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=wait)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"run {folder} is in use by another process: wait for it, or give another run (if there is none, remove"
            f" {folder / '.lock'})"
        ) from error
    except OSError as error:
        raise InputError(f"run folder {folder} cannot be written ({error.strerror})") from error
    return lock


def runs_to_continue(parent: Path, automatic: bool) -> Iterator[Path]:
    """The unfinished runs in a folder that have a checkpoint and are not in use, newest first.

    Args:
        parent: folder of the runs with one name.
        automatic: leave out runs that another job will continue.
    """
    wait, is_said = WORKER_SECONDS, False
    for folder in sorted(_versions(parent), key=version, reverse=True):
        if is_finished(folder) or not any(checkpoints_of(folder)):
            continue
        if automatic and not all(may_continue(folder) for may_continue in hooks("may_continue")):
            if not is_said:
                by_hand = f"to continue it give --run {relative(folder)} --ckpt_path last"
                rank_zero_info(f"Skipped runs of other jobs, such as {relative(folder)}: {by_hand}")
            is_said = True
            continue
        try:
            lock_run(folder, wait).release()
        except InputError as error:
            rank_zero_info(f"Not continued: {error}")
            wait = 0
            continue
        yield folder


def checkpoints_of(folder: Path) -> Iterator[Path]:
    """The checkpoints of a run, newest first."""
    with suppress(OSError):
        found = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.is_file() or path.is_dir()]
        # last.ckpt is always the newest, even if the clock was set back.
        yield from sorted(found, key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime), reverse=True)


def good_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """The newest undamaged checkpoint of a run, and one line for each other file that is passed over.

    Raises InputError if the run has no undamaged checkpoint.
    """
    lines: list[str] = []
    for path in checkpoints_of(folder):
        problem = "has another configuration than config.yaml (it is of another run, or config.yaml was edited)"
        try:
            if read_checkpoint(str(path)).get("config") in configurations(folder):
                return path, lines
        except InputError as error:
            problem = str(error).removeprefix(f"--ckpt_path {path} ").partition("; give")[0]
        lines.append(f"{path} {problem}: not used")
    raise InputError(f"run {folder} has no checkpoint to continue from: {'; '.join(lines) or 'start a new run'}")


def from_first_process(value: str) -> str:
    """The value of the job's first process, if several were started together."""
    for agree in hooks("from_first_process"):
        value = agree(value)
    return value


def _versions(parent: Path, stem: str = "version") -> list[Path]:
    if not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if re.fullmatch(rf"{stem}_\d+", path.name)]


def relative(path: Path) -> str:
    """A path relative to the working directory if it is inside it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
