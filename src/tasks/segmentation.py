"""Semantic segmentation: a class for each pixel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from src.engine.data.loading import IGNORED
from src.engine.system.batches import Sample
from src.engine.tensorboard.figures import class_colours, class_legend, draw_image, new_figure
from src.tasks.classifier import UNCHECKED, Batch, Classifier
from src.tasks.task import Task

LISTED = 50  # classes whose IoU is logged one by one


class DiceLoss(nn.Module):
    """One minus the soft Dice coefficient (Drozdzal et al. 2016), mean over classes and images.

    Shapes:
        logits (B, num_classes, H, W) float, targets (B, H, W) int64, -100 is ignored -> one value from 0 to 1.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = (targets != IGNORED).unsqueeze(1)  # (B, 1, H, W)
        probabilities = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)) * known
        truth = F.one_hot(targets.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1) * known
        overlap = (probabilities * truth).flatten(2).sum(2)  # (B, num_classes)
        total = (probabilities + truth).flatten(2).sum(2)
        images = known.flatten(1).any(1)  # (B,)
        scores = ((2 * overlap + 1) / (total + 1)).mean(1)  # + 1: an absent class that is not predicted scores 1
        return ((1 - scores) * images).sum() / images.sum().clamp(min=1)


class SegmentationTask(Classifier):
    """Trains and tests a network that assigns a class to each pixel.

    Args:
        net: the network, (B, C, H, W) float -> (B, num_classes, H, W) float logits.
        loss: loss on logits and class numbers. Default: cross entropy; `DiceLoss` suits small objects.
        num_classes: number of classes; default: the network's `num_classes`.

    A batch is images, then targets (B, H, W) int64, -100 is ignored. Logs `{train,val,test}/{loss,acc,iou}`, accuracy
    of pixels and mean intersection over union of the classes, and `test/iou_LABEL` for each of up to 50 classes.
    """

    figure_samples = 8

    def configure_metrics(self, num_classes: int) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(),
            "acc": MulticlassAccuracy(num_classes, average="micro", **UNCHECKED),
            "iou": MulticlassJaccardIndex(num_classes, average="macro", **UNCHECKED),
        }
        return MetricCollection(metrics)

    def count(self, targets: Tensor) -> Tensor | int:
        """The number of pixels, or for `DiceLoss` of images."""
        images = (targets != IGNORED).flatten(1).any(1)
        return images.sum() if isinstance(self.loss, DiceLoss) else super().count(targets)

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        seen = Task._evaluate(self, stage, batch)
        return {"inputs": batch[0], "target": seen["target"], "preds": seen["preds"]}

    def log_metrics(self, stage: str) -> None:
        """Log the metrics, after the test also the intersection over union of each class that occurs."""
        super().log_metrics(stage)
        if stage == "test" and self.num_classes <= LISTED:
            counts = self.confusion.compute()  # (num_classes, num_classes)
            union = counts.sum(0) + counts.sum(1) - counts.diag()
            scores = zip(self.label_names(self.num_classes), counts.diag().tolist(), union.tolist(), strict=True)
            found = {f"test/iou_{label}": hits / pixels for label, hits, pixels in scores if pixels}
            self.log_dict(found, sync_dist=True)

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Class of each pixel (B, H, W) int64."""
        return {"mask": self(*inputs).argmax(dim=1)}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The mask (H, W) of class numbers, and the share of each class in its area."""
        labels = self.label_names(self.num_classes, labels)
        rows = []
        for mask in predictions["mask"].cpu():
            shares = torch.bincount(mask.flatten(), minlength=self.num_classes) / mask.numel()
            rows.append({"mask": mask, "areas": dict(zip(labels, shares.tolist(), strict=True))})
        return rows

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Input, true mask and predicted mask."""
        return {"masks": mask_figure(samples, self.label_names(self.num_classes))} if samples else {}


def mask_figure(samples: list[Sample], labels: list[str]) -> Any:
    """Input image, true mask and predicted mask of each sample, one row per sample."""
    figure = new_figure(6, 2 * len(samples))
    grid = figure.subplots(len(samples), 3, squeeze=False)
    for axes, title in zip(grid[0], ("input", "true", "predicted"), strict=True):
        axes.set_title(title)
    for (first, *others), sample in zip(grid, samples, strict=True):
        draw_image(first, sample["inputs"])
        truth = torch.where(sample["target"] < 0, torch.nan, sample["target"].float())  # not drawn where ignored
        for axes, mask in zip(others, (truth, sample["preds"]), strict=True):
            axes.imshow(mask.numpy(), **class_colours(len(labels)))
            axes.set_axis_off()
    class_legend(figure, labels)
    return figure
