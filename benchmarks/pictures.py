"""Pictures of the kept figures; ``benchmarks.tables`` draws them anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.denseflow.convolutions import ALONE
from benchmarks.denseflow.rows import ROWS as ABLATED
from benchmarks.denseflow.rows import TEXT
from benchmarks.papers.kept import SHUFFLED, Column, Kept, columns, label_of, without_shuffle
from benchmarks.papers.rows import BEYOND, ROWS, TABLES, Row
from benchmarks.scaling.models import NAMES, WAYS
from nflows_mixer.evaluation.pictures import without_outliers

Results = Mapping[str, Any]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})


def _bars(axes: Sequence[Axes], groups: Mapping[str, Mapping[str, float]], digits: int = 2) -> None:
    """Draw horizontal bars with their numbers, a group beside the other."""
    for axis, (title, values) in zip(axes, groups.items()):
        bars = axis.barh(list(values), list(values.values()))
        numbers = ["" if isnan(value) else f"{value:.{digits}f}" for value in values.values()]
        axis.bar_label(bars, numbers, padding=2, fontsize="small")
        axis.set_title(title, fontsize="medium")
        axis.margins(x=0.2)
    axes[0].invert_yaxis()


def save_ratios(path: Path, results: Results) -> None:
    """Draw each variant's ratio to the floor, a group of bars for each measure."""
    variants = {
        name: entry["measures"]
        for name, entry in results["variants"].items()
        if name != "floor" and any("to_floor" in m for m in entry["measures"].values())
    }
    kinds = list(dict.fromkeys(kind for measures in variants.values() for kind in measures))
    figure = Figure((3 + 2.2 * len(kinds), 1.2 + 0.35 * len(variants)), layout="constrained")
    axes = figure.subplots(1, max(len(kinds), 1), sharey=True, squeeze=False)[0]
    groups = {
        kind: {n: m[kind]["to_floor"]["median"] if kind in m else nan for n, m in variants.items()}
        for kind in kinds
    }
    _bars(axes, groups)
    for axis in axes:
        axis.axvline(1, color="gray", linewidth=0.8, linestyle=":")
    figure.supxlabel("time / time of the matrix products alone", fontsize="medium")
    _save(figure, path)


def save_memory(path: Path, results: Results) -> None:
    """Draw MiB of one image against the number of mixer layers, both logarithmic."""
    frame = pd.DataFrame(results["mib_per_image"], index=results["depths"], dtype=float)
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    frame.plot(ax=axis, loglog=True, marker="o", xlabel="mixer layers", ylabel="MiB for one image")
    axis.set_xticks([], minor=True)
    axis.set_xticks(results["depths"], labels=list(map(str, results["depths"])))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    _save(figure, path)


def save_cost(path: Path, results: Results) -> None:
    """Draw ratios to the convolutions alone, and the memory of an image."""
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
    one, other = figure.subplots(1, 2)
    _bars([one], {"time / time of the convolutions alone": ratios})
    _bars([other], {"MiB for one image more": memory}, digits=0)
    _save(figure, path)


