"""Singular values by depth, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_singular_values(path: Path, results: dict[str, Any]) -> None:
    """Draw the largest (solid) and the smallest (dashed) singular value after each layer.

    Args:
        path: of the PNG file.
        results: what the JSON file holds.
    """
    from matplotlib.figure import Figure

    models = [model for model in results["models"] if "inputs" in model["jacobian"]]
    kinds = list(dict.fromkeys(kind for model in models for kind in model["jacobian"]["inputs"]))
    figure = Figure(figsize=(4.2 * len(models), 4))
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models):
        for kind, entry in model["jacobian"]["inputs"].items():
            depths = range(1, len(entry["depths"]) + 1)
            for key, line in (("largest", "-"), ("smallest", "--")):
                values = [float("nan") if d[key] is None else d[key] for d in entry["depths"]]
                label = kind if key == "largest" else None
                style = f"C{kinds.index(kind)}{line}"
                axis.plot(depths, values, style, linewidth=1, label=label)
        axis.set(yscale="log", xlabel="layers")
        axis.set_title(model["name"], fontsize="medium")
    axes[0].set_ylabel("singular values: largest solid, smallest dashed")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=5, frameon=False
    )
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
