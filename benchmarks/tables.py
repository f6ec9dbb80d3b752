"""Every table that is kept, made of the kept figures alone.

    python -m benchmarks.tables                                  # all pages and pictures anew
    python -m benchmarks.tables --results runs/papers/results    # pages of your own runs

A page is a function of what a JSON file holds; ``KINDS`` has all of them. What the columns mean is
said in ``benchmarks/README.md`` and in the documentation, which has the same tables.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks import pictures
from benchmarks.denseflow.convolutions import ALONE
from benchmarks.denseflow.rows import ROWS as ABLATED
from benchmarks.denseflow.rows import TABLE, TEXT, WORSE
from benchmarks.papers.budgets import BUDGETS
from benchmarks.papers.figures import worst_image
from benchmarks.papers.kept import RESULTS, Column, Comparison, Kept, columns, label_of, read
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import BEYOND, FIGURES, ROWS, TABLES, Row, Run
from benchmarks.scaling.models import NAMES, WAYS
from nflows_mixer._checks import mismatch
from nflows_mixer._files import replace_file
from nflows_mixer.training import Recipe

BENCHMARKS = Path(__file__).parent
README = BENCHMARKS.parent / "README.md"
EXAMPLES = BENCHMARKS.parent / "examples/results"
START, END = "<!-- of benchmarks.tables -->", "<!-- end -->"
HEADLINE = re.compile(f"{START}.*{END}", re.DOTALL)
"""Where the README has its table."""
Results = Mapping[str, Any]


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table.

    Args:
        head: names of the columns between bars, each with the format of its numbers behind it,
            such as "D | time, ms {:,.1f}".
        rows: cells; text stays as it is, None is an empty cell, and a row may be short.
    """
    parts = [re.fullmatch(r"\s*(.*?)\s*(\{.*\})?\s*", part) for part in head.split("|")]
    names, forms = zip(*(part.groups() for part in parts if part))
    cells = []
    for row in rows:
        filled = zip(forms, [*row, *[None] * len(names)])
        cells.append(["" if value is None else _text(form, value) for form, value in filled])
    frame = pd.DataFrame(cells, columns=list(names))
    return frame.to_markdown(index=False, disable_numparse=True)


def _text(form: str | None, value: Any) -> str:
    return value if isinstance(value, str) else (form or "{}").format(value)


