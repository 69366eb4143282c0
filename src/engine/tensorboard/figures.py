"""What the figures (matplotlib) of tasks have in common."""

from typing import Any

from torch import Tensor

SHOWN_CLASSES = 20  # in a legend, and with colours that are easy to tell apart


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # lazy import: it takes 0.25 s

    return Figure(figsize=(width, height), layout="constrained")


def draw_image(axes: Any, image: Tensor, **options: Any) -> None:
    """Draw an image (C, H, W) without axes, from black, its lowest value, to white, its highest.

    If it has neither 1 nor 3 channels, only the first one is drawn.
    """
    shown = scaled(image).movedim(0, -1)  # (H, W, C)
    axes.imshow((shown if shown.shape[2] in (1, 3) else shown[..., :1]).numpy(), cmap="gray", **options)
    axes.set_axis_off()


def scaled(image: Tensor) -> Tensor:
    """Pixels from 0, the lowest value, to 1, the highest."""
    low, high = image.aminmax()
    return (image.float() - low) / (high - low).clamp(min=1e-6)


def escape_dollars(labels: list[str]) -> list[str]:
    """Labels with their dollar signs escaped, between which matplotlib reads a formula."""
    return [label.replace("$", r"\$") for label in labels]


def class_colours(count: int) -> dict[str, Any]:
    """Arguments of matplotlib's `imshow` that give each of `count` classes a colour of its own."""
    from matplotlib import colormaps  # lazy import, as above

    cmap = colormaps["tab20" if count <= SHOWN_CLASSES else "turbo"].resampled(max(count, 2))
    return {"cmap": cmap, "vmin": 0, "vmax": max(count - 1, 1)}


def class_legend(figure: Any, labels: list[str]) -> None:
    """Add the colours of the first classes to a figure, at its right."""
    from matplotlib.patches import Patch

    cmap = class_colours(len(labels))["cmap"]
    names = enumerate(escape_dollars(labels[:SHOWN_CLASSES]))
    patches = [Patch(color=cmap(number), label=label) for number, label in names]
    figure.legend(handles=patches, loc="outside right", fontsize=8)
