"""Contrastive training of images and captions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.engine.training.hyperparameters import describe_arguments
from src.tasks.classifier import class_rows
from src.tasks.task import Task

Batch = tuple[Tensor, ...]
ROWS = 1024  # rows of the similarity matrix computed at once


class ContrastiveModel(Task):
    """Trains and tests a network such as `CLIP` with the symmetric loss of Radford et al. (2021).

    Args:
        net: returns image features and text features; has `image_features`, `text_features` and `scale`.

    A batch is images, tokens (B, T) int64, mask (B, T) bool, and targets (B,) int64; a caption matches every image with
    the same target. In training, the pairs of all processes are compared. Logs:

    - `{train,val,test}/loss`
    - `{val,test}/image_to_text_r1` and `_r5`: share of images with a matching caption among the 1 or 5 nearest
    - `{val,test}/text_to_image_r1` and `_r5`: the same for captions
    - `{val,test}/acc`: zero-shot accuracy with the DataModule's `prompts(stage)`, mean over the phrasings

    Raises:
        InputError: `predictions` is called before `name_classes`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.save_hyperparameters(describe_arguments(type(self), net=net))
        self.similarity: Tensor | None = None
        """After an evaluation: mean similarity of each class's images (rows) and prompts (columns), in [-1, 1]."""
        self._classes: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a batch."""
        images, texts = self.net(*batch[:-1])  # (B, D)
        targets = batch[-1]
        if self._trainer is not None and not self.trainer.training:
            self._seen.append((images.detach().cpu(), texts.detach().cpu(), targets.cpu()))
        all_images, all_texts, first = images, texts, 0  # first: row of this process's first pair
        if self._trainer is not None and self.trainer.training and self.trainer.world_size > 1:
            gathered: Any = self.all_gather(torch.stack([images, texts]), sync_grads=True)  # (world, 2, B, D)
            all_images, all_texts = gathered[:, 0].flatten(0, 1), gathered[:, 1].flatten(0, 1)  # (world * B, D)
            first = self.global_rank * len(images)
        pairs = torch.arange(first, first + len(images), device=images.device)
        scale: Any = self.net.scale
        loss = F.cross_entropy(scale * images @ all_texts.T, pairs)
        loss = (loss + F.cross_entropy(scale * texts @ all_images.T, pairs)) / 2
        return loss, {"value": loss.detach(), "weight": (targets != IGNORED).sum()}

    def name_classes(self, tokens: Tensor, mask: Tensor) -> None:
        """Set the classes to predict: tokens (classes, T) int64 and mask (classes, T) bool, one text per class."""
        self._classes = self._features(tokens, mask)

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, classes) float32 of images."""
        if self._classes is None:
            raise InputError("no classes given: give one text per class")
        net: Any = self.net
        classes = self._classes.to(self.device)
        probabilities = (net.scale * net.image_features(inputs[0]) @ classes.T).float().softmax(dim=1)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The class whose text is most similar, and the probability of each."""
        return class_rows(predictions["probabilities"], labels, type(self).__name__)

    @torch.no_grad()
    def _features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        net: Any = self.net
        features: Tensor = net.text_features(tokens.to(self.device), mask.to(self.device))
        return features

    def log_metrics(self, stage: str) -> None:
        super().log_metrics(stage)
        seen, self._seen = self._seen, []
        gathered = [seen]
        if self.trainer.world_size > 1:
            gathered *= self.trainer.world_size
            torch.distributed.all_gather_object(gathered, seen)
        images, texts, targets = (
            torch.cat(part) for part in zip(*(batch for batches in gathered for batch in batches), strict=True)
        )
        real = targets != IGNORED  # not padding
        images, texts, targets = images[real], texts[real], targets[real]
        found = {}
        for name, queries, keys in (("image_to_text", images, texts), ("text_to_image", texts, images)):
            parts = torch.split(queries, ROWS)
            nearest = torch.cat([(part @ keys.T).topk(min(5, len(keys))).indices for part in parts])  # (N, 5)
            matches = targets[nearest] == targets[:, None]  # (N, 5)
            found[f"{stage}/{name}_r1"] = matches[:, 0].float().mean()
            found[f"{stage}/{name}_r5"] = matches.any(dim=1).float().mean()
        data: Any = getattr(self.trainer, "datamodule", None)
        if prompts := data.prompts(stage) if hasattr(data, "prompts") else []:
            classes = torch.stack([self._features(*prompt).cpu() for prompt in prompts])  # (phrasings, classes, D)
            correct = [(images @ phrasing.T).argmax(dim=1) == targets for phrasing in classes]
            found[f"{stage}/acc"] = torch.stack(correct).float().mean()
            means = torch.stack([images[targets == number].mean(dim=0) for number in range(classes.shape[1])])
            self.similarity = (means @ classes.mean(dim=0).T).nan_to_num()
        self.log_dict(found, prog_bar=stage == "val")