def _published_and_ours(
    path: Path,
    rows: Mapping[str, tuple[float | None, Sequence[float], str]],
    titles: tuple[str, str],
    label: str,
) -> None:
    """Draw points of each row: published on the left, of all seeds and their mean on the right.

    Args:
        path: of the picture.
        rows: name -> published, ours of each seed, colour.
        titles: of both sides.
        label: of the horizontal axes.
    """
    figure = Figure((10, 1.4 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, (published, ours, color) in enumerate(rows.values()):
        if published is not None:
            axes[0].plot(published, place, "o", color=color)
        axes[1].plot(ours, [place] * len(ours), "o", color=color, alpha=0.5)
        axes[1].plot(np.mean(ours), place, "k|", markersize=14)
    axes[0].set_yticks(range(len(rows)), labels=list(rows))
    axes[0].invert_yaxis()
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize="small")
        axis.set(xlabel=label, ymargin=0.1)
        axis.grid(axis="x", alpha=0.3)
    _save(figure, path)


def save_ablation(path: Path, results: Results) -> None:
    """Draw bits/dim of the rows: published ones on the left, ours on an axis of their own."""
    rows = {}
    for name, row in ABLATED.items():
        flags = (row.augmented, row.preconditioned, row.fused)
        parts = [p for p, on in zip(("augmentation", "preconditioned", "fusion"), flags) if on]
        label = f"6, {TEXT[name]}" if name in TEXT else f"{name}: {', '.join(parts) or 'none'}"
        if ours := [job["bits_per_dim"] for job in results["jobs"] if job["row"] == name]:
            rows[label] = (row.published, ours, "C0")
    setting = results["setting"]
    shape = " x ".join(map(str, setting["data"]["image_shape"]))
    here = f"here: {setting['name']}, {shape}, {setting['recipe']['steps']} steps"
    published = "published: CIFAR-10, 3 x 32 x 32, 310 epochs"
    _published_and_ours(path, rows, (published, here), "bits/dim")


def save_scaling(path: Path, results: Results) -> None:
    """Draw cost over pixels, both axes logarithmic."""
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots(1, 2, sharey=True)
    models = list(dict.fromkeys(row["model"] for row in results["rows"]))
    slopes = {(e["model"], e["way"]): e["last_cpu_seconds"] for e in results["exponents"]}
    for axis, way in zip(axes, ("patches", "patch size")):
        for index, model in enumerate(models):
            line = [r for r in results["rows"] if r["model"] == model and r["way"] in (way, "any")]
            pixels = [row["size"] ** 2 for row in line]
            costs = [1e3 * row["cpu_seconds"] for row in line]
            slope = slopes[model, line[0]["way"]]
            label = f"{NAMES[model]}: pixels^{slope:.2f} at last"
            axis.plot(pixels, costs, f"C{index}o-", linewidth=1, markersize=3, label=label)
        axis.set(xscale="log", yscale="log", xlabel="pixels", title=WAYS[way])
        axis.legend(fontsize="small")
    axes[0].set_ylabel("CPU ms of a training step, for one image")
    _save(figure, path)


def save_singular_values(path: Path, results: Results) -> None:
    """Draw the largest (solid) and the smallest (dashed) singular value after each layer."""
    models = [model for model in results["models"] if "inputs" in model["jacobian"]]
    kinds = list(dict.fromkeys(kind for model in models for kind in model["jacobian"]["inputs"]))
    figure = Figure(figsize=(4.2 * len(models), 4))
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models):
        for kind, entry in model["jacobian"]["inputs"].items():
            depths = range(1, len(entry["depths"]) + 1)
            for key, line in (("largest", "-"), ("smallest", "--")):
                values = [nan if d[key] is None else d[key] for d in entry["depths"]]
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
    _save(figure, path)


# Shuffles of the papers' tables

COLORS = {
    label: f"C{index}"
    for index, label in enumerate(dict.fromkeys(row.label for row in ROWS if row.run.shuffle))
}
"""What a table calls a model -> its colour in all pictures."""
FIRST = 0.1
"""Part of the steps that may be above the picture: the first are far off, and would flatten it."""


def save_shuffles(kept: Kept) -> list[Path]:
    """Draw curves and costs of the tables of shuffled images, as far as there are results.

    Returns:
        The files.
    """
    found = []
    tables = [column for column in columns(kept.size) if column.table in SHUFFLED]
    for column in tables:
        shuffled = [row for _, row in column.rows if row.run.shuffle]
        pairs = [each for row in shuffled for each in (row, without_shuffle(row))]
        if any(map(kept.of, shuffled)):
            found.append(kept.folder / f"curves-{column.table}-{column.data}.png")
            save_curves(found[-1], column, pairs, kept)
    for column in columns(kept.size):
        rows = [row for _, row in column.rows if kept.of(row)]
        if (column.table, column.figure) != (BEYOND, "bits_per_dim"):
            continue
        for shuffle in dict.fromkeys(row.run.shuffle for row in rows):
            name = f"curves-{column.table}-{column.data}-{shuffle or 'plain'}.png"
            found.append(kept.folder / name)
            alike = [row for row in rows if row.run.shuffle == shuffle]
            save_curves(found[-1], column, alike, kept)
    for data in dict.fromkeys(column.data for column in tables):
        costs = [column.costs(kept) for column in tables if column.data == data]
        shown = {row: cost for of in costs for row, cost in of.items() if cost[1]}
        if shown:
            found.append(kept.folder / f"degradation-{data}.png")
            save_degradation(found[-1], shown, kept)
    return found


