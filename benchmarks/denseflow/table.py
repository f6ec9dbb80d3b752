"""Markdown tables of the kept figures.

python -m benchmarks.denseflow.table          # every results/*.md and *.png anew from its JSON
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.denseflow.convolutions import ALONE
from benchmarks.denseflow.picture import save_ablation, save_cost
from benchmarks.denseflow.rows import ROWS, TABLE, TEXT, WORSE

RESULTS = Path(__file__).parent / "results"
BOUNDS = {"bits_per_dim": "of one draw", "importance_bits_per_dim": "of {draws} draws"}
"""What a job has -> how it is called."""
STEPS = (("1", "2"), ("2", "3"), ("1", "3"), ("4", "5"), ("5", "6"), ("4", "6"))
FUSIONS = (("1", "4"), ("2", "5"), ("3", "6"))


def cost_table(results: dict[str, Any]) -> str:
    """Times and their ratios to the convolutions alone, and the memory of an image."""
    adds = results["multiply_adds"]
    sizes = " x ".join(map(str, results["image_shape"]))
    text = (
        f"{results['preset']}, {results['parameters']:,} parameters, images of {sizes}, batches of "
        f"{results['batch_size']}, {results['dtype']}; medians of {results['rounds']} interleaved "
        f"rounds of {results['clock']} on {results['machine']}, torch "
        f"{results['versions']['torch']}. Multiply-adds of the convolutions for one image: "
        f"{adds['log_prob'] / 1e9:.2f} G in log_prob, {adds['sampling'] / 1e9:.2f} G in sampling, "
        f"{adds['training'] / 1e9:.2f} G in training.\n\n"
        "Ratios are to the same convolutions alone in the same round, median (smallest); the "
        "invertible 1x1 convolutions are among them. Training is forward and backward.\n"
    )
    rows = []
    for kind, variants in results["measures"].items():
        for name, timed in variants.items():
            rate = 2 * adds[kind] * timed["images_per_second"] / 1e9
            rows.append(
                [
                    kind,
                    name,
                    f"{timed['milliseconds'] / results['batch_size']:,.1f}",
                    f"{timed['images_per_second']:,.2f}",
                    _ratio(None if name == ALONE else timed["to_floor"]),
                    _ratio(None if name in (ALONE, "full") else timed["to_full"]),
                    f"{rate:,.0f}",
                ]
            )
    head = ["measure", "memory", "ms an image", "images/s", "/ convolutions", "/ full", "GFLOP/s"]
    small, large = results["memory_batch_sizes"]
    memory = (
        f"MiB for one image more, between batches of {small} and {large}: kept for the backward "
        "pass beyond parameters and buffers, and at the peak of forward and backward:\n"
    )
    kept = [
        [name, f"{of['kept']:,.1f}", f"{of['peak']:,.1f}"]
        for name, of in results["mib_per_image"].items()
    ]
    parts = [text, markdown(head, rows), memory, markdown(["memory", "kept", "at the peak"], kept)]
    if results["inexact"]:
        # Their inputs were kept after all.
        parts.append(f"Parts whose inverses were not exact enough: {len(results['inexact'])}.\n")
    return "\n".join(parts)


def ablation_table(results: dict[str, Any]) -> str:
    """Bits/dim of each row beside the published ones, what each step changes, and the order."""
    rows = by_row(results["jobs"])
    lines = []
    for name, jobs in rows.items():
        row = ROWS[name]
        width = f"{jobs[0]['hidden_channels']}"
        if jobs[0]["dense_growth"] is not None:
            width += f" + {jobs[0]['dense_growth']}"
        cross_unit = jobs[0]["cross_unit_parameters"]
        lines.append(
            [
                TEXT.get(name, name),
                *("yes" if has else "" for has in (row.augmented, row.preconditioned, row.fused)),
                "" if row.published is None else f"{row.published:.2f}",
                _spread([job["bits_per_dim"] for job in jobs]),
                _spread([job["importance_bits_per_dim"] for job in jobs]),
                f"{jobs[0]['parameters']:,}",
                f"{cross_unit:,}" if cross_unit else "",
                width,
                f"{mean(job['train_cpu_seconds'] for job in jobs):.0f}",
            ]
        )
    draws = results["setting"]["draws"]
    head = [
        "row",
        "augmentation",
        "preconditioned noise",
        "two-way fusion",
        "published bits/dim",
        "here, one draw",
        f"here, {draws} draws",
        "parameters",
        "cross-unit",
        "width",
        "CPU s",
    ]
    parts = [_of_setting(results), markdown(head, lines)]
    pairs = (*STEPS, *FUSIONS, *(("6", name) for name in TEXT))
    changes = [
        _change(rows, one, other)
        for one, other in pairs
        if {job["seed"] for job in rows.get(one, ())} & {j["seed"] for j in rows.get(other, ())}
    ]
    if changes:
        head = [
            "from row to row",
            "published",
            "here, one draw",
            f"here, {draws} draws",
            "of these, each seed",
            "same sign",
        ]
        parts.append(markdown(head, changes))
    return "\n".join([*parts, *_order(rows, draws)])


def by_row(jobs: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the jobs of each row, in the order of the rows."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for job in jobs:
        found[job["row"]].append(job)
    return {name: found[name] for name in found if found[name]}


def agreement(rows: dict[str, list[dict[str, Any]]], bound: str) -> tuple[int, int]:
    """Return of how many pairs of rows of Table 4 the better is the better here, and all pairs.

    Args:
        rows: jobs of each row.
        bound: a key of ``BOUNDS``.
    """
    here = {name: _mean_of(rows[name], bound) for name in TABLE if name in rows}
    published = {name: ROWS[name].published or math.nan for name in here}
    same = [
        (published[one] < published[other]) == (here[one] < here[other])
        for one, other in combinations(here, 2)
    ]
    return sum(same), len(same)


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _of_setting(results: dict[str, Any]) -> str:
    setting = results["setting"]
    scale, recipe, data = setting["scale"], setting["recipe"], setting["data"]
    shape = " x ".join(map(str, data["image_shape"]))
    return (
        "Published: DenseFlow-45-6 and its ablations, CIFAR-10 of 3 x 32 x 32, 310 epochs, as many "
        "modules in each row. Here: "
        f"{setting['name']} averaged down to {shape}, {recipe['steps']} steps of "
        f"{recipe['batch_size']} of {data['train_images']:,} images, split {data['split_hash']}, "
        f"Adamax at {recipe['learning_rate']:g}, as near to {setting['parameters']:,} parameters "
        f"in each row as widths allow; units {scale['units']}, modules in each "
        f"{scale['modules']}, growth {scale['growth']}, uniform dequantisation. Bits/dim of "
        f"the first {setting['evaluated_images']:,} test images, of one draw of all noise each and "
        f"importance-weighted over {setting['draws']} draws; mean ± standard deviation over "
        f"seeds. {results['machine']}, torch {results['versions']['torch']}. Published figures and "
        "those here are of other images and models, and are not to be compared with each other: "
        "only what changes from row to row is. Width: hidden channels, and growth of the dense "
        "block.\n"
    )


def _change(rows: dict[str, list[dict[str, Any]]], one: str, other: str) -> list[str]:
    published = WORSE
    if other not in TEXT:
        published = (ROWS[other].published or math.nan) - (ROWS[one].published or math.nan)
    once, weighted = (_changes(rows[one], rows[other], bound) for bound in BOUNDS)
    return [
        f"{one} → {TEXT.get(other, other)}",
        f"{published:+.2f}{' (ImageNet32)' if other == 'no attention' else ''}",
        _spread(once, "+"),
        _spread(weighted, "+"),
        ", ".join(f"{change:+.3f}" for change in weighted),
        "yes" if (mean(weighted) < 0) == (published < 0) else "no",
    ]


def _changes(before: list[dict[str, Any]], after: list[dict[str, Any]], bound: str) -> list[float]:
    """From one row to another, of each seed that both have."""
    start = {job["seed"]: job[bound] for job in before}
    return [job[bound] - start[job["seed"]] for job in after if job["seed"] in start]


def _order(rows: dict[str, list[dict[str, Any]]], draws: int) -> list[str]:
    known = [name for name in TABLE if name in rows]
    if len(known) < 2:
        return []
    published = sorted(known, key=lambda name: ROWS[name].published or math.nan)
    lines = [f"From best to worst, published: {', '.join(published)}."]
    for bound, words in BOUNDS.items():
        here = sorted(known, key=lambda name: _mean_of(rows[name], bound))
        same, pairs = agreement(rows, bound)
        lines.append(
            f"Here, {words.format(draws=draws)}: {', '.join(here)}; of {pairs} pairs of rows, "
            f"{same} are in the published order."
        )
    return [" ".join(lines), ""]


def _mean_of(jobs: list[dict[str, Any]], bound: str) -> float:
    return mean(job[bound] for job in jobs)


def _spread(values: list[float], sign: str = "") -> str:
    error = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{error}"


def _ratio(values: dict[str, float] | None) -> str:
    return "" if values is None else f"{values['median']:.2f} ({values['min']:.2f})"


TABLES = {"cost": cost_table, "ablation": ablation_table}
"""Beginning of a file's name -> its table."""
PICTURES = {"cost": save_cost, "ablation": save_ablation}
"""Beginning of a file's name -> its picture."""


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the JSON file, its table and its picture.

    Args:
        path: of the JSON file; its name begins with a key of ``TABLES``.
        results: what to keep.
    """
    kind = path.name.split("-")[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a command that is killed leaves the jobs before.
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(results, indent=2) + "\n")
    whole.replace(path)
    path.with_suffix(".md").write_text(TABLES[kind](results))
    PICTURES[kind](path.with_suffix(".png"), results)


def main():
    for path in sorted(RESULTS.glob("*.json")):
        write(path, json.loads(path.read_text()))


if __name__ == "__main__":
    main()
