"""Every table that is kept, made of the kept figures alone.

    python -m benchmarks.tables                                  # all pages and pictures anew
    python -m benchmarks.tables --results runs/papers/results    # pages of your own runs

A page is a function of what a JSON file holds; ``KINDS`` has all of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import isfinite, nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import pandas as pd

from benchmarks import pictures
from benchmarks.denseflow.convolutions import ALONE
from benchmarks.denseflow.rows import ROWS as ABLATED
from benchmarks.denseflow.rows import TABLE, TEXT, WORSE
from benchmarks.papers.claims import Comparison
from benchmarks.papers.figures import worst_image
from benchmarks.papers.kept import RESULTS, Column, Kept, columns, command, label_of, read
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import FIGURES, ROWS, TABLES
from benchmarks.scaling.models import NAMES, WAYS

BENCHMARKS = Path(__file__).parent
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


def ratio(values: Mapping[str, float] | None) -> str:
    """Return the median and, in brackets, the smallest of the ratios of all rounds."""
    return "" if values is None else f"{values['median']:.2f} ({values['min']:.2f})"


def spread(values: Sequence[float], places: int = 3, sign: str = "", error: bool = False) -> str:
    """Return mean ± standard deviation over seeds, or ± standard error of the mean."""
    if not values:
        return ""
    center = sum(values) / len(values)
    text = f"{center:{sign if isfinite(center) else ''},.{places}f}"
    if len(values) == 1:
        return text
    deviation = stdev(values) if all(map(isfinite, values)) else nan
    return f"{text} ± {deviation / (sqrt(len(values)) if error else 1):.{places}f}"


def size(shape: Iterable[int]) -> str:
    """Return a shape as C x H x W."""
    return " x ".join(map(str, shape))


def yes(flag: Any) -> str:
    """Return "yes", or nothing."""
    return "yes" if flag else ""


def measured_on(results: Results) -> str:
    """Return rounds, clock, machine and the version of torch, as far as they are there."""
    rounds = f"medians of {results['rounds']} interleaved rounds" if "rounds" in results else ""
    clock = f" of {results['clock']}" if "clock" in results else ""
    before = f"{rounds}{clock} on " if rounds else ""
    return f"{before}{results['machine']}, torch {results['versions']['torch']}"


def skipped(results: Results) -> str:
    """Return a line for each variant that was not measured."""
    return "\n".join(f"- not measured: {n}: {why}" for n, why in results["skipped"].items())


# Speed and memory


def speed_page(results: Results) -> str:
    """Milliseconds, images a second and ratios to both floors, of each measure."""
    adds, variants, peak = results["multiply_adds"], results["variants"], results["peak_tflops"]
    text = (
        f"{results['preset']} preset, images of {size(results['image_shape'])}, "
        f"{results['num_layers']} mixer layers, batches of {results['batch_size']}, "
        f"{results['dtype']}; {measured_on(results)}. Multiply-adds of an image, forward: "
        f"{adds['floor'] / 1e9:.3f} G, collapsed {adds['collapsed floor'] / 1e9:.3f} G.\n\n"
        "The floor is the model's matrix products alone, the collapsed floor those that are left "
        "when the linear tails of conditioners are multiplied out, as the library does it. Ratios "
        "are of times of the same round, median (smallest). checkpoint and constant change "
        "training alone."
    )
    parts = []
    for kind in dict.fromkeys(k for entry in variants.values() for k in entry["measures"]):
        rows = []
        for name, entry in variants.items():
            if (timed := entry["measures"].get(kind)) is None:
                continue
            floors = [ratio(timed.get(key)) for key in ("to_floor", "to_collapsed_floor")]
            speed, count = timed["images_per_second"], entry.get("parameters")
            millions = None if count is None else count / 1e6
            used = None
            if peak and count and "to_floor" in timed:
                # Of the products that have to be made: what collapses is no work done.
                passes = 1 if kind in ("log_prob", "sampling") else 3
                used = 2 * passes * adds["collapsed floor"] * speed / (1e12 * peak)
            rows.append([name, millions, timed["milliseconds"], speed, *floors, used])
        head = f"{kind} | millions of parameters {{:.2f}} | ms {{:,.1f}} | images/s {{:,.0f}}"
        head += " | / floor | / collapsed floor"
        parts.append(table(head + (" | of bf16 peak {:.2%}" if peak else ""), rows))
    kinds = ("forward and backward", "training step")
    rows = [
        [
            name,
            entry["compile_seconds"],
            *(ratio(entry["measures"].get(kind, {}).get("to_compiled")) for kind in kinds),
        ]
        for name, entry in variants.items()
        if "compile_seconds" in entry
    ]
    head = "compiled from nothing | s {:,.0f} | " + " | ".join(f"{k} / compiled" for k in kinds)
    return page(text, *parts, table(head, rows) if rows else None, skipped(results))


def memory_page(results: Results) -> str:
    """MiB of one image at the peak of a training step, by depth."""
    small, large = results["batch_sizes"]
    text = (
        f"MiB for one image more, between batches of {small} and {large}, at the peak of forward "
        f"and backward; {results['preset']} preset, images of {size(results['image_shape'])}, "
        f"{measured_on(results)}."
    )
    head = "mixer layers" + "".join(f" | {depth} {{:.2f}}" for depth in results["depths"])
    rows = ([name, *values] for name, values in results["mib_per_image"].items())
    return page(text, table(head, rows), skipped(results))


def maf_page(results: Results) -> str:
    """Milliseconds of inverses and of one forward, and their ratio."""
    text = (
        f"Masked affine autoregressive flow, {results['hidden_features']} hidden features, one "
        f"residual block with batch normalization, {results['dtype']}; {measured_on(results)}. "
        "Ratios are median (smallest)."
    )
    head = "D | rows | inverse | forward, ms {:,.1f} | inverse, ms {:,.1f} | inverse / forward"
    rows = (
        [case["features"], case["rows"], name]
        + [timed[f"{way}_milliseconds"] for way in ("forward", "inverse")]
        + [ratio(timed["inverse_to_forward"])]
        for case in results["cases"]
        for name, timed in case["inverses"].items()
    )
    return page(text, table(head, rows), skipped(results))


def exactness_page(results: Results) -> str:
    """Errors of gradients, bits/dim in two precisions, and errors of round trips."""
    text = (
        f"{results['preset']} preset, {results['num_layers']} mixer layers, "
        f"{results['parameters']:,} parameters, {results['data']} (split "
        f"{results['split_hash']}), seed {results['seed']}; steps of {results['batch_size']} at "
        f"a rate of {results['learning_rate']:g}; {measured_on(results)}."
    )
    states, bits = results["gradient_errors"], results["bits_per_dim"]
    head = "error of the gradients" + "".join(f" | {state} {{:.1e}}" for state in states)
    first = next(iter(states.values()))
    errors = table(head, ([name, *(of[name] for of in states.values())] for name in first))
    bits = {**bits, "difference": abs(bits["bf16"] - bits["float32"])}
    evaluated = f"conditioners, {results['evaluated']} test images | bits/dim {{:.4f}}"
    trips = table(
        "round trip | largest error, of the range {:.1e}", results["round_trip_errors"].items()
    )
    return page(text, errors, table(evaluated, bits.items()), trips)


# DenseFlow


def cost_page(results: Results) -> str:
    """Times and their ratios to the convolutions alone, and the memory of an image."""
    adds = results["multiply_adds"]
    products = ", ".join(f"{value / 1e9:.2f} G in {kind}" for kind, value in adds.items())
    text = (
        f"{results['preset']}, {results['parameters']:,} parameters, images of "
        f"{size(results['image_shape'])}, batches of {results['batch_size']}, {results['dtype']}; "
        f"{measured_on(results)}. Multiply-adds of the convolutions for one image: {products}.\n\n"
        "Ratios are to the same convolutions alone in the same round, median (smallest); the "
        "invertible 1x1 convolutions are among them. Training is forward and backward."
    )
    rows = []
    for kind, variants in results["measures"].items():
        for name, timed in variants.items():
            floor = None if name == ALONE else ratio(timed["to_floor"])
            full = None if name in (ALONE, "full") else ratio(timed["to_full"])
            speed = timed["images_per_second"]
            each = timed["milliseconds"] / results["batch_size"]
            rows.append([kind, name, each, speed, floor, full, 2e-9 * adds[kind] * speed])
    head = "measure | memory | ms an image {:,.1f} | images/s {:,.2f} | / convolutions | / full"
    small, large = results["memory_batch_sizes"]
    memory = (
        f"MiB for one image more, between batches of {small} and {large}: kept for the backward "
        "pass beyond parameters and buffers, and at the peak of forward and backward:"
    )
    kept = ([name, of["kept"], of["peak"]] for name, of in results["mib_per_image"].items())
    # Their inputs were kept after all.
    inexact = f"Parts whose inverses were not exact enough: {len(results['inexact'])}."
    return page(
        text,
        table(head + " | GFLOP/s {:,.0f}", rows),
        memory,
        table("memory | kept {:,.1f} | at the peak {:,.1f}", kept),
        inexact if results["inexact"] else None,
    )


BOUNDS = ("bits_per_dim", "importance_bits_per_dim")
"""Of one draw, and importance-weighted: what a job of the ablation has."""
CHANGES = [("1", "2"), ("2", "3"), ("1", "3"), ("4", "5"), ("5", "6"), ("4", "6")]
CHANGES += [("1", "4"), ("2", "5"), ("3", "6"), *(("6", name) for name in TEXT)]
"""Pairs of rows that differ in one thing: a step of the noise, or the fusion."""


def ablation_page(results: Results) -> str:
    """Bits/dim of each row beside the published ones, and what each step changes."""
    setting, by_row = results["setting"], jobs_of(results)
    rows = []
    for name, found in by_row.items():
        row, job = ABLATED[name], found[0]
        growth = "" if job["dense_growth"] is None else f" + {job['dense_growth']}"
        rows.append(
            [TEXT.get(name, name), *map(yes, (row.augmented, row.preconditioned, row.fused))]
            + [row.published, *(spread([job[bound] for job in found]) for bound in BOUNDS)]
            + [job["parameters"], job["cross_unit_parameters"] or None]
            + [f"{job['hidden_channels']}{growth}", mean(j["train_cpu_seconds"] for j in found)]
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
                + ["yes" if (mean(weighted) < 0) == (by < 0) else "no"]
            )
    scale, recipe, data = setting["scale"], setting["recipe"], setting["data"]
    text = (
        "Published: DenseFlow-45-6 and its ablations, CIFAR-10, 310 epochs, as many modules in "
        f"each row. Here: {setting['name']} averaged down to {size(data['image_shape'])}, "
        f"{recipe['steps']} steps of {recipe['batch_size']} of {data['train_images']:,} images, "
        f"split {data['split_hash']}, Adamax at {recipe['learning_rate']:g}, as near to "
        f"{setting['parameters']:,} parameters in each row as widths allow; units "
        f"{scale['units']}, modules in each {scale['modules']}, growth {scale['growth']}, uniform "
        f"dequantization. Bits/dim of the first {setting['evaluated_images']:,} test images; mean "
        f"± standard deviation over seeds. {measured_on(results)}. Only what changes from row to "
        "row is to be compared with the paper. Width: hidden channels, and growth of the dense "
        "block."
    )
    here = f"here, one draw | here, {setting['draws']} draws"
    head = (
        f"row | augmentation | preconditioned noise | two-way fusion | published {{:.2f}} | {here}"
    )
    sizes = " | parameters {:,} | cross-unit {:,} | width | CPU s {:.0f}"
    claims = ablation_claims(by_row)
    return page(
        text,
        table(head + sizes, rows),
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
    costs = []
    for key, unit, form in [("cpu_seconds", 1e3, "{:,.1f}"), ("multiply_adds", 1e-6, "{:,.1f}")]:
        lines = (
            [NAMES[e["model"]], WAYS[e["way"]]]
            + [unit * rows[e["model"], e["way"], side][key] for side in sizes]
            + [e[key], e[f"last_{key}"]]
            + [rows[e["model"], e["way"], sizes[-1]]["parameters"]]
            for e in results["exponents"]
        )
        head = "flow | at | " + " | ".join(f"{side} x {side} {form}" for side in sizes)
        head += " | exponent {:.2f} | of the last {:.2f} | parameters, largest {:,}"
        costs.append(table(head, lines))
    batches = {row["batch_size"] for row in results["rows"]}
    text = (
        "The exponent is the slope of the logarithm of the cost on that of the number of pixels, "
        "fitted to all sizes; the last is that between the two largest. MixerFlows of "
        f"{results['layers']} layers with {results['flow_layers']} flow layers in each flow, a "
        f"Glow of {results['glow_steps']} steps with {results['glow_channels']} hidden channels; "
        f"{results['pixels_per_batch']:,} pixels in a batch, of {max(batches):,} to "
        f"{min(batches):,} images; {results['data']}; seed {results['seed']}; "
        f"{measured_on(results)}."
    )
    step = "CPU time of one training step for one image, in ms:"
    return page(step, costs[0], "Multiply-adds of the same, in millions:", costs[1], text)


def likelihood_page(results: Results) -> str:
    """Bits/dim of MixerFlows that differ in the linear block."""
    model, budget, runs = results["model"], results["budget"], pd.DataFrame(results["runs"])
    rows = []
    for linear, of in runs.groupby("linear", sort=False):
        bits = of["bits_per_dim"].tolist()
        row = [NAMES[str(linear)], of["parameters"].iloc[0], *bits, spread(bits, error=True)]
        rows.append([*row, of["train_cpu_seconds"].mean()])
    text = (
        f"Bits/dim of the first {results['evaluated_images']:,} test images of {results['name']}, "
        "one dequantization draw each; ± the standard error of the mean over seeds. "
        f"{model['num_layers']} layers, {model['num_flow_layers']} flow layers in each flow, "
        f"{model['hidden_features']} hidden features, patches of {model['patch_size']} x "
        f"{model['patch_size']} (rows of {3 * model['patch_size'] ** 2}); {budget['steps']} steps "
        f"of {budget['batch_size']} of {results['train_images']:,} training images, rate "
        f"{budget['learning_rate']:g}, split {results['split_hash']}; {measured_on(results)}."
    )
    seeds = " | ".join(f"seed {seed} {{:.3f}}" for seed in results["seeds"])
    head = f"linear block | parameters {{:,}} | {seeds} | mean | CPU s to train {{:.0f}}"
    return page(table(head, rows), text)


def loading_page(results: Results) -> str:
    """Images a second, through the loader."""
    speeds = results["loader_images_per_second"].items()
    rows = ([name, speed, results["ratio"][name]] for name, speed in speeds)
    head = "images | a second, through the loader {:,.0f} | times the training rate {:,.0f}"
    text = (
        f"Training, cifar10 preset: {results['training_images_per_second']:.1f} images a second. "
        f"Batches of {results['batch_size']}; {measured_on(results)}."
    )
    return page(table(head, rows), text)


# Precision and compatibility, pages of the documentation


def precision_page(results: Results) -> str:
    """Round trips, log-determinants, singular values and integrals."""
    models, found = results["models"], results["two_pixels"]
    trips = "precision | images | largest, levels {:.1e} | mean, levels {:.1e} | largest, of the "
    trips += "range {:.1e} | mean, of the range {:.1e} | log-det, nats {:.1e} | not finite {:.3%}"
    (low, high), far = found["square"], found["far"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return page(
        "# How precise the figures are",
        "Made by `python -m benchmarks.precision.run`; not written by hand.",
        "*Round trip* is |x - inverse(forward(x))| of dequantized images x, in pixel levels and as "
        "a part of their range. *Log-det* is its largest difference, in nats, from that of "
        "autograd's Jacobian in float64. *Not finite* is the share of latents, log-dets and pixels "
        "that are NaN or infinite; errors are of the images of which nothing is. All are of flows "
        "in evaluation mode. Autocast reaches the conditioners only, and those of an untrained "
        "flow answer zero in any precision. *bf16 autocast* has it in both directions, the rows "
        "below it in forward alone: there the inverse, in float32, undoes a slightly different "
        "function. *Uniform noise*, *constant* images, *checkerboards* and *inverted* test images "
        "are like nothing that the flows have seen.",
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
        "Of the deterministic part, `flow.deterministic`; differences in nats, of the samples of "
        "which everything is finite.",
        table(
            "flow | precision | samples | largest {:.1e} | mean {:.1e} | not finite {:.3%}",
            (row for model in models for row in _own_samples(model)),
        ),
        "## Singular values of the Jacobian by depth",
        "Of the flow up to each layer, from dequantized pixels on, in float64: the largest; the "
        "smallest, over the images of a kind. Errors of rounding grow by up to their ratio.",
        "![Largest and smallest singular values by depth](precision.png)",
        *(f"### {model['name']}\n\n{_singular_values(model)}" for model in models),
        "## Flows of two pixels: the integral of the density",
        f"In float64, over the square from {low:g} to {high:g} by {found['points']:,} points a "
        "side, dense in the middle. What lies in the pixels' range of "
        f"{found['levels']} levels is integrated too, and is the sum over all "
        f"{found['levels'] ** 2} images of P(x), here with {found['draws']:,} importance-weighted "
        "draws each (± the standard error): at most 1. Flows are moved off their start by "
        f"{found['moved']:g}, or trained for {found['steps']} steps on toy images, whose entropy "
        f"is {found['entropy_bits_per_dim']:.3f} bits/dim; seed {found['seed']}. The last column "
        f"is the share of an even grid from {-far:g} to {far:g} where the log-density is NaN or "
        "infinite: far from the data an exponential scale overflows.",
        table(
            "flow | bits/dim {:.3f} | integral {:.8f} | with half the points {:.8f} | mass of the "
            f"range {{:.8f}} | sum over images | not finite out to {far:g} {{:.3%}}",
            map(_integral, found["rows"]),
        ),
        f"{results['device']}; {versions}; {results['seconds']} seconds for the whole page.",
    )


def _model(model: Results) -> list[Any]:
    made = f"{model['made']}, seed {model['seed']}" if "seed" in model else model["made"]
    if "recipe" in model:
        recipe, bits = model["recipe"], model["bits_per_dim"]["test"]
        made += f", {recipe['steps']} steps of {recipe['batch_size']}"
        made += f" at {recipe['learning_rate']:g}: {bits:.3f} bits/dim of the test images"
    data = f"{model['data']}, {size(model['image_shape'])}, {model['levels']} levels"
    data += f", split {model['split_hash']}" if "split_hash" in model else ""
    return [model["name"], model["parameters"], data, made]


def _either(figure: Results, name: str, scale: float = 1) -> Any:
    """A figure, or why there is none."""
    return figure["why"] if figure[name] is None else figure[name] / scale


def _round_trips(model: Results) -> Iterator[list[Any]]:
    for name, precision in model["precisions"].items():
        if "why" in precision:
            yield [name, precision["why"]]
            continue
        for kind, figures in precision["inputs"].items():
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
    return table(
        " | ".join(["up to layer", *(f"{k} ({entry['images']})" for k, entry in kinds.items())]),
        rows,
    )


def _integral(row: Results) -> list[Any]:
    parts = ("integral", "half the points", "mass of the range")
    images = f"{row['sum over all images']:.4f} ± {row['standard error']:.4f}"
    integrals = [_either(row[part], "value") for part in parts]
    return [row["flow"], row.get("bits_per_dim"), *integrals, images, row["not finite far away"]]


def compatibility_page(results: Results) -> str:
    """Which flows can be a channel or a patch flow, and which cannot and why."""
    parts = [
        "# Which flows can be a channel or a patch flow",
        "Made by `python -m benchmarks.compatibility.run`; not written by hand. "
        f"{results['machine']}.",
        "Correctness is measured on images of 1 x 4 x 6 in patches of 2 (rows of 4 and of 6), at "
        "parameters moved off their start by a standard deviation of 0.05; times on 4 images of "
        "3 x 32 x 32 in patches of 4 (rows of 48 and of 64), without gradients, on one thread, "
        "relative to this package's affine coupling in the same place, measured right before each "
        "row, and good to about a factor of two. Errors are the larger of the two places, relative "
        "to max(1, |value|); times are given as channel flow; as patch flow. *Compiles*: the "
        "forward pass, in one graph.",
    ]
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
    compiles = "yes" if all(place["compiles"] for place in places) else "no"
    logabsdet = max(place["logabsdet"] for place in places)
    return [
        row["name"],
        *trips,
        logabsdet,
        *times,
        yes(row["context"]),
        compiles,
        row.get("reason"),
    ]


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
        [MODELS[name].label, 1000 * seconds, results["ratios"][name]["median"]]
        for name, seconds in sorted(results["seconds"].items(), key=lambda item: item[1])
    )
    head = f"model | training step of {results['batch_size']} images, ms {{:.0f}}"
    text = (
        f"CPU time, images of 3 x 16 x 16; {measured_on(results)}, {results['date']}. "
        "`python -m benchmarks.papers.step_time`"
    )
    return page(table(head + " | median ratio within a round to Glow's {:.2f}", rows), text)


DECIMALS = {"probe_accuracy": 2, "training_hours": 0, "fid": 2}
"""Figure -> places behind the point, where they are not three."""
VERDICTS = ("as published", "undecided", "the other way", "not finite", "one seed")
SHUFFLE = (
    "Published costs of a shuffle take the figures without a shuffle from Table 1, which are of "
    "smaller baselines."
)
NOTES = {
    "mixerflow-4": SHUFFLE,
    "mixerflow-5": SHUFFLE,
    "mixerflow-9": "Scaled down, 30 layers are 4 and 60 layers 8. The row of both, linear blocks "
    "and shift layers, is MixerFlow with this table's learning rate; its published figure is that "
    "of Table 1.",
    "denseflow-2": "Here: what the published training would take at the speed of the run.",
}
"""Table -> what has to be known beside it."""


def counted(claims: Iterable[Comparison]) -> str:
    """Return how many claims come out in which way; those of one seed are decided in none."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])


