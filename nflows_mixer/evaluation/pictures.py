"""Grids of images, and training curves, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflows_mixer._checks import check_levels, check_positive, mismatch

_DPI = 150
_PANEL_INCHES = 4.2


def save_grids(
    path: str | Path,
    panels: Mapping[str, Tensor],
    levels: int,
    columns: int = 8,
    title: str | None = None,
    row_labels: Sequence[str] | None = None,
) -> None:
    """Write grids of images side by side, each under its title.

    Args:
        path: file to write; its ending says the format.
        panels: title -> uint8 [N, C, H, W], with C = 1 or 3.
        levels: number of pixel values, the largest of which is white.
        columns: images in a row.
        title: of the whole figure.
        row_labels: one for each row of the grids, written beside the first, such as the classes
            of samples that are drawn row by row.

    Raises:
        ValueError: if there is no panel, images are of another shape, or there is not one label
            for each row.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "grid.png"
        >>> save_grids(path, {"blank": torch.zeros(8, 1, 4, 4, dtype=torch.uint8)}, levels=256)
        >>> path.exists()
        True
    """
    from matplotlib.figure import Figure

    columns = check_positive("save_grids", "columns", columns)
    if not panels:
        raise mismatch("save_grids", "one panel or more", "none", "give images with a title")
    grids = [_tiled(_scaled(images, levels), columns) for images in panels.values()]
    sizes = [_inches(grid) for grid in grids]
    widths = [width for width, _ in sizes]
    height = max(height for _, height in sizes)
    figure = Figure(figsize=(sum(widths), height + 0.5))
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axis, name, grid in zip(axes, panels, grids):
        axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set(title=name, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    if row_labels is not None:
        first = next(iter(panels.values()))
        count, size = -(-len(first) // columns), first.shape[-2]
        if len(row_labels) != count:
            expected = f"one label for each of {count} rows"
            raise mismatch("save_grids", expected, len(row_labels), "label rows, not images")
        # Each row is an image high, with a line of padding above it.
        middles = [1 + (size + 1) * row + (size - 1) / 2 for row in range(count)]
        axes[0].set_yticks(middles, row_labels)
        axes[0].tick_params(left=False)
    _save(figure, path, title)


def save_rows(
    path: str | Path, rows: Mapping[str, Tensor], levels: int, title: str | None = None
) -> None:
    """Write rows of images below each other, each beside its label.

    Args:
        path: file to write; its ending says the format.
        rows: label -> uint8 [n, C, H, W], with C = 1 or 3, such as the samples of a temperature
            or the steps of an interpolation. Shorter rows are filled up with grey.
        levels: number of pixel values, the largest of which is white.
        title: of the figure.

    Raises:
        ValueError: if there is no row, or images are of other shapes.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "rows.png"
        >>> blank = torch.zeros(5, 3, 4, 6, dtype=torch.uint8)
        >>> save_rows(path, {"temperature 0.7": blank, "temperature 1": blank}, levels=256)
        >>> path.exists()
        True
    """
    if not rows or not all(len(images) for images in rows.values()):
        raise mismatch("save_rows", "rows of one image or more", list(rows), "leave empty ones out")
    shapes = {tuple(images.shape[1:]) for images in rows.values()}
    if len(shapes) > 1:
        raise mismatch("save_rows", "images of one shape", sorted(shapes), "write several files")
    columns = max(map(len, rows.values()))
    grey = torch.full((columns, *shapes.pop()), (levels - 1) / 2)
    cells = [torch.cat([images.cpu(), grey])[:columns] for images in rows.values()]
    save_grids(path, {title or "": torch.cat(cells)}, levels, columns, row_labels=list(rows))


def save_neighbours(
    path: str | Path,
    samples: Tensor,
    neighbours: Tensor,
    distances: Tensor,
    levels: int,
    title: str | None = None,
) -> None:
    """Write rows of images, each a sample followed by the images nearest to it.

    Above each neighbour stands its distance.

    Args:
        path: file to write; its ending says the format.
        samples: uint8 [M, C, H, W], with C = 1 or 3.
        neighbours: uint8 [M, k, C, H, W], nearest first.
        distances: [M, k], as ``nearest_images`` returns them.
        levels: number of pixel values, the largest of which is white.
        title: of the figure, such as what the distance is of.

    Raises:
        ValueError: if there are not as many neighbours as distances, of the samples' shape.

    References:
        DenseFlow, Figure 6.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "neighbours.png"
        >>> images = torch.zeros(2, 4, 1, 8, 8, dtype=torch.uint8)
        >>> save_neighbours(path, images[:, 0], images[:, 1:], torch.zeros(2, 3), levels=17)
        >>> path.exists()
        True
    """
    from matplotlib.figure import Figure

    expected = (*distances.shape, *samples.shape[1:])
    if distances.dim() != 2 or len(samples) != len(distances) or neighbours.shape != expected:
        got = f"{list(neighbours.shape)} and distances {list(distances.shape)}"
        wanted = f"neighbours [{len(samples)}, k, *{list(samples.shape[1:])}]"
        raise mismatch("save_neighbours", wanted, got, "find them with nearest_images")
    rows = torch.cat([samples.cpu()[:, None], neighbours.cpu()], dim=1)
    count, columns = rows.shape[:2]
    pictures = _scaled(rows.flatten(0, 1), levels).permute(0, 2, 3, 1)
    height, width = samples.shape[-2:]
    inches = max(0.8, 1.3 * width / _DPI)
    # In units of an image: a gap behind the sample, room between images, and text above each row.
    gap, space, text = 0.25, 0.06, 0.3
    wide, high = columns + gap + space * columns, count * height / width + (count - 1) * text
    figure = Figure(figsize=(inches * wide, inches * high))
    grid: dict[str, Any] = {"left": 0, "right": 1, "bottom": 0, "top": 1}
    grid |= {"wspace": space * (columns + 1) / (columns + gap), "hspace": text * width / height}
    axes = figure.subplots(
        count, columns + 1, width_ratios=[1, gap, *[1] * (columns - 1)], gridspec_kw=grid
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        axis = axes.reshape(count, -1)[row, column + (column > 0)]
        axis.imshow(picture.numpy(), interpolation="nearest")
        heading = (f"neighbour {column}" if column else "sample") if row == 0 else ""
        distance = f"{distances[row, column - 1].item():.4g}" if column else ""
        axis.set_title(f"{heading}\n{distance}", size=9 * inches, pad=2)
    _save(figure, path, title, above=0.1 + 0.3 * inches)


def without_outliers(values: Sequence[float]) -> list[float]:
    """Values that a picture of a curve should have room for.

    Those that are finite and within ten interquartile ranges of the middle: one step that throws an
    image far out, whose update is left out, would flatten all others.

    Args:
        values: of the curve, in any order.

    Example:
        >>> without_outliers([4.0, 3.9, 3.8, 1e9, 3.7, float("inf")])
        [4.0, 3.9, 3.8, 3.7]
    """
    finite = np.array([value for value in values if abs(value) < float("inf")])
    if not len(finite):
        return []
    first, third = np.quantile(finite, [0.25, 0.75])
    near = abs(finite - (first + third) / 2) <= 10 * (third - first)
    return finite[near].tolist()


def save_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> None:
    """Write curves over the steps of a run, with horizontal lines to compare them with.

    Args:
        path: file to write; its ending says the format.
        curves: label -> (step, value) pairs; those without any are left out.
        ylabel: what the values are.
        references: label -> value of a horizontal line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "curve.png"
        >>> save_curves(path, {"training": [(1, 4.0), (2, 3.5)]}, "bits/dim", {"uniform": 4.09})
        >>> path.exists()
        True
    """
    from matplotlib.figure import Figure

    references = references or {}
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    visible: list[float] = []
    for label, points in curves.items():
        if points:
            steps, values = zip(*points)
            marker = "o" if len(points) < 30 else None
            axis.plot(steps, values, linewidth=0.9, marker=marker, markersize=3, label=label)
            # The first steps are often far off; they would flatten everything that follows.
            visible += values[len(values) // 20 :]
    for index, (label, value) in enumerate(references.items()):
        axis.axhline(value, color="gray", linestyle=("-", "--", ":", "-.")[index % 4], label=label)
    if shown := [*without_outliers(visible), *references.values()]:
        low, high = min(shown), max(shown)
        axis.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    axis.set(xlabel="step", ylabel=ylabel)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    _save(figure, path)


def _scaled(images: Tensor, levels: int) -> Tensor:
    """Return images in [0, 1], three channels on the CPU, or raise."""
    check_levels("save_grids", levels)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        advice = "pass grey or colour images, without further dimensions"
        expected = "images [N, C, H, W] with C = 1 or 3 and N > 0"
        raise mismatch("save_grids", expected, list(images.shape), advice)
    return (images.detach().cpu() / (levels - 1)).expand(-1, 3, -1, -1)


def _tiled(images: Tensor, columns: int) -> Tensor:
    from torchvision.utils import make_grid

    return make_grid(images, nrow=columns, padding=1, pad_value=0.5)


def _inches(grid: Tensor) -> tuple[float, float]:
    """Size at which each pixel has a dot of its own, and small images are still seen."""
    _, height, width = grid.shape
    scale = max(_PANEL_INCHES / max(height, width), 1.3 / _DPI)
    return max(1.5, scale * width), max(0.6, scale * height)


def _save(figure: Any, path: str | Path, title: str | None = None, above: float = 0.25) -> None:
    if title:
        # Inches above the axes, whose own titles a low figure leaves no room for.
        figure.suptitle(title, y=1 + above / figure.get_figheight(), va="bottom", size="medium")
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")
