"""Pictures of the kept figures."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.denseflow.convolutions import ALONE
from benchmarks.denseflow.rows import ROWS, TEXT


def save_cost(path: Path, results: dict[str, Any]) -> None:
    """Draw ratios to the convolutions alone, and the memory of an image.

    Args:
        path: of the PNG file.
        results: what the JSON file of ``cost`` holds.
    """
    from matplotlib.figure import Figure

    ratios = {
        f"{kind}, {name}": timed["to_floor"]["median"]
        for kind, variants in results["measures"].items()
        for name, timed in variants.items()
        if name != ALONE
    }
    memory = {
        f"{name}, {what}": value
        for name, of in results["mib_per_image"].items()
        for what, value in of.items()
    }
    figure = Figure((10, 1.2 + 0.35 * max(len(ratios), len(memory))), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, values, label, digits in (
        (axes[0], ratios, "time / time of the convolutions alone", 2),
        (axes[1], memory, "MiB for one image more", 0),
    ):
        bars = axis.barh(list(values), list(values.values()))
        axis.bar_label(bars, [f"{value:.{digits}f}" for value in values.values()], padding=2)
        axis.set_xlabel(label)
        axis.margins(x=0.15)
        axis.invert_yaxis()
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})


def save_ablation(path: Path, results: dict[str, Any]) -> None:
    """Draw bits/dim of the rows: published ones on the left, ours on an axis of their own.

    Args:
        path: of the PNG file.
        results: what the JSON file of ``ablation`` holds.
    """
    from matplotlib.figure import Figure

    names = [name for name in ROWS if any(job["row"] == name for job in results["jobs"])]
    figure = Figure((9, 1.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    setting = results["setting"]
    axes[0].set_title("published: CIFAR-10, 3 x 32 x 32, 310 epochs", fontsize="small")
    shape = " x ".join(map(str, setting["data"]["image_shape"]))
    axes[1].set_title(
        f"here: {setting['name']}, {shape}, {setting['recipe']['steps']} steps", fontsize="small"
    )
    for place, name in enumerate(names):
        if ROWS[name].published is not None:
            axes[0].plot(ROWS[name].published, place, "ko")
        found = [job["bits_per_dim"] for job in results["jobs"] if job["row"] == name]
        axes[1].plot(found, [place] * len(found), "C0o", alpha=0.5)
        axes[1].plot(mean(found), place, "k|", markersize=14)
    axes[0].set_yticks(range(len(names)), labels=[_label(name) for name in names])
    axes[0].invert_yaxis()
    for axis in axes:
        axis.set_xlabel("bits/dim" if axis is axes[0] else "bits/dim, one draw")
        axis.margins(y=0.1)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})


def _label(name: str) -> str:
    row = ROWS[name]
    parts = {
        "augmentation": row.augmented,
        "preconditioned": row.preconditioned,
        "fusion": row.fused,
    }
    if name in TEXT:
        return f"6, {TEXT[name]}"
    return f"{name}: {', '.join(part for part, there in parts.items() if there) or 'none'}"
