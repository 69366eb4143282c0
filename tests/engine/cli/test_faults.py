"""A failure ends a run with one clear line, and saved checkpoints stay intact."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kill import scalars
from lightning.pytorch.strategies import SingleDeviceStrategy

from src import ROOT
from src.engine.cli import config
from src.engine.parts.optimizer_overrides import retry_arguments
from src.engine.runs.checkpoint import damage, read_checkpoint, write_checkpoint
from src.engine.runs.runs import lock_run
from src.engine.system.errors import InputError
from src.engine.training.finite_loss import FiniteLoss, NotFiniteError
from tests import forked
from tests.conftest import QUIET, Run, one_line, program
from tests.spies import Payload, inject_fault
from tests.toy import RECIPE

Train = Callable[..., Run]

TOY = (f"--config={RECIPE}",)
STEPS = 10  # per epoch


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: a continued run has its own configuration, and the others get one from the test."""
    return ()


def run_with_fault(tmp_path: Path, kind: str, step: int, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Train in a separate process, with a fault at a step."""
    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    return program("fit", *TOY, *QUIET, root, *inject_fault(kind, step, tmp_path / "happened"), *args, **env)


def folder_of(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "logs").glob("*/version_*")
    return folder


def step_of(folder: Path) -> int:
    step: int = read_checkpoint(str(folder / "checkpoints" / "last.ckpt"))["global_step"]
    return step


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        *((kind, 143, "stopped by SIGTERM") for kind in ("terminate", "terminate in validation")),
        ("interrupt", 130, "stopped by Ctrl-C"),
    ],
)
def test_a_signal_finishes_the_step_saves_and_prints_how_to_continue(
    train: Train, tmp_path: Path, kind: str, code: int, word: str
) -> None:
    tmp_path /= "with a space"
    tmp_path.mkdir()
    done = run_with_fault(tmp_path, kind, 17, "--max_epochs=3", "--trainer.val_check_interval=7")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    folder = folder_of(tmp_path)
    assert word in done.stderr
    assert f"continue with: python -m src.train fit --ckpt_path last --run '{folder}'" in done.stderr
    assert step_of(folder) == 17 + ("validation" not in kind)
    run = train("fit", "--ckpt_path=last", f"--run={folder}")
    assert run.folder == folder
    assert step_of(folder) == 3 * STEPS


@pytest.mark.slow
@pytest.mark.parametrize(("every", "interval", "fault", "saved"), [(4, 6, 1, 2), (1, 10, 10, 10)])
def test_no_step_is_lost_in_validation(tmp_path: Path, every: int, interval: int, fault: int, saved: int) -> None:
    words = (f"--trainer.accumulate_grad_batches={every}", f"--trainer.val_check_interval={interval}")
    done = run_with_fault(tmp_path, "terminate in validation", fault, "--max_epochs=3", *words)
    assert (done.returncode, step_of(folder_of(tmp_path))) == (143, saved)


@pytest.mark.slow
def test_outside_of_training_a_signal_stops_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src.train", "test", *TOY, f"--trainer.default_root_dir={tmp_path}", *QUIET]
    command.append("--fast_dev_run")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "Seed set to" in line:
            break
    process.terminate()
    _, rest = process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM)
    assert "Traceback" not in rest


# Checkpoints


def checkpoint(value: float = 0.0) -> dict[str, object]:
    return {"state_dict": {"weight": torch.full((200, 100), value)}, "pytorch-lightning_version": "2.6.6"}


def test_a_flipped_bit_anywhere_is_detected_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    write_checkpoint(checkpoint(1.0), path)
    assert damage(path) is None
    whole, weight = path.read_bytes(), torch.ones(200, 100)
    start = whole.index(weight.numpy().tobytes())
    end = start + weight.nbytes
    # Some bytes of the weights, and all bytes before and after them.
    positions = [*range(0, len(whole), 499), *range(start), *range(end, len(whole))]
    with path.open("r+b", buffering=0) as file:
        for position in positions:
            os.pwrite(file.fileno(), bytes([whole[position] ^ 1 << position % 8]), position)
            if damage(path) is None:  # padding or a date, or it is no zip archive any more
                assert not start <= position < end
                with suppress(InputError):
                    assert torch.equal(read_checkpoint(str(path))["state_dict"]["weight"], weight)
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    assert damage(path) is None
    for length in (10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert damage(path) is not None
    path.write_bytes(b"")
    with pytest.raises(InputError):
        read_checkpoint(str(path))


def test_a_checkpoint_that_torch_wrote_is_read(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "plain.ckpt")
    assert damage(tmp_path / "plain.ckpt") is None
    assert "weight" in read_checkpoint(str(tmp_path / "plain.ckpt"))["state_dict"]


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_reported_and_the_newest_good_one_is_used(train: Train, tmp_path: Path) -> None:
    fitted = train("fit", *TOY, "--max_epochs=2")
    last, best = (fitted.folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    content = bytearray(last.read_bytes())
    weight = max(read_checkpoint(str(last))["state_dict"].values(), key=torch.Tensor.numel)
    content[content.index(weight.numpy().tobytes())] ^= 4
    last.write_bytes(content)
    again = train("fit", "--run", str(fitted.folder), "--max_epochs=3")
    assert any(
        f"{last} is damaged or truncated (its checksum does not match its content): not used" in line
        for line in again.messages
    )
    assert any("from best.ckpt" in line for line in again.messages)
    assert step_of(again.folder) == 3 * STEPS
    for path in (last, best):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"has no checkpoint to continue from.*{last}"):
        train("--run", str(fitted.folder), "--max_epochs=4")


def write_forever(path: Path, written: Connection) -> None:
    while True:
        write_checkpoint({"state_dict": {"weight": torch.full((500, 1000), time.monotonic())}}, path)
        written.send(None)


@pytest.mark.slow
def test_killing_a_write_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    for wait in (0.003, 0.02, 0.05):
        written, end = forked.CONTEXT.Pipe(duplex=False)
        writer = forked.CONTEXT.Process(target=write_forever, args=(path, end), daemon=True)
        writer.start()
        end.close()
        for _ in range(3):
            written.recv()  # raises EOFError if the writer fails
        time.sleep(wait)
        writer.kill()
        writer.join()
        assert damage(path) is None
        weights = torch.load(path, weights_only=True)["state_dict"]["weight"]
        assert (weights == weights[0, 0]).all()
        assert {file.suffix for file in path.parent.iterdir() if not file.name.startswith(".")} == {".ckpt"}
    before = tmp_path / "before.ckpt"
    os.link(path, before)
    write_checkpoint(checkpoint(), path)
    assert damage(before) is None  # the new checkpoint is a new file, not written over the old one
    assert torch.equal(torch.load(before, weights_only=True)["state_dict"]["weight"], weights)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]  # temporary files are removed


def test_a_checkpoint_with_code_is_refused_and_nothing_is_executed(train: Train, tmp_path: Path) -> None:
    torch.save({**checkpoint(), "extra": Payload(tmp_path / "executed")}, tmp_path / "hostile.ckpt")
    with pytest.raises(InputError, match="holds more than tensors and plain values"):
        train("fit", "--ckpt_path", str(tmp_path / "hostile.ckpt"), *TOY)
    assert not (tmp_path / "executed").exists()


# The disk


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_is_one_line_and_the_run_continues_with_more_space(
    train: Train, tmp_path: Path, small_disk: Path
) -> None:
    # A checkpoint of this network has 2.5 MB: best and last fit on the disk, a third to replace last does not.
    words = ("fit", *TOY, "--model.net=tests.toy.ToyMLP", "--model.net.hidden=3000")
    done = program(*words, *QUIET, f"--trainer.default_root_dir={small_disk}")
    line = one_line(done)
    assert re.search(r"(best|last).ckpt cannot be written \(No space left on device: it needs about 2\.\d MB and", line)
    assert "earlier checkpoints are unchanged; continue with: python -m src.train fit --ckpt_path last --run" in line
    (folder,) = small_disk.glob("*/version_*")
    found = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert found
    assert all(damage(path) is None for path in found)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    run = train("--run", str(folder))
    assert run.folder == folder
    assert "test/acc" in run.metrics


@pytest.mark.slow
def test_a_full_disk_at_a_log_write_is_one_line(tmp_path: Path, small_disk: Path) -> None:
    words = (*TOY, "--max_epochs=50", "--trainer.log_every_n_steps=1")
    root = f"--trainer.default_root_dir={small_disk}"
    done = program("fit", *words, *QUIET, root, *inject_fault("fill", STEPS + 8, tmp_path / "happened"))
    line = one_line(done)
    assert "cannot be written (No space left on device" in line
    assert "continue with: python -m src.train fit --ckpt_path last --run" in line
    (folder,) = small_disk.glob("*/version_*")
    assert step_of(folder) == STEPS


@pytest.mark.slow
def test_the_error_names_a_deleted_run_folder(tmp_path: Path) -> None:
    done = run_with_fault(tmp_path, "delete", 14, "--max_epochs=3")
    assert re.search(r"version_0 is gone, deleted or renamed during the run", one_line(done))
    assert not list((tmp_path / "logs" / "toy").iterdir())


# NaN and infinity


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_at_the_next_log_step(train: Train, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="the loss has been NaN or infinite since step 13, at learning rate"):
        train("fit", *TOY, "--max_epochs=3", *inject_fault("nan", 13, tmp_path / "happened"))
    folder = folder_of(tmp_path)
    assert scalars(folder)["train/loss_step"][-1][0] == 14  # the next log step, not the end of the epoch
    assert step_of(folder) == STEPS  # no checkpoint since then
    for path in (folder / "checkpoints").iterdir():
        assert all(value.isfinite().all() for value in read_checkpoint(str(path))["state_dict"].values())


def test_a_nan_loss_stops_the_run_before_a_validation() -> None:
    finite, trainer = FiniteLoss(), SimpleNamespace(world_size=1, global_step=3, log_every_n_steps=10, optimizers=[])
    trainer.lightning_module, trainer.gradient_clip_val = SimpleNamespace(), None
    for loss in (torch.tensor(math.nan), torch.tensor([math.nan])):
        for value in (loss, torch.ones(3)):  # of any shape
            finite.on_train_batch_end(trainer, None, value, None, 0)  # type: ignore[arg-type]
        with pytest.raises(NotFiniteError, match="the loss has been NaN or infinite since step"):
            finite.on_validation_start(trainer, None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_nonfinite_weights_are_never_saved(train: Train, tmp_path: Path) -> None:
    # A step that makes the weights infinite, with a checkpoint due before the next loss is computed.
    explode = ("--optimizer=SGD", "--optimizer.lr=1e38", "--lr_scheduler=null", "--save_every_n_steps=1")
    with pytest.raises(NotFiniteError, match=r"a weight \(net\S+\) is NaN or infinite after step|the loss has been"):
        train("fit", *TOY, *explode, "--trainer.gradient_clip_val=null")
    for path in (tmp_path / "logs").glob("*/*/checkpoints/*"):
        assert all(value.isfinite().all() for value in read_checkpoint(str(path))["state_dict"].values())


def test_a_nonfinite_weight_is_detected_before_the_loss_is_nonfinite() -> None:
    trainer: Any = SimpleNamespace(
        training=True,
        validating=False,
        world_size=1,
        global_step=8,
        optimizers=[],
        lightning_module=torch.nn.Module(),
        gradient_clip_val=None,
        strategy=SingleDeviceStrategy("cpu"),
    )
    layer: Any = torch.nn.Linear(2, 2)
    layer.mask = torch.nn.Parameter(torch.tensor(-torch.inf), requires_grad=False)
    FiniteLoss().on_save_checkpoint(trainer, layer, {})
    with torch.no_grad():
        layer.bias[1] = torch.inf
    with pytest.raises(NotFiniteError, match=r"a weight \(bias\) is NaN or infinite after step 7"):
        FiniteLoss().on_save_checkpoint(trainer, layer, {})


@pytest.mark.slow
def test_the_error_names_the_last_good_checkpoint_and_a_retry_halves_the_rate(tmp_path: Path) -> None:
    done = run_with_fault(tmp_path, "nan", 13, "--max_epochs=3")
    last = folder_of(tmp_path) / "checkpoints" / "last.ckpt"
    assert f"The last good checkpoint is {last}" in one_line(done)
    shutil.rmtree(tmp_path / "logs")
    (tmp_path / "happened").unlink()
    done = run_with_fault(tmp_path, "nan", 13, "--max_epochs=3", "--retries=1")
    assert done.returncode == 0, done.stderr
    assert f"Retrying at half that rate from {last}, 0 retries left" in done.stderr
    folder = folder_of(tmp_path)
    assert step_of(folder) == 3 * STEPS
    resumed = (folder / "config.resume-1.yaml").read_text()
    assert "lr: 0.005" in resumed
    assert resumed.count("FaultInjector") == 1


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_checkpoint_begins_again_at_half_the_rate(tmp_path: Path) -> None:
    done = run_with_fault(tmp_path, "nan", 3, "--max_epochs=1", "--retries=2")
    assert done.returncode == 0, done.stderr
    assert "Retrying at half that rate from the beginning, 1 retries left" in done.stderr
    first, second = sorted((tmp_path / "logs").glob("*/version_*"))
    assert not any((first / "checkpoints").glob("*.ckpt"))
    assert "lr: 0.005" in (second / "config.yaml").read_text()
    assert step_of(second) == STEPS


@pytest.mark.slow
def test_a_retry_starts_from_last_ckpt_even_if_another_checkpoint_was_given(train: Train) -> None:
    run = train("fit", *TOY, "--max_epochs=1", "--retries=2")
    words = retry_arguments(run.cli, NotFiniteError("the loss is NaN"), ["fit", "--ckpt_path", "other.ckpt"])
    given = dict(config.split_command_line(words)[2])  # the last of each wins
    assert (given["--ckpt_path"], given["--run"], given["--retries"]) == ("last", str(run.folder), "1")
    del run.cli.config.optimizer.init_args["lr"]  # an optimizer without a learning rate
    with pytest.raises(NotFiniteError, match=r"the loss is NaN\. The last good checkpoint is .*last\.ckpt$"):
        retry_arguments(run.cli, NotFiniteError("the loss is NaN"), [])


# Worker processes


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    # In a new interpreter, so that the workers are its children.
    done = run_with_fault(tmp_path, "kill worker", 14, "--data.num_workers=2", "--max_epochs=3", REAL_INTERPRETER="1")
    line = one_line(done)
    assert re.search(r"DataLoader worker \(pid \d+\) is killed by signal: Killed", line)
    assert "--ckpt_path last --run" in line


# Two processes with the same run


def hold(folder: Path, locked: Connection) -> None:
    lock = lock_run(folder)
    locked.send(lock.is_locked)
    signal.pause()


@pytest.mark.slow
def test_a_run_in_use_is_refused(train: Train) -> None:
    fitted = train("fit", *TOY, "--max_epochs=1")
    locked, end = forked.CONTEXT.Pipe(duplex=False)
    holder = forked.CONTEXT.Process(target=hold, args=(fitted.folder, end), daemon=True)
    holder.start()
    end.close()
    try:
        assert locked.recv()
        with pytest.raises(InputError, match="is in use by another process"):
            train("fit", "--run", str(fitted.folder), "--max_epochs=2")
    finally:
        holder.kill()
        holder.join()
    assert train("fit", "--run", str(fitted.folder), "--max_epochs=2").folder == fitted.folder