def save_curves(path: Path, column: Column, given: Sequence[Row], kept: Kept) -> None:
    """Draw bits/dim over steps and over seconds: means over seeds, single seeds thin.

    Seconds of scaled-down models are those of ``papers.step_time``, where it has been run: runs
    that are not trained side by side have times that do not compare.
    """
    figure = Figure((10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    rows = [row for row in given if kept.of(row)]
    times, reference = step_times(kept, column.data), column.reference(kept)
    for part, pair in zip(("train", "validation"), axes):
        values: list[float] = []
        for row in rows:
            *seeds, center = _curves(row, part, kept, times)
            dashed = row.run.shuffle is None and any(other.run.shuffle for other in rows)
            style = {"color": COLORS[row.label], "linestyle": "--" if dashed else "-"}
            for axis, over in zip(pair, ("step", "seconds")):
                for curve in seeds:
                    axis.plot(curve[over], curve[part], linewidth=0.5, **style)
                axis.plot(center[over], center[part], linewidth=1.8, label=label_of(row), **style)
            late = center["step"] > FIRST * center["step"].max()
            values += without_outliers(center[part][late])
        for axis, label in zip(pair, ("steps", "CPU seconds" if times else "seconds of training")):
            if reference:
                axis.axhline(reference[1], color="gray", linestyle=":", label=f"({reference[0]})")
            axis.grid(alpha=0.3)
            axis.set(xlabel=label, xmargin=0.01)
        shown = [*values, *([] if reference is None else [reference[1]])]
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) + 1e-3
            pair[0].set_ylim(min(shown) - margin, max(shown) + margin)
        pair[0].set_ylabel(f"{part.replace('train', 'training')} bits/dim")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    title = f"{TABLES[column.table]}: {column.data}, {_budget(kept)}; thin: seeds, thick: mean"
    figure.suptitle(title, fontsize="medium")
    _save(figure, path)


def save_degradation(
    path: Path, shown: Mapping[Row, tuple[float, Mapping[int, float]]], kept: Kept
) -> None:
    """Draw what shuffles cost: published on the left, ours on the right."""
    rows = {
        label_of(row): (published, list(by_seed.values()), COLORS[row.label])
        for row, (published, by_seed) in shown.items()
    }
    published = "published: full-size models, full training;\nwithout a shuffle: Table 1"
    titles = (published, f"ours: {_budget(kept)}\n(points: seeds, bar: mean)")
    _published_and_ours(path, rows, titles, "bits/dim more than without a shuffle")


def _budget(kept: Kept) -> str:
    result = next(iter(kept.results.values()))
    shape = " x ".join(map(str, result["data"]["image_shape"]))
    models = "scaled-down models" if kept.size == "small" else "models of published sizes"
    return f"{models}, images of {shape}, {result['steps']:,} steps"


def step_times(kept: Kept, data: str) -> dict[str, float]:
    """Return model -> seconds of a step, of one interleaved run; nothing where there is none."""
    path = kept.folder.parent / "step-times.json"
    if kept.size != "small" or data != "cifar10" or not path.exists():
        return {}
    return json.loads(path.read_text())["seconds"]


def _curves(row: Row, part: str, kept: Kept, times: Mapping[str, float]) -> list[pd.DataFrame]:
    """Curves of all seeds, and the mean of them at the steps that all have."""
    found = []
    for result in kept.of(row):
        points = [point for point in result["history"] if part in point]
        curve = pd.DataFrame(points, columns=["step", "seconds", part])
        if times:  # seconds of another clock would not compare
            curve["seconds"] = times.get(row.run.model, float("nan")) * curve["step"]
        elif "train_cpu_seconds" in result:
            curve["seconds"] = result["train_cpu_seconds"] / result["steps"] * curve["step"]
        found.append(curve)
    steps = pd.concat(found).groupby("step")
    # With a seed that is NaN the mean is, too.
    mean = steps.agg(lambda values: values.mean(skipna=False))[steps.size() == len(found)]
    return [*found, mean.reset_index()]