def page(*parts: str | None) -> str:
    """Join paragraphs and tables; None is left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(results: Results, *left_out: str) -> str:
    """Return the setting in one line: every number and word of the results, by name.

    Args:
        results: what a JSON file holds.
        left_out: names of what the tables have.
    """
    kept = {name: value for name, value in results.items() if name not in left_out}
    (flat,) = pd.json_normalize(kept).to_dict("records")
    return "; ".join(
        f"{_name(name)}: {_word(name, value)}"
        for name, value in flat.items()
        if str(value) not in ("", "None", "[]", "{}")
    )


def _name(path: str) -> str:
    plain = re.sub(r"^((setting|recipe|versions|data|scale|model|budget)\.)*", "", path)
    return plain.replace(".", ", ").replace("_", " ")


def _word(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return (" x " if name.endswith("shape") else ", ").join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


def ratio(values: Mapping[str, float] | None) -> str | None:
    """Return the median and, in brackets, the smallest of the ratios of all rounds."""
    return None if values is None else f"{values['median']:.2f} ({values['min']:.2f})"


def spread(values: Sequence[float], places: int = 3, sign: str = "", error: bool = False) -> str:
    """Return mean ± standard deviation over seeds, or ± standard error of the mean."""
    if not len(values):
        return ""
    text = f"{np.mean(values):{sign},.{places}f}"
    if len(values) == 1:
        return text
    deviation = np.std(values, ddof=1) / (np.sqrt(len(values)) if error else 1)
    return f"{text} ± {deviation:.{places}f}"


def skipped(results: Results) -> str:
    """Return a line for each variant that was not measured."""
    return "\n".join(f"- not measured: {n}: {why}" for n, why in results["skipped"].items())


# Speed and memory


def speed_page(results: Results) -> str:
    """Milliseconds, images a second and ratios to both floors, of each measure."""
    variants = results["variants"]
    head = "millions of parameters {:.2f} | ms {:,.1f} | images/s {:,.0f} | / floor"
    tables = []
    for kind in dict.fromkeys(k for entry in variants.values() for k in entry["measures"]):
        rows = []
        for name, entry in variants.items():
            if timed := entry["measures"].get(kind):
                millions = entry["parameters"] / 1e6 if "parameters" in entry else None
                floors = [ratio(timed.get(key)) for key in ("to_floor", "to_collapsed_floor")]
                figures = [timed["milliseconds"], timed["images_per_second"]]
                rows.append([name, millions, *figures, *floors])
        tables.append(table(f"{kind} | {head} | / collapsed floor", rows))
    kinds = ("forward and backward", "training step")
    compiled = [
        [name, entry["compile_seconds"]]
        + [ratio(entry["measures"].get(kind, {}).get("to_compiled")) for kind in kinds]
        for name, entry in variants.items()
        if "compile_seconds" in entry
    ]
    if compiled:
        head = "compiled from nothing | s {:,.0f} | " + " | ".join(f"{k} / compiled" for k in kinds)
        tables.append(table(head, compiled))
    return page(facts(results, "variants", "skipped"), *tables, skipped(results))


def memory_page(results: Results) -> str:
    """MiB of one image at the peak of a training step, by depth."""
    head = "mixer layers" + "".join(f" | {depth} {{:.2f}}" for depth in results["depths"])
    rows = ([name, *values] for name, values in results["mib_per_image"].items())
    said = facts(results, "depths", "mib_per_image", "skipped")
    return page(said, table(head, rows), skipped(results))


def maf_page(results: Results) -> str:
    """Milliseconds of inverses and of one forward, and their ratio."""
    head = "D | rows | inverse | forward, ms {:,.1f} | inverse, ms {:,.1f} | inverse / forward"
    rows = (
        [case["features"], case["rows"], name]
        + [timed[f"{way}_milliseconds"] for way in ("forward", "inverse")]
        + [ratio(timed["inverse_to_forward"])]
        for case in results["cases"]
        for name, timed in case["inverses"].items()
    )
    return page(facts(results, "cases", "skipped"), table(head, rows), skipped(results))


def exactness_page(results: Results) -> str:
    """Errors of gradients, bits/dim in two precisions, and errors of round trips."""
    tabulated = ("gradient_errors", "bits_per_dim", "round_trip_errors")
    states, bits, trips = (results[name] for name in tabulated)
    head = "error of the gradients" + "".join(f" | {state} {{:.1e}}" for state in states)
    first = next(iter(states.values()))
    bits = {**bits, "difference": abs(bits["bf16"] - bits["float32"])}
    return page(
        facts(results, *tabulated),
        table(head, ([name, *(of[name] for of in states.values())] for name in first)),
        table("conditioners | bits/dim {:.4f}", bits.items()),
        table("round trip | largest error, of the range {:.1e}", trips.items()),
    )


def own_parts_page(results: Results) -> str:
    """Time of a flow with a part of one's own, in parts of that with the built-in one."""
    rows = ([name, ratio(of)] for name, of in results["own / built-in"].items())
    return page(facts(results, "own / built-in"), table("part | own / built-in", rows))


# DenseFlow


def cost_page(results: Results) -> str:
    """Times and their ratios to the convolutions alone, and the memory of an image."""
    rows = []
    for kind, variants in results["measures"].items():
        adds = results["multiply_adds"][kind]
        for name, timed in variants.items():
            floor = None if name == ALONE else ratio(timed["to_floor"])
            full = None if name in (ALONE, "full") else ratio(timed["to_full"])
            speed = timed["images_per_second"]
            each = timed["milliseconds"] / results["batch_size"]
            rows.append([kind, name, each, speed, floor, full, 2e-9 * adds * speed])
    head = "measure | memory | ms an image {:,.1f} | images/s {:,.2f} | / convolutions | / full"
    kept = ([name, of["kept"], of["peak"]] for name, of in results["mib_per_image"].items())
    # Their inputs were kept after all.
    inexact = f"Parts whose inverses were not exact enough: {len(results['inexact'])}."
    return page(
        facts(results, "measures", "mib_per_image", "inexact"),
        table(head + " | GFLOP/s {:,.0f}", rows),
        table("memory | MiB an image, kept {:,.1f} | at the peak {:,.1f}", kept),
        inexact if results["inexact"] else None,
    )


BOUNDS = ("bits_per_dim", "importance_bits_per_dim")
"""Of one draw, and importance-weighted: what a job of the ablation has."""
CHANGES = [("1", "2"), ("2", "3"), ("1", "3"), ("4", "5"), ("5", "6"), ("4", "6")]
CHANGES += [("1", "4"), ("2", "5"), ("3", "6"), *(("6", name) for name in TEXT)]
"""Pairs of rows that differ in one thing: a step of the noise, or the fusion."""


