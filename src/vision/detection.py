"""Object detection."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.detection import MeanAveragePrecision

from src.engine.system.batches import Sample, gathered
from src.engine.system.errors import InputError
from src.engine.tensorboard.figures import draw_image, escape_dollars, new_figure
from src.tasks.classifier import check_classes
from src.tasks.precision import check_precision
from src.tasks.task import Task

LISTED = 100  # classes whose average precision is logged one by one
Batch = tuple[Tensor, Tensor]


class DetectionTask(Task):
    """Trains and tests a detector.

    Args:
        net: the network, a `Detector`.
        threshold: predictions list the boxes with at least this score, in (0, 1); metrics count all.

    A batch is images (B, 3, S, S) float and targets (B, T, 5) float: x1, y1, x2 and y2 as shares of width and height,
    and the class number; class -1 in rows after the last box. An image whose targets are all NaN does not count. Logs
    `{train,val,test}/loss`, `{val,test}/map`, COCO's mean average precision (Lin et al. 2014) at overlaps of 0.5 to
    0.95, `{val,test}/map_50`, that at 0.5, and `test/map_LABEL` for each of up to 100 classes. FCOS and SSD divide
    their loss by the number of positive locations in a batch; with several processes, each uses its own number.

    Raises:
        InputError: `threshold` is out of range, the package faster-coco-eval is missing, or the network has other
            classes or another size of images than the data.
    """

    figure_samples = 8
    finds_boxes = True
    """Whether rows of predictions have `boxes`."""
    net: Any  # a Detector

    def __init__(self, net: nn.Module, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"threshold {threshold} is out of range: give a score between 0 and 1")
        if not hasattr(net, "losses"):
            raise InputError(f"{type(net).__name__} has no method losses: give a Detector, such as TorchvisionDetector")
        super().__init__(net.to(memory_format=torch.channels_last), MetricCollection({"loss": MeanMetric()}))
        self.save_arguments(net=net, threshold=threshold)
        self.threshold = threshold
        if find_spec("faster_coco_eval") is None:  # torchmetrics counts with it
            raise InputError("object detection needs faster-coco-eval: pip install faster-coco-eval")
        # Predicted and true boxes of each image. Not in a metric: its lists must have the same length in all processes.
        self._seen: list[tuple[Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self, stage, "true boxes and classes")
        check_classes(self, self.net.num_classes)
        size = getattr(getattr(self.trainer, "datamodule", None), "image_size", self.net.image_size)
        if size != self.net.image_size:
            raise InputError(f"the data has image_size {size}, the network {self.net.image_size}: give both the same")

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        images, targets = batch
        weight = (~targets[:, 0, 0].isnan()).sum()
        known = [rows[rows[:, 4] >= 0] for rows in targets]  # also false for NaN
        loss = self.net.losses(images, [(rows[:, :4], rows[:, 4].long()) for rows in known])
        return loss, {"value": loss.detach(), "weight": weight}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._seen = []

    on_test_epoch_start = on_validation_epoch_start

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        images, targets = batch
        self.metrics.add(stage, self.check(self.step(batch))[1])
        preds = self(images)
        for found, true in zip(preds.float().cpu(), targets.float().cpu(), strict=True):
            if not true[0, 0].isnan():
                self._seen.append((found[found[:, 4] > 0], true[true[:, 4] >= 0]))
        return {"inputs": images, "target": targets, "preds": preds}

    def average_precision(self, by_class: bool = False) -> dict[str, Tensor]:
        """torchmetrics' values for the images of all processes since the epoch began; all processes must call it."""
        metric = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=by_class, sync_on_compute=False)
        for found, true in (image for part in gathered(self._seen) for image in part):
            box = {"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long()}
            metric.update([box], [{"boxes": true[:, :4], "labels": true[:, 4].long()}])
        return metric.compute()

    def log_metrics(self, stage: str) -> None:
        """Log the metrics, after the test also the average precision of each class that has true boxes."""
        super().log_metrics(stage)
        by_class = stage == "test" and self.net.num_classes <= LISTED
        found = self.average_precision(by_class)
        scores = {f"{stage}/{name}": found[name] for name in ("map", "map_50")}
        if by_class:
            labels = self.label_names(self.net.num_classes)
            values = zip(found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1), strict=True)
            # torchmetrics gives -1 for a class without true boxes.
            # A class that is called 50 does not replace map_50.
            scores = {f"test/map_{labels[number]}": value for number, value in values if value >= 0} | scores
        self.log_dict(
            {name: value.to(self.device) for name, value in scores.items()}, prog_bar=stage == "val", sync_dist=True
        )

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Boxes (B, 100, 6) float: see `Detector`."""
        return {"boxes": self(*inputs)}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The boxes with a score of at least `threshold`, as shares of width and height."""
        labels = self.label_names(self.net.num_classes, labels)
        rows = []
        for image in predictions["boxes"].float().cpu():
            boxes = [
                {"label": labels[int(label)], "score": score, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
                for x1, y1, x2, y2, score, label in image[image[:, 4] >= self.threshold].tolist()
            ]
            rows.append({"boxes": boxes})
        return rows

    def difference(self, found: Tensor, expected: Tensor) -> Tensor:
        """The largest distance from a box of one output to the nearest box of the other, in both directions.

        Counts boxes with at least half of `threshold`: their order may differ where scores are nearly equal.
        """
        distances = torch.cdist(found, expected, p=torch.inf)  # (B, K, K)
        sides = [(found, distances.amin(dim=2)), (expected, distances.amin(dim=1))]
        return torch.stack([(nearest * (rows[:, :, 4] >= self.threshold / 2)).max() for rows, nearest in sides]).max()

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Images with their true and predicted boxes."""
        shown = [{**one, "preds": one["preds"][one["preds"][:, 4] >= self.threshold]} for one in samples]
        return {"boxes": box_figure(shown, self.label_names(self.net.num_classes))} if samples else {}


def box_figure(samples: list[Sample], labels: list[str]) -> Any:
    """Images with true boxes (green) and predicted ones (orange, with their score), in rows of four.

    Args:
        samples: `target` (T, 5), x1, y1, x2, y2 as shares of width and height and class number, -1 where there is no
            box; `preds` (K, 6), the same with a score before the class number.
        labels: names of the classes.
    """
    from matplotlib.patches import Rectangle

    labels = escape_dollars(labels)
    figure = new_figure(14, 3.7 * -(-len(samples) // 4))
    for position, sample in enumerate(samples):
        axes = figure.add_subplot(-(-len(samples) // 4), 4, position + 1)
        draw_image(axes, sample["inputs"], extent=(0, 1, 1, 0))
        true = [(*row[:4], f"{labels[int(row[4])]}") for row in sample["target"].tolist() if row[4] >= 0]
        found = [(*row[:4], f"{labels[int(row[5])]} {row[4]:.2f}") for row in sample["preds"].float().tolist()]
        for colour, align, boxes in (("limegreen", "top", true), ("orange", "bottom", found)):
            for x1, y1, x2, y2, text in boxes:
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour))
                axes.text(x1, y2 if align == "top" else y1, text, va=align, color=colour, fontsize=8)
    return figure
