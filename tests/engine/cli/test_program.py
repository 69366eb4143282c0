"""Errors, as a user meets them, and what a start loads."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from src import ROOT
from src.engine.cli import program as program_module
from src.engine.cli.cli import StarterCLI
from src.train import main
from tests.conftest import QUIET, Run, program, skip_if_deleted, write

Train = Callable[..., Run]
Parse = Callable[..., StarterCLI]
# As little as still trains, validates and tests.
SHORT = ("--model.net=MLP", "--max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2")


# Errors, as a user meets them


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.rstrip().endswith(line)
    return line.removeprefix("error: ")


def broken_files(folder: Path) -> None:
    write(folder / "list.yaml", "- 1\n")
    write(folder / "broken.yaml", "trainer: [1\n")
    write(folder / "typo.yaml", "trainer: {max_epoch: 3}\n")
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
    (folder / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 90)
    write(folder / "one.csv", "text,label\na,1\nb,1\n")
    write(folder / "gap.csv", "text,label\na,1\n,2\n")
    (folder / "pictures" / "a").mkdir(parents=True)
    write(folder / "pictures" / "a" / "x.png", "no picture")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--accelerator tpu", "--accelerator tpu: this machine has none; it has cpu"),
        ("--accelerator gpuu", "--accelerator gpuu: no such accelerator, did you mean gpu?"),
        ("--strategy dpp", "--strategy dpp: no such strategy, did you mean ddp?"),
        ("--model ImageClasifier", "--model ImageClasifier: no class of that name, did you mean ImageClassifier"),
        ("--optimizer AdamX", "--optimizer AdamX: no class of that name, did you mean Adam"),
        ("--model src.vision.cnn.CN", "--model src.vision.cnn.CN: there is no class CN in src.vision.cnn"),
        ("--model null", "--model: a run needs a model"),
        ("--model CNN", "--model: CNN is not a LightningModule"),
        ("--devics 2", "--devics: no such option, did you mean --devices?"),
        ("--model.net.widht 8", "--model.net.widht: VGG has no argument widht, did you mean width?"),
        ("--data.source offical", "--data.source offical: expected auto, official, sample, did you mean official?"),
        ("--max_epochs many", "--max_epochs many: expected int"),
        ("tset", "tset: one of fit, validate, test, predict may stand here, did you mean test?"),
        ("--config missing.yaml", "--config missing.yaml: no such file"),
        ("--config list.yaml", "--config list.yaml is not a configuration: it holds list"),
        ("--config broken.yaml", "--config broken.yaml is not YAML:"),
        ("--config typo.yaml", "trainer.max_epoch (in typo.yaml): no such setting, did you mean trainer.max_epochs?"),
        ("--config", "--config needs a file"),
        ("--ckpt_path missing.ckpt", "--ckpt_path missing.ckpt: no such file"),
        ("--ckpt_path half.ckpt", "--ckpt_path half.ckpt is damaged or truncated"),
        ("--ckpt_path text.ckpt", "--ckpt_path text.ckpt is not a checkpoint"),
        ("--ckpt_path other.ckpt", "--ckpt_path other.ckpt is not a Lightning checkpoint"),
        ("--ckpt_path tensor.ckpt", "--ckpt_path tensor.ckpt is not a Lightning checkpoint: it has no state_dict"),
        ("--ckpt_path bare.ckpt", "is not a Lightning checkpoint: it has no pytorch-lightning_version"),
        ("--ckpt_path module.ckpt", "--ckpt_path module.ckpt holds more than tensors and plain values"),
        ("--lr_scheduler null --lr_scheduler.gamma 1", "--lr_scheduler.gamma: there is no lr_scheduler to take it"),
        ("--trainer.logger CometLogger", "not met"),
        ("--lr_scheduler StepLR", "StepLR needs step_size: give --lr_scheduler.step_size"),
        ("--data.batch_size null", "--data.batch_size null: expected int"),
        ("--data.source null", "--data.source null: expected auto, official, sample"),
        ("--optimizer.lr null", "--optimizer.lr null: expected float"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor x --trainer.callbacks.patience null",
            "patience null: expected int",
        ),
        ("--data.batch_size 0", "batch_size 0 is too small: give at least 1"),
        ("--model.net.image_size 2", "image_size 2 is too small for VGG"),
        ("--data.data_dir file/data", "data folder file/data cannot be written (Not a directory)"),
        ("--trainer.default_root_dir file/logs", "cannot be written (Not a directory)"),
        ("--name a/b", "--name a/b is not the name of a folder"),
        ("--name ..", "--name .. is not the name of a folder"),
        ("--config configs/deflt.yaml", "no such file, did you mean configs/default.yaml?"),
        ("--config default", "no such file, did you mean configs/default.yaml?"),
        ("--data MNIST", "--data MNIST: no class of that name, did you mean MNISTDataModule"),
        ("--model.net MLP --model.net.size 3", "MLP has no argument size; it has in_features, num_classes, hidden"),
        ("--lr 1e-3", "--lr: no such option, did you mean --optimizer.lr?"),
        ("--batch_size 8", "--batch_size: no such option, did you mean --data.batch_size?"),
        ("--optimizer adamw", "--optimizer adamw: no class of that name, did you mean AdamW"),
        ("--optimizer.lr", "--optimizer.lr needs a value"),
        ("--optimizer.lr abc", "--optimizer.lr abc: expected float"),
        ("--optimizer.lr -1 --fast_dev_run", "AdamW does not take its arguments: Invalid learning rate: -1.0"),
        ("--optimizer.params []", "AdamW has no argument params; it has lr, "),
        ("--optimizer.nope 1", "AdamW has no argument nope; it has lr, "),
        ("--lr_scheduler.pct_start abc", "--lr_scheduler.pct_start abc: expected float"),
        ("--lr_scheduler.div_factor 0", "OneCycleLR does not take its arguments: float division by zero"),
        ("fit test", "fit test: only one of fit, validate, test, predict can run at a time"),
        ("--model.net ./mine.py", "--model.net ./mine.py: there is no class"),
        ("--model.num_classes 5", "num_classes 5 does not fit VGG, which has 10"),
        ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches 0: give at least 1"),
        (
            "--config configs/multimodal/mnist_clip.yaml --data.max_length 1",
            "max_length 1 is too small: give at least 2",
        ),
        ("--model.loss.reduction none --fast_dev_run", "CrossEntropyLoss gives (128,) values: a loss is one"),
        ("--retries -1", "--retries -1: give at least 0"),
        ("--seed_everything -1", "-1 is not in bounds"),
        ("--config short.yaml", "short.yaml: max_epochs belongs under trainer"),
        ("--config class.yaml", "class.yaml: optimizer AdamX: no class of that name, did you mean Adam"),
        ("--config both.yaml", "is a recipe, but model has no class_path"),
        ("--trainer.max_epochs -5", "`max_epochs` must be a non-negative integer or -1"),
        ("--trainer.callbacks+=EarlyStoping", "EarlyStoping: no class of that name, did you mean EarlyStopping"),
        ("--config configs/text/shakespeare_gpt.yaml --data.path gone.txt", "--data.path gone.txt: no such file"),
        ("--config configs/text/shakespeare_gpt.yaml --data.path latin.txt", "latin.txt is not UTF-8: byte 3 is 0xe9"),
        ("--config configs/text/language_id.yaml --data.path one.csv", "one.csv has one label only, '1'"),
        ("--config configs/text/language_id.yaml --data.path gap.csv", "gap.csv, row 2: column text is empty"),
        ("--config configs/vision/image_folder.yaml", "no images given: give --data.path a folder"),
        (
            "--config configs/vision/image_folder.yaml --data.path pictures",
            "1 of 1 images cannot be used: pictures/a/x.png",
        ),
        pytest.param(
            "--config configs/text/sentiment_pretrained.yaml --model.net.pretrained no/such",
            "no/such is no folder",
            marks=pytest.mark.slow,  # the hub's library tries again for long
        ),
        ("--data.path x.csv --data LabelledTextDataModule", "x.csv: no such file"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_if_deleted(["--data.source=sample", *words.split()])  # the recipe without a word
    monkeypatch.chdir(tmp_path)
    broken_files(tmp_path)
    root = () if "default_root_dir" in words else (f"--trainer.default_root_dir={tmp_path / 'logs'}",)
    monkeypatch.setattr(sys, "argv", ["train", *words.split(), *root])
    with pytest.raises(SystemExit) as stop:
        program_module.run(time.perf_counter())
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert expected in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model.net CNNN", "--model.net CNNN: no class of that name, did you mean CNN"),
        pytest.param("--devics 2", "--devics: no such option, did you mean --devices?", marks=pytest.mark.slow),
        pytest.param("--config missing.yaml", "--config missing.yaml: no such file", marks=pytest.mark.slow),
        pytest.param("--config broken.yaml", "--config broken.yaml is not YAML:", marks=pytest.mark.slow),
        ("test --ckpt_path half.ckpt", "--ckpt_path half.ckpt is damaged or truncated"),
        pytest.param("--data.batch_size 0", "batch_size 0 is too small: give at least 1", marks=pytest.mark.slow),
        pytest.param("--data.data_dir file/data", "data folder file/data cannot be written", marks=pytest.mark.slow),
        pytest.param("--data.source official --data.data_dir empty", "could not be downloaded", marks=pytest.mark.slow),
        pytest.param(
            "--config configs/text/shakespeare_gpt.yaml --data.path latin.txt",
            "latin.txt is not UTF-8: byte 3 is 0xe9",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--config configs/text/language_id.yaml --data.path gap.csv",
            "gap.csv, row 2: column text is empty",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--config configs/vision/image_folder.yaml --data.path pictures",
            "1 of 1 images cannot be used: pictures/a/x.png",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_of_the_user_ends_the_program_with_code_2(words: str, expected: str, tmp_path: Path) -> None:
    skip_if_deleted(["--data.source=sample"])
    broken_files(tmp_path)
    done = program(*words.split(), f"--trainer.default_root_dir={tmp_path / 'logs'}", cwd=tmp_path)
    assert expected in one_line(done)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_a_missing_gpu_says_what_there_is_and_what_to_type(tmp_path: Path) -> None:
    line = one_line(program("--accelerator", "gpu", cwd=tmp_path))
    assert line == (
        f"--accelerator gpu: this machine has none; it has cpu ({os.cpu_count()} cores);"
        " type --accelerator cpu, or leave it out"
    )


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = program("--data.batch_size=0", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "batch_size 0 is too small" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["__init__", "forward"])
def test_an_exception_of_a_users_class_keeps_its_traceback(tmp_path: Path, place: str) -> None:
    fail = "raise ValueError('mine, all mine')"
    write(
        tmp_path / "mynet.py",
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    num_classes = 10\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        {fail if place == '__init__' else 'self.layer = nn.Linear(784, 10)'}\n"
        "    def forward(self, x):\n"
        f"        {fail}\n",
    )
    words = ("--model.net=mynet.Net", "--data.source=sample", f"--trainer.default_root_dir={tmp_path / 'logs'}", *QUIET)
    done = program(*words, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert 'mynet.py", line' in done.stderr
    assert "ValueError: mine, all mine" in done.stderr


def test_an_interrupt_before_the_run_begins_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program_module, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130


def test_an_interrupted_run_keeps_what_it_had(tmp_path: Path) -> None:
    skip_if_deleted(["--data.source=sample"])
    words = [sys.executable, "-m", "src.train", "--data.source=sample", "--model.net=MLP", *QUIET]
    words += ["--max_epochs=100000", f"--trainer.default_root_dir={tmp_path}"]
    last = tmp_path / "default" / "version_0" / "checkpoints" / "last.ckpt"

    def heed_interrupts() -> None:  # a shell that runs the tests in the background has them ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    try:
        while not last.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert "state_dict" in torch.load(last, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "--print_config"])
def test_a_start_loads_no_module_beyond_what_lightningcli_loads(flag: str) -> None:
    program = f"import sys; sys.argv = ['src.train', {flag!r}]; from src.train import main\ntry: main()\n"
    program += "except SystemExit: pass\n"
    listing = "import sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    loaded = []
    for code in ("from lightning.pytorch.cli import LightningCLI\n", program):
        command = [sys.executable, "-c", code + listing]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        loaded.append({line for line in done.stderr.splitlines() if re.fullmatch(r"[\w.]+", line)})
    assert len(loaded[0]) > 1000
    more = loaded[1] - loaded[0]
    # jsonargparse itself loads attrs when it parses, and rich the parts that it prints with.
    ours = {name for name in more if name.partition(".")[0] not in {"src", "attr", "attrs", *sys.stdlib_module_names}}
    assert {name for name in ours if not name.startswith("rich.")} == set()
