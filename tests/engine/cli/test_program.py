"""One-line errors of `src.train`, exit codes, and modules loaded at start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from src import ROOT
from src.engine.cli import program as program_module
from src.engine.cli.config import load_config
from src.train import main
from tests.conftest import QUIET, one_line, program, write
from tests.spies import inject_fault
from tests.toy import RECIPE, ToyData

ErrorOf = Callable[..., str]
HERE = "tests.engine.cli.test_program"


class StripedData(ToyData):
    """Data with a Literal argument."""

    def __init__(self, stripes: Literal["auto", "upright", "level"] = "auto") -> None:
        super().__init__()


def broken_files(folder: Path) -> None:
    write(folder / "list.yaml", "- 1\n")
    write(folder / "broken.yaml", "trainer: [1\n")
    write(folder / "text.ckpt", "not a checkpoint")
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, folder / "whole.ckpt")
    content = (folder / "whole.ckpt").read_bytes()
    (folder / "half.ckpt").write_bytes(content[: len(content) // 2])
    torch.save([1], folder / "other.ckpt")
    torch.save(nn.Linear(1, 1), folder / "module.ckpt")
    write(folder / "short.yaml", "max_epochs: 3\n")
    write(folder / "class.yaml", "optimizer: {class_path: AdamX}\n")
    write(folder / "both.yaml", "model: {net: {width: 8}}\ndata: {batch_size: 64}\n")
    torch.save({"state_dict": {}}, folder / "bare.ckpt")
    torch.save(torch.zeros(3), folder / "tensor.ckpt")
    write(folder / "file", "")
    write(folder / "twice.yaml", "trainer:\n  max_epochs: 3\n  max_steps: 9\n  max_epochs: 4\n")
    write(folder / "dots.yaml", "trainer: {max_epochs: 3}\nmodel.net.width: 8\n")
    write(folder / "inner.yaml", "optimizer:\n  class_path: AdamW\n  init_args:\n    lr.x: 3\n")
    write(folder / "list2.yaml", "trainer:\n  callbacks+:\n  - class_path: EarlyStopping\n    class_path: Timer\n")
    write(folder / "loop.yaml", "trainer: &a\n  callbacks: [*a]\n")
    write(folder / "on.yaml", "trainer:\n  max_epochs: 3\n  on: 1\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # Classes
        ("--model Clasifier", "--model Clasifier: no class of that name, did you mean Classifier"),
        ("--model null", "--model: a run needs a model"),
        ("--model.help Foo", "--model Foo: no class of that name; this project has "),
        ("--model.net Lineer", "--model.net Lineer: no class of that name, did you mean Linear"),
        ("--model.net tests.toy.ToyNett", "--model.net tests.toy.ToyNett: there is no class ToyNett in tests.toy"),
        ("--model.net ./mine.py", "--model.net ./mine.py: there is no class"),
        (
            "--model src.tasks.task.Tasks",
            "there is no class Tasks in src.tasks.task, did you mean src.tasks.task.Task?",
        ),
        ("--optimizer AdamX", "--optimizer AdamX: no class of that name, did you mean Adam"),
        ("--optimizer adamw", "--optimizer adamw: no class of that name, did you mean AdamW"),
        ("--lr_scheduler Reduce", "--lr_scheduler Reduce: no class of that name, did you mean ReduceLROnPlateau"),
        ("--trainer.callbacks+=EarlyStoping", "EarlyStoping: no class of that name, did you mean EarlyStopping"),
        ("--trainer.logger CometLogger", "not met"),
        # Options
        ("--trainer null", "--trainer null: give settings of it, such as --trainer.accelerator, --trainer.strategy"),
        ("--checkpoint false", "; to save no checkpoints: --trainer.enable_checkpointing false"),
        ("--optimizer.lr", "--optimizer.lr needs a value"),
        ("--lr_scheduler null --lr_scheduler.gamma 1", "--lr_scheduler.gamma: there is no lr_scheduler; add one"),
        # Values
        ("--accelerator tpu", "--accelerator tpu: this machine has none; it has cpu"),
        ("--accelerator gpuu", "--accelerator gpuu: no such accelerator, did you mean gpu?"),
        ("--strategy dpp", "--strategy dpp: no such strategy, did you mean ddp?"),
        (f"--data {HERE}.StripedData --data.stripes null", "--data.stripes null: expected auto, upright, level"),
        ("--data.batch_size null", "--data.batch_size null: expected int"),
        ("--optimizer.lr null", "--optimizer.lr null: expected float"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor x --trainer.callbacks.patience null",
            "patience null: expected int",
        ),
        ("--data.batch_size 0", "batch_size 0 is too small: give at least 1"),
        (
            "--trainer.check_val_every_n_epoch 0",
            "--trainer.check_val_every_n_epoch 0: give 1, or --trainer.limit_val_ba",
        ),
        (
            "--trainer.val_check_interval 0",
            "--trainer.val_check_interval 0: give 1.0, once per epoch, or --trainer",
        ),
        ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches 0 is too small: give at least 1"),
        ("--seed_everything -1", "-1 is not in bounds"),
        ("--trainer.max_epochs -5", "`max_epochs` must be a non-negative integer or -1"),
        ("--optimizer.lr -1 --fast_dev_run", "AdamW does not take its arguments: Invalid learning rate: -1.0"),
        ("--lr_scheduler.div_factor 0", "OneCycleLR does not take its arguments: float division by zero"),
        ("--model.net.width 0", "width 0 is too small for ToyNet: give at least 1"),
        ("--model.num_classes 5", "num_classes 5 does not fit ToyNet, which has 3"),
        ("--model.loss.reduction none --fast_dev_run", "the loss float32 (32,): give one number"),
        ("--name a/b", "--name a/b is not the name of a folder"),
        ("--name ..", "--name .. is not the name of a folder"),
        ("--trainer.default_root_dir file/logs", "cannot be written (Not a directory)"),
        # Stages
        ("tset", "tset: expected one of fit, validate, test, predict, did you mean test?"),
        ("fit test", "fit test: only one of fit, validate, test, predict can run at a time"),
        # Configurations
        ("--config", "--config needs a file"),
        ("--config missing.yaml", "--config missing.yaml: no such file"),
        ("--config configs/strategy/dp.yaml", "no such file, did you mean configs/strategy/ddp.yaml?"),
        ("--config ddp", "no such file, did you mean configs/strategy/ddp.yaml?"),
        ("--config list.yaml", "--config list.yaml is not a configuration: it holds list"),
        ("--config broken.yaml", "--config broken.yaml is not YAML:"),
        ("--config short.yaml", "short.yaml: max_epochs belongs under trainer"),
        ("--config class.yaml", "class.yaml: optimizer AdamX: no class of that name, did you mean Adam"),
        ("--config both.yaml", "is a recipe, but model has no class_path"),
        ("--config twice.yaml", "--config twice.yaml, line 4: max_epochs is also in line 2: keep one of them"),
        ("--config list2.yaml", "--config list2.yaml, line 4: class_path is also in line 3"),
        ("--config dots.yaml", "dots.yaml, line 2: model.net.width has dots: write model: {net: {width: ...}}"),
        ("--config inner.yaml", "inner.yaml, line 4: lr.x has dots: write lr: {x: ...}"),
        ("--config loop.yaml", "--config loop.yaml contains itself, by an alias"),
        ("--config on.yaml", "--config on.yaml, line 3: on is not the name of a setting: put it in quotes"),
        # Checkpoints
        ("--ckpt_path missing.ckpt", "--ckpt_path missing.ckpt: no such file"),
        ("--ckpt_path half.ckpt", "--ckpt_path half.ckpt is damaged or truncated"),
        ("--ckpt_path text.ckpt", "--ckpt_path text.ckpt is not a checkpoint"),
        ("--ckpt_path other.ckpt", "--ckpt_path other.ckpt is not a Lightning checkpoint"),
        ("--ckpt_path tensor.ckpt", "--ckpt_path tensor.ckpt is not a Lightning checkpoint: it has no state_dict"),
        ("--ckpt_path bare.ckpt", "is not a Lightning checkpoint: it has no pytorch-lightning_version"),
        ("--ckpt_path module.ckpt", "--ckpt_path module.ckpt holds more than tensors and plain values"),
    ],
)
def test_a_user_error_is_one_line_with_exit_code_2(
    words: str, expected: str, error_of: ErrorOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken_files(tmp_path)
    assert expected in error_of(*words.split())


def test_the_keys_of_a_plain_dict_may_have_dots(tmp_path: Path) -> None:
    text = "optimizer: {class_path: AdamW, init_args: {lr: 1, foreach: {a.b: 1, class: {c.d: 2}}}}\n"
    assert load_config(write(tmp_path / "dict.yaml", text))[1]["optimizer"]["init_args"]["foreach"]["a.b"] == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch\nclass Net(torch.nn.Module:\n", "mine.py, line 2: SyntaxError: "),
        ("x = 1\nimport no_such_package\n", "mine.py, line 2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("from torch import no_such_name\n", "mine.py, line 1: ImportError: cannot import name 'no_such_name'"),
        ("\n\nclass Net(Modul): pass\n", "mine.py, line 3: NameError: name 'Modul' is not defined"),
        ("import sys\nsys.exit(3)\n", "mine.py, line 2: SystemExit: 3"),
        ("import other\n", "other.py, line 2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", "mine.py, line 2: JSONDecodeError"),
    ],
)
@pytest.mark.parametrize("words", ["--model.net mine.Net", "--config mine.yaml", "--trainer.callbacks+=mine.Net"])
def test_a_module_that_cannot_be_imported_is_one_line(
    words: str, code: str, expected: str, error_of: ErrorOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(tmp_path / "mine.py", code)
    write(tmp_path / "other.py", "\n1 / 0\n")
    write(tmp_path / "mine.yaml", "model: {init_args: {net: mine.Net}}\n")
    line = error_of(*words.split())
    assert "mine.Net: mine cannot be imported: " in line
    assert expected in line
    for name in ("mine", "other"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_user_error_ends_a_separate_process_with_exit_code_2(tmp_path: Path) -> None:
    broken_files(tmp_path)
    words = ("test", f"--config={RECIPE}", "--ckpt_path=half.ckpt", f"--trainer.default_root_dir={tmp_path / 'logs'}")
    done = program(*words, cwd=tmp_path, REAL_INTERPRETER="1")
    assert "--ckpt_path half.ckpt is damaged or truncated" in one_line(done)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_the_error_for_a_missing_gpu_lists_what_is_there_and_what_to_type(
    error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    line = f"--accelerator gpu: this machine has none; it has cpu ({os.cpu_count()} cores); type --accelerator cpu"
    assert error_of("--accelerator", "gpu") == line
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    more = "; PyTorch is its CPU build here: for a GPU install the default build (make clean, make train)"
    assert error_of("--accelerator", "gpu") == line + more * (sys.platform == "linux")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", f"--config={RECIPE}", "--data.batch_size=0", "--debug"])
    with pytest.raises(ValueError, match="batch_size 0 is too small"):
        main()


def test_an_interrupt_before_the_run_starts_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program_module, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130


def test_ctrl_c_at_the_start_is_for_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(program_module, "run", lambda _: seen.append(signal.getsignal(signal.SIGINT)))
    monkeypatch.setattr(sys, "argv", ["src.train"])
    try:
        for rank in ("0", "1"):
            monkeypatch.setenv("LOCAL_RANK", rank)
            main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["group", "each process"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_whose_processes_all_get_a_signal_can_go_on(tmp_path: Path, signum: int, code: int, to: str) -> None:
    """As Ctrl-C in a terminal, `timeout`, or a scheduler that knows all processes."""
    words = [sys.executable, "-m", "src.train", f"--config={RECIPE}", *QUIET, "--max_epochs=100000"]
    words += ["--data.num_workers=2"]
    words.append(f"--trainer.default_root_dir={tmp_path}")
    last = tmp_path / "toy" / "version_0" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not last.exists():
            assert process.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.killpg(process.pid, signum)
        for child in children if to == "each process" else ():
            with suppress(ProcessLookupError):
                os.kill(int(child), signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "continue with: python -m src.train --ckpt_path last --run" in errors
    assert "state_dict" in torch.load(last, weights_only=True)


@pytest.mark.slow
def test_starting_loads_no_modules_that_lightningcli_does_not_load() -> None:
    code = f"""
