"""Sharded checkpoints are whole or refused, and nothing in them is executed."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver

from src.engine.runs.checkpoint import damage, read_checkpoint
from src.engine.runs.sharded import REST, read_index, read_whole, replace_folder, write_checksums
from src.engine.system.errors import InputError
from tests.spies import Payload


def sharded(folder: Path, **extra: object) -> Path:
    """A checkpoint as one process of a run with FSDP2 writes it."""
    group = {"lr": 0.1, "params": ["net.weight"]}
    state = {
        "state_dict": {"net.weight": torch.arange(6.0).view(2, 3)},
        "optimizer_0": {"state": {"net.weight": {"step": torch.tensor(3.0)}}, "param_groups": [group]},
        **extra,
    }
    state_dict_saver.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6.6", "global_step": 3}, folder / REST)
    write_checksums(folder)
    return folder


def test_it_is_read_as_one_process_would_have_written_it(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "last.ckpt")
    assert damage(folder) is None
    whole = read_whole(folder)
    assert whole["state_dict"]["net.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    (optimizer,) = whole["optimizer_states"]
    assert optimizer["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert optimizer["state"][0]["step"] == 3
    assert read_checkpoint(str(folder))["state_dict"]["net.weight"].shape == (2, 3)  # without reading the weights


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", REST])
def test_a_flipped_byte_in_any_file_is_noticed(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "last.ckpt")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert damage(folder) == f"the checksum of {name} is not that of its content"
    (folder / name).unlink()
    assert damage(folder) == f"{name} is missing"


def test_a_hostile_index_is_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "last.ckpt")
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    write_checksums(folder)  # whoever writes such an index can also write its checksum
    assert damage(folder) is None
    for read in (read_index, read_whole, lambda path: read_checkpoint(str(path))):
        with pytest.raises(InputError, match=r"posix\.mkdir has no place in an index of shards"):
            read(folder)
    assert not (tmp_path / "executed").exists()


def test_a_hostile_shard_is_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "last.ckpt", extra=Payload(tmp_path / "executed"))
    with pytest.raises(InputError, match="is not loaded: it holds more than tensors and plain values"):
        read_whole(folder)
    assert not (tmp_path / "executed").exists()


def test_there_is_a_whole_checkpoint_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sharded(tmp_path / "last.ckpt")
    rename = Path.rename
    seen = []

    def noted(self: Path, target: Path) -> Path:
        done = rename(self, target)
        if target.parent == tmp_path:
            seen.append([damage(found) for found in tmp_path.iterdir() if found.suffix == ".ckpt"])
        return done

    monkeypatch.setattr(Path, "rename", noted)
    replace_folder(sharded(tmp_path / ".last.ckpt-new"), path)
    assert seen == [[None], [None, None]]
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]
