"""Pictures of the kept figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_ratios(path: Path, results: dict[str, Any]) -> None:
    """Draw each variant's ratio to the floor, a group of bars for each measure.

    Args:
        path: of the PNG file.
        results: what the JSON file of ``measure`` holds.
    """
    from matplotlib.figure import Figure

    variants = {
        name: entry["measures"]
        for name, entry in results["variants"].items()
        if name != "floor" and any("to_floor" in m for m in entry["measures"].values())
    }
    kinds = list(dict.fromkeys(kind for measures in variants.values() for kind in measures))
    figure = Figure((3 + 2.2 * len(kinds), 1.2 + 0.35 * len(variants)), layout="constrained")
    axes = figure.subplots(1, max(len(kinds), 1), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds):
        lengths = [m[kind]["to_floor"]["median"] if kind in m else 0 for m in variants.values()]
        bars = axis.barh(list(variants), lengths)
        axis.axvline(1, color="black", linewidth=1)
        numbers = [f"{length:.2f}" if length else "" for length in lengths]
        for label in axis.bar_label(bars, numbers, padding=2, fontsize="small"):
            # So that the line at 1 does not cross it.
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        axis.set_title(kind, fontsize="medium")
        axis.margins(x=0.2)
    axes[0].invert_yaxis()
    figure.supxlabel("time / time of the matrix products alone", fontsize="medium")
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})


def save_memory(path: Path, results: dict[str, Any]) -> None:
    """Draw MiB of one image against the number of mixer layers, both logarithmic.

    Args:
        path: of the PNG file.
        results: what the JSON file of ``memory`` holds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for name, values in results["mib_per_image"].items():
        known = [(d, v) for d, v in zip(results["depths"], values) if v is not None]
        axis.plot(*zip(*known), marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="mixer layers", ylabel="MiB for one image")
    axis.set_xticks([], minor=True)
    axis.set_xticks(results["depths"], labels=list(map(str, results["depths"])))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
