"""The command line: stages, short flags, help, data sizes and precision."""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.profilers import Profiler

from src.engine.cli.cli import StarterCLI
from src.engine.cli.usage import SHORT_FLAGS
from src.engine.system.errors import InputError
from src.engine.system.hardware import choose_precision
from src.tasks.classifier import Classifier
from tests.conftest import QUIET, Run, write
from tests.toy import RECIPE

Train = Callable[..., Run]
Parse = Callable[..., StarterCLI]
TOY = f"--config={RECIPE}"
# A minimal run that trains, validates and tests.
SHORT = (TOY, "--max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2")


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: each test adds the recipe itself, since some command lines have none."""
    return ()


# Fit, then test


@pytest.mark.slow
def test_without_a_stage_it_fits_tests_the_best_checkpoint_and_prints_a_table(train: Train) -> None:
    run = train(TOY, "--max_epochs=2")
    assert run.metrics["test/acc"] > 0.9
    best = run.folder / "checkpoints" / "best.ckpt"
    assert f"Testing {best}" in run.messages
    rows = [line.split() for line in run.output.splitlines()]
    assert ["test/acc", f"{run.metrics['test/acc']:.4f}"] in rows
    assert ["run", "folder", str(run.folder)] in rows
    assert ["best", "checkpoint", str(best)] in rows
    assert f"--logdir {run.folder.parents[1]}" in run.output
    assert "Seed set to 42" in run.messages


@pytest.mark.slow
def test_each_stage_runs_only_itself(train: Train) -> None:
    fitted = train("fit", *SHORT)
    assert "val/loss" in fitted.metrics
    assert not any(name.startswith("test/") for name in fitted.metrics)
    path = fitted.folder / "checkpoints" / "best.ckpt"
    given = (f"--ckpt_path={path}", "--trust=tests.toy")
    tested = train("test", *given)
    validated = train("validate", *given)
    assert {"test/acc", "test/f1", "test/loss"} <= tested.metrics.keys()
    assert validated.metrics["val/acc"] == fitted.metrics["val/acc"]
    assert "train_seconds" not in validated.metrics
    predicted = train("predict", *given, "--trainer.limit_predict_batches=2")
    assert len(predicted.cli.trainer.predict_loop.predictions) == 2
    assert predicted.cli.trainer.predict_loop.predictions[0]["probabilities"].shape == (32, 3)
    assert fitted.folder not in (tested.folder, validated.folder, predicted.folder)
    assert "These predictions are not saved" in predicted.messages
    writer = f"--trainer.callbacks+={__name__}.Writer"
    assert "These predictions are not saved" not in train("predict", *given, writer).messages


class Writer(BasePredictionWriter):
    """Would save predictions."""

    def __init__(self) -> None:
        super().__init__("batch")

    def write_on_batch_end(self, *_: Any) -> None:
        pass


class Decided(Classifier):
    """A task that makes its own optimizer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_an_optimizer_of_ones_own_is_not_replaced_without_a_word(parse: Any, messages: list[str]) -> None:
    parse(TOY, "--fast_dev_run")
    assert not any("replaces" in line for line in messages)
    parse(TOY, f"--model={__name__}.Decided", "--model.net=tests.toy.ToyNet", "--fast_dev_run")
    assert any("AdamW replaces Decided.configure_optimizers: give --optimizer null" in line for line in messages)


