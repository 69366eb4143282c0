"""Sharded checkpoints are whole or refused, nothing in them is executed, and they become one file."""

import json
import os
import pathlib
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import distributed
from torch.distributed import init_device_mesh
from torch.distributed.checkpoint import metadata, state_dict_saver

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.deploy.exporting import export
from src.engine.deploy.rebuild import load_model
from src.engine.parts.fsdp2 import check_trainer
from src.engine.runs.checkpoint import damage, read_checkpoint, write_checkpoint
from src.engine.runs.fsdp2 import FSDP2Strategy, root_of
from src.engine.runs.run_record import read_metrics
from src.engine.runs.sharded import REST, read_index, read_whole, replace_folder, write_checksums
from src.engine.runs.trust import Trust
from src.engine.system.errors import InputError
from src.tasks.classifier import Classifier
from tests.conftest import QUIET, Run, program
from tests.engine.parts.toys import BlockNet, PartsModule
from tests.engine.runs.processes import only_run, run_in, spy
from tests.engine.training.test_distributed import check_that_each_sample_counts_once
from tests.spies import Payload
from tests.toy import RECIPE

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Train = Callable[..., Run]


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
    assert damage(folder) == f"the checksum of {name} does not match its content"
    (folder / name).unlink()
    assert damage(folder) == ("it is a folder" if name == REST else f"{name} is missing")


def test_a_hostile_index_is_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "last.ckpt")
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    write_checksums(folder)  # whoever writes such an index can also write its checksum
    assert damage(folder) is None
    for read in (read_index, read_whole, lambda path: read_checkpoint(str(path))):
        with pytest.raises(InputError, match=r"posix\.mkdir is not allowed in an index of shards"):
            read(folder)
    assert not (tmp_path / "executed").exists()


def test_an_index_of_an_early_python_is_read_and_its_getattr_reads_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = metadata._MEM_FORMAT_ENCODING
    monkeypatch.setattr(written, "__reduce_ex__", lambda self, _: (getattr, (written, self.name)))
    folder = sharded(tmp_path / "last.ckpt")
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert read_index(folder).state_dict_metadata
    (folder / ".metadata").write_bytes(b"cbuiltins\ngetattr\n(ctorch\nSize\nVmro\ntR.")  # of another class
    with pytest.raises(InputError, match=r"builtins\.getattr is not allowed in an index of shards"):
        read_index(folder)


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


