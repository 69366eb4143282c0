"""Seeds every training step, so that a continued run draws the same random numbers."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from src.engine.system.randomness import derive_seed, run_seed, step_position


class StepSeeds(Callback):
    """Reseeds torch's generators before every training step, and again between steps.

    Dropout and augmentation then depend only on seed, epoch, batch and process: a run that is continued in the middle
    of an epoch draws the same numbers as one that was never stopped.
    """

    _seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._seed = run_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reseed(trainer, between=1)

    on_train_epoch_start = on_train_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._reseed(trainer, between=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reseed(trainer, between=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._reseed(trainer, between=1)

    def _reseed(self, trainer: Trainer, between: int) -> None:
        seed = derive_seed(self._seed, *step_position(trainer), between)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower: it checks every kind of device
        kind = trainer.strategy.root_device.type
        if kind != "cpu" and hasattr(torch, kind):  # torch has no module for some devices, such as TPUs
            getattr(torch, kind).manual_seed(seed)
