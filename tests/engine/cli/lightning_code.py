"""LightningModules and DataModules as people write them, without a thought of this project."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tests.engine.cli.lightning_basics import (  # noqa: F401
    FEATURES,
    GAN,
    SIZE,
    Agent,
    Autoencoder,
    Experience,
    NumbersData,
    OnlyNumbers,
    labelled,
    numbers,
)


class Unfreeze(BaseFinetuning):
    """Trains the head first, and the features from an epoch on."""

    def __init__(self, epoch: int = 1) -> None:
        super().__init__()
        self.epoch = epoch

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.features)  # type: ignore[arg-type]

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == self.epoch:
            self.unfreeze_and_add_param_group(pl_module.features, optimizer, lr=1e-3)  # type: ignore[arg-type]


class Transfer(LightningModule):
    """Fine-tuning; brings its callback, its checkpoint and several schedules' worth of habits."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU())

    def configure_model(self) -> None:
        self.classifier = getattr(self, "classifier", nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def _step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", (logits.argmax(dim=1) == y).float().mean(), prog_bar=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "valid")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return {"probability": self(batch).softmax(dim=1)}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=0.5)]

    def configure_callbacks(self) -> list[Callback]:
        return [Unfreeze(), ModelCheckpoint(monitor="valid_acc", mode="max", filename="mine-{epoch}")]


class Alone(LightningModule):
    """Trains only, has its loader inside, and logs what it likes."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = self(batch).square().mean()
        self.log("objective", loss, on_epoch=True)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbers(), batch_size=4)  # type: ignore[arg-type]


class LoadersInside(Transfer):
    """All loaders are the module's own."""

    def configure_callbacks(self) -> list[Callback]:
        return []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(labelled(0), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(labelled(1), batch_size=4)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(labelled(2), batch_size=4)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbers(2), batch_size=4)  # type: ignore[arg-type]


class DomainsData(NumbersData):
    """Several loaders for validation and test."""

    def val_dataloader(self) -> Any:
        return [DataLoader(labelled(seed), batch_size=4) for seed in (1, 2)]

    def test_dataloader(self) -> Any:
        return [DataLoader(labelled(seed), batch_size=4) for seed in (3, 4)]


class Domains(Transfer):
    """Several validation loaders."""

    def configure_callbacks(self) -> list[Callback]:
        return []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step(batch, "valid")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step(batch, "test")


class Rows(Dataset[Any]):
    """Samples that are dicts."""

    def __init__(self, seed: int) -> None:
        self.pairs = labelled(seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.pairs[index]
        return {"x": x, "y": y, "name": f"row {index}"}


class DictData(LightningDataModule):
    """Batches that are dicts."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Rows(0), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Rows(1), batch_size=4)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Rows(2), batch_size=4)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Rows(2), batch_size=4)


class DictModule(LightningModule):
    """Takes dict batches, and logs `acc` and `loss` without a stage in their names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(FEATURES, 2)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.model(batch["x"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        loss = F.cross_entropy(self(batch), batch["y"])
        self.log("Loss/Train", loss)
        return {"loss": loss, "extra": 1}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("Loss/Validation", F.cross_entropy(self(batch), batch["y"]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("acc", (self(batch).argmax(dim=1) == batch["y"]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "Loss/Validation"}}


class Graph:
    """A batch of a graph library: an own class that moves its tensors."""

    def __init__(self, x: Tensor, num_graphs: int) -> None:
        self.x = x
        self.num_graphs = num_graphs

    def to(self, device: Any, *_: Any, **__: Any) -> "Graph":
        return Graph(self.x.to(device), self.num_graphs)


def as_graph(samples: list[Tensor]) -> Graph:
    return Graph(torch.stack(samples), len(samples))


class GraphData(LightningDataModule):
    """Batches of an own class."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def _loader(self, seed: int) -> DataLoader[Any]:
        return DataLoader(numbers(seed), batch_size=self.batch_size, collate_fn=as_graph)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(0)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(2)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(2)


class GraphModule(LightningModule):
    """Takes batches of an own class, and says their size when it logs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(FEATURES, 1)

    def forward(self, batch: Graph) -> Tensor:
        return self.model(batch.x)

    def training_step(self, batch: Graph, batch_idx: int) -> Tensor:
        loss = self(batch).square().mean()
        self.log("train/loss", loss, batch_size=batch.num_graphs)
        return loss

    def validation_step(self, batch: Graph, batch_idx: int) -> None:
        self.log("val/energy_loss", self(batch).square().mean(), batch_size=batch.num_graphs)

    def test_step(self, batch: Graph, batch_idx: int) -> None:
        self.log("test/energy_loss", self(batch).square().mean(), batch_size=batch.num_graphs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class HydraModule(LightningModule):
    """As in lightning-hydra-template: optimizer and schedule are arguments, called in `configure_optimizers`."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch), on_step=False, on_epoch=True, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch), on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        assert self.trainer.model is not None
        optimizer = self.hparams.optimizer(self.trainer.model.parameters())
        if self.hparams.scheduler is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.hparams.scheduler(optimizer), "monitor": "val/loss"},
        }


class Colour(Enum):
    RED = "red"
    BLUE = 2


@dataclass
class Augmentation:
    noise: float = 0.1
    sizes: list[int] = field(default_factory=lambda: [1, 2])


class Scale:
    """A transform."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


class RichData(NumbersData):
    """Keeps a path, an enum, a dataclass and transforms as hyperparameters."""

    def __init__(
        self,
        folder: Path,
        colour: Colour = Colour.RED,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        transform: Scale | None = None,
        transforms: list[Scale] | None = None,
        batch_size: int = 4,
    ) -> None:
        super().__init__(batch_size)
        self.save_hyperparameters()
        assert (folder / "x").parent == folder
        assert isinstance(colour, Colour)
        assert isinstance(augmentation, Augmentation)
        self.transform = transform or Scale()

    def prepare(self, inputs: list[dict[str, float]]) -> Tensor:
        return self.transform(super().prepare(inputs))


class RichModule(Autoencoder):
    """Keeps an enum, a dataclass and objects as hyperparameters."""

    def __init__(
        self,
        colour: Colour = Colour.RED,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        transform: Scale | None = None,
        transforms: list[Scale] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.MSELoss(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        assert self.hparams.colour.name and self.hparams.augmentation.sizes == [1, 2]  # noqa: PT018
        assert all(one(1.0) for one in (transform, *(transforms or ())) if one)
