"""The task of telling which caption belongs to which image."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.engine.training.hyperparameters import describe_arguments
from src.tasks.task import Task

Batch = tuple[Tensor, ...]
ROWS = 1024  # of the similarity matrix that are computed at once


class ContrastiveModel(Task):
    """Trains and tests a network such as `CLIP` by the symmetric loss of Radford et al. (2021).

    Args:
        net: gives features of images and texts, and has `image_features`, `text_features` and `scale`.

    A batch is images, tokens (B, T) int64, mask (B, T) bool, and targets (B,) int64, equal where an image and a caption
    fit. Logs `{train,val,test}/loss`, and where it is evaluated `image_to_text_r1` and `_r5`, whether one of the
    nearest captions fits, `text_to_image_r1` and `_r5`, and `acc`, zero-shot classification by the `prompts(stage)` of
    the DataModule, the mean over their phrasings. In training every process compares with the pairs of all.

    Raises:
        InputError: it is to predict, and no classes are named.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.save_hyperparameters(describe_arguments(type(self), net=net))
        self.similarity: Tensor | None = None
        """After an evaluation, of each class's images (rows) to its prompts (columns), in [-1, 1]."""
        self._classes: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a batch."""
        images, texts = self.net(*batch[:-1])  # (B, D)
        targets = batch[-1]
        if self._trainer is not None and not self.trainer.training:
            self._seen.append((images.detach().cpu(), texts.detach().cpu(), targets.cpu()))
        all_images, all_texts, first = images, texts, 0
        if self._trainer is not None and self.trainer.training and self.trainer.world_size > 1:
            gathered: Any = self.all_gather(torch.stack([images, texts]), sync_grads=True)  # (world, 2, B, D)
            all_images, all_texts = gathered[:, 0].flatten(0, 1), gathered[:, 1].flatten(0, 1)  # (world * B, D)
            first = self.global_rank * len(images)
        own = torch.arange(first, first + len(images), device=images.device)
        scale: Any = self.net.scale
        loss = F.cross_entropy(scale * images @ all_texts.T, own) + F.cross_entropy(scale * texts @ all_images.T, own)
        loss = loss / 2
        return loss, {"value": loss.detach(), "weight": (targets != IGNORED).sum()}

    def name_classes(self, tokens: Tensor, mask: Tensor) -> None:
        """Choose the classes to predict, a text (T,) each."""
        self._classes = self._features(tokens, mask)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, classes) float32 of images."""
        if self._classes is None:
            raise InputError("no classes are named: give --labels, a text for each")
        net: Any = self.net
        classes = self._classes.to(self.device)
        probabilities = (net.scale * net.image_features(batch[0]) @ classes.T).float().softmax(dim=1)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    @torch.no_grad()
    def _features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        net: Any = self.net
        features: Tensor = net.text_features(tokens.to(self.device), mask.to(self.device))
        return features

    def log_metrics(self, stage: str) -> None:
        super().log_metrics(stage)
        seen, self._seen = self._seen, []
        everyone = [seen]
        if self.trainer.world_size > 1:
            everyone *= self.trainer.world_size
            torch.distributed.all_gather_object(everyone, seen)
        images, texts, targets = (
            torch.cat(part) for part in zip(*(one for part in everyone for one in part), strict=True)
        )
        counts = targets != IGNORED
        images, texts, targets = images[counts], texts[counts], targets[counts]
        found = {}
        for name, queries, keys in (("image_to_text", images, texts), ("text_to_image", texts, images)):
            # (N, 5): whether each of the five nearest fits
            parts = torch.split(queries, ROWS)
            nearest = torch.cat([(part @ keys.T).topk(min(5, len(keys))).indices for part in parts])
            fits = targets[nearest] == targets[:, None]
            found[f"{stage}/{name}_r1"] = fits[:, 0].float().mean()
            found[f"{stage}/{name}_r5"] = fits.any(dim=1).float().mean()
        data: Any = getattr(self.trainer, "datamodule", None)
        if prompts := data.prompts(stage) if hasattr(data, "prompts") else []:
            classes = torch.stack([self._features(*one).cpu() for one in prompts])  # (phrasings, classes, D)
            right = [(images @ one.T).argmax(dim=1) == targets for one in classes]
            found[f"{stage}/acc"] = torch.stack(right).float().mean()
            means = torch.stack([images[targets == number].mean(dim=0) for number in range(classes.shape[1])])
            self.similarity = (means @ classes.mean(dim=0).T).nan_to_num()
        self.log_dict(found, prog_bar=stage == "val")