def test_the_only_whole_checkpoint_is_not_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded(tmp_path / "last-before.ckpt")  # killed between two renames
    new = sharded(tmp_path / ".last.ckpt-new")

    def rename(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="killed"):
        replace_folder(new, tmp_path / "last.ckpt")
    assert damage(tmp_path / "last-before.ckpt") is None
    shutil.rmtree(tmp_path / "last-before.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"one file")
    with pytest.raises(OSError, match="killed"):
        replace_folder(new, tmp_path / "last.ckpt")
    assert [found.name for found in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_a_run_of_shards_goes_on_with_one_file(tmp_path: Path) -> None:
    path = sharded(tmp_path / "last.ckpt")
    (tmp_path / ".last.ckpt-new").mkdir()  # left by a run that was killed
    write_checkpoint({"state_dict": {"a": torch.zeros(2)}}, path)
    assert path.is_file()
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_all_files_of_shards_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, flushed = sharded(tmp_path / "last.ckpt"), []
    monkeypatch.setattr(os, "fsync", flushed.append)
    write_checksums(folder)
    assert len(flushed) == len([*folder.iterdir()])


# One file of shards


def consolidate(given: Path, output: Path) -> None:
    export(["--format=checkpoint", f"--ckpt_path={given}", f"--output={output}"])


def test_shards_become_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, whole = sharded(tmp_path / "last.ckpt"), tmp_path / "whole.ckpt"
    consolidate(folder, whole)
    assert capsys.readouterr().out == f"written {whole}\n"
    assert damage(whole) is None
    checkpoint = torch.load(whole, weights_only=True)
    assert checkpoint["state_dict"]["net.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint["optimizer_states"][0]["state"][0]["step"] == 3
    assert checkpoint["global_step"] == 3
    with pytest.raises(InputError, match="already exists"):
        consolidate(folder, whole)


def test_only_whole_shards_become_one_file(tmp_path: Path, toy_checkpoint: str) -> None:
    whole = tmp_path / "whole.ckpt"
    for given in (Path(toy_checkpoint), tmp_path, tmp_path / "nowhere.ckpt"):
        with pytest.raises(InputError, match=rf"--ckpt_path {given} is not a sharded checkpoint: give a folder of"):
            consolidate(given, whole)
    folder = sharded(tmp_path / "last.ckpt")
    with (folder / "__0_0.distcp").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"is damaged \(the checksum of __0_0.distcp does not match its content\)"):
        consolidate(folder, whole)
    with pytest.raises(InputError, match=r"give a name that ends in \.ckpt for --format checkpoint"):
        consolidate(folder, tmp_path / "whole.pt")
    hostile = sharded(tmp_path / "hostile.ckpt", extra=Payload(tmp_path / "executed"))
    with pytest.raises(InputError, match="is not loaded: it holds more than tensors and plain values"):
        consolidate(hostile, whole)
    assert not (tmp_path / "executed").exists()
    assert not whole.exists()


# FSDP2


@pytest.mark.slow
def test_fsdp2_trains_goes_on_and_becomes_one_file(
    train: Train, parse: Callable[..., StarterCLI], tmp_path: Path
) -> None:
    exact = ("--model.net=tests.engine.parts.toys.BlockNet", "--max_epochs=2", "--precision=32-true")
    exact = (*exact, "--lr_scheduler=null")  # which would end with the first part
    fsdp2 = (f"--config={ROOT / 'configs' / 'strategy' / 'fsdp2.yaml'}", "--trainer.strategy.gather_dtype=float32")
    one = train("fit", *exact, *spy(tmp_path / "one.json"))
    two = tmp_path / "two"
    run_in(two, "fit", f"--config={RECIPE}", *exact, *fsdp2, "--devices=2", "--trainer.max_steps=15")
    last = only_run(two) / "checkpoints" / "last.ckpt"
    assert last.is_dir()
    run_in(two, "--run", str(only_run(two)), "--trainer.max_steps=20", *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(losses) == 20
    assert others == pytest.approx(losses[15:], rel=1e-4)

    with pytest.raises(InputError, match=r"is sharded: give --config configs/strategy/fsdp2\.yaml too, or make one"):
        parse("test", f"--ckpt_path={last}", "--trust=tests", "--strategy=auto", "--devices=1")
    whole = tmp_path / "whole.ckpt"
    consolidate(last, whole)
    paths = (str(whole), str(one.folder / "checkpoints" / "last.ckpt"))
    models = [load_model(read_checkpoint(path), "forward", path, Trust(("tests",))) for path in paths]
    images = torch.randn(2, 1, 8, 8)
    assert torch.allclose(models[0](images), models[1](images), atol=1e-4)
    goes_on = train("fit", f"--ckpt_path={whole}", *exact, "--strategy=auto", "--devices=1", "--max_epochs=3")
    assert goes_on.cli.trainer.global_step == 30  # optimizer and all


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_may_call_a_method_of_the_network(tmp_path: Path, dtype: str) -> None:
    words = ("fit", "--model=tests.engine.parts.toys.PartsModule", "--data=tests.toy.ToyData", "--data.size=130")
    words += ("--max_epochs=1", "--precision=32-true", "--config=configs/strategy/fsdp2.yaml")
    words += (f"--trainer.strategy.gather_dtype={dtype}", "--optimizer=SGD", "--optimizer.lr=0.1")
    words += ("--checkpoint.monitor=val/loss", "--checkpoint.mode=min")
    weights = []
    for devices in (1, 2):
        assert "are not in the optimizer" not in run_in(tmp_path / str(devices), *words, f"--devices={devices}").stderr
        weights.append(read_whole(only_run(tmp_path / str(devices)) / "checkpoints" / "last.ckpt")["state_dict"])
        assert "total_seconds" in read_metrics(only_run(tmp_path / str(devices)))  # nothing failed after the last step
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5 if dtype == "float32" else 1e-2), name
    assert torch.equal(weights[1]["net.head.weight"], weights[1]["net.other.weight"])


def test_the_network_is_sharded_by_itself_if_it_has_all_weights_and_can_be_called() -> None:
    module = PartsModule()
    assert root_of(module) is module.net
    assert root_of(PartsModule(has_number=True)).__class__ is PartsModule
    module.net = torch.nn.ModuleList([module.net])  # type: ignore[assignment]
    assert root_of(module) is module


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--model.has_number=true",),
            "FSDP2 cannot shard scale, which is a single number: give another --strategy",
        ),
        (("--trainer.callbacks=EMAWeightAveraging",), "EMAWeightAveraging copies whole weights, FSDP2 has shards"),
    ],
)
def test_what_cannot_be_sharded_is_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    run = ("fit", "--model=tests.engine.parts.toys.PartsModule", "--data=tests.toy.ToyData", "--accelerator=cpu")
    sharded_run = ("--config=configs/strategy/fsdp2.yaml", "--devices=1", f"--trainer.default_root_dir={tmp_path}")
    done = program(*run, *sharded_run, *QUIET, *words)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert re.search(f"^error: {message}", done.stderr, re.MULTILINE), done.stderr


