"""Sharded checkpoints, which a run with `FSDP2Strategy` writes: folders in place of files."""

from pathlib import Path
from typing import Any

from src.engine.system.errors import InputError

EXPORT_FORMAT = ("checkpoint", ".ckpt", "checkpoint: a sharded checkpoint as one file")
INSTEAD_OF_FSDP = ", or in src.train FSDP2Strategy"  # advice


def shard_reader(folder: Path) -> Any:
    """The module that reads a folder, if it is a sharded checkpoint; else None."""
    from src.engine.runs import sharded  # lazy import: takes 0.3 s

    return sharded if (folder / sharded.REST).is_file() else None


def refuse_folder(given: str) -> None:
    """Raise InputError if a checkpoint is sharded, so that only FSDP2 can load it."""
    path = Path(given).expanduser()
    if path.is_dir() and shard_reader(path):
        export = f"python -m src.export --format checkpoint --ckpt_path {given} --output whole.ckpt"
        problem = f"--ckpt_path {given} is sharded: give --config configs/strategy/fsdp2.yaml too"
        raise InputError(f"{problem}, or make one file of it with {export}")


def check_trainer(trainer: Any, ckpt_path: str | None) -> None:
    """Raise InputError if a run cannot load its checkpoint, or average its weights, because of shards."""
    from lightning.pytorch.callbacks import WeightAveraging
    from lightning.pytorch.strategies import ModelParallelStrategy

    is_own = False
    if isinstance(trainer.strategy, ModelParallelStrategy):
        from src.engine.runs.fsdp2 import FSDP2Strategy  # lazy import: takes 0.3 s

        is_own = isinstance(trainer.strategy, FSDP2Strategy)
        if not is_own and trainer.strategy._save_distributed_checkpoint:
            other = "--strategy FSDP2Strategy, or --trainer.strategy.save_distributed_checkpoint false"
            raise InputError(f"ModelParallelStrategy writes and reads shards unchecked: give {other}")
        if copying := [type(one).__name__ for one in trainer.callbacks if isinstance(one, WeightAveraging)]:
            raise InputError(f"{copying[0]} copies whole weights, FSDP2 has shards: use another --strategy")
    if ckpt_path and not is_own:
        refuse_folder(ckpt_path)


def export_checkpoint(folder: Path, output: Path) -> None:
    """Write a sharded checkpoint as a single file, as a run in one process would write it."""
    from src.engine.runs.checkpoint import write_checkpoint

    shards = shard_reader(folder)
    if shards is None:
        raise InputError(f"--ckpt_path {folder} is not a sharded checkpoint: give a folder of shards")
    if problem := shards.shard_damage(folder):
        raise InputError(f"--ckpt_path {folder} is damaged ({problem}); give another one")
    write_checkpoint(shards.read_whole(folder), output)
    print(f"written {output}")
