"""Habits of people's own modules and recipes: checkpoints, loggers, hooks and hyperparameters of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.run_record import read_metrics
from src.engine.system.errors import InputError
from src.engine.training.default_callbacks import own_checkpoint
from src.engine.training.finite_loss import NotFiniteError
from tests.conftest import Run
from tests.engine.cli.lightning_basics import FEATURES, NumbersData

Train = Callable[..., Run]


class Own(LightningModule):
    """A classifier with hyperparameters that its constructor changes.

    Args:
        lr: learning rate of a batch of 16.
        warmup: number of steps; default: 7.
        class_weights: a dict with numbers or texts as keys.
    """

    def __init__(
        self, lr: float = 1e-2, warmup: int | None = None, class_weights: dict[Any, float] | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hparams.lr = 4 * lr  # type: ignore[attr-defined]
        if warmup is None:
            self.hparams.warmup = 7  # type: ignore[attr-defined]
        self.class_weights = class_weights
        self.net = nn.Linear(FEATURES, 2)

    def _step(self, batch: Any, stage: str) -> Tensor:
        x, y, *_ = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.log_dict(
            {f"{stage}_loss": loss, f"{stage}_acc": (logits.argmax(1) == y).float().mean()}, batch_size=len(y)
        )
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class Averaged(Own):
    """Tests an average of the weights, which its hooks keep outside of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.average = {"bias": torch.zeros(2)}

    def on_train_epoch_end(self) -> None:
        self.average = {"bias": self.net.bias.detach().clone()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint["average"]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.log("test_average", self.average["bias"].abs().sum())


class Frozen(Own):
    """Does not save a part of its weights, which it can compute."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(FEATURES, FEATURES)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("backbone")
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] |= {f"backbone.{name}": one for name, one in self.backbone.state_dict().items()}


class Growing(Own):
    """Builds a layer of the size that its checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(1, 1)

    def on_train_start(self) -> None:
        self.extra = nn.Linear(3, 3)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.extra = nn.Linear(*checkpoint["state_dict"]["extra.weight"].shape)


class Nested(Own):
    """Brings a ModelCheckpoint."""

    def __init__(self, dirpath: str | None = None, filename: str | None = None) -> None:
        super().__init__()
        self.where: dict[str, Any] = {"dirpath": dirpath, "filename": filename}

    def configure_callbacks(self) -> list[ModelCheckpoint]:
        return [ModelCheckpoint(monitor="val_loss", **self.where)]


class Saving(Own):
    """Saves a checkpoint where it likes."""

    def on_train_end(self) -> None:
        self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "mine" / "deep" / "x.ckpt")


class Logger(CSVLogger):
    """A logger with a method of its own, which takes options by name only."""

    def __init__(self, save_dir: str, **options: Any) -> None:
        super().__init__(save_dir)
        self.options = options

    def log_image(self, name: str) -> None:
        (Path(self.log_dir).parent / f"{name}.txt").write_text(json.dumps(self.options))


class Drawing(Own):
    """Calls a method of its logger."""

    def on_train_start(self) -> None:
        self.logger.log_image("drawn")  # type: ignore[union-attr]


class Confused(Own):
    """Has a metric of the name that this project's classifiers use."""

    def __init__(self) -> None:
        super().__init__()
        self.confusion = MulticlassConfusionMatrix(2)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        super().test_step(batch, batch_idx)
        self.confusion.update(self.net(batch[0]), batch[1])


class WeightedData(NumbersData):
    """The last part of a batch is one number."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=self.batch_size, collate_fn=lambda rows: (*_stacked(rows), _half()))


def _stacked(rows: list[Any]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _half() -> Tensor:
    return torch.tensor(0.5)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: each test has its own."""
    return ()


@pytest.fixture
def own(train: Train, tmp_path: Path) -> Train:
    """Train a class of this file for two epochs."""

    def run(model: str, *words: str, arguments: Any = None, data: str = "NumbersData", **trainer: Any) -> Run:
        path = tmp_path / "own.yaml"
        module = __name__ if data == "WeightedData" else NumbersData.__module__
        tree = {
            "model": {"class_path": f"{__name__}.{model}", "init_args": arguments or {}},
            "data": {"class_path": f"{module}.{data}"},
            "trainer": {"max_epochs": 2, **trainer},
        }
        path.write_text(yaml.safe_dump(tree))
        return train(f"--config={path}", *words)

    return run


# ModelCheckpoints


