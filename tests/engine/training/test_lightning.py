"""Every callback and every Trainer option of Lightning works in a run, or one line says why not."""

import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, callbacks

from src.engine.cli.cli import StarterCLI
from src.engine.runs.run_record import read_metrics
from src.engine.system.errors import report
from tests.conftest import Run
from tests.toy import RECIPE

Train = Callable[..., Run]
TOY = f"--config={RECIPE}"
SHORT = (TOY, "--max_epochs=2", "--data.size=96")  # three steps an epoch


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: a test of a run has the run's own configuration."""
    return ()


# Arguments that a callback needs, or the one line that says why it cannot work.
NEEDS = {
    "EarlyStopping": ("monitor=val/loss",),
    "GradientAccumulationScheduler": ("scheduling={0: 1, 1: 2}",),
    "ModelPruning": ("pruning_fn=l1_unstructured",),
    "OnExceptionCheckpoint": ("dirpath=.",),
    "StochasticWeightAveraging": ("swa_lrs=0.01",),
    "ThroughputMonitor": ("batch_size_fn=lightning.pytorch.utilities.data.extract_batch_size",),
    "Timer": ("duration=00:01:00:00",),
}
REFUSED = {
    "StochasticWeightAveraging": "StochasticWeightAveraging sets the average after the last checkpoint is saved",
    "BackboneFinetuning": "BackboneFinetuning needs a task with the attribute backbone",
    "BaseFinetuning": "BaseFinetuning.freeze_before_training is not implemented: name a subclass that has it",
    "BatchSizeFinder": "BatchSizeFinder changes the batch size after the schedule is made",
    "LearningRateFinder": "LearningRateFinder sets an attribute lr of the model",
    "SpikeDetection": "SpikeDetection of Lightning 2.6 cannot read its own state",
}


def run(folder: Path, *words: str) -> StarterCLI:
    """Run without the progress options of `train`."""
    cli = StarterCLI([*words, "--accelerator=cpu", f"--trainer.default_root_dir={folder}"], time.perf_counter())
    cli.run()
    return cli


def check_test_of_run(cli: StarterCLI, folder: Path) -> None:
    """Check that `src.train test` gives the metrics of the test after training."""
    assert cli.record is not None
    trained = read_metrics(cli.record.folder)
    run(folder, "test", f"--run={cli.record.folder}")
    tested = read_metrics(cli.record.folder / "test_0")
    names = [name for name in trained if name.startswith("test/")]
    assert names
    assert [tested[name] for name in names] == pytest.approx([trained[name] for name in names], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(callbacks.__all__))
def test_every_callback_of_lightning_works_or_says_why_not(
    tmp_path: Path, error_of: Callable[..., str], name: str
) -> None:
    words = (*SHORT, f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{one}" for one in NEEDS.get(name, ())))
    if name in REFUSED:
        assert error_of("fit", *words).startswith(REFUSED[name])
        return
    cli = run(tmp_path, *words)
    assert any(isinstance(one, getattr(callbacks, name)) for one in cli.trainer.callbacks)  # type: ignore[attr-defined]
    check_test_of_run(cli, tmp_path)


# A value for each option of the Trainer that is not its default; None: others test it.
OPTIONS: dict[str, object] = {
    "accelerator": None,
    "strategy": None,
    "devices": None,
    "num_nodes": None,
    "precision": "64-true",
    "logger": "false",
    "callbacks": None,
    "fast_dev_run": 2,
    "max_epochs": 1,
    "min_epochs": 2,
    "max_steps": 4,
    "min_steps": 2,
    "max_time": "00:01:00:00",
    "limit_train_batches": 0.5,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "limit_predict_batches": 1,
    "overfit_batches": 1,
    "val_check_interval": 0.5,
    "check_val_every_n_epoch": 2,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 0,
    "enable_checkpointing": "false",
    "enable_progress_bar": None,
    "enable_model_summary": "false",
    "accumulate_grad_batches": 2,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "value",
    "deterministic": "true",
    "benchmark": "true",
    "inference_mode": "false",
    "use_distributed_sampler": "false",
    "profiler": "advanced",
    "detect_anomaly": "true",
    "barebones": "true",
    "plugins": "TorchCheckpointIO",
    "sync_batchnorm": "true",
    "reload_dataloaders_every_n_epochs": 1,
    "default_root_dir": None,
    "enable_autolog_hparams": "false",
    "model_registry": None,
}
# Those that affect a test: it gives the metrics of the test after training, which has them too.
IN_TESTS = ("precision", "limit_test_batches", "deterministic", "inference_mode", "plugins")


@pytest.fixture
def reset_determinism() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def test_every_option_of_the_trainer_is_tested() -> None:
    assert set(OPTIONS) == set(inspect.signature(Trainer).parameters)


@pytest.mark.slow
@pytest.mark.usefixtures("reset_determinism")
@pytest.mark.parametrize("name", [name for name, value in OPTIONS.items() if value is not None])
def test_every_option_of_the_trainer_works_or_says_why_not(
    tmp_path: Path, error_of: Callable[..., str], name: str
) -> None:
    words = (*SHORT, f"--trainer.{name}={OPTIONS[name]}")
    words += ("--trainer.gradient_clip_val=1.0",) if name == "gradient_clip_algorithm" else ()
    if name == "barebones":
        assert error_of("fit", *words).startswith("--trainer.barebones true: every run logs and saves; leave it out")
        return
    cli = run(tmp_path, *words)
    assert "test/loss" in cli.trainer.callback_metrics
    if name in IN_TESTS:
        check_test_of_run(cli, tmp_path)


@pytest.mark.parametrize("name", ["max_epochs", "max_steps", "limit_train_batches"])
def test_nothing_to_train_is_said(error_of: Callable[..., str], name: str) -> None:
    assert error_of("fit", TOY, f"--trainer.{name}=0") == (
        f"--trainer.{name} 0 leaves nothing to train: give at least 1, or the stage test"
    )


@pytest.mark.slow
def test_a_backbone_is_unfrozen_and_the_run_continues(train: Train) -> None:
    words = ["fit", "--model=tests.engine.training.toys.BackboneClassifier", "--model.net=tests.toy.ToyNet", *SHORT]
    words += ["--trainer.callbacks+=BackboneFinetuning", "--trainer.callbacks.unfreeze_backbone_at_epoch=1"]
    for optimizer in ("AdamW", "MuonWithAdamW"):
        trained = train(*words, f"--optimizer={optimizer}", "--max_epochs=3")
        first, *_, added = trained.cli.trainer.optimizers[0].param_groups
        assert added["lr"] == pytest.approx(first["lr"] / 10)  # OneCycleLR moves both
        again = train("fit", f"--run={trained.folder}", "--max_epochs=4")
        assert again.cli.trainer.global_step == 12


def test_an_error_without_text_names_where_it_was_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$") as error:
        fails()
    with pytest.raises(SystemExit):
        report(error.value)
    assert capsys.readouterr().err.startswith("error: ValueError in test_an_error_without_text")
