"""Grids of images and curves, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor


def save_grids(path: str | Path, panels: Mapping[str, Tensor], levels: int) -> None:
    """Write grids of images side by side, each under its title.

    Args:
        path: file to write; its ending says the format.
        panels: title -> uint8 [N, C, H, W], with C = 1 or 3; eight images in a row.
        levels: number of pixel values, the largest of which is white.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "grid.png"
        >>> save_grids(path, {"blank": torch.zeros(8, 1, 4, 4, dtype=torch.uint8)}, levels=256)
        >>> path.exists()
        True
    """
    from matplotlib.figure import Figure
    from torchvision.utils import make_grid

    figure = Figure(figsize=(4.2 * len(panels), 4.5))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, images) in zip(axes, panels.items()):
        grid = make_grid(images / (levels - 1), nrow=8, padding=1, pad_value=0.5)
        axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def save_curve(
    path: str | Path, curve: Sequence[float], references: Mapping[str, float], ylabel: str
) -> None:
    """Write a training curve with horizontal lines to compare it with.

    Args:
        path: file to write; its ending says the format.
        curve: one value per step.
        references: label -> value of a horizontal line.
        ylabel: what the values are.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "loss.png"
        >>> save_curve(path, [4.0, 3.0, 2.5], {"uniform": 4.09}, "bits/dim")
        >>> path.exists()
        True
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    axis.plot(range(1, len(curve) + 1), curve, linewidth=0.8, label="training batch")
    for index, (label, value) in enumerate(references.items()):
        axis.axhline(value, color="gray", linestyle=("-", "--", ":", "-.")[index % 4], label=label)
    # The first steps are often far off; they would flatten everything that follows.
    axis.set_ylim(top=1.1 * max([*references.values(), *curve[len(curve) // 20 :]]))
    axis.set(xlabel="step", ylabel=ylabel)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figure.savefig(path, dpi=150, bbox_inches="tight")