class DecidedManually(Decided):
    """A task that steps its own optimizers."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False


def test_optimizers_that_a_model_steps_itself_are_not_replaced(parse: Any) -> None:
    own = (TOY, f"--model={__name__}.DecidedManually", "--model.net=tests.toy.ToyNet", "--fast_dev_run")
    with pytest.raises(InputError, match=r"AdamW replaces DecidedManually.* \(manual .*\): give --optimizer null$"):
        parse(*own)
    parse(*own, "--optimizer=null")


@pytest.mark.parametrize(("stage", "flag"), [("test", "--ckpt_path"), ("fit", "--ckpt_path"), ("fit", "--run")])
def test_an_empty_path_is_not_the_newest_run(train: Train, stage: str, flag: str) -> None:
    with pytest.raises(InputError, match=f"^{flag} is empty: give a path, or leave it out"):
        train(stage, f"{flag}=")


@pytest.mark.slow
def test_the_test_stage_needs_no_argument(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run with a checkpoint in .*logs: train one first"):
        train("test")
    older = train("fit", *SHORT, "--max_epochs=2", "--name=mine")
    newer = train("fit", *SHORT, "--model.net.width=4", "--data.batch_size=100")
    before = (newer.folder / "metrics.json").read_bytes()
    tested = train("test")
    assert f"test of run {newer.folder}, best.ckpt" in tested.messages
    assert tested.folder == newer.folder / "test_0"
    assert tested.cli.model.net.width == 4
    assert tested.cli.datamodule.batch_size == 100
    assert tested.metrics["checkpoint"] == str(newer.folder / "checkpoints" / "best.ckpt")
    assert list(tested.folder.glob("events*"))
    assert (newer.folder / "metrics.json").read_bytes() == before
    last = train("validate", "--ckpt_path=last", "--name=mine")
    assert last.folder == older.folder / "validate_0"
    assert last.cli.config.ckpt_path == str(older.folder / "checkpoints" / "last.ckpt")
    again = train("validate", "--run", str(older.folder), "--data.batch_size=64")
    assert again.folder == older.folder / "validate_1"
    assert again.cli.datamodule.batch_size == 64
    other = write(tmp_path / "other.yaml", Path(RECIPE).read_text())
    with pytest.raises(InputError, match=r"no run with a checkpoint in .*other"):
        train("test", "--config", other)


@pytest.mark.slow
def test_the_best_checkpoint_is_found_under_a_custom_file_name(train: Train) -> None:
    fitted = train("fit", *SHORT, "--max_epochs=2", "--checkpoint.filename={epoch}-mine")
    tested = train("test")
    best = Path(fitted.cli.trainer.checkpoint_callback.best_model_path)
    assert best.name.endswith("-mine.ckpt")
    assert tested.cli.config.ckpt_path == str(best)


@pytest.mark.slow
def test_results_of_testing_a_checkpoint_go_to_its_run_folder(train: Train) -> None:
    folder = train("fit", *SHORT).folder
    # Without the --trainer.default_root_dir that `train` adds.
    words = ("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trust", "tests.toy", *QUIET)
    StarterCLI(["test", *words], time.perf_counter()).run()
    assert "test/acc" in json.loads((folder / "test_0" / "metrics.json").read_text())
    # With --run it is one's own: its classes and paths are trusted.
    StarterCLI(["test", *words[:2], "--run", str(folder), *QUIET], time.perf_counter()).run()
    assert "test/acc" in json.loads((folder / "test_1" / "metrics.json").read_text())
    with pytest.raises(InputError, match=r"^--run .*toy has no checkpoint .*last\.ckpt: leave --run out"):
        StarterCLI(["test", *words[:2], "--run", str(folder.parent), *QUIET], time.perf_counter())


@pytest.mark.slow
def test_the_stage_may_be_before_or_after_the_options(parse: Parse) -> None:
    first = parse("validate", "--config", RECIPE, "--fast_dev_run")
    last = parse("--config", RECIPE, "--fast_dev_run", "validate")
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
def test_short_flags_set_trainer_options_and_the_last_one_wins(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object, other: str
) -> None:
    monkeypatch.setattr(StarterCLI, "_set_seed", lambda _: None)
    monkeypatch.setattr(StarterCLI, "before_instantiate_classes", lambda _: None)
    monkeypatch.setattr(StarterCLI, "instantiate_classes", lambda _: None)

    def parsed(*args: str) -> object:
        return StarterCLI([TOY, *args], time.perf_counter()).config.trainer[name]

    assert parsed(f"--{name}", value) == parsed(f"--trainer.{name}={value}") == expected
    assert parsed(f"--trainer.{name}={other}", f"--{name}={value}") == expected
    assert parsed(f"--{name}={other}", f"--trainer.{name}", value) == expected


def test_fast_dev_run_writes_no_files(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(TOY, "--fast_dev_run")
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_needs_no_value_before_another_option(parse: Parse) -> None:
    built = parse(TOY, "--fast_dev_run", "--max_epochs", "3")
    assert (built.config.trainer.fast_dev_run, built.config.trainer.max_epochs) == (True, 3)
    assert built.record is None


@pytest.mark.slow
def test_saved_and_printed_configurations_have_no_short_flags(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    saved = yaml.safe_load((train("fit", *SHORT, "--devices=1").folder / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        StarterCLI([TOY, "--devices=1", "--print_config"], time.perf_counter())
    for tree in (saved, yaml.safe_load(capsys.readouterr().out)):
        assert tree["trainer"]["devices"] == "1"
        assert not set(SHORT_FLAGS) & tree.keys()


def test_help_shows_the_short_flags_and_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        StarterCLI([TOY, "--help"], time.perf_counter())
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "[fit|validate|test|predict]" in shown
    (short,) = re.findall(r"Short for --trainer\.NAME: ([^.]*)\.", shown)
    assert re.findall(r"--(\w+)", short) == list(SHORT_FLAGS)
    for name in SHORT_FLAGS:
        assert re.search(rf"^  --trainer\.{name}\b", shown, re.MULTILINE), name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model.help Classifier", "--model.num_classes"),
        ("--model.net.help tests.toy.ToyNet", "--net.dropout"),
        ("--data.help=tests.toy.ToyData", "--data.batch_size"),
        ("--optimizer.help SGD test", "--optimizer.nesterov"),
    ],
)
def test_help_for_a_class_shows_its_arguments(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        StarterCLI([TOY, *words.split()], time.perf_counter())
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


# Sizes that depend on the data


@pytest.mark.slow
def test_a_network_takes_its_sizes_from_the_data(train: Train) -> None:
    sized = (*SHORT, "--data=tests.engine.cli.toys.SizedData", "--data.count=5")
    run = train("fit", *sized)
    assert run.cli.model.net.num_classes == run.cli.model.num_classes == 5
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["net"]["init_args"]["num_classes"] == 5
    with pytest.raises(InputError, match="the data has 5 classes and ToyNet 4: leave num_classes out, or give 5"):
        train(*sized, "--model.net.num_classes=4")


@pytest.mark.slow
def test_data_is_restored_from_a_checkpoint_before_the_network_gets_its_sizes(train: Train) -> None:
    run = train("fit", *SHORT, "--data=tests.engine.cli.toys.SizedData", "--data.count=5")
    tested = train(
        "test", "--ckpt_path", str(run.folder / "checkpoints" / "last.ckpt"), "--data.count=4", "--trust=tests"
    )
    assert tested.cli.datamodule.num_classes == tested.cli.model.net.num_classes == 5


@pytest.mark.slow
def test_classes_without_arguments_run(train: Train) -> None:
    boring = "lightning.pytorch.demos.boring_classes.Boring"
    words = (f"--model={boring}Model", f"--data={boring}DataModule", "--optimizer=null", "--checkpoint.monitor=null")
    run = train("fit", TOY, *words, "--max_epochs=1", "--trainer.limit_train_batches=2")
    assert run.cli.trainer.state.finished


def test_a_network_with_fewer_classes_than_the_data_is_an_input_error(train: Train) -> None:
    with pytest.raises(InputError, match="the data has 3 classes and ToyNet 2"):
        train(TOY, "--model.net.num_classes=2", "--fast_dev_run")


# Precision


@pytest.mark.parametrize(("capability", "expected"), [("avx512_bf16", "bf16-mixed"), ("amx_bf16", "bf16-mixed")])
def test_precision_is_bf16_if_the_cpu_supports_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert choose_precision("cpu") == (expected, "this CPU has bfloat16 arithmetic")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: False})
    assert choose_precision("cpu") == ("32-true", "this CPU has no bfloat16 arithmetic")


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert choose_precision("gpu")[0] == choose_precision("auto")[0] == expected


@pytest.mark.parametrize("gpu", [True, False])
def test_float32_uses_tensorfloat32_only_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    with suppress(InputError, AssertionError, RuntimeError):  # this machine may have no GPU
        StarterCLI([TOY, "--precision=32-true", f"--trainer.default_root_dir={tmp_path}"], 0.0)
    assert chosen == ["high"] * gpu
    assert ("PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ) == gpu  # slows each step, and is useless without a GPU


@pytest.mark.slow
def test_the_chosen_precision_is_printed_and_saved_and_a_given_one_is_kept(train: Train) -> None:
    chosen = choose_precision("cpu")[0]
    run = train("fit", *SHORT)
    assert sum(message.startswith(f"Precision {chosen}: ") for message in run.messages) == 1
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]["precision"] == chosen
    run = train("fit", *SHORT, "--precision=64-true")
    assert not any(message.startswith("Precision") for message in run.messages)
    assert run.cli.trainer.precision == "64-true"


@pytest.mark.slow
def test_a_precision_plugin_is_kept(parse: Parse) -> None:
    plugin = ("--trainer.plugins=MixedPrecision", "--trainer.plugins.precision=bf16-mixed")
    assert parse(TOY, *plugin, "--trainer.plugins.device=cpu").trainer.precision == "bf16-mixed"


@pytest.mark.slow
def test_a_profiler_runs_only_if_one_is_given(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning's default profiler costs up to 5 % of the step time of a small network.
    monkeypatch.delattr(Profiler, "profile")
    run = train("fit", *SHORT)
    monkeypatch.undo()
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]["profiler"] is None
    report = train("fit", *SHORT, "--trainer.profiler=simple").cli.trainer.profiler.summary()
    assert re.search(r"run_training_batch|optimizer_step", report)