def papers_page(kept: Kept) -> str:
    """Return all tables of one size and budget that have a result, and what they claim."""
    found = [c for c in columns(kept.size) if any(kept.figures(row) for _, row in c.rows)]
    claims = {column: column.claims(kept) for column in found}
    small = " of scaled-down models on images averaged down to 16 x 16 (MNIST: 28 x 28)"
    parts: list[str] = [
        f"# {'Published sizes' if kept.size == 'paper' else 'Scaled down'}, budget {kept.budget}",
        "Made by `python -m benchmarks.tables`; not written by hand.",
        "Published figures are of full-size models and full training; ours are of the budget"
        f"{small if kept.size == 'small' else ''}. What can be compared is the order of rows and "
        "what changes between them. Ours are means ± standard deviations over seeds; differences "
        "are means ± standard errors, of seeds that both rows have, above 0 as published. "
        "Undecided is what the 95% interval of Student's t has 0 in; of one seed nothing is "
        "decided. The row in brackets is the best of three simple models of the same images "
        "(uniform, a histogram of each pixel, a normal distribution with full covariance). Seconds "
        "are wall times of one thread beside other work.",
        table("table | differences", ([_title(c), counted(of)] for c, of in claims.items() if of)),
    ]
    for column in found:
        parts += [f"## {_title(column)}", _figures(column, kept), NOTES.get(column.table, "")]
        parts += _failures(column, kept)
        rows = (
            [c.words, c.published, spread(c.here, sign="+", error=True), len(c.here), c.verdict]
            for c in claims[column]
        )
        if claims[column]:
            parts.append(table("claim | published: by {:+.2f} | ours: by | seeds | verdict", rows))
        parts.append(_setting(column, kept))
    if kept.left_out:
        parts.append(f"Left out: {kept.left_out} of other images than the tables'.")
    return page(*parts)


