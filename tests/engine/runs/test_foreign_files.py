"""Files that are no checkpoints, given as one: each is one line, and no code in it runs."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.sharded import read_index, write_checksums
from src.engine.system.errors import InputError
from tests.spies import Payload


def _tar(path: Path, payload: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))


def _with_entry(name: str) -> Callable[[Path, Payload], None]:
    def write(path: Path, payload: Payload) -> None:
        torch.save({"state_dict": {"a": torch.zeros(1)}, "pytorch-lightning_version": "2.6.6"}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{path.stem}/{name}", pickle.dumps(payload))

    return write


def _shards(path: Path, index: object, rest: object) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(index))
    torch.save({"pytorch-lightning_version": "2.6.6", "rest": rest}, path / "meta.pt")
    write_checksums(path)


FILES: dict[str, Callable[[Path, Payload], object]] = {
    "a pickle in the archive": lambda path, payload: torch.save({"state_dict": {}, "x": payload}, path),
    "torch's old format": lambda path, payload: torch.save({"x": payload}, path, _use_new_zipfile_serialization=False),
    "torch's oldest format": lambda path, payload: _tar(path, pickle.dumps(payload)),
    "a bare pickle": lambda path, payload: path.write_bytes(pickle.dumps(payload)),
    "an old pickle": lambda path, payload: path.write_bytes(pickle.dumps(payload, 0)),
    "TorchScript": lambda path, _: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path)),
    "an archive with code": _with_entry("code/__torch__.py"),
    "an archive with two pickles": _with_entry("data.pkl"),
    "NumPy": lambda path, payload: np.save(path.open("wb"), np.array([payload]), allow_pickle=True),
    "ONNX": lambda path, _: path.write_bytes(b"\x08\x07\x12\x07pytorch"),
    "safetensors": lambda path, _: path.write_bytes((2).to_bytes(8, "little") + b"{}"),
    "Python": lambda path, _: path.write_text("import this"),
    "nothing": lambda path, _: path.touch(),
    "zeros": lambda path, _: path.write_bytes(bytes(4096)),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a device": lambda path, _: path.symlink_to("/dev/zero"),
    "a tensor": lambda path, _: torch.save(torch.zeros(1), path),
    "shards with a pickle as their index": lambda path, payload: _shards(path, payload, 0),
    "shards with a pickle beside them": lambda path, payload: _shards(path, 0, payload),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_files_than_checkpoints_are_refused_and_run_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    FILES[kind](path, Payload(tmp_path / "marker"))
    refused = r"is not a|damaged|holds more than|no such file|not loaded|not allowed"
    # torch does not look at the code in an archive.
    with nullcontext() if kind == "an archive with code" else pytest.raises(InputError, match=refused):
        read_checkpoint(str(path))
    assert not (tmp_path / "marker").exists()


def test_an_index_of_shards_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata

    index = Metadata({}, storage_data={"a": _StorageInfo("/dev/zero", 0, 1)})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match="a file outside of its folder: /dev/zero"):
        read_index(tmp_path)
