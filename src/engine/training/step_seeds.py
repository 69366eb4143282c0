"""Makes the random numbers of a step the same wherever a run goes on."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from src.engine.system.randomness import place_of, run_seed, seed_of


class StepSeeds(Callback):
    """Seeds torch's generators anew for every training step, and for what comes between two of them.

    Dropout and augmentation are then a function of seed, epoch, batch and process: a run that goes on in the middle of
    an epoch draws what it would have drawn.
    """

    def __init__(self) -> None:
        self._seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._seed = run_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reseed(trainer, between=1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reseed(trainer, between=1)

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
        seed = seed_of(self._seed, *place_of(trainer), between)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every kind of device
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.manual_seed(seed)
