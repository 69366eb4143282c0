"""Figures (matplotlib) of what a task predicts on test samples."""

from typing import Any

import torch
from torch import Tensor

from src.engine.system.batches import Sample

MAX_CURVES = 20  # labels in one figure
MAX_POSITIONS = 120  # of a sequence


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # lazy import: it takes 0.25 s

    return Figure(figsize=(width, height), layout="constrained")


def regression_figures(samples: list[Sample], labels: list[str]) -> dict[str, Any]:
    """Predictions against true values, residuals against predictions, one plot per target; `target` (num_targets,)."""
    if not samples:
        return {}
    targets, preds = (torch.stack([sample[name].float() for sample in samples]) for name in ("target", "preds"))
    count = targets.shape[1]
    names = escape_dollars(labels) or ["value"] * count
    true, rest = new_figure(4 * count, 4), new_figure(4 * count, 4)
    for number, name in enumerate(names):
        known = targets[:, number].isfinite()
        x, y = targets[known, number].numpy(), preds[known, number].numpy()
        axes = true.add_subplot(1, count, number + 1, xlabel=f"true {name}", ylabel="predicted")
        axes.scatter(x, y, s=6, alpha=0.5)
        if len(x):
            axes.axline((float(x.mean()),) * 2, slope=1, color="black", linewidth=1)
        axes = rest.add_subplot(1, count, number + 1, xlabel=f"predicted {name}", ylabel="predicted - true")
        axes.scatter(y, y - x, s=6, alpha=0.5)
        axes.axhline(0, color="black", linewidth=1)
    return {"predicted and true": true, "residuals": rest}


def label_curves(counts: Tensor, labels: list[str]) -> dict[str, Any]:
    """Precision against recall of each label, from counts (thresholds, num_labels, 2, 2), targets in rows."""
    figure = new_figure(6, 5)
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    for number, label in enumerate(escape_dollars(labels[:MAX_CURVES])):
        _, fp, fn, tp = counts[:, number].flatten(1).double().unbind(dim=1)
        recall, precision = tp / (tp + fn).clamp(min=1), torch.where(tp + fp > 0, tp / (tp + fp).clamp(min=1), 1.0)
        axes.plot(recall.numpy(), precision.numpy(), label=label)
    axes.legend(fontsize=8)
    return {"precision and recall": figure}


def draw_image(axes: Any, image: Tensor, **options: Any) -> None:
    """Draw an image (C, H, W) without axes, from black, its lowest value, to white, its highest.

    If it has neither 1 nor 3 channels, only the first one is drawn.
    """
    low, high = image.aminmax()
    shown = ((image.float() - low) / (high - low).clamp(min=1e-6)).movedim(0, -1)  # (H, W, C)
    axes.imshow((shown if shown.shape[2] in (1, 3) else shown[..., :1]).numpy(), cmap="gray", **options)
    axes.set_axis_off()


def mask_figure(samples: list[Sample], num_classes: int) -> Any:
    """Input image, true mask and predicted mask of each sample, one row per sample."""
    figure = new_figure(6, 2 * len(samples))
    grid = figure.subplots(len(samples), 3, squeeze=False)
    for axes, title in zip(grid[0], ("input", "true", "predicted"), strict=True):
        axes.set_title(title)
    for (first, *others), sample in zip(grid, samples, strict=True):
        draw_image(first, sample["inputs"])
        truth = torch.where(sample["target"] < 0, torch.nan, sample["target"].float())  # not drawn where ignored
        for axes, mask in zip(others, (truth, sample["preds"]), strict=True):
            axes.imshow(mask.numpy(), cmap="tab20", vmin=0, vmax=max(num_classes - 1, 1))
            axes.set_axis_off()
    return figure


def sequence_figure(samples: list[Sample], labels: list[str]) -> Any:
    """True and predicted labels of each sequence as two rows of coloured cells; unlabelled positions are white."""
    from matplotlib.patches import Patch

    length = min(MAX_POSITIONS, max(len(sample["target"]) for sample in samples))
    cells = torch.full((3 * len(samples), length), torch.nan)
    for row, sample in enumerate(samples):
        target = sample["target"][:length]
        for offset, name in enumerate(("target", "preds")):
            labelled = torch.where(target < 0, torch.nan, sample[name][:length].float())
            cells[3 * row + offset, : len(target)] = labelled
    figure = new_figure(2 + 0.08 * length, 1 + 0.4 * len(samples))
    axes = figure.add_subplot(xlabel="position", title="true above predicted")
    drawn = axes.imshow(cells.numpy(), cmap="tab20", vmin=0, vmax=max(len(labels) - 1, 1), aspect="auto")
    axes.set_yticks([])
    names = enumerate(escape_dollars(labels[:20]))
    shown = [Patch(color=drawn.cmap(drawn.norm(number)), label=label) for number, label in names]
    axes.legend(handles=shown, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


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
        for colour, boxes in (("limegreen", true), ("orange", found)):
            for x1, y1, x2, y2, text in boxes:
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour))
                below = colour == "limegreen"
                axes.text(x1, y2 if below else y1, text, va="top" if below else "bottom", color=colour, fontsize=8)
    return figure


def escape_dollars(labels: list[str]) -> list[str]:
    """Labels with their dollar signs escaped, between which matplotlib reads a formula."""
    return [label.replace("$", r"\$") for label in labels]