def ablation_page(results: Results) -> str:
    """Bits/dim of each row beside the published ones, and what each step changes."""
    by_row, setting = jobs_of(results), results["setting"]
    rows = []
    for name, found in by_row.items():
        row, job = ABLATED[name], found[0]
        growth = "" if job["dense_growth"] is None else f" + {job['dense_growth']}"
        flags = (row.augmented, row.preconditioned, row.fused)
        rows.append(
            [TEXT.get(name, name), *("yes" if flag else "" for flag in flags), row.published]
            + [spread([job[bound] for job in found]) for bound in BOUNDS]
            + [job["parameters"], job["cross_unit_parameters"] or None]
            + [f"{job['hidden_channels']}{growth}"]
            + [np.mean([job["train_cpu_seconds"] for job in found])]
        )
    changes = []
    for one, other in CHANGES:
        once, weighted = (changes_of(by_row, one, other, bound) for bound in BOUNDS)
        if weighted:
            published = ABLATED[other].published
            by = WORSE if published is None else published - (ABLATED[one].published or nan)
            changes.append(
                [f"{one} → {TEXT.get(other, other)}", by, spread(once, sign="+")]
                + [spread(weighted, sign="+"), ", ".join(f"{value:+.3f}" for value in weighted)]
                + ["yes" if (np.mean(weighted) < 0) == (by < 0) else "no"]
            )
    claims = ablation_claims(by_row)
    here = f"here, one draw | here, {setting['draws']} draws"
    head = "row | augmentation | preconditioned noise | two-way fusion | published {:.2f} | "
    head += here + " | parameters {:,} | cross-unit {:,} | width | CPU s {:.0f}"
    return page(
        facts(results, "jobs"),
        table(head, rows),
        table(f"change | published {{:+.2f}} | {here} | each seed | same sign", changes)
        if changes
        else None,
        f"Pairs of rows in the published order: {counted(claims)}." if claims else None,
    )


def jobs_of(results: Results) -> dict[str, list[Results]]:
    """Return the jobs of each row that has some, in the order of the rows."""
    found = {name: [job for job in results["jobs"] if job["row"] == name] for name in ABLATED}
    return {name: jobs for name, jobs in found.items() if jobs}


def changes_of(
    by_row: Mapping[str, list[Results]], one: str, other: str, bound: str
) -> list[float]:
    """Return what changes from one row to another, of each seed that both have."""
    start = {job["seed"]: job[bound] for job in by_row.get(one, ())}
    jobs = by_row.get(other, ())
    return [job[bound] - start[job["seed"]] for job in jobs if job["seed"] in start]


def ablation_claims(by_row: Mapping[str, list[Results]]) -> list[Comparison]:
    """Return the pairs of rows of Table 4, by importance-weighted bits/dim."""
    found = []
    for pair in combinations([name for name in TABLE if name in by_row], 2):
        published = {name: ABLATED[name].published or nan for name in pair}
        better, worse = sorted(pair, key=lambda name: published[name])
        if here := changes_of(by_row, better, worse, BOUNDS[1]):
            by = round(published[worse] - published[better], 4)
            found.append(Comparison(f"{better} better than {worse}", by, tuple(here)))
    return found


# Image size, linear blocks, loading


def scaling_page(results: Results) -> str:
    """Cost of an image by its size."""
    rows = {(row["model"], row["way"], row["size"]): row for row in results["rows"]}
    sizes = sorted({row["size"] for row in results["rows"]})
    head = "".join(f" | {side} x {side} {{:,.1f}}" for side in sizes)
    head += " | exponent {:.2f} | of the last {:.2f} | parameters, largest {:,}"
    costs = []
    for name, key, unit in [
        ("CPU ms of a step", "cpu_seconds", 1e3),
        ("millions of multiply-adds", "multiply_adds", 1e-6),
    ]:
        lines = (
            [NAMES[e["model"]], WAYS[e["way"]]]
            + [unit * rows[e["model"], e["way"], side][key] for side in sizes]
            + [e[key], e[f"last_{key}"], rows[e["model"], e["way"], sizes[-1]]["parameters"]]
            for e in results["exponents"]
        )
        costs.append(table(f"{name}, of one image | at{head}", lines))
    return page(*costs, facts(results, "rows", "exponents"))


