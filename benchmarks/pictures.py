"""Pictures of the kept figures; ``benchmarks.tables`` draws them anew."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.denseflow.convolutions import ALONE
from benchmarks.denseflow.rows import ROWS as ABLATED
from benchmarks.denseflow.rows import TEXT
from benchmarks.papers.claims import SHUFFLED, costs, published_cost
from benchmarks.papers.kept import Column, Kept, columns, label_of, unshuffled, without_shuffle
from benchmarks.papers.rows import ROWS, TABLES, Row
from benchmarks.scaling.models import NAMES, WAYS

Results = Mapping[str, Any]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})


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
    _save(figure, path)


def save_memory(path: Path, results: Results) -> None:
    """Draw MiB of one image against the number of mixer layers, both logarithmic."""
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for name, values in results["mib_per_image"].items():
        known = [(d, v) for d, v in zip(results["depths"], values) if v is not None]
        axis.plot(*zip(*known), marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="mixer layers", ylabel="MiB for one image")
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
    _save(figure, path)


def save_ablation(path: Path, results: Results) -> None:
    """Draw bits/dim of the rows: published ones on the left, ours on an axis of their own."""
    names = [name for name in ABLATED if any(job["row"] == name for job in results["jobs"])]
    figure = Figure((9, 1.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    setting, labels = results["setting"], []
    shape = " x ".join(map(str, setting["data"]["image_shape"]))
    steps = setting["recipe"]["steps"]
    axes[0].set_title("published: CIFAR-10, 3 x 32 x 32, 310 epochs", fontsize="small")
    axes[1].set_title(f"here: {setting['name']}, {shape}, {steps} steps", fontsize="small")
    for place, name in enumerate(names):
        row = ABLATED[name]
        if row.published is not None:
            axes[0].plot(row.published, place, "ko")
        found = [job["bits_per_dim"] for job in results["jobs"] if job["row"] == name]
        axes[1].plot(found, [place] * len(found), "C0o", alpha=0.5)
        axes[1].plot(mean(found), place, "k|", markersize=14)
        flags = (row.augmented, row.preconditioned, row.fused)
        parts = [p for p, on in zip(("augmentation", "preconditioned", "fusion"), flags) if on]
        labels.append(f"6, {TEXT[name]}" if name in TEXT else f"{name}: {', '.join(parts)}")
    axes[0].set_yticks(range(len(names)), labels=labels)
    axes[0].invert_yaxis()
    for axis, label in zip(axes, ("bits/dim", "bits/dim, one draw")):
        axis.set_xlabel(label)
        axis.margins(y=0.1)
        axis.grid(axis="x", alpha=0.3)
    _save(figure, path)


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

PARTS = ("train", "validation")
"""What curves are of."""
COLORS = {
    label: f"C{index}"
    for index, label in enumerate(dict.fromkeys(row.label for row in ROWS if row.run.shuffle))
}
"""What a table calls a model -> its colour in all pictures."""
FIRST = 0.1
"""Part of the steps that may be above the picture: the first are far off, and would flatten it."""
Points = Sequence[tuple[float, float, float]]
"""(Step, seconds, bits/dim) of a curve."""


def save_shuffles(kept: Kept) -> list[Path]:
    """Draw curves and costs of the tables of shuffled images, as far as there are results.

    Args:
        kept: results, in whose folder the pictures are written.

    Returns:
        The files.
    """
    found = []
    tables = [column for column in columns(kept.size) if column.table in SHUFFLED]
    for column in tables:
        if any(kept.of(row) for _, row in column.rows if row.run.shuffle):
            found.append(kept.folder / f"curves-{column.table}-{column.data}.png")
            save_curves(found[-1], column, kept)
    for data in dict.fromkeys(column.data for column in tables):
        shown = _costs([column for column in tables if column.data == data], kept)
        if shown:
            found.append(kept.folder / f"degradation-{data}.png")
            save_degradation(found[-1], shown, kept)
    return found


def save_curves(path: Path, column: Column, kept: Kept) -> None:
    """Draw bits/dim over steps and over seconds: means over seeds, single seeds thin.

    Seconds of scaled-down models are those of ``papers.step_time``, where it has been run: runs
    that are not trained side by side have times that do not compare.

    Args:
        path: of the PNG file.
        column: of a table of shuffled images.
        kept: results.
    """
    figure = Figure((10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    rows, times = list(_lines(column, kept)), step_times(kept, column.data)
    reference = column.reference(kept)
    simple: dict[str, Any] = {"color": "gray", "linestyle": ":", "linewidth": 1.2}
    for part, pair in zip(PARTS, axes):
        shown: list[float] = []
        for row in rows:
            curves = [_points(result, part, times) for result in kept.of(row)]
            style = {"color": COLORS[row.label], "linestyle": "-" if row.run.shuffle else "--"}
            lines = [(points, 0.5) for points in curves if len(curves) > 1]
            for points, width in [*lines, (_mean_curve(curves), 1.8)]:
                for axis, over in zip(pair, (0, 1)):
                    axis.plot([p[over] for p in points], [p[2] for p in points], lw=width, **style)
            shown += [bits for points in curves for bits in _late(points)]
        if reference:
            shown.append(reference[1])
            for axis in pair:
                axis.axhline(reference[1], **simple)
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) + 1e-3
            pair[0].set_ylim(min(shown) - margin, max(shown) + margin)
        pair[0].set_ylabel(f"{part.replace('train', 'training')} bits/dim")
    clock = "CPU seconds of one thread" if times else "seconds of training"
    for axis, label in zip(axes[1], ("steps", clock)):
        axis.set_xlabel(label)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
    labels = dict.fromkeys(row.label for row in rows)
    handles = [Line2D([], [], color=COLORS[label], label=label) for label in labels]
    shuffle = column.rows[-1][1].run.shuffle
    handles.append(Line2D([], [], color="gray", linestyle="-", label=f"{shuffle} shuffle"))
    handles.append(Line2D([], [], color="gray", linestyle="--", label="no shuffle"))
    if reference:
        handles.append(Line2D([], [], label=f"({reference[0]})", **simple))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=7,
        frameon=False,
        fontsize="small",
        columnspacing=1.2,
    )
    one_seed = all(len(kept.of(row)) == 1 for row in rows)
    seeds = "one seed" if one_seed else "thin: seeds, thick: mean"
    title = f"{TABLES[column.table]}: {column.data}, {_budget(kept)}; {seeds}"
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def save_degradation(
    path: Path, shown: Mapping[Row, tuple[float, list[float]]], kept: Kept
) -> None:
    """Draw what shuffles cost: published on the left, ours on the right.

    Args:
        path: of the PNG file.
        shown: row -> bits/dim more than without a shuffle, as published and ours of each seed.
        kept: results.
    """
    figure = Figure((10, 1.4 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    one_seed = all(len(here) == 1 for _, here in shown.values())
    for place, (row, (published, here)) in enumerate(shown.items()):
        color = COLORS[row.label]
        axes[0].plot(published, place, "o", color=color)
        axes[1].plot(here, [place] * len(here), "o", color=color, alpha=1 if one_seed else 0.5)
        if len(here) > 1:
            axes[1].plot(np.mean(here), place, "k|", markersize=14)
    axes[0].set_yticks(range(len(shown)), labels=[label_of(row) for row in shown])
    axes[0].invert_yaxis()
    axes[0].set_title(
        "published: full-size models, full training;\n"
        "without a shuffle: Table 1, of smaller baselines",
        fontsize="small",
    )
    seeds = "one seed" if one_seed else "points: seeds, bar: mean"
    axes[1].set_title(f"ours: {_budget(kept)}\n({seeds})", fontsize="small")
    for axis in axes:
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_xlabel("bits/dim more than without a shuffle")
        axis.margins(x=0.08, y=0.1)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _budget(kept: Kept) -> str:
    result = next(iter(kept.results.values()))
    shape = " x ".join(map(str, result["data"]["image_shape"]))
    models = "scaled-down models" if kept.size == "small" else "models of published sizes"
    return f"{models}, images of {shape}, {result['steps']:,} steps"


def _lines(column: Column, kept: Kept) -> Iterator[Row]:
    """Rows with results, each followed by the same model without a shuffle."""
    for _, row in column.rows:
        if row.run.shuffle:
            yield from (each for each in (row, without_shuffle(row)) if kept.of(each))


def step_times(kept: Kept, data: str) -> dict[str, float]:
    """Return model -> seconds of a step, of one interleaved run; nothing where there is none."""
    path = kept.folder.parent / "step-times.json"
    if kept.size != "small" or data != "cifar10" or not path.exists():
        return {}
    return json.loads(path.read_text())["seconds"]


def _points(result: Results, part: str, times: Mapping[str, float]) -> Points:
    of_step = times.get(result["run"]["model"])
    return [
        (p["step"], p["seconds"] if of_step is None else of_step * p["step"], p[part])
        for p in result["history"]
        if part in p
    ]


def _mean_curve(curves: Sequence[Points]) -> Points:
    """Means over seeds, of seconds too, at the steps that all seeds have."""
    at: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for points in curves:
        for step, seconds, bits in points:
            at[step].append((seconds, bits))
    return [
        (step, *np.mean(found, axis=0))
        for step, found in sorted(at.items())
        if len(found) == len(curves)
    ]


def _late(points: Points) -> Iterator[float]:
    last = points[-1][0] if points else 0
    return (bits for step, _, bits in points if step > FIRST * last and isfinite(bits))


def _costs(tables: Iterable[Column], kept: Kept) -> dict[Row, tuple[float, list[float]]]:
    """What a shuffle costs, of each seed that has both runs; without one figures are Table 1's."""
    found = {}
    for column in tables:
        before = unshuffled(column.data)
        for _, row in column.rows:
            if row.run.shuffle and row.label in before:
                if here := costs(row, without_shuffle(row), kept.results):
                    found[row] = published_cost(row, before), list(here.values())
    return found