import sys
from lightning.pytorch.cli import LightningCLI
before = set(sys.modules)
from src.train import main
for flag in ("--help", "--print_config"):
    sys.argv = ["src.train", "--config={RECIPE}", flag]
    try:
        main()
    except SystemExit:
        pass
print(len(before), *sorted(set(sys.modules) - before), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, *more = done.stderr.splitlines()[-1].split()
    assert int(count) > 1000
    # jsonargparse loads attrs for parsing and parts of rich for printing.
    known = {"src", "tests", "attr", "attrs", "rich", *sys.stdlib_module_names}
    assert {name for name in more if name.partition(".")[0] not in known} == set()


def test_an_installation_without_the_projects_folders_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program_module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["src.train", "--fast_dev_run"])
    with pytest.raises(SystemExit, match="2"):
        program_module.run(0.0)
    assert f"error: {tmp_path} has no configs/: install the project with pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_too_little_memory_is_no_reason_to_continue(tmp_path: Path) -> None:
    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    fault = inject_fault("memory", 14, tmp_path / "happened")  # in the second epoch
    line = one_line(program("fit", f"--config={RECIPE}", *QUIET, root, *fault, "--max_epochs=3"))
    assert line.startswith("too little memory: start again with a smaller batch_size")
    assert "continue" not in line
