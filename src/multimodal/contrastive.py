"""Contrastive training of images, captions and sounds."""

from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.loading import IGNORED, Batches
from src.engine.system.batches import gathered
from src.engine.system.errors import InputError
from src.tasks.classifier import class_rows
from src.tasks.task import Task

Batch = tuple[Tensor, ...]
ROWS = 1024  # rows of the similarity matrix computed at once
SAME = 0.9999  # similarity of copies, which are computed in other batches


class ContrastiveModel(Task):
    """Trains and tests a network such as `CLIP` with the symmetric loss of Radford et al. (2021).

    Args:
        net: returns the features of its `modalities`, such as `["image", "text"]`; has `features(modality, *inputs)`
            and `scale`.

    A batch is the inputs of each modality in turn (a caption is tokens (B, T) int64 and mask (B, T) bool), and targets
    (B,) int64; samples with the same target match in the metrics. The loss is the mean over the pairs of the first
    modality with each other one, in which only samples of the same row match. The pairs of all processes are compared.
    Logs:

    - `{train,val,test}/loss`
    - `{val,test}/image_to_text_r1` and `_r5`: share of images with a matching caption among the 1 or 5 nearest
    - `{val,test}/text_to_image_r1` and `_r5`: the same for captions; and so on for every pair
    - `{val,test}/acc`: zero-shot accuracy with the DataModule's `prompts(stage)`, mean over the phrasings

    Raises:
        InputError: the data has other modalities, or `predictions` is called before `name_classes`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.save_arguments(net=net)
        self.modalities: list[str] = list(net.modalities)  # type: ignore[arg-type]
        """The network's modalities; the first one is predicted on."""
        self.takes_names = "text" in self.modalities
        """Whether `name_classes` can set the classes to predict."""
        self.similarity: Tensor | None = None
        """After an evaluation: mean similarity of each class's images (rows) and prompts (columns), in [-1, 1]."""
        self._classes: Tensor | None = None
        self._seen: list[tuple[Tensor, ...]] = []
        self._prompts: list[Tensor] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        found = getattr(getattr(self.trainer, "datamodule", None), "modalities", self.modalities)
        if list(found) != self.modalities:
            problem = f"the data has {', '.join(found)}, {type(self.net).__name__} takes {', '.join(self.modalities)}"
            raise InputError(f"{problem}: give --model.net.modalities [{','.join(found)}]")

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._seen = []
        data: Any = getattr(self.trainer, "datamodule", None)
        has_prompts = self.takes_names and hasattr(data, "prompts")
        # Here, as weights that a callback has put in place may be gone at the end of the epoch.
        with self.trainer.precision_plugin.tensor_init_context():  # new tensors have the type of the weights
            prompts = data.prompts("test" if self.trainer.testing else "val") if has_prompts else []
            self._prompts = [self._features(*prompt).cpu() for prompt in prompts]

    on_test_epoch_start = on_validation_epoch_start

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        features = torch.stack(self.net(*batch[:-1]))  # (modalities, B, D)
        targets = batch[-1]
        if self._trainer is not None and not self.trainer.training:
            self._seen.append((*features.detach().cpu(), targets.cpu()))
            features = features[:, targets != IGNORED]  # without padding
        everyone, first = self._everyone(features)
        pairs = torch.arange(first, first + features.shape[1], device=features.device)
        scale: Any = self.net.scale
        losses = []
        for other in range(1, len(features)):
            losses.append(F.cross_entropy(scale * features[0] @ everyone[other].T, pairs))
            losses.append(F.cross_entropy(scale * features[other] @ everyone[0].T, pairs))
        loss = torch.stack(losses).mean() if len(pairs) else features.sum()
        return loss, {"value": loss.detach(), "weight": (targets != IGNORED).sum()}

    def _everyone(self, features: Tensor) -> tuple[Tensor, int]:
        """The features of all processes (modalities, N, D), and the row of this process's first pair."""
        if self._trainer is None or self.trainer.world_size == 1:
            return features, 0
        own = features.shape[1]
        counts = [own] * self.trainer.world_size if self._is_even() else gathered(own)
        padded = F.pad(features, (0, 0, 0, max(counts) - own))
        everyone: Any = self.all_gather(padded, sync_grads=self.trainer.training)  # (world, modalities, B, D)
        parts = [part[:, :count] for part, count in zip(everyone, counts, strict=True)]
        return torch.cat(parts, dim=1), sum(counts[: self.global_rank])

    def _is_even(self) -> bool:
        """Whether all processes have the same number of pairs in each batch, so they need not exchange it."""
        sampler = getattr(self.trainer.train_dataloader, "sampler", None) if self.trainer.training else None
        parts = (sampler.count, sampler.batch_size) if isinstance(sampler, Batches) else ()
        return bool(parts) and not any(part % self.trainer.world_size for part in parts)

    def name_classes(self, tokens: Tensor, mask: Tensor) -> None:
        """Set the classes to predict: tokens (classes, T) int64 and mask (classes, T) bool, one text per class."""
        self._classes = self._features(tokens, mask)

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, classes) float32 of images, or of sounds."""
        if self._classes is None:
            raise InputError("no classes given: give one text per class")
        net: Any = self.net
        classes = self._classes.to(self.device)
        probabilities = (net.scale * net.features(self.modalities[0], *inputs) @ classes.T).float().softmax(dim=1)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The class whose text is most similar, and the probability of each."""
        return class_rows(self, predictions["probabilities"], labels)

    @torch.no_grad()
    def _features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        net: Any = self.net
        return net.features("text", tokens.to(self.device), mask.to(self.device))

    def log_metrics(self, stage: str) -> None:
        super().log_metrics(stage)
        seen, self._seen = self._seen, []
        *parts_of_features, targets = (
            torch.cat(part) for part in zip(*(batch for batches in gathered(seen) for batch in batches), strict=True)
        )
        real = targets != IGNORED  # not padding
        features = {name: part[real] for name, part in zip(self.modalities, parts_of_features, strict=True)}
        targets, found = targets[real], {}
        data: Any = getattr(self.trainer, "datamodule", None)
        compared = dict.fromkeys(self.modalities, torch.arange(len(targets)))
        if getattr(data, "repeats_images", False):  # each image and sound once
            compared |= {name: _distinct(features[name], targets) for name in compared if name != "text"}
        for one, other in permutations(self.modalities, 2):
            name, queries, keys = f"{one}_to_{other}", compared[one], compared[other]
            parts, others = torch.split(features[one][queries], ROWS), features[other][keys]
            nearest = torch.cat([(part @ others.T).topk(min(5, len(keys))).indices for part in parts])  # (N, 5)
            matches = targets[keys[nearest]] == targets[queries, None]  # (N, 5)
            found[f"{stage}/{name}_r1"] = matches[:, 0].float().mean()
            found[f"{stage}/{name}_r5"] = matches.any(dim=1).float().mean()
        images = features[self.modalities[0]]
        if self._prompts:
            classes = torch.stack(self._prompts)  # (phrasings, classes, D)
            correct = [(images @ phrasing.T).argmax(dim=1) == targets for phrasing in classes]
            found[f"{stage}/acc"] = torch.stack(correct).float().mean()
            means = torch.stack([images[targets == number].mean(dim=0) for number in range(classes.shape[1])])
            self.similarity = (means @ classes.mean(dim=0).T).nan_to_num()
        on_device = {name: value.to(self.device) for name, value in found.items()}  # NCCL takes no others
        self.log_dict(on_device, prog_bar=stage == "val", sync_dist=True)


def _distinct(features: Tensor, targets: Tensor) -> Tensor:
    """The first sample of each group with the same target and the same features (N, D)."""
    kept = []
    for rows in torch.split(targets.argsort(stable=True), targets.bincount().tolist()):
        own = features[rows].float()
        kept.append(rows[~(own @ own.T > SAME).tril(-1).any(dim=1)])
    return torch.cat(kept).sort().values
