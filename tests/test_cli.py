"""The command line, each line of what it promises."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from torch import nn

from src import ROOT, cli
from src import program as program_module
from src.cli import StarterCLI
from src.config import SHORT_FLAGS
from src.errors import InputError
from src.hardware import choose_precision
from src.models.cnn import CNN
from src.models.image_classifier import ImageClassifier
from src.models.mlp import MLP
from src.runs import claim_folder
from src.train import main
from tests.conftest import QUIET, Run, program, skip_if_deleted, tiny_pretrained

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
        train("test", "--config=configs/mnist_best.yaml", sample=False)


def test_the_best_checkpoint_is_found_under_a_name_of_its_own(train: Train) -> None:
    fitted = train("fit", *SHORT, "--max_epochs=2", "--checkpoint.filename={epoch}-mine")
    tested = train("test", sample=False)
    best = Path(fitted.cli.trainer.checkpoint_callback.best_model_path)
    assert best.name.endswith("-mine.ckpt")
    assert tested.cli.config.ckpt_path == str(best)


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
    with pytest.raises(SystemExit) as stop:
        StarterCLI(words.split(), time.perf_counter())
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


# Recipes and overlays


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write(
        tmp_path / "mine.yaml",
        "model: {class_path: ImageClassifier, init_args: {net: MLP}}\n"
        "data: {class_path: MNISTDataModule, init_args: {source: sample, batch_size: 100}}\n"
        "optimizer: {class_path: SGD, init_args: {lr: 5e-2}}\n"
        "trainer: {max_steps: 50}\n",
    )


def test_a_recipe_replaces_the_default_wholly(parse: Parse, recipe: str) -> None:
    config = parse("--config", recipe).config
    assert config.trainer.max_epochs is None  # the default recipe's would cut max_steps short
    assert config.trainer.max_steps == 50
    assert config.lr_scheduler is None
    assert config.optimizer.init_args.lr == 0.05
    assert config.name == "mine"


def test_of_two_recipes_the_last_counts_alone(parse: Parse, recipe: str) -> None:
    config = parse("--config", recipe, "--config", "configs/default.yaml").config
    assert (config.name, config.trainer.max_steps) == ("default", -1)
    assert config.optimizer.class_path == "torch.optim.AdamW"


def test_an_overlay_lies_over_the_recipe_wherever_it_stands(parse: Parse, recipe: str, tmp_path: Path) -> None:
    overlay = write(tmp_path / "over.yaml", "trainer: {max_steps: 7}\ndata: {batch_size: 11}\n")
    for order in (("--config", overlay, "--config", recipe), ("--config", recipe, "--config", overlay)):
        built = parse("fit", "--trainer.max_steps=9", *order, "--data.val_size=2")
        assert built.config.trainer.max_steps == 9  # the command line is stronger, also from the left
        assert built.datamodule.batch_size == 11
        assert built.config.name == "mine"
    assert parse("--config", overlay, "--config", recipe).config.trainer.max_steps == 7


def test_overlays_add_callbacks_to_those_of_the_recipe(parse: Parse) -> None:
    built = parse("--config=configs/callbacks/early_stopping.yaml", "--config=configs/callbacks/weight_averaging.yaml")
    names = [type(callback).__name__ for callback in built.trainer.callbacks]
    assert {"EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor"} <= set(names)


def test_early_stopping_stops(train: Train, tmp_path: Path) -> None:
    never_better = write(
        tmp_path / "never.yaml",
        "trainer:\n  callbacks+:\n  - {class_path: EarlyStopping, init_args: {monitor: val/loss, min_delta: 1e9}}\n",
    )
    short = [word for word in SHORT if "max_epochs" not in word]
    run = train("fit", *short, "--max_epochs=9", "--config", never_better)
    assert run.cli.trainer.current_epoch == 4  # the first epoch, and the default patience of three
    overlay = train("fit", *SHORT, "--config=configs/callbacks/early_stopping.yaml")
    assert any(isinstance(callback, EarlyStopping) for callback in overlay.cli.trainer.callbacks)


def test_weight_averaging_saves_averaged_weights_that_load(train: Train) -> None:
    run = train(*SHORT, "--config=configs/callbacks/weight_averaging.yaml")
    assert any(isinstance(callback, EMAWeightAveraging) for callback in run.cli.trainer.callbacks)
    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    key = "net.fc1.weight"
    assert not torch.equal(checkpoint["state_dict"][key], checkpoint["current_model_state"][key])
    loaded = ImageClassifier.load_from_checkpoint(run.folder / "checkpoints" / "best.ckpt")
    assert torch.equal(loaded.state_dict()[key], checkpoint["state_dict"][key])


def test_gradients_are_clipped_with_the_default_recipe(train: Train) -> None:
    assert train("fit", *SHORT, "--trainer.gradient_clip_val=1.0").cli.trainer.state.finished


def test_gradient_accumulation_steps_less_often(train: Train) -> None:
    run = train("fit", *SHORT, "--trainer.limit_train_batches=4", "--trainer.accumulate_grad_batches=2")
    assert run.cli.trainer.global_step == 2


# Classes


def test_classes_are_changed_by_name_and_start_from_their_own_defaults(parse: Parse, messages: list[str]) -> None:
    built = parse("--optimizer.momentum=0.9", "--optimizer", "SGD", "--model.net", "MLP", "--model.loss=MSELoss")
    assert isinstance(built.model.net, MLP)
    assert isinstance(built.model.loss, nn.MSELoss)
    assert built.config.optimizer.class_path == "torch.optim.SGD"
    assert built.config.optimizer.init_args.momentum == 0.9
    assert built.config.optimizer.init_args.weight_decay == 0  # not the recipe's
    (line,) = [message for message in messages if message.startswith("optimizer: SGD")]
    assert "AdamW's lr=0.008" in line
    assert "weight_decay=0.02" in line


def test_what_is_dropped_is_said_beside_a_printed_configuration_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        StarterCLI(["--optimizer=SGD", "--print_config"], time.perf_counter())
    assert "optimizer: SGD starts from its own defaults; AdamW's lr=0.008" in capsys.readouterr().err


def test_a_class_that_stays_keeps_its_arguments(parse: Parse, messages: list[str]) -> None:
    built = parse("--optimizer", "torch.optim.adamw.AdamW", "--model.net=VGG", "--model.net.width=4")
    assert built.config.optimizer.init_args.lr == 0.008
    assert (built.model.net.width, built.model.net.dropout) == (4, 0.1)
    assert not any("dropped" in message for message in messages)


def test_a_class_changed_in_an_overlay_starts_from_its_own_defaults(
    parse: Parse, tmp_path: Path, messages: list[str]
) -> None:
    overlay = write(tmp_path / "sgd.yaml", "optimizer: {class_path: SGD, init_args: {nesterov: true, momentum: .5}}\n")
    init_args = parse("--config", overlay).config.optimizer.init_args
    assert (init_args.nesterov, init_args.momentum, init_args.weight_decay) == (True, 0.5, 0.0)
    assert any("AdamW's lr=0.008" in message for message in messages)


def test_the_projects_own_class_comes_before_a_librarys(parse: Parse) -> None:
    import torchvision.ops  # has an MLP too

    assert parse("--model.net=MLP").config.model.init_args.net.class_path == "src.models.mlp.MLP"
    sizes = ("--model.num_classes=10", "--model.net.in_channels=9", "--model.net.hidden_channels=[10]")
    other = parse("--model.net=torchvision.ops.MLP", *sizes)
    assert isinstance(other.model.net, torchvision.ops.MLP)


def test_model_and_data_are_given_by_name(parse: Parse) -> None:
    built = parse("--data=MNISTDataModule", "--model=ImageClassifier", "--model.net=CNN", "--model.net.hidden=7")
    assert isinstance(built.model, ImageClassifier)
    assert isinstance(built.model.net, CNN)
    assert built.model.net.hidden == 7


def test_print_config_shows_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        StarterCLI(["--print_config", "--max_epochs=3", "--optimizer=SGD"], time.perf_counter())
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_epochs"] == 3
    assert printed["optimizer"]["class_path"] == "torch.optim.SGD"
    assert printed["model"]["init_args"]["net"]["init_args"]["width"] == 16


def test_a_printed_configuration_is_a_recipe_with_its_own_files_name(
    parse: Parse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse("--print_config", "--max_epochs=3")
    config = parse("--config", write(tmp_path / "printed.yaml", capsys.readouterr().out)).config
    assert (config.name, config.trainer.max_epochs) == ("printed", 3)


def test_a_strategy_is_given_by_class_too(parse: Parse) -> None:
    assert type(parse("--strategy=DDPStrategy").trainer.strategy).__name__ == "DDPStrategy"


def test_without_an_optimizer_the_models_own_is_used_and_the_schedule_goes_too(
    train: Train, messages: list[str]
) -> None:
    run = train("fit", *SHORT, "--optimizer=null")
    assert any(message.startswith("lr_scheduler dropped") for message in run.messages)
    assert run.cli.trainer.lr_scheduler_configs == []
    assert "lr_scheduler: null" in (run.folder / "config.yaml").read_text()


# Sizes that follow from the data


def own_text(folder: Path) -> str:
    return write(folder / "own.txt", "To be, or not to be: that is the question. " * 40)


GPT = ("--config=configs/shakespeare_gpt.yaml", "--model.net.d_model=16", "--model.net.num_heads=2")


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
    encoder = ("--config=configs/sentiment_transformer.yaml", "--fast_dev_run", f"--data.path={table}")
    built = train(*encoder, sample=False).cli
    assert built.model.net.num_classes == 5
    assert built.model.net.vocab_size == built.datamodule.vocab_size < 30
    with pytest.raises(InputError, match="the data has 5 classes and TextEnsemble 2: leave num_classes out, or give 5"):
        train(*encoder, "--model.net.num_classes=2", sample=False)


def test_a_tokenizer_that_does_not_fit_a_network_is_one_line(train: Train, tmp_path: Path) -> None:
    folder = tiny_pretrained("bert", tmp_path)
    table = write(tmp_path / "own.csv", "text,label\n" + "the cat,1\na dog,2\n" * 30)
    words = ("--config=configs/sentiment_pretrained.yaml", f"--model.net.pretrained={folder}", "--data.tokenizer=bytes")
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
    words = ("--config=configs/sentiment_pretrained.yaml", f"--data.path={table}", "--data.max_length=40")
    words = (*words, "--data.batch_size=4", "--max_epochs=6", "--optimizer.lr=0.01", "--model.net.dropout=0")
    run = train(*words, f"--model.net.pretrained={folder}", sample=False)
    assert run.cli.config.data.init_args.tokenizer == folder
    assert run.metrics["test/acc"] == 1
    (tmp_path / "bert").rename(tmp_path / "gone")
    best = run.folder / "checkpoints" / "best.ckpt"
    again = train("test", "--ckpt_path", str(best), sample=False)
    assert again.metrics["test/loss"] == pytest.approx(run.metrics["test/loss"])
    from src.models.text_classifier import TextClassifier

    loaded = TextClassifier.load_from_checkpoint(best, weights_only=True)
    assert all(torch.equal(value, run.weights[name]) for name, value in loaded.state_dict().items())


def test_a_checkpoint_brings_the_labels_it_was_trained_on(train: Train, tmp_path: Path) -> None:
    rows = "".join(f"{'abc'[n % 3] * 4},{'xyz'[n % 3]}\n" for n in range(60))
    first = write(tmp_path / "first.csv", f"text,label\n{rows}")
    fewer = write(tmp_path / "fewer.csv", "text,label\n" + "bbbb,y\ncccc,z\n" * 20)
    words = ("--config=configs/language_id.yaml", "--model.net.num_layers=1", "--max_epochs=12", "--data.batch_size=8")
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
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with suppress(InputError, AssertionError, RuntimeError):  # what a GPU is needed for
        StarterCLI(["--model.net=MLP", "--precision=32-true", f"--trainer.default_root_dir={tmp_path}"], 0.0)
    assert chosen == ["high"] * gpu


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


# Run folders


def test_a_run_folder_holds_everything_and_nothing_else(train: Train) -> None:
    run = train(*SHORT)
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(("events.out.tfevents", "."))}
    tables = {"confusion_matrix.csv", "metrics.json"}
    assert names == {"checkpoints", "config.yaml", "environment.txt", "hparams.yaml"} | tables
    assert list(run.folder.glob("events.out.tfevents*"))


def test_the_last_checkpoint_is_the_last_step_even_where_it_is_not_the_best(train: Train) -> None:
    run = train("fit", *SHORT, "--checkpoint.monitor=val/acc", "--checkpoint.mode=min", "--max_epochs=3")
    best, last = (
        torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    )
    assert best < last == run.cli.trainer.global_step == 9
    part = train("fit", *SHORT, "--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--checkpoint.monitor=null")
    assert torch.load(part.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_the_saved_configuration_repeats_the_run_bitwise(train: Train) -> None:
    first = train("fit", *SHORT, "--config=configs/callbacks/early_stopping.yaml", "--name=mine", "--optimizer=SGD")
    saved = first.folder / "config.yaml"
    assert "ckpt_path" not in saved.read_text()
    again = train("fit", "--config", str(saved))
    assert again.folder.parent == first.folder.parent
    assert again.folder.parent.name == "mine"
    assert again.folder != first.folder
    assert first.weights.keys() == again.weights.keys()
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    other = train("fit", "--config", str(saved), "--seed_everything=1")
    assert not all(torch.equal(value, other.weights[name]) for name, value in first.weights.items())


def test_the_default_cnn_repeats_bitwise_too(train: Train) -> None:
    short = ("fit", "--max_epochs=1", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=1")
    first = train(*short)
    again = train("fit", "--config", str(first.folder / "config.yaml"))
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())


def test_a_continued_run_saves_no_checkpoint_path(train: Train) -> None:
    first = train("fit", *SHORT)
    second = train("fit", "--ckpt_path", str(first.folder / "checkpoints" / "last.ckpt"), "--max_epochs=2")
    assert second.cli.trainer.current_epoch == 2
    assert "ckpt_path" not in (second.folder / "config.yaml").read_text()


def test_many_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    barrier, folders = threading.Barrier(16), []

    def claim() -> None:
        barrier.wait()
        folders.append(claim_folder(tmp_path / "recipe"))

    threads = [threading.Thread(target=claim) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for folder in folders) == sorted(f"version_{number}" for number in range(16))


def test_a_new_run_folder_never_reuses_an_old_number(tmp_path: Path) -> None:
    (tmp_path / "recipe" / "version_7").mkdir(parents=True)
    assert claim_folder(tmp_path / "recipe").name == "version_8"


def test_a_run_that_cannot_start_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data folder"):
        train(*SHORT, "--data.data_dir=/dev/null/data", sample=False)
    assert list((tmp_path / "logs" / "default").iterdir()) == []


def test_runs_without_logger_or_checkpoints_work(train: Train) -> None:
    run = train(*SHORT, "--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert "test/acc" in run.metrics
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert names == {"config.yaml", "environment.txt", "metrics.json"}


def test_several_best_checkpoints_are_kept_apart(train: Train) -> None:
    run = train("fit", *SHORT, "--max_epochs=3", "--checkpoint.save_top_k=-1")
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert names == {"best-epoch=0-step=3.ckpt", "best-epoch=1-step=6.ckpt", "best-epoch=2-step=9.ckpt", "last.ckpt"}


# Checkpoints and their own arguments


def test_a_checkpoint_brings_its_own_model_arguments(train: Train, tmp_path: Path) -> None:
    fitted = train("fit", *SHORT, "--model.net.hidden=9")
    path = str(fitted.folder / "checkpoints" / "last.ckpt")
    assert train("test", "--ckpt_path", path).cli.model.net.hidden == 9
    # Overlays, and the command line over them, are stronger than the checkpoint.
    overlay = write(tmp_path / "loss.yaml", "model: {loss: MSELoss}\n")
    over = train("test", "--ckpt_path", path, "--config", overlay).cli
    assert isinstance(over.model.loss, nn.MSELoss)
    assert over.model.net.hidden == 9
    line = train("test", "--ckpt_path", path, "--config", overlay, "--model.loss=CrossEntropyLoss").cli
    assert isinstance(line.model.loss, nn.CrossEntropyLoss)


def test_without_a_recipe_the_checkpoints_own_configuration_is_it(train: Train) -> None:
    fitted = train("fit", *SHORT, "--name=mine", "--data.batch_size=50")
    tested = train("test", "--ckpt_path", str(fitted.folder / "checkpoints" / "last.ckpt"), sample=False)
    assert tested.metrics["data_source"] == "sample"
    assert tested.cli.datamodule.batch_size == 50
    assert tested.folder.parent.name == "mine"
    default = ("--config=configs/default.yaml", "--fast_dev_run")
    other = train("test", "--ckpt_path", str(fitted.folder / "checkpoints" / "last.ckpt"), *default)
    assert other.cli.datamodule.batch_size == 128


def test_a_finished_run_cannot_go_on_without_more_epochs(train: Train) -> None:
    path = str(train("fit", *SHORT).folder / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match=r"the checkpoint has 1 epochs already: give more, as in --max_epochs 2"):
        train("fit", "--ckpt_path", path)
    with pytest.raises(InputError, match=r"the checkpoint has 3 steps already"):
        train("fit", "--ckpt_path", path, "--max_epochs=9", "--trainer.max_steps=3")


def test_an_override_that_does_not_fit_the_weights_is_named(train: Train) -> None:
    fitted = train("fit", *SHORT)
    path = str(fitted.folder / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match=r"^--model.net.hidden 9 does not fit the weights of the checkpoint: net.fc1"):
        train("test", "--ckpt_path", path, "--model.net.hidden=9")
    with pytest.raises(InputError, match=r"^--model.net CNN does not fit the weights"):
        train("test", "--ckpt_path", path, "--model.net=CNN")


def test_a_checkpoint_of_the_command_line_loads_in_python(train: Train) -> None:
    run = train("fit", *SHORT)
    loaded = ImageClassifier.load_from_checkpoint(run.folder / "checkpoints" / "last.ckpt")
    assert isinstance(loaded.net, MLP)
    assert torch.equal(loaded.net.fc1.weight, run.weights["net.fc1.weight"])


# From elsewhere, and in several processes


def test_two_processes_make_one_run_from_another_folder_too(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    two = ("--devices", "2", "--strategy", "ddp", f"--trainer.default_root_dir={logs}")
    done = program("--config", "configs/default.yaml", *SHORT, *QUIET, *two, "--data.source=sample", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (logs / "default").iterdir()
    assert folder.name == "version_0"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["devices"] == "2"
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr
    assert done.stdout.count("run folder") == 1
    assert json.loads((folder / "metrics.json").read_text())["test/loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["shakespeare_gpt_fast", "language_id"])
def test_two_processes_train_on_text(tmp_path: Path, recipe: str) -> None:
    logs = tmp_path / "logs"
    two = ("--devices", "2", "--strategy", "ddp", f"--trainer.default_root_dir={logs}")
    if recipe == "language_id":
        data = write(tmp_path / "own.csv", "text,label\n" + "".join(f"text {n},{n % 3}\n" for n in range(99)))
        words = (f"--data.path={data}", "--data.batch_size=8", "--max_epochs=1")
    else:
        words = (f"--data.path={own_text(tmp_path)}", f"--data.cache_dir={tmp_path / 'cache'}", "--data.block_size=16")
        words = (*words, "--trainer.max_steps=4", "--trainer.val_check_interval=2")
    done = program(f"--config=configs/{recipe}.yaml", *words, *QUIET, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (logs / recipe).iterdir()
    assert json.loads((folder / "metrics.json").read_text())["test/loss"] > 0
    assert done.stdout.count("run folder") == 1


def test_runs_land_in_the_projects_logs_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(cli, "claim_folder", lambda parent: seen.append(parent) or Path("/nowhere/x/version_0"))
    StarterCLI(["--accelerator=cpu", "--model.net=MLP"], time.perf_counter())
    assert seen == [ROOT / "logs" / "default"]


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
        ("--model src.models.cnn.CN", "--model src.models.cnn.CN: there is no class CN in src.models.cnn"),
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
        ("fit test", "fit test: only one of fit, validate, test, predict can run at a time"),
        ("--model.net ./mine.py", "--model.net ./mine.py: there is no class"),
        ("--model.num_classes 5", "num_classes 5 does not fit VGG, which has 10"),
        ("--trainer.accumulate_grad_batches 0", "--trainer.accumulate_grad_batches 0: give at least 1"),
        ("--seed_everything -1", "-1 is not in bounds"),
        ("--config short.yaml", "short.yaml: max_epochs belongs under trainer"),
        ("--config class.yaml", "class.yaml: optimizer AdamX: no class of that name, did you mean Adam"),
        ("--config both.yaml", "is a recipe, but model has no class_path"),
        ("--trainer.max_epochs -5", "`max_epochs` must be a non-negative integer or -1"),
        ("--trainer.callbacks+=EarlyStoping", "EarlyStoping: no class of that name, did you mean EarlyStopping"),
        ("--config configs/shakespeare_gpt.yaml --data.path gone.txt", "--data.path gone.txt: no such file"),
        ("--config configs/shakespeare_gpt.yaml --data.path latin.txt", "latin.txt is not UTF-8: byte 3 is 0xe9"),
        ("--config configs/language_id.yaml --data.path one.csv", "one.csv has one label only, '1'"),
        ("--config configs/language_id.yaml --data.path gap.csv", "gap.csv, row 2: column text is empty"),
        ("--config configs/image_folder.yaml", "no images given: give --data.path a folder"),
        ("--config configs/image_folder.yaml --data.path pictures", "1 of 1 images cannot be used: pictures/a/x.png"),
        pytest.param(
            "--config configs/sentiment_pretrained.yaml --model.net.pretrained no/such",
            "no/such is no folder",
            marks=pytest.mark.slow,  # the hub's library tries again for long
        ),
        ("--data.path x.csv --data LabelledTextDataModule", "x.csv: no such file"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_if_deleted(words.split())
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
        ("--config broken.yaml", "--config broken.yaml is not YAML:"),
        ("test --ckpt_path half.ckpt", "--ckpt_path half.ckpt is damaged or truncated"),
        pytest.param("--data.batch_size 0", "batch_size 0 is too small: give at least 1", marks=pytest.mark.slow),
        ("--data.data_dir file/data", "data folder file/data cannot be written (Not a directory)"),
        pytest.param("--data.source official --data.data_dir empty", "could not be downloaded", marks=pytest.mark.slow),
        pytest.param(
            "--config configs/shakespeare_gpt.yaml --data.path latin.txt",
            "latin.txt is not UTF-8: byte 3 is 0xe9",
            marks=pytest.mark.slow,
        ),
        ("--config configs/language_id.yaml --data.path gap.csv", "gap.csv, row 2: column text is empty"),
        pytest.param(
            "--config configs/image_folder.yaml --data.path pictures",
            "1 of 1 images cannot be used: pictures/a/x.png",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_of_the_user_ends_the_program_with_code_2(words: str, expected: str, tmp_path: Path) -> None:
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


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = program("--data.batch_size=0", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "batch_size 0 is too small" in done.stderr


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


@pytest.mark.parametrize("flag", ["--help", pytest.param("--print_config", marks=pytest.mark.slow)])
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
