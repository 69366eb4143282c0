"""A moving average of the weights, on the device that trains."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks


class EMAWeightAveraging(callbacks.EMAWeightAveraging):
    """Lightning's EMAWeightAveraging, whose average is on the device of the weights unless `device` is given.

    Lightning 2.6.6 makes the average before the weights are moved: on a GPU each step would copy them to the CPU.
    """

    def __init__(self, decay: float = 0.999, **options: Any) -> None:
        super().__init__(decay=decay, **options)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average_model is not None:
            self._average_model.to(pl_module.device if self._device is None else self._device)