def likelihood_page(results: Results) -> str:
    """Bits/dim of MixerFlows that differ in the linear block."""
    rows = []
    for linear, of in pd.DataFrame(results["runs"]).groupby("linear", sort=False):
        bits = of["bits_per_dim"].tolist()
        row = [NAMES[str(linear)], of["parameters"].iloc[0], *bits, spread(bits, error=True)]
        rows.append([*row, of["train_cpu_seconds"].mean()])
    seeds = " | ".join(f"seed {seed} {{:.3f}}" for seed in results["seeds"])
    head = f"linear block | parameters {{:,}} | {seeds} | mean | CPU s to train {{:.0f}}"
    return page(table(head, rows), facts(results, "runs", "seeds"))


def loading_page(results: Results) -> str:
    """Images a second, through the loader."""
    speeds = results["loader_images_per_second"].items()
    rows = ([name, speed, results["ratio"][name]] for name, speed in speeds)
    head = "images | a second, through the loader {:,.0f} | times the training rate {:,.0f}"
    return page(table(head, rows), facts(results, "loader_images_per_second", "ratio"))


# Precision and compatibility


def precision_page(results: Results) -> str:
    """Round trips, log-determinants, singular values and integrals."""
    models, found = results["models"], results["two_pixels"]
    trips = "precision | images | largest, levels {:.1e} | mean, levels {:.1e} | largest, of the "
    trips += "range {:.1e} | mean, of the range {:.1e} | log-det, nats {:.1e} | not finite {:.3%}"
    samples = "flow | precision | samples | largest {:.1e} | mean {:.1e} | not finite {:.3%}"
    square = "flow | bits/dim {:.3f} | integral {:.8f} | with half the points {:.8f} | mass of the "
    square += "range {:.8f} | sum over images | not finite far away {:.3%}"
    return page(
        table("flow | parameters {:,} | images | how it was made", map(_model, models)),
        *(
            part
            for model in models
            for part in (
                f"## Round trip and log-det: {model['name']}",
                table(trips, _round_trips(model)),
            )
        ),
        "## Own samples: log_prob against sample_and_log_prob",
        table(samples, (row for model in models for row in _own_samples(model))),
        "## Singular values of the Jacobian by depth",
        *(f"### {model['name']}\n\n{_singular_values(model)}" for model in models),
        "## Flows of two pixels: the integral of the density",
        table(square, map(_integral, found["rows"])),
        facts({**results, "two_pixels": {**found, "rows": []}}, "models"),
    )


def _model(model: Results) -> list[Any]:
    made = f"{model['made']}, seed {model['seed']}" if "seed" in model else model["made"]
    if "recipe" in model:
        recipe, bits = model["recipe"], model["bits_per_dim"]["test"]
        made += f", {recipe['steps']} steps of {recipe['batch_size']}"
        made += f" at {recipe['learning_rate']:g}: {bits:.3f} bits/dim of the test images"
    data = f"{model['data']}, {_word('shape', model['image_shape'])}, {model['levels']} levels"
    data += f", split {model['split_hash']}" if "split_hash" in model else ""
    return [model["name"], model["parameters"], data, made]


def _either(figure: Results, name: str, scale: float = 1) -> Any:
    """A figure, or why there is none."""
    return figure["why"] if figure[name] is None else figure[name] / scale


def _round_trips(model: Results) -> Iterator[list[Any]]:
    for name, precision in model["precisions"].items():
        if "why" in precision:
            yield [name, precision["why"]]
        for kind, figures in precision.get("inputs", {}).items():
            error, logabsdet = figures["round_trip"], figures.get("logabsdet")
            pixels = [_either(error, key) for key in ("largest", "mean")]
            parts = [_either(error, key, model["levels"]) for key in ("largest", "mean")]
            nats = "not computed" if logabsdet is None else _either(logabsdet, "largest")
            named = [name, f"{figures['images']} {kind}"]
            yield [*named, *pixels, *parts, nats, figures["non_finite"]]


def _own_samples(model: Results) -> Iterator[list[Any]]:
    for name, precision in model["precisions"].items():
        if "why" in precision:
            yield [model["name"], name, precision["why"]]
            continue
        own = precision["own_samples"]
        errors = [_either(own["difference"], key) for key in ("largest", "mean")]
        yield [model["name"], name, own["samples"], *errors, own["non_finite"]]


def _singular_values(model: Results) -> str:
    if "why" in model["jacobian"]:
        return f"None: {model['jacobian']['why']}."
    kinds = model["jacobian"]["inputs"]
    depths = zip(*(entry["depths"] for entry in kinds.values()))
    rows = (
        [f"{depth}: {layers[0]['layer']}"]
        + [each.get("why") or f"{each['largest']:.1e}; {each['smallest']:.1e}" for each in layers]
        for depth, layers in enumerate(depths, 1)
    )
    head = ["up to layer", *(f"{kind} ({entry['images']})" for kind, entry in kinds.items())]
    return table(" | ".join(head), rows)