def checkpoint(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "ModelCheckpoint", "init_args": arguments}


@pytest.mark.slow
@pytest.mark.parametrize(("monitor", "mode"), [("val_loss", "min"), ("val_acc", "max")])
def test_a_checkpoint_of_the_recipe_is_the_one_that_is_tested_and_continued(
    own: Train, train: Train, monitor: str, mode: str
) -> None:
    chosen = checkpoint(monitor=monitor, mode=mode, save_top_k=2, filename="{epoch}-of-mine")
    run = own("Own", callbacks=[chosen])
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["epoch=0-of-mine.ckpt", "epoch=1-of-mine.ckpt", "last.ckpt"]
    best: Any = run.cli.trainer.checkpoint_callback
    assert best.monitor == monitor
    assert any(Path(best.best_model_path).name in line for line in run.messages if "Testing" in line)
    tested = read_metrics(run.folder)["test_loss"]
    assert train("test", "--run", str(run.folder)).cli.trainer.callback_metrics["test_loss"].item() == tested
    train("fit", "--run", str(run.folder), "--ckpt_path=last", "--max_epochs=3")


def test_a_checkpoint_of_the_recipe_without_a_metric_is_one_more(own: Train) -> None:
    run = own("Own", callbacks=[checkpoint(every_n_train_steps=3, save_top_k=-1, filename="{step}")])
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt", "step=3.ckpt", "step=12.ckpt"} <= names


@pytest.mark.slow
def test_such_a_run_is_repeated_from_its_configuration(own: Train, train: Train) -> None:
    run = own("Own", callbacks=[checkpoint(monitor="val_acc", mode="max")])
    again = train("--config", str(run.folder / "config.yaml"))
    assert again.metrics["test_loss"] == run.metrics["test_loss"]


@pytest.mark.slow
def test_a_checkpoint_of_the_recipe_in_another_folder_is_the_best(own: Train, train: Train, tmp_path: Path) -> None:
    run = own("Own", callbacks=[checkpoint(monitor="val_acc", mode="max", dirpath=str(tmp_path / "scratch"))])
    (path,) = (tmp_path / "scratch").iterdir()
    assert train("test", "--run", str(run.folder)).cli.config.ckpt_path == str(path)


def test_a_run_that_had_one_more_checkpoint_keeps_it() -> None:
    callbacks: list[Any] = [ModelCheckpoint(monitor="val_acc")]
    states = {name: {"best_model_path": ""} for name in ("first", "second")}
    assert own_checkpoint(callbacks, {}) is callbacks[0]
    assert own_checkpoint(callbacks, {"callbacks": {"first": states["first"]}}) is callbacks[0]
    assert own_checkpoint(callbacks, {"callbacks": states}) is None
    assert own_checkpoint([ModelCheckpoint("memory://bucket", monitor="val_acc")], {}) is None


def test_an_option_that_would_have_no_effect_is_said(own: Train) -> None:
    with pytest.raises(InputError, match=r"^--checkpoint.save_top_k: a ModelCheckpoint in trainer.callbacks chooses"):
        own("Own", "--checkpoint.save_top_k=3", callbacks=[checkpoint(monitor="val_loss")])


@pytest.mark.parametrize("filename", [None, "{epoch}-{val_loss:.2f}", "{epoch}/{val_loss:.2f}"])
def test_a_checkpoint_of_the_module_is_saved_in_the_folder_it_names(
    own: Train, tmp_path: Path, filename: str | None
) -> None:
    folder = tmp_path / "saved" / "deep"
    if filename == "{epoch}/{val_loss:.2f}":
        with pytest.raises(Exception, match="has a folder in it"):
            own("Nested", arguments={"dirpath": str(folder), "filename": filename})
        return
    own("Nested", arguments={"dirpath": str(folder), "filename": filename})
    (path,) = folder.glob("*.ckpt")
    assert path.name.startswith("epoch=")


def test_a_checkpoint_of_the_module_is_saved_with_the_run_else(own: Train) -> None:
    run = own(
        "Nested",
        arguments={"filename": "{epoch}-{val_loss:.2f}"},
        logger={"class_path": f"{__name__}.Logger", "init_args": {"save_dir": "."}},
    )
    names = [path.name for path in (run.folder / "checkpoints").iterdir()]
    assert len(names) == 2
    assert "last.ckpt" in names


def test_a_module_may_save_in_a_folder_that_is_not_there(own: Train) -> None:
    assert (own("Saving").folder / "mine" / "deep" / "x.ckpt").is_file()


