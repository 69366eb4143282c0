"""Base classes of datasets and DataModules that build whole batches."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.engine.data.loading import Batches, batch_loader, shuffled
from src.engine.system.errors import InputError


class BatchDataset(Dataset[Any]):
    """A dataset that returns a batch for a list of indices, in `__getitems__`."""

    draws_by_itself = True  # from the seed of the indices, if at all

    def __getitems__(self, indices: Any) -> tuple[Tensor, ...]:
        """Tensors with one row per index; the last one is targets."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.__getitems__([index]))


def check_loaded(data: Any, saved: dict[str, Any], what: str) -> None:
    """Raise InputError if a DataModule is set up with another `what` than a checkpoint has in `saved`.

    Lightning's Trainer loads the state of data after `setup`.
    """
    if hasattr(data, "train_set") and data.state_dict()[what] != saved[what]:
        raise InputError(
            f"the data was set up with other {what} than the checkpoint has: build it with"
            f" {type(data).__name__}.load_from_checkpoint(path)"
        )


class BatchedDataModule(LightningDataModule):
    """Loads `train_set`, `val_set` and `test_set`, which `setup` sets, in batches of `batch_size`."""

    batch_size: int
    device_resident = False  # whether datasets are moved to the training device by their method `to`
    train_set: Any
    val_set: Any
    test_set: Any

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test_set)

    predict_dataloader = test_dataloader

    def _loader(self, dataset: Any, shuffle: bool = False) -> DataLoader[Any]:
        if self.device_resident and self.trainer is not None:
            dataset.to(self.trainer.strategy.root_device)
        order = shuffled(len(dataset)) if shuffle else None
        # Batch norm cannot train on a batch of one.
        batches = Batches(len(dataset), self.batch_size, self.trainer, order, drop_single=shuffle)
        workers = self._workers(dataset, shuffle)
        return batch_loader(dataset, batches, num_workers=workers, on_device=self.device_resident)

    def _workers(self, dataset: Any, shuffle: bool) -> int:
        """The number of worker processes of a loader; `auto`: none."""
        given = getattr(self, "num_workers", 0)
        return 0 if given == "auto" else given
