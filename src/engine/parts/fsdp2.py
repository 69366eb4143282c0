"""Sharded checkpoints, which a run with `FSDP2Strategy` writes: folders in place of files."""

from pathlib import Path
from typing import Any

from src.engine.system.errors import InputError

EXPORT_FORMAT = ("checkpoint", ".ckpt", "checkpoint: a sharded checkpoint as one file")


def is_folder_checkpoint(path: Path) -> bool:
    """Whether a folder is a sharded checkpoint."""
    from src.engine.runs.sharded import REST  # lazy import: takes 0.3 s

    return (path / REST).is_file()


def folder_damage(path: Path) -> str | None:
    """What is wrong with a sharded checkpoint, or None."""
    from src.engine.runs.sharded import shard_damage

    return shard_damage(path)


def read_folder(path: Path) -> dict[str, Any]:
    """A sharded checkpoint without optimizer state, with weights on the meta device."""
    from src.engine.runs.sharded import read_rest

    return read_rest(path)


def refuse_folder(given: str) -> None:
    """Raise InputError if a checkpoint is sharded, so that only FSDP2 can load it."""
    path = Path(given).expanduser()
    if path.is_dir() and is_folder_checkpoint(path):
        raise InputError(
            f"--ckpt_path {given} is sharded: give --config configs/strategy/fsdp2.yaml too, or make one file"
            f" of it with python -m src.export --format checkpoint --ckpt_path {given} --output whole.ckpt"
        )


def check_trainer(trainer: Any, ckpt_path: str | None) -> None:
    """Raise InputError if a run cannot load its checkpoint, or average its weights, because of shards."""
    from lightning.pytorch.callbacks import WeightAveraging
    from lightning.pytorch.strategies import ModelParallelStrategy

    if not isinstance(trainer.strategy, ModelParallelStrategy):
        if ckpt_path:
            refuse_folder(ckpt_path)
    elif averaging := next((one for one in trainer.callbacks if isinstance(one, WeightAveraging)), None):
        raise InputError(f"{type(averaging).__name__} copies whole weights, FSDP2 has shards: use another --strategy")


def export_checkpoint(given: str, output: Path) -> None:
    """Write a sharded checkpoint as a single file, as a run in one process would write it.

    Raises:
        InputError: the checkpoint is not sharded or is damaged, or the file cannot be written.
    """
    from src.engine.runs.checkpoint import write_checkpoint
    from src.engine.runs.runs import find_checkpoint
    from src.engine.runs.sharded import read_whole

    folder = find_checkpoint(given)
    if not folder.is_dir() or not is_folder_checkpoint(folder):
        raise InputError(f"--ckpt_path {given} is not a sharded checkpoint: give a folder of shards")
    if problem := folder_damage(folder):
        raise InputError(f"--ckpt_path {given} is damaged ({problem}); give another one")
    write_checkpoint(read_whole(folder), output)
    print(f"written {output}")
