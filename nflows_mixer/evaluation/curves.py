"""Training curves, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


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
    visible = list(references.values())
    for label, points in curves.items():
        if points:
            steps, values = zip(*points)
            marker = "o" if len(points) < 30 else None
            axis.plot(steps, values, linewidth=0.9, marker=marker, markersize=3, label=label)
            # The first steps are often far off; they would flatten everything that follows.
            visible += values[len(values) // 20 :]
    for index, (label, value) in enumerate(references.items()):
        axis.axhline(value, color="gray", linestyle=("-", "--", ":", "-.")[index % 4], label=label)
    finite = [value for value in visible if abs(value) < float("inf")]
    if finite:
        low, high = min(finite), max(finite)
        axis.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    axis.set(xlabel="step", ylabel=ylabel)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figure.savefig(path, dpi=150, bbox_inches="tight")
