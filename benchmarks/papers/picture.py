"""Pictures of the shuffles: curves of training, and what a shuffle costs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.papers.claims import SHUFFLED, costs, published_cost
from benchmarks.papers.kept import (
    Column,
    Kept,
    columns,
    label_of,
    mean_of,
    unshuffled,
    without_shuffle,
)
from benchmarks.papers.rows import ROWS, TABLES, Row
from benchmarks.papers.step_time import FILE

PARTS = ("train", "validation")
"""What curves are of."""
Costs = dict[Row, tuple[float, list[float]]]
"""Row -> bits/dim more than without a shuffle, as published and ours of each seed."""
COLORS = {
    label: f"C{index}"
    for index, label in enumerate(dict.fromkeys(row.label for row in ROWS if row.run.shuffle))
}
"""What a table calls a model -> its colour in all pictures."""
LEGEND = 7
"""Columns of the legend, at most."""
FIRST = 0.1
"""Part of the steps that may be above the picture: the first are far off, and would flatten it."""


def save_pictures(kept: Kept) -> list[Path]:
    """Draw what there is of the tables of shuffled images, and return the files.

    Args:
        kept: results, in whose folder the pictures are written.
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

    Seconds of scaled-down models are those of ``step_time``, where it has been run: runs that are
    not trained side by side have times that do not compare.

    Args:
        path: of the PNG file.
        column: of a table of shuffled images.
        kept: results.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure((10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    rows = list(_lines(column, kept))
    times = step_times(kept, column.data)
    yardstick = column.yardstick(kept)
    simple: dict[str, Any] = {"color": "gray", "linestyle": ":", "linewidth": 1.2}
    labels = dict.fromkeys(row.label for row in rows)
    one_seed = all(len(kept.of(row)) == 1 for row in rows)
    for part, pair in zip(PARTS, axes):
        shown: list[float] = []
        for row in rows:
            curves = [_points(result, part, times) for result in kept.of(row)]
            style = {"color": COLORS[row.label], "linestyle": "-" if row.run.shuffle else "--"}
            for axis, over in zip(pair, (0, 1)):
                for points in curves if len(curves) > 1 else []:
                    axis.plot([p[over] for p in points], [p[2] for p in points], lw=0.5, **style)
                middle = _mean_curve(curves)
                axis.plot([p[over] for p in middle], [p[2] for p in middle], lw=1.8, **style)
            shown += [bits for points in curves for bits in _late(points)]
        if yardstick:
            shown.append(yardstick[1])
            for axis in pair:
                axis.axhline(yardstick[1], **simple)
        _limit(pair[0], shown)
        pair[0].set_ylabel(f"{part.replace('train', 'training')} bits/dim")
    clock = "CPU seconds of one thread" if times else "seconds of training"
    for axis, label in zip(axes[1], ("steps", clock)):
        axis.set_xlabel(label)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
    handles = [Line2D([], [], color=COLORS[label], label=label) for label in labels]
    shuffle = column.rows[-1][1].run.shuffle
    handles.append(Line2D([], [], color="gray", linestyle="-", label=f"{shuffle} shuffle"))
    handles.append(Line2D([], [], color="gray", linestyle="--", label="no shuffle"))
    if yardstick:
        handles.append(Line2D([], [], label=f"({yardstick[0]})", **simple))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), LEGEND),
        frameon=False,
        fontsize="small",
        columnspacing=1.2,
    )
    seeds = "one seed" if one_seed else "thin: seeds, thick: mean"
    title = f"{TABLES[column.table]}: {column.data}, {_budget(kept)}; {seeds}"
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def save_degradation(path: Path, shown: Costs, kept: Kept) -> None:
    """Draw what shuffles cost: published on the left, ours on the right.

    Args:
        path: of the PNG file.
        shown: of the shuffles.
        kept: results.
    """
    from matplotlib.figure import Figure

    figure = Figure((10, 1.4 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    one_seed = all(len(here) == 1 for _, here in shown.values())
    for place, (row, (published, here)) in enumerate(shown.items()):
        color = COLORS[row.label]
        axes[0].plot(published, place, "o", color=color)
        axes[1].plot(here, [place] * len(here), "o", color=color, alpha=1 if one_seed else 0.5)
        if len(here) > 1:
            axes[1].plot(mean_of(here), place, "k|", markersize=14)
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
    """Return model -> seconds of a step, of one interleaved run; nothing where there is none.

    Args:
        kept: results, beside whose folder the times are.
        data: data set.
    """
    path = kept.folder.parent / FILE
    if kept.size != "small" or data != "cifar10" or not path.exists():
        return {}
    return json.loads(path.read_text())["seconds"]


def _points(
    result: Mapping[str, Any], part: str, times: Mapping[str, float]
) -> list[tuple[float, float, float]]:
    """Return (step, seconds, bits/dim) of a curve."""
    of_step = times.get(result["run"]["model"])
    return [
        (p["step"], p["seconds"] if of_step is None else of_step * p["step"], p[part])
        for p in result["history"]
        if part in p
    ]


def _mean_curve(
    curves: Sequence[Sequence[tuple[float, float, float]]],
) -> list[tuple[float, float, float]]:
    """Return means over seeds, of seconds too, at the steps that all seeds have."""
    at: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for points in curves:
        for step, seconds, bits in points:
            at[step].append((seconds, bits))
    return [
        (step, mean_of([s for s, _ in found]), mean_of([bits for _, bits in found]))
        for step, found in sorted(at.items())
        if len(found) == len(curves)
    ]


def _late(points: Sequence[tuple[float, float, float]]) -> Iterator[float]:
    last = points[-1][0] if points else 0
    return (bits for step, _, bits in points if step > FIRST * last and isfinite(bits))


def _limit(axis: Any, values: Iterable[float]) -> None:
    shown = list(values)
    if shown:
        margin = 0.05 * (max(shown) - min(shown)) + 1e-3
        axis.set_ylim(min(shown) - margin, max(shown) + margin)


def _costs(tables: Iterable[Column], kept: Kept) -> Costs:
    """What a shuffle costs, of each seed that has both runs; without one figures are Table 1's."""
    found: Costs = {}
    for column in tables:
        before = unshuffled(column.data)
        for _, row in column.rows:
            if row.run.shuffle and row.label in before:
                if here := costs(row, without_shuffle(row), kept.results):
                    found[row] = published_cost(row, before), list(here.values())
    return found