def _integral(row: Results) -> list[Any]:
    parts = ("integral", "half the points", "mass of the range")
    images = f"{row['sum over all images']:.4f} ± {row['standard error']:.4f}"
    integrals = [_either(row[part], "value") for part in parts]
    return [row["flow"], row.get("bits_per_dim"), *integrals, images, row["not finite far away"]]


def compatibility_page(results: Results) -> str:
    """Which flows can be a channel or a patch flow, and which cannot and why."""
    parts = [results["machine"] + "."]
    head = "flow | round trip, float32 {:.0e} | float64 {:.0e} | log-det error {:.0e} | forward | "
    head += "inverse | takes context | compiles | because"
    for library in dict.fromkeys(row["library"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["library"] == library]
        works = (_working(row) for row in rows if row["works"])
        parts += [f"## {library}", table(head, works)]
        if refused := [[row["name"], row["reason"]] for row in rows if not row["works"]]:
            parts += ["Refused, with what the error says:", table("flow | why", refused)]
    return page(*parts)


def _working(row: Results) -> list[Any]:
    places = row["channel"], row["patch"]
    times = [
        "; ".join(f"{float(f'{place[way]:.1g}'):,g}" for place in places)
        for way in ("forward", "inverse")
    ]
    trips = [max(p[dtype]["round_trip"] for p in places) for dtype in ("float32", "float64")]
    logabsdet = max(place["logabsdet"] for place in places)
    context = "yes" if row["context"] else ""
    compiles = "yes" if all(place["compiles"] for place in places) else "no"
    return [row["name"], *trips, logabsdet, *times, context, compiles, row.get("reason")]


# The papers' tables


def parameters_page(found: Results) -> str:
    """Numbers of parameters, beside the published ones."""
    rows = []
    for name, count in found.items():
        model, of = MODELS[name], [row for row in ROWS if row.run.model == name]
        data = ", ".join(dict.fromkeys(row.run.data for row in of))
        tables = "; ".join(dict.fromkeys(TABLES[row.table].split(":")[0] for row in of))
        published = model.parameters
        apart = None if published is None else count / (1e6 * published) - 1
        rows.append([model.label, data, tables, count, published, apart])
    head = "model | images | tables | parameters {:,} | published, millions {:.4g}"
    return page(table(head + " | difference {:+.2%}", rows))


def step_times_page(results: Results) -> str:
    """Times of a training step of the scaled-down models."""
    rows = (
        [
            MODELS[name].label,
            1000 * seconds,
            *(results[key][name]["median"] for key in ("ratios", "ratios to published")),
        ]
        for name, seconds in sorted(results["seconds"].items(), key=lambda item: item[1])
    )
    head = "model | CPU ms of a training step {:.0f}"
    head += " | median ratio within a round to Glow's {:.2f} | to MixerFlow's {:.3f}"
    return page(table(head, rows), facts(results, "seconds", "ratios", "ratios to published"))


def quality_page(results: Results) -> str:
    """CPU seconds to the target, and every run; the reference's seconds beside each model's."""
    found, target = results.get("reached", {}), results.get("target", {})
    reference = found.get(target.get("model"))
    rows = []
    for name, rung in found.items():
        cells = [MODELS[name].label]
        if rung:
            seconds = rung["train_cpu_seconds"]
            cells += [rung["parameters"], rung["learning_rate"], rung["steps"]]
            cells += [spread(rung["validation"]), spread(rung["test"]), spread(seconds, 1)]
            # Of a run so short that it has no seconds there is no ratio.
            if reference and np.mean(seconds):
                cells.append(np.mean(reference["train_cpu_seconds"]) / np.mean(seconds))
        else:
            cells += [None, None, "not reached"]
        rows.append(cells)
    head = "model | parameters {:,} | learning rate {:g} | steps {} | validation bits/dim"
    head += " | test bits/dim | training, CPU s | seconds of the first row / its {:.2f}"
    runs: dict[tuple[Any, ...], list[Results]] = {}
    for run in sorted(results["runs"], key=lambda run: run["steps"]):
        key = MODELS[run["model"]].label, run["learning_rate"], run["steps"]
        runs.setdefault(key, []).append(run)
    names = ("validation", "test", "train_cpu_seconds")
    every = [
        [*key, *(spread([run[name] for run in of if name in run]) or "failed" for name in names)]
        for key, of in runs.items()
    ]
    head_of_all = "model | learning rate {:g} | steps {} | validation bits/dim | test bits/dim"
    return page(
        f"Target, of validation images: {target['validation']:.3f} bits/dim." if target else None,
        table(head, rows),
        "Every run, means over seeds:",
        table(head_of_all + " | training, CPU s", every),
        facts(results, "runs", "reached", "target", "models"),
    )


def search_page(results: Results) -> str:
    """Variants of the presets, beside the preset of the same data."""
    parts = []
    for data, seed in dict.fromkeys((run["data"], run["seed"]) for run in results["runs"]):
        alike = [run for run in results["runs"] if (run["data"], run["seed"]) == (data, seed)]
        runs = {run["variant"]: run for run in alike}
        preset = runs.get("preset", {}).get("validation", nan)
        rows = []
        for name, run in runs.items():
            if "failed" in run:
                rows.append([name, None, run["failed"].partition(":")[0]])
                continue
            bits = [run["validation"], run["validation"] - preset, run["test"]]
            rows.append([name, run["parameters"], *bits, run["train_cpu_seconds"]])
        head = f"{data}, seed {seed}: variant | parameters {{:,}} | validation bits/dim {{:.3f}}"
        head += " | beside the preset {:+.3f} | test bits/dim {:.3f} | training, CPU s {:,.0f}"
        parts.append(table(head, rows))
    return page(*parts, facts(results, "runs"))


DECIMALS = {"probe_accuracy": 2, "training_hours": 0, "fid": 2}
"""Figure -> places behind the point, where they are not three."""
VERDICTS = ("as published", "as expected", "undecided", "the other way", "not finite", "one seed")
SETTING = ("steps", "recipe.batch_size", "recipe.optimizer", "recipe.learning_rate", "data.version")
SETTING += ("data.split_hash", "data.train_images", "data.image_shape", "evaluated_images.test")
SETTING += ("probe.train_images", "probe.test_images", "importance_bits_per_dim.draws")
SETTING += ("importance_bits_per_dim.test_images", "machine", "versions.torch", "date")
"""What is said of the results of a table, as far as they have it."""


def counted(claims: Iterable[Comparison]) -> str:
    """Return how many claims come out in which way; those of one seed are decided in none."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])


def papers_page(kept: Kept) -> str:
    """Return all tables of one size and budget that have a result, and what they claim."""
    found = [c for c in columns(kept.size) if any(kept.figures(row) for _, row in c.rows)]
    claims = {column: column.claims(kept) for column in found}
    parts: list[str] = [
        f"# {'Published sizes' if kept.size == 'paper' else 'Scaled down'}, budget {kept.budget}",
        "Published figures are of full-size models and full training. Ours are means ± standard "
        "deviations over seeds; differences are means ± standard errors, of seeds that both rows "
        "have, above 0 as published or expected. Undecided is what the 95% interval of Student's "
        "t has 0 in; of one seed nothing is decided. The row in brackets is the best of three "
        "simple models of the same images.",
        table("table | differences", ([_title(c), counted(of)] for c, of in claims.items() if of)),
    ]
    for column in found:
        parts += [f"## {_title(column)}", _figures(column, kept), _failures(column, kept)]
        rows = [
            [c.words, c.published, spread(c.here, sign="+", error=True), len(c.here), c.verdict]
            for c in claims[column]
        ]
        if rows:
            parts.append(table("claim | published: by {:+.2f} | ours: by | seeds | verdict", rows))
        parts.append(_setting([result for _, row in column.rows for result in kept.having(row)]))
    if kept.left_out:
        parts.append(f"Left out: {kept.left_out} of other images than the tables'.")
    return page(*parts)


def headline(found: Sequence[Kept]) -> str:
    """Return the table of the README: ours beside Glow and the published MixerFlow.

    Args:
        found: what ``read`` returned.
    """
    by_budget = {kept.budget: kept for kept in found if kept.size == "small"}
    shown = [("short", None), ("long", None), ("short", "global")]
    rows = []
    for model in ("glow-11", "mixerflow-32", "mixerflow-local"):
        cells, counts = [], {}
        for budget, shuffle in shown:
            row, kept = Row(BEYOND, Run(model, "cifar10", shuffle), None), by_budget[budget]
            counts |= {f"{result['parameters']:,}": None for result in kept.having(row)}
            found = list(kept.figures(row).values())
            failed = sum(name == row.run.name for name, _ in kept.failed)
            overflowed = f", {failed} more overflowed" if failed else ""
            cells.append(f"{spread(found)} ({len(found)}{overflowed})" if found else "not run")
        rows.append([MODELS[model].label, ", ".join(counts), *cells])
    column = next(each for each in columns("small") if each.name == f"{BEYOND}-cifar10")
    if reference := column.reference(by_budget["short"]):
        rows.append([f"({reference[0]})", None, *[f"{reference[1]:.3f}"] * len(shown)])
    steps = [f"{BUDGETS['small'][budget].steps:,} steps" for budget, _ in shown]
    return table(
        f"model | parameters | {steps[0]} | {steps[1]} | pixels shuffled, {steps[2]}", rows
    )


def to_quality() -> str:
    """Return the sentence of the README on time to quality. Without the figures, none."""
    if not (path := RESULTS / "quality.json").exists():
        return ""
    found = json.loads(path.read_text())
    reached, target = found["reached"], found["target"]
    first = np.mean(reached[target["model"]]["train_cpu_seconds"])
    faster = {
        name: first / np.mean(rung["train_cpu_seconds"])
        for name, rung in reached.items()
        if rung and name != target["model"]
    }
    *parts, last = (f"{MODELS[name].label} {value:.1f}" for name, value in faster.items())
    return (
        f"{MODELS[target['model']].label} takes {first:.0f} CPU seconds of training for "
        f"{target['steps']} steps. Its likelihood is reached so many times faster by: "
        f"{', '.join(parts)}, {last} (seeds: {', '.join(map(str, found['seeds']))})."
    )


def on_mnist() -> str:
    """Return the table of the README: whole runs of the command on MNIST, beside the published one.

    Runs and their evaluations are in folders under ``examples/results``. Without any, no table.

    Raises:
        ValueError: if an evaluation is not of the test images that its run was evaluated on.
    """
    published = next(row.published for row in ROWS if row.run == Run("mixerflow-mnist", "mnist"))
    recipe = Recipe.from_preset("mnist")
    steps = f"{recipe.steps:,} of {recipe.batch_size}"
    rows: list[list[Any]] = [["published, with MAF", None, steps, None, f"{published:.2f}"]]
    for preset in ("mnist-maf-local", "mnist-local"):
        if not (path := EXAMPLES / preset / "results.json").exists():
            continue
        run = json.loads(path.read_text())
        steps = f"{run['steps']:,} of {run['recipe']['batch_size']}"
        minutes, bits = run["train_cpu_seconds"] / 60, run["bits_per_dim"]["test"]
        rows.append([f"`{preset}`", run["parameters"], steps, minutes, bits, _bound(preset, run)])
    if len(rows) == 1:
        return ""
    intro = (
        "On MNIST, test images of 28 x 28. Ours learn the noise of dequantization; that of the "
        "paper is uniform:\n\n"
    )
    return intro + table(
        "model | parameters {:,} | steps | CPU minutes {:.0f} | bits/dim {:.3f} | "
        "importance-weighted",
        rows,
    )


def _bound(preset: str, run: Results) -> str | None:
    """The importance-weighted bound of a run, if it was evaluated, on the same images."""
    if not (path := EXAMPLES / f"{preset}-evaluation" / "evaluation.json").exists():
        return None
    found = json.loads(path.read_text())
    splits, counts = zip(*((each["split_hash"], each["test_images"]) for each in (run, found)))
    if len({*splits}) > 1 or {*counts} != {found["bits_per_dim"]["images"]}:
        raise mismatch("on_mnist", "an evaluation of the run's test images", splits, "evaluate it")
    return f"{found['importance_weighted_bits_per_dim']['mean']:.3f} ({found['draws']} draws)"


def _title(column: Column) -> str:
    version = f" of the {column.version} version" if column.version else ""
    return f"{TABLES[column.table]} ({column.data}{version}, {FIGURES[column.figure]})"


def _figures(column: Column, kept: Kept) -> str:
    places, rows = DECIMALS.get(column.figure, 3), []
    for original, row in column.rows:
        results = kept.having(row)
        cells = [label_of(row), original.published, MODELS[original.run.model].parameters]
        cells.append(spread(list(kept.figures(row).values()), places) or "not run")
        if results:
            counts = dict.fromkeys(f"{result['parameters']:,}" for result in results)
            # NumPy's is NaN where one is.
            cells += [
                ", ".join(counts),
                len(results),
                np.max([worst_image(row, r) for r in results]),
            ]
            for key in ("train_seconds", "train_cpu_seconds", "images_per_second"):
                of = [result[key] for result in results if key in result]
                cells.append(np.mean(of) if of else None)
        rows.append(cells)
    if reference := column.reference(kept):
        rows.append([f"({reference[0]})", None, None, f"{reference[1]:.{places}f}"])
    head = f"model | published {{:.{min(places, 2)}f}} | published, millions of parameters {{:.4g}}"
    head += " | ours | parameters | seeds | worst image, bits/dim {:.2f} | training, s {:,.0f}"
    return table(head + " | training, CPU s {:,.0f} | images/s {:,.0f}", rows)


def _failures(column: Column, kept: Kept) -> str:
    failed = [
        f"{label_of(row)}, seed {seed} ({why.split(':')[0]})"
        for _, row in column.rows
        for (name, seed), why in sorted(kept.failed.items())
        if name == row.run.name
    ]
    return f"In no mean above, as the loss was not finite: {'; '.join(failed)}." if failed else ""


def _setting(results: Sequence[Results]) -> str:
    """How the results of a table were made: each fact as often as it differs."""
    flat = [record for of in results for record in pd.json_normalize(of).to_dict("records")]
    found = {
        name: dict.fromkeys(_word(name, of[name]) for of in flat if of.get(name, "") != "")
        for name in SETTING
    }
    return "; ".join(f"{_name(name)}: {', '.join(w)}" for name, w in found.items() if w)


# What is kept


class Kind(NamedTuple):
    """Where figures are kept, and what is made of them."""

    pattern: str
    page: Callable[[Any], str]
    picture: Callable[[Path, Any], None] | None = None


KINDS = {
    "speed": Kind("speed/results/speed-*.json", speed_page, pictures.save_ratios),
    "memory": Kind("speed/results/memory-*.json", memory_page, pictures.save_memory),
    "maf": Kind("speed/results/maf-*.json", maf_page),
    "exactness": Kind("speed/results/exactness-*.json", exactness_page),
    "own parts": Kind("speed/results/own-parts-*.json", own_parts_page),
    "cost": Kind("denseflow/results/cost-*.json", cost_page, pictures.save_cost),
    "ablation": Kind("denseflow/results/ablation-*.json", ablation_page, pictures.save_ablation),
    "scaling": Kind("scaling/results.json", scaling_page, pictures.save_scaling),
    "likelihood": Kind("scaling/likelihood.json", likelihood_page),
    "loading": Kind("loading/results.json", loading_page),
    "parameters": Kind("papers/results/parameters.json", parameters_page),
    "step times": Kind("papers/results/step-times.json", step_times_page),
    "quality": Kind("papers/results/quality.json", quality_page),
    "search": Kind("papers/results/search.json", search_page),
    "precision": Kind("precision/results.json", precision_page, pictures.save_singular_values),
    "compatibility": Kind("compatibility/results.json", compatibility_page),
}


def write(kind: str, path: Path, results: Results) -> None:
    """Write figures, their page and, where there is one, their picture; print the page.

    Args:
        kind: a key of ``KINDS``.
        path: of the JSON file.
        results: what to keep; NaN is refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a command that is killed leaves what was there before.
    replace_file(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    print(render(kind, path))


def render(kind: str, path: Path) -> str:
    """Write the page, and the picture, of kept figures; return the page."""
    results = json.loads(path.read_text())
    text = KINDS[kind].page(results)
    path.with_suffix(".md").write_text(text)
    if (picture := KINDS[kind].picture) is not None:
        picture(path.with_suffix(".png"), results)
    return text


def kept_pages() -> Iterator[tuple[Path, str]]:
    """Every kept page, as it is to be of the kept figures."""
    for kind in KINDS.values():
        for path in sorted(BENCHMARKS.glob(kind.pattern)):
            yield path.with_suffix(".md"), kind.page(json.loads(path.read_text()))
    for kept in read(RESULTS):
        yield kept.folder / "report.md", papers_page(kept)
    yield README, readme()


def readme() -> str:
    """Return the README with its table of the kept figures."""
    parts = headline(read(RESULTS)), to_quality(), on_mnist()
    text = "\n\n".join(part for part in parts if part)
    return HEADLINE.sub(lambda _: f"{START}\n{text}\n{END}", README.read_text())


def main(results: str = str(RESULTS)) -> None:
    """Write all pages and pictures anew.

    Args:
        results: folder of the papers' tables; of another than the kept one, its pages alone.
    """
    for kept in read(results):
        (kept.folder / "report.md").write_text(papers_page(kept))
        print(kept.folder / "report.md", *pictures.save_shuffles(kept), sep="\n")
    if Path(results).resolve() == RESULTS:
        for name, kind in KINDS.items():
            for path in sorted(BENCHMARKS.glob(kind.pattern)):
                render(name, path)
        replace_file(README, readme().encode())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