# Optimizers


def test_retries_cannot_halve_the_rate_of_a_modules_own_optimizer(own: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "training_step", lambda *_: pytest.fail("it trains"))
    with pytest.raises(
        InputError, match=r"^--retries 2: the learning rate of the model.s own optimizer cannot be halved"
    ):
        own("Own", "--retries=2")


def test_a_loss_that_is_not_a_number_asks_for_another_rate_of_the_module(
    own: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "cross_entropy", lambda logits, _: logits.mean() * torch.nan)
    with pytest.raises(
        NotFiniteError, match=r"learning rate 0\.04: look for NaN in the data,.* or give the model a lower rate"
    ) as caught:
        own("Own", limit_val_batches=0)
    assert "--retries" not in str(caught.value)
    assert "--optimizer.lr" not in str(caught.value)


# Loggers, hooks, hyperparameters


def test_a_hook_may_not_replace_what_a_run_needs_of_its_checkpoint(own: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "on_save_checkpoint", lambda _, checkpoint: checkpoint.update(config={}))
    with pytest.raises(InputError, match=r"on_save_checkpoint sets checkpoint\['config'\], which the run needs"):
        own("Own")


def test_the_logger_of_a_module_is_that_of_its_recipe_with_all_arguments(own: Train) -> None:
    logger = {"class_path": f"{__name__}.Logger", "init_args": {"save_dir": "."}, "dict_kwargs": {"team": "red"}}
    run = own("Drawing", logger=logger)
    (drawn,) = run.folder.rglob("drawn.txt")
    assert json.loads(drawn.read_text()) == {"team": "red"}
    assert list(run.folder.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_what_a_hook_reads_from_the_best_checkpoint_is_tested(own: Train, train: Train) -> None:
    run = own(
        "Averaged",
        "--checkpoint.monitor=train_loss",
        "--checkpoint.mode=max",
        "--checkpoint.save_on_train_epoch_end=true",
    )
    best: Any = run.cli.trainer.checkpoint_callback
    assert read_checkpoint(best.best_model_path)["epoch"] == 0
    expected = read_checkpoint(best.best_model_path)["average"]["bias"].abs().sum().item()
    assert read_metrics(run.folder)["test_average"] == pytest.approx(expected)


@pytest.mark.slow
def test_weights_that_a_hook_adds_need_not_be_in_a_checkpoint(own: Train, train: Train) -> None:
    run = own("Frozen")
    assert "test_loss" in read_metrics(run.folder)
    train("test", "--run", str(run.folder))
    train("fit", "--run", str(run.folder), "--ckpt_path=last", "--max_epochs=3")


@pytest.mark.slow
def test_a_hook_may_build_layers_of_the_size_in_the_checkpoint(own: Train, train: Train) -> None:
    run = own("Growing")
    tested = train("test", "--run", str(run.folder))
    assert tested.cli.model.extra.weight.shape == (3, 3)


def test_hyperparameters_that_a_constructor_changes_stay_changed(own: Train) -> None:
    run = own("Own", arguments={"lr": 1e-3})
    assert run.cli.model.hparams["lr"] == 4e-3
    assert run.cli.model.hparams["warmup"] == 7
    assert run.cli.trainer.optimizers[0].param_groups[0]["lr"] == 4e-3
    saved = read_checkpoint(str(run.folder / "checkpoints" / "last.ckpt"))["hyper_parameters"]
    assert saved["lr"] == 1e-3  # the constructor changes it again


@pytest.mark.slow
@pytest.mark.parametrize("weights", [{0: 1.0, 1: 5.0}, {"65+": 2.0, "C++": 1.0}])
def test_a_dict_with_any_keys_may_be_an_argument(own: Train, train: Train, weights: dict[Any, float]) -> None:
    run = own("Own", arguments={"class_weights": weights})
    assert run.cli.model.class_weights == weights
    tested = train("test", "--run", str(run.folder))
    assert tested.cli.model.class_weights == weights


# Pictures


@pytest.mark.filterwarnings("ignore:Trying to infer")
def test_a_batch_may_have_a_part_without_samples(own: Train) -> None:
    assert "test_loss" in read_metrics(own("Own", data="WeightedData").folder)


def test_a_metric_named_confusion_is_the_modules_own(own: Train) -> None:
    run = own("Confused")
    assert "test_loss" in read_metrics(run.folder)
    assert not (run.folder / "confusion_matrix.csv").exists()