def test_strategies_without_checked_shards_neither_write_nor_read_them(tmp_path: Path) -> None:
    folder = str(sharded(tmp_path / "last.ckpt"))

    def run(strategy: object) -> SimpleNamespace:
        return SimpleNamespace(strategy=strategy, callbacks=[])

    with pytest.raises(InputError, match=r"^ModelParallelStrategy writes and reads shards unchecked: give --strategy"):
        check_trainer(run(ModelParallelStrategy()), None)
    whole = run(ModelParallelStrategy(save_distributed_checkpoint=False))
    check_trainer(whole, None)
    for one in (whole, run(SingleDeviceStrategy("cpu"))):
        with pytest.raises(InputError, match=r"last\.ckpt is sharded: give --config configs/strategy/fsdp2\.yaml too"):
            check_trainer(one, folder)
    own = run(FSDP2Strategy())
    check_trainer(own, folder)
    for one in (whole, own):
        one.callbacks = [EMAWeightAveraging()]
        with pytest.raises(InputError, match="EMAWeightAveraging copies whole weights"):
            check_trainer(one, None)


def test_activations_of_blocks_are_computed_again_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, gradients = [], []
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = {"data_parallel": init_device_mesh("cpu", (1,))}
        monkeypatch.setattr(FSDP2Strategy, "device_mesh", mesh)
        for again in (False, True):
            torch.manual_seed(0)
            net: Any = BlockNet()
            passed: list[str] = []
            for block in net.blocks:
                block[1].register_forward_hook(lambda *_, passed=passed: passed.append("block"))
            net.stem.register_forward_hook(lambda *_, passed=passed: passed.append("stem"))
            task = Classifier(net)
            FSDP2Strategy(activation_checkpointing=again)._shard(task)
            task(torch.ones(2, 1, 8, 8)).square().sum().backward()
            calls.append(passed)
            gradients.append([one.grad.to_local() for one in net.parameters()])
    finally:
        distributed.destroy_process_group()
    assert calls == [["stem", "block", "block"], ["stem", "block", "block", "block", "block"]]
    assert all(torch.allclose(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "need", "late"), [(3000, r"2\.\d", False), (750, r"0\.\d", True)])
def test_a_full_disk_at_a_sharded_checkpoint_is_one_line_per_process(
    small_disk: Path, hidden: int, need: str, late: bool
) -> None:
    # No space for a third checkpoint; or enough space, but the first process cannot write the last file of the second.
    words = ("fit", f"--config={RECIPE}", "--model.net=tests.toy.ToyMLP", f"--model.net.hidden={hidden}")
    processes = ("--accelerator=cpu", "--devices=2", "--config=configs/strategy/fsdp2.yaml")
    fault = ("--trainer.callbacks+=tests.engine.parts.toys.LateFullDisk", "--trainer.callbacks.step=15") if late else ()
    done = program(*words, *processes, *QUIET, f"--trainer.default_root_dir={small_disk}", *fault)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert {line.split(":")[0] for line in lines} == {"error", "error (rank 1)"}
    for line in lines:
        assert re.search(
            rf"(best|last).ckpt cannot be written \(.*: it needs about {need} MB and .* MB are free; free", line
        )
        assert "earlier checkpoints are unchanged" in line
    assert any("continue with: python -m src.train fit --ckpt_path last --run" in line for line in lines)
    (folder,) = small_disk.glob("*/version_*")
    found = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert found
    assert all(damage(path) is None for path in found)


@pytest.mark.slow
def test_every_one_of_1001_samples_counts_once_with_shards_too(
    train: Train, tmp_path: Path, toy_checkpoint: str
) -> None:
    check_that_each_sample_counts_once(train, tmp_path, toy_checkpoint, "FSDP2Strategy")


def test_an_index_that_python_3_13_wrote_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.PosixPath, "__module__", "pathlib._local")
        patch.setitem(sys.modules, "pathlib._local", pathlib)
        folder = sharded(tmp_path / "last.ckpt")
    assert b"pathlib._local" in (folder / ".metadata").read_bytes()
    assert read_whole(folder)["state_dict"]["net.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
