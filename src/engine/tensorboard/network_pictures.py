"""Shows a network and its inputs."""

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from src.engine.tensorboard.figures import scaled
from src.engine.tensorboard.writers import writers

MAX_FILTERS = 256
MAX_IMAGES = 32  # shown of a batch


def callbacks(config: Any, stage: str | None) -> list[Callback]:
    """The callback of every run with a logger."""
    return [] if stage == "predict" or config.trainer.logger is False else [NetworkPictures()]


class NetworkPictures(Callback):
    """After training, draws the graph; for images also the first augmented batch and the first layer's filters."""

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._batch is None and trainer.is_global_zero:
            parts = batch if isinstance(batch, list | tuple) else (batch,)
            # Others have no samples, or cannot be sliced.
            parts = [one for one in parts if isinstance(one, Tensor) and one.ndim and one.layout == torch.strided]
            self._batch = tuple(part[:MAX_IMAGES].detach().clone() for part in parts)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        batch, self._batch = self._batch, None
        if not batch:
            return
        first_conv: Any = next((one for one in pl_module.modules() if isinstance(one, nn.Conv2d)), None)
        for writer in writers(trainer):
            is_image = batch[0].ndim == 4 and batch[0].shape[1] in (1, 3)
            if is_image:
                writer.add_images("network/a batch after augmentation", _shown(batch[0]), trainer.global_step)
            if is_image and first_conv is not None and getattr(pl_module, "device_mesh", None) is None:  # no shard
                weights: Any = first_conv.weight[:MAX_FILTERS].detach().float().cpu()  # (filters, channels, H, W)
                weights = weights if weights.shape[1] == 3 else weights.flatten(0, 1)[:, None]
                filters = torch.stack([_shown(one) for one in weights])
                large = nn.functional.interpolate(filters, scale_factor=12, mode="nearest")
                writer.add_images("network/filters of the first layer", large, trainer.global_step)
            self._draw_graph(writer, pl_module, batch)

    def _draw_graph(self, writer: Any, task: Any, batch: tuple[Tensor, ...]) -> None:
        net: Any = getattr(task, "net", None)
        if net is None or getattr(net, "is_compiled", False) or getattr(task, "device_mesh", None) is not None:
            return
        # After training Lightning has moved the network to the CPU.
        inputs = tuple(part[:1].to(task.device) for part in (batch[:-1] or batch))
        with warnings.catch_warnings(), torch.no_grad():
            # torch still draws with its deprecated tracer, which also warns that a trace has a fixed shape.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            try:
                writer.add_graph(net, inputs)
            except Exception as error:  # not every network can be traced
                writer.add_text("network/graph", f"cannot be drawn: {error}", 0)


def _shown(images: Tensor) -> Tensor:
    """Pixels scaled to 0 to 1, in a black frame."""
    return nn.functional.pad(scaled(images.float().cpu()), (1, 1, 1, 1))