def _title(column: Column) -> str:
    version = f" of the {column.version} version" if column.version else ""
    return f"{TABLES[column.table]} ({column.data}{version}, {FIGURES[column.figure]})"


def _figures(column: Column, kept: Kept) -> str:
    places, rows = DECIMALS.get(column.figure, 3), []
    for original, row in column.rows:
        results = kept.having(row)
        cells = [label_of(row), original.published, MODELS[original.run.model].parameters]
        cells.append(spread(kept.figures(row), places) or "not run")
        if results:
            worst = [worst_image(row, result) for result in results]
            counts = dict.fromkeys(f"{result['parameters']:,}" for result in results)
            cells += [", ".join(counts), len(results)]
            cells.append(max(worst) if all(map(isfinite, worst)) else nan)
            cells += [
                mean(r[key] for r in results) for key in ("train_seconds", "images_per_second")
            ]
        rows.append(cells)
    if reference := column.reference(kept):
        rows.append([f"({reference[0]})", None, None, f"{reference[1]:.{places}f}"])
    head = f"model | published {{:.{min(places, 2)}f}} | published, millions of parameters {{:.4g}}"
    head += " | ours | parameters | seeds | worst image, bits/dim {:.2f} | training, s {:,.0f}"
    return table(head + " | images/s {:,.0f}", rows)


