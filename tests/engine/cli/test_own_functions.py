"""A module whose arguments are a class and a function is trained, and tested again from its run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import Run, write
from tests.engine.cli.lightning_basics import FEATURES, NumbersData

Train = Callable[..., Run]
Loss = Callable[[Tensor, Tensor], Tensor]


class Functional(LightningModule):
    """Reconstructs its inputs."""

    def __init__(self, act: type[nn.Module] = nn.GELU, loss: Loss = F.mse_loss, width: int = 3) -> None:
        super().__init__()
        self.loss = loss
        self.net = nn.Sequential(nn.Linear(FEATURES, width), act(), nn.Linear(width, FEATURES))

    def _step(self, batch: Any, name: str) -> Tensor:
        x = batch[0]
        loss = self.loss(self.net(x), x)
        self.log(name, loss, batch_size=len(x))
        return loss

    def training_step(self, batch: Any) -> Tensor:
        return self._step(batch, "train_loss")

    def validation_step(self, batch: Any) -> None:
        self._step(batch, "val_loss")

    def test_step(self, batch: Any) -> None:
        self._step(batch, "test_loss")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: the test has its own."""
    return ()


OWN = {"act": "torch.nn.Tanh", "loss": "torch.nn.functional.l1_loss"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["defaults", "recipe", "options"])
def test_a_class_and_a_function_are_arguments_of_a_run_and_of_its_test(
    place: str, train: Train, tmp_path: Path
) -> None:
    given = OWN if place == "recipe" else {}
    tree = {"model": {"class_path": f"{__name__}.Functional", "init_args": given}}
    tree["data"] = {"class_path": f"{NumbersData.__module__}.NumbersData"}
    words = [f"--model.{name}={path}" for name, path in OWN.items()] if place == "options" else []
    run = train(f"--config={write(tmp_path / 'own.yaml', yaml.safe_dump(tree))}", "--max_epochs=1", *words)
    again = train("test", f"--run={run.folder}")
    assert again.metrics["test_loss"] == run.metrics["test_loss"]
    for model in (run.cli.model, again.cli.model):
        assert type(model.net[1]) is (nn.GELU if place == "defaults" else nn.Tanh)
        assert model.loss is (F.mse_loss if place == "defaults" else F.l1_loss)
