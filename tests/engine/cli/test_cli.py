"""The command line, each line of what it promises."""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.profilers import Profiler

from src.engine.cli.cli import StarterCLI
from src.engine.cli.config import SHORT_FLAGS
from src.engine.system.errors import InputError
from src.engine.system.hardware import choose_precision
from tests.conftest import QUIET, Run, own_text, program, skip_if_deleted, tiny_pretrained, write

Train = Callable[..., Run]
Parse = Callable[..., StarterCLI]
# As little as still trains, validates and tests.
SHORT = ("--model.net=MLP", "--max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2")


# Fit, then test


def test_without_a_word_it_fits_tests_the_best_checkpoint_and_prints_a_table(train: Train) -> None:
    run = train("--max_epochs=2")
    assert run.metrics["test/acc"] > 0.9
    best = run.folder / "checkpoints" / "best.ckpt"
    assert any(f"Loaded model weights from the checkpoint at {best}" in message for message in run.messages)
    rows = [line.split() for line in run.output.splitlines()]
    assert ["test/acc", f"{run.metrics['test/acc']:.4f}"] in rows
    assert ["run", "folder", str(run.folder)] in rows
    assert ["best", "checkpoint", str(best)] in rows
    assert f"--logdir {run.folder.parents[1]}" in run.output
    assert "Seed set to 42" in run.messages


def test_the_stages_do_what_their_words_say(train: Train) -> None:
    fitted = train("fit", *SHORT)
    assert "val/loss" in fitted.metrics
    assert not any(name.startswith("test/") for name in fitted.metrics)
    path = fitted.folder / "checkpoints" / "best.ckpt"
    tested = train("test", f"--ckpt_path={path}")
    validated = train("validate", f"--ckpt_path={path}")
    assert {"test/acc", "test/f1", "test/loss"} <= tested.metrics.keys()
    assert validated.metrics["val/acc"] >= 0
    assert "train_seconds" not in validated.metrics
    predicted = train("predict", f"--ckpt_path={path}", "--trainer.limit_predict_batches=2")
    assert len(predicted.cli.trainer.predict_loop.predictions) == 2
    assert predicted.cli.trainer.predict_loop.predictions[0]["probabilities"].shape == (128, 10)
    assert fitted.folder not in (tested.folder, validated.folder, predicted.folder)


def test_a_test_needs_no_argument(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run with a checkpoint in .*logs: train one first"):
        train("test", sample=False)
    older = train("fit", *SHORT, "--max_epochs=2", "--name=mine")
    newer = train("fit", *SHORT, "--model.net.hidden=9", "--data.batch_size=100")
    before = (newer.folder / "metrics.json").read_bytes()
    tested = train("test", sample=False)
    assert f"test of run {newer.folder}, best.ckpt" in tested.messages
    assert tested.folder == newer.folder / "test_0"
    assert tested.cli.model.net.hidden == 9
    assert tested.cli.datamodule.batch_size == 100
    assert tested.metrics["checkpoint"] == str(newer.folder / "checkpoints" / "best.ckpt")
    assert list(tested.folder.glob("events*"))
    assert (newer.folder / "metrics.json").read_bytes() == before
    last = train("validate", "--ckpt_path=last", "--name=mine", sample=False)
    assert last.folder == older.folder / "validate_0"
    assert last.cli.config.ckpt_path == str(older.folder / "checkpoints" / "last.ckpt")
    again = train("validate", "--run", str(older.folder), "--data.batch_size=64", sample=False)
    assert again.folder == older.folder / "validate_1"
    assert again.cli.datamodule.batch_size == 64
    with pytest.raises(InputError, match=r"no run with a checkpoint in .*mnist_best"):
        train("test", "--config=configs/vision/mnist_best.yaml", sample=False)


def test_the_best_checkpoint_is_found_under_a_name_of_its_own(train: Train) -> None:
    fitted = train("fit", *SHORT, "--max_epochs=2", "--checkpoint.filename={epoch}-mine")
    tested = train("test", sample=False)
    best = Path(fitted.cli.trainer.checkpoint_callback.best_model_path)
    assert best.name.endswith("-mine.ckpt")
    assert tested.cli.config.ckpt_path == str(best)


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_tested_in_its_run(tmp_path: Path) -> None:
    words = (*SHORT, "--data.source=sample", *QUIET)
    assert program("fit", *words, f"--trainer.default_root_dir={tmp_path}").returncode == 0
    (folder,) = (tmp_path / "default").iterdir()
    done = program("test", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), *QUIET)
    assert done.returncode == 0, done.stderr
    assert "test/acc" in json.loads((folder / "test_0" / "metrics.json").read_text())


def test_the_stage_may_stand_before_or_behind_the_options(parse: Parse) -> None:
    first = parse("validate", "--config", "configs/default.yaml", "--fast_dev_run")
    last = parse("--config", "configs/default.yaml", "--fast_dev_run", "validate")
    assert first.stage == last.stage == "validate"
    assert last.config.trainer.fast_dev_run is True


# Short flags


