"""Grids of images, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

    check_positive("save_grids", "columns", columns)
    if not panels:
        raise mismatch("save_grids", "one panel or more", "none", "give images with a title")
    grids = [_grid(images, levels, columns) for images in panels.values()]
    sizes = [_inches(grid) for grid in grids]
    widths = [width for width, _ in sizes]
    height = max(height for _, height in sizes)
    figure = Figure(figsize=(sum(widths), height + 0.5))
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for index, (axis, name, grid) in enumerate(zip(axes, panels, grids)):
        images = panels[name]
        labels = row_labels if index == 0 else None
        _show(axis, grid, images.shape[-2], -(-len(images) // columns), labels)
        axis.set_title(name)
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
    from matplotlib.figure import Figure

    if not rows or not all(len(images) for images in rows.values()):
        raise mismatch("save_rows", "rows of one image or more", list(rows), "leave empty ones out")
    shapes = {tuple(images.shape[1:]) for images in rows.values()}
    if len(shapes) > 1:
        raise mismatch("save_rows", "images of one shape", sorted(shapes), "write several files")
    columns = max(map(len, rows.values()))
    cells = []
    for images in rows.values():
        scaled = _scaled(images, levels)
        cells.append(scaled)
        cells.append(scaled.new_full((columns - len(scaled), *scaled.shape[1:]), 0.5))
    grid = _tiled(torch.cat(cells), columns)
    figure = Figure(figsize=_inches(grid))
    axis = figure.subplots()
    _show(axis, grid, cells[0].shape[-2], len(rows), list(rows))
    axis.set_title(title or "")
    _save(figure, path, None)


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
    pictures = (
        _scaled(rows.flatten(0, 1), levels).permute(0, 2, 3, 1).unflatten(0, (count, columns))
    )
    # Places in units of an image: a line of text above each, and a gap behind the sample.
    pitch, gap, text = 1.06, 0.25, 0.24
    height = samples.shape[-2] / samples.shape[-1]
    size = pitch * columns + gap, (height + text) * count + text
    inches = max(0.8, 1.3 * samples.shape[-1] / _DPI)
    figure = Figure(figsize=(inches * size[0], inches * size[1]))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axis.set_axis_off()
    font: dict[str, Any] = {"size": 9 * inches, "ha": "center", "va": "bottom"}
    for column in range(columns):
        left = pitch * column + (gap if column else 0)
        heading = f"neighbour {column}" if column else "sample"
        axis.text(left + 0.5, text, heading, **font)
        for row in range(count):
            top = (height + text) * row + 2 * text
            place = left, left + 1, top + height, top
            axis.imshow(pictures[row, column].numpy(), interpolation="nearest", extent=place)
            if column:
                distance = f"{distances[row, column - 1].item():.4g}"
                axis.text(left + 0.5, top - 0.02, distance, **font)
    # The axis fills the figure, so that the title needs no further room.
    figure.suptitle(title or "", y=1, va="bottom", size="medium")
    _save(figure, path, None)


def _grid(images: Tensor, levels: int, columns: int) -> Tensor:
    return _tiled(_scaled(images, levels), columns)


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


def _show(
    axis: Any, grid: Tensor, height: int, num_rows: int, row_labels: Sequence[str] | None
) -> None:
    axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if row_labels is None:
        return
    if len(row_labels) != num_rows:
        expected = f"one label for each of {num_rows} rows"
        raise mismatch("save_grids", expected, len(row_labels), "label rows, not images")
    # Each row is an image high, with a line of padding above it.
    middles = [1 + (height + 1) * row + (height - 1) / 2 for row in range(num_rows)]
    axis.set_yticks(middles, row_labels)
    axis.tick_params(left=False)


def _save(figure: Any, path: str | Path, title: str | None) -> None:
    if title is not None:
        # Above the titles of the panels, which a low figure leaves no room for.
        figure.suptitle(title, y=1 + 0.25 / figure.get_figheight(), va="bottom")
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")