def _failures(column: Column, kept: Kept) -> list[str]:
    failed = [
        f"{label_of(row)}, seed {seed} ({why.split(':')[0]})"
        for _, row in column.rows
        for (name, seed), why in sorted(kept.failed.items())
        if name == row.run.name
    ]
    text = "In no mean above, as the loss was not finite: " + "; ".join(failed) + "."
    return [text] if failed else []


def _setting(column: Column, kept: Kept) -> str:
    """How the results of a table were made."""
    results = [result for _, row in column.rows for result in kept.having(row)]
    facts: list[list[str]] = [[] for _ in range(7)]
    for result in results:
        recipe, data = result["recipe"], result["data"]
        where = f"{data['data']} {data['version']}".strip()
        for texts, text in zip(
            facts,
            (
                f"{result['steps']:,} steps of {recipe['batch_size']} images",
                f"{recipe['optimizer'].capitalize()} at {recipe['learning_rate']:g}",
                f"{where}, split {data['split_hash']}, {data['train_images']:,} images of "
                f"{size(data['image_shape'])} to train on",
                _evaluated(result, column.figure),
                result["machine"],
                f"torch {result['versions']['torch']}",
                result["date"],
            ),
        ):
            texts.append(text)
    seeds = {result["seed"] for result in results}
    asked = command(kept.size, kept.budget, f"{column.table}-{column.data}", seeds)
    return "; ".join(", ".join(dict.fromkeys(texts)) for texts in facts) + f". `{asked}`"


def _evaluated(result: Results, figure: str) -> str:
    if figure == "importance_bits_per_dim":
        bound = result[figure]
        return f"figures of {bound['test_images']:,} test images, {bound['draws']:,} draws of each"
    if figure.startswith("probe"):
        probe = result["probe"]
        return f"probes of {probe['train_images']:,} images, {probe['test_images']:,} test images"
    part, count = list(result["evaluated_images"].items())[-1]
    return f"figures of {count:,} {part} images"


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
    "cost": Kind("denseflow/results/cost-*.json", cost_page, pictures.save_cost),
    "ablation": Kind("denseflow/results/ablation-*.json", ablation_page, pictures.save_ablation),
    "scaling": Kind("scaling/results.json", scaling_page, pictures.save_scaling),
    "likelihood": Kind("scaling/likelihood.json", likelihood_page),
    "loading": Kind("loading/results.json", loading_page),
    "parameters": Kind("papers/results/parameters.json", parameters_page),
    "step times": Kind("papers/results/step-times.json", step_times_page),
    "precision": Kind("../docs/precision.json", precision_page, pictures.save_singular_values),
    "compatibility": Kind("../docs/compatibility.json", compatibility_page),
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
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    whole.replace(path)
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


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