@pytest.mark.parametrize(
    ("name", "value", "expected", "other"),
    [
        ("devices", "3", "3", "2"),
        ("num_nodes", "3", 3, "2"),
        ("strategy", "ddp", "ddp", "auto"),
        ("precision", "64-true", "64-true", "32-true"),
        ("max_epochs", "7", 7, "1"),
        ("fast_dev_run", "3", 3, "false"),
        ("accelerator", "gpu", "gpu", "cpu"),
    ],
)
def test_short_flags_are_the_trainers_and_the_last_one_given_wins(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object, other: str
) -> None:
    monkeypatch.setattr(StarterCLI, "_set_seed", lambda _: None)
    monkeypatch.setattr(StarterCLI, "before_instantiate_classes", lambda _: None)
    monkeypatch.setattr(StarterCLI, "instantiate_classes", lambda _: None)

    def parsed(*args: str) -> object:
        return StarterCLI([*args], time.perf_counter()).config.trainer[name]

    assert parsed(f"--{name}", value) == parsed(f"--trainer.{name}={value}") == expected
    assert parsed(f"--trainer.{name}={other}", f"--{name}={value}") == expected
    assert parsed(f"--{name}={other}", f"--trainer.{name}", value) == expected


def test_fast_dev_run_leaves_nothing_behind(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train("--model.net=MLP", "--fast_dev_run")
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_may_stand_bare_before_another_option(parse: Parse) -> None:
    built = parse("--fast_dev_run", "--max_epochs", "3")
    assert (built.config.trainer.fast_dev_run, built.config.trainer.max_epochs) == (True, 3)
    assert built.record is None


def test_saved_and_printed_configurations_carry_the_long_form_only(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = yaml.safe_load((train("fit", *SHORT, "--devices=1").folder / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        StarterCLI(["--devices=1", "--print_config"], time.perf_counter())
    for tree in (saved, yaml.safe_load(capsys.readouterr().out)):
        assert tree["trainer"]["devices"] == "1"
        assert not set(SHORT_FLAGS) & tree.keys()


def test_help_shows_the_short_flags_and_the_stages() -> None:
    done = program("--help")
    assert done.returncode == 0
    assert "[fit|validate|test|predict]" in done.stdout
    for name in SHORT_FLAGS:
        assert re.search(rf"^  --{name} [^,]*, --trainer\.{name}\b", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model.help ImageClassifier", "--model.num_classes"),
        ("--model.net.help CNN", "--net.dropout"),
        ("--data.help=MNISTDataModule", "--data.batch_size"),
        ("--optimizer.help SGD test", "--optimizer.nesterov"),
    ],
)
def test_help_on_a_class_shows_its_arguments(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    skip_if_deleted(["--data.source=sample"])
    with pytest.raises(SystemExit) as stop:
        StarterCLI(words.split(), time.perf_counter())
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


# Sizes that follow from the data


GPT = ("--config=configs/text/shakespeare_gpt.yaml", "--model.net.d_model=16", "--model.net.num_heads=2")


def test_a_network_takes_its_sizes_from_the_data(train: Train, tmp_path: Path) -> None:
    words = (
        *GPT,
        f"--data.path={own_text(tmp_path)}",
        f"--data.cache_dir={tmp_path / 'cache'}",
        "--data.block_size=12",
    )
    words = ("fit", *words, "--data.tokenizer=bpe", "--data.max_vocab_size=270", "--trainer.max_steps=1")
    run = train(*words, "--trainer.limit_val_batches=1", sample=False)
    assert (run.cli.model.net.block_size, run.cli.model.net.vocab_size) == (12, run.cli.datamodule.vocab_size)
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["net"]["init_args"]["vocab_size"] == run.cli.datamodule.vocab_size
    table = write(tmp_path / "own.csv", "text,label\n" + "".join(f"t{n},{n % 5}\n" for n in range(60)))
    encoder = ("--config=configs/text/sentiment_transformer.yaml", "--fast_dev_run", f"--data.path={table}")
    built = train(*encoder, sample=False).cli
    assert built.model.net.num_classes == 5
    assert built.model.net.vocab_size == built.datamodule.vocab_size < 30
    with pytest.raises(InputError, match="the data has 5 classes and TextEnsemble 2: leave num_classes out, or give 5"):
        train(*encoder, "--model.net.num_classes=2", sample=False)


def test_a_tokenizer_that_does_not_fit_a_network_is_one_line(train: Train, tmp_path: Path) -> None:
    folder = tiny_pretrained("bert", tmp_path)
    table = write(tmp_path / "own.csv", "text,label\n" + "the cat,1\na dog,2\n" * 30)
    words = (
        "--config=configs/text/sentiment_pretrained.yaml",
        f"--model.net.pretrained={folder}",
        "--data.tokenizer=bytes",
    )
    with pytest.raises(InputError, match="vocab_size 256 of the data does not fit PretrainedClassifier"):
        train(*words, f"--data.path={table}", "--data.max_length=40", "--fast_dev_run", sample=False)


def test_classes_without_arguments_run_too(train: Train) -> None:
    boring = "lightning.pytorch.demos.boring_classes.Boring"
    words = (f"--model={boring}Model", f"--data={boring}DataModule", "--optimizer=null", "--checkpoint.monitor=null")
    run = train("fit", *words, "--max_epochs=1", "--trainer.limit_train_batches=2", sample=False)
    assert run.cli.trainer.state.finished


def test_a_network_with_fewer_classes_than_the_digits_is_one_line(train: Train) -> None:
    with pytest.raises(InputError, match="the data has 10 classes and VGG 3"):
        train("--model.net.num_classes=3", "--fast_dev_run")


def test_a_pretrained_network_brings_its_tokenizer_and_its_checkpoint_stands_alone(
    train: Train, tmp_path: Path
) -> None:
    folder = tiny_pretrained("bert", tmp_path)
    rows = "".join(f"the {('cat', 'dog')[n % 2]} sat,{('C', 'D')[n % 2]}\n" for n in range(60))
    table = write(tmp_path / "own.csv", f"text,label\n{rows}")
    words = ("--config=configs/text/sentiment_pretrained.yaml", f"--data.path={table}", "--data.max_length=40")
    words = (*words, "--data.batch_size=4", "--max_epochs=6", "--optimizer.lr=0.01", "--model.net.dropout=0")
    words = (*words, "--model.adversarial=0.001")  # the vectors of so small a model are short
    run = train(*words, f"--model.net.pretrained={folder}", sample=False)
    assert run.cli.config.data.init_args.tokenizer == folder
    assert run.metrics["test/acc"] == 1
    (tmp_path / "bert").rename(tmp_path / "gone")
    best = run.folder / "checkpoints" / "best.ckpt"
    again = train("test", "--ckpt_path", str(best), sample=False)
    assert again.metrics["test/loss"] == pytest.approx(run.metrics["test/loss"])
    from src.text.text_classifier import TextClassifier

    loaded = TextClassifier.load_from_checkpoint(best, weights_only=True)
    assert all(torch.equal(value, run.weights[name]) for name, value in loaded.state_dict().items())


def test_a_checkpoint_brings_the_labels_it_was_trained_on(train: Train, tmp_path: Path) -> None:
    rows = "".join(f"{'abc'[n % 3] * 4},{'xyz'[n % 3]}\n" for n in range(60))
    first = write(tmp_path / "first.csv", f"text,label\n{rows}")
    fewer = write(tmp_path / "fewer.csv", "text,label\n" + "bbbb,y\ncccc,z\n" * 20)
    words = (
        "--config=configs/text/language_id.yaml",
        "--model.net.num_layers=1",
        "--max_epochs=12",
        "--data.batch_size=8",
    )
    run = train("fit", *words, f"--data.path={first}", sample=False)
    path = str(run.folder / "checkpoints" / "last.ckpt")
    tested = train("test", "--ckpt_path", path, f"--data.path={fewer}", sample=False)
    assert tested.cli.datamodule.labels == ["x", "y", "z"]
    assert tested.metrics["test/acc"] == 1


# Precision


@pytest.mark.parametrize(("capability", "expected"), [("avx512_bf16", "bf16-mixed"), ("amx_bf16", "bf16-mixed")])
def test_precision_is_bf16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    precision, reason = choose_precision("cpu")
    assert (precision, capability in reason) == (expected, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: False})
    assert choose_precision("cpu") == ("32-true", "this CPU has no bfloat16 arithmetic")


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert choose_precision("gpu")[0] == choose_precision("auto")[0] == expected


@pytest.mark.parametrize("gpu", [True, False])
def test_what_stays_in_float32_uses_tensorfloat32_on_a_gpu_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    skip_if_deleted(["--data.source=sample"])
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    with suppress(InputError, AssertionError, RuntimeError):  # what a GPU is needed for
        StarterCLI(["--model.net=MLP", "--precision=32-true", f"--trainer.default_root_dir={tmp_path}"], 0.0)
    assert chosen == ["high"] * gpu
    assert ("PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ) == gpu  # which costs each step, and finds nothing without


def test_the_chosen_precision_is_said_and_saved_and_a_given_one_is_left_alone(train: Train) -> None:
    chosen = choose_precision("cpu")[0]
    run = train("fit", *SHORT)
    assert sum(message.startswith(f"Precision {chosen}: ") for message in run.messages) == 1
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]["precision"] == chosen
    run = train("fit", *SHORT, "--precision=64-true")
    assert not any(message.startswith("Precision") for message in run.messages)
    assert run.cli.trainer.precision == "64-true"


def test_a_precision_plugin_is_left_alone(parse: Parse) -> None:
    plugin = ("--trainer.plugins=MixedPrecision", "--trainer.plugins.precision=bf16-mixed")
    assert parse(*plugin, "--trainer.plugins.device=cpu").trainer.precision == "bf16-mixed"


def test_a_profiler_is_asked_where_one_is_given_only(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning's profiler of nothing costs each step of a small network up to a twentieth.
    monkeypatch.delattr(Profiler, "profile")
    run = train("fit", *SHORT)
    monkeypatch.undo()
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]["profiler"] is None
    report = train("fit", *SHORT, "--trainer.profiler=simple").cli.trainer.profiler.summary()
    assert re.search(r"run_training_batch|optimizer_step", report)
