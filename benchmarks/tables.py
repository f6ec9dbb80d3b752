"""Every table that is kept, made of the kept figures alone.

    python -m benchmarks.tables                             # all pages and pictures anew
    python -m benchmarks.tables --results runs/papers/results   # pages of your own papers' tables

A page is a function of what a JSON file holds; ``KINDS`` has all of them.
"""

from __future__ import annotations

import json
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
from benchmarks.papers.rows import FIGURES, ROWS, TABLES, Row
from benchmarks.scaling.models import NAMES, WAYS

BENCHMARKS = Path(__file__).parent
Results = Mapping[str, Any]


# Numbers and tables


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of rows, whose keys are the columns; a row may lack some."""
    frame = pd.DataFrame(list(rows), dtype=object).fillna("")
    return frame.to_markdown(index=False, disable_numparse=True) + "\n"


def ratio(values: Mapping[str, float] | None) -> str:
    """Return the median and, in brackets, the smallest of the ratios of all rounds."""
    return "" if values is None else f"{values['median']:.2f} ({values['min']:.2f})"


def spread(values: Sequence[float], places: int = 3, sign: str = "", error: bool = False) -> str:
    """Return mean ± standard deviation over seeds, or ± standard error of the mean.

    Args:
        values: one of each seed.
        places: behind the point.
        sign: "+" to show that of the mean.
        error: whether it is the standard error.
    """
    if not values:
        return ""
    center = sum(values) / len(values)
    text = f"{center:{sign if isfinite(center) else ''},.{places}f}"
    if len(values) == 1:
        return text
    deviation = stdev(values) if all(map(isfinite, values)) else nan
    return f"{text} ± {deviation / (sqrt(len(values)) if error else 1):.{places}f}"


def number(value: float | None, why: str = "") -> str:
    """Return two digits of a figure, or why there is none."""
    return why if value is None else f"{value:.1e}"


def share(value: float) -> str:
    """Return a share in per cent."""
    return "0" if value == 0 else f"{100 * value:.3g}%"


def size(shape: Iterable[int]) -> str:
    """Return a shape as C x H x W."""
    return " x ".join(map(str, shape))


def on_what(results: Results) -> str:
    """Return the machine and the version of torch."""
    return f"{results['machine']}, torch {results['versions']['torch']}"


def skipped(results: Results) -> list[str]:
    """Return a line for each variant that was not measured."""
    return [f"- not measured: {name}: {why}" for name, why in results["skipped"].items()]


# Speed and memory


def speed_page(results: Results) -> str:
    """Milliseconds, images a second and ratios to both floors, of each measure."""
    adds, variants = results["multiply_adds"], results["variants"]
    parts = [
        f"{results['preset']} preset, images of {size(results['image_shape'])}, "
        f"{results['num_layers']} mixer layers, batches of {results['batch_size']}, "
        f"{results['dtype']}; medians of {results['rounds']} interleaved rounds of "
        f"{results['clock']} on {on_what(results)}. Multiply-adds of an image, forward: "
        f"{adds['floor'] / 1e9:.3f} G, collapsed {adds['collapsed floor'] / 1e9:.3f} G.\n",
        "The floor is the model's matrix products alone, the collapsed floor those that are left "
        "when the linear tails of conditioners are multiplied out, as the library does it. Ratios "
        "are of times of the same round, median (smallest). checkpoint and constant change "
        "training alone.\n",
    ]
    for kind in dict.fromkeys(k for entry in variants.values() for k in entry["measures"]):
        rows = []
        for name, entry in variants.items():
            if kind not in entry["measures"]:
                continue
            timed, parameters = entry["measures"][kind], entry.get("parameters")
            row = {
                kind: name,
                "parameters": "" if parameters is None else f"{parameters / 1e6:.2f} M",
                "ms": f"{timed['milliseconds']:,.1f}",
                "images/s": f"{timed['images_per_second']:,.0f}",
                "/ floor": ratio(timed.get("to_floor")),
                "/ collapsed floor": ratio(timed.get("to_collapsed_floor")),
            }
            if results["peak_tflops"] and parameters is not None and "to_floor" in timed:
                # Of the products that have to be made: what collapses is no work done.
                passes = 1 if kind in ("log_prob", "sampling") else 3
                rate = 2 * passes * adds["collapsed floor"] * timed["images_per_second"]
                row["% of bf16 peak"] = f"{1e-10 * rate / results['peak_tflops']:.2f}"
            rows.append(row)
        parts.append(markdown(rows))
    rows = []
    for name, entry in variants.items():
        ratios = {
            k: ratio(m["to_compiled"]) for k, m in entry["measures"].items() if "to_compiled" in m
        }
        seconds = entry.get("compile_seconds")
        if seconds is not None:
            ratios = {f"{kind} / compiled": value for kind, value in ratios.items()}
            rows.append({"variant": name, "s to compile": f"{seconds:,.0f}", **ratios})
    return "\n".join([*parts, *([markdown(rows)] if rows else []), *skipped(results)])


def memory_page(results: Results) -> str:
    """MiB of one image at the peak of a training step, by depth."""
    small, large = results["batch_sizes"]
    text = (
        f"MiB for one image more, between batches of {small} and {large}, at the peak of forward "
        f"and backward; {results['preset']} preset, images of {size(results['image_shape'])}, "
        f"{on_what(results)}.\n"
    )
    rows = [
        {
            "mixer layers": name,
            **{
                str(depth): "" if value is None else f"{value:.2f}"
                for depth, value in zip(results["depths"], values)
            },
        }
        for name, values in results["mib_per_image"].items()
    ]
    return "\n".join([text, markdown(rows), *skipped(results)])


def maf_page(results: Results) -> str:
    """Milliseconds of inverses and of one forward, and their ratio."""
    text = (
        f"Masked affine autoregressive flow, {results['hidden_features']} hidden features, one "
        f"residual block with batch normalization, {results['dtype']}; medians of "
        f"{results['rounds']} interleaved rounds of {results['clock']} on {on_what(results)}. "
        "Ratios are median (smallest).\n"
    )
    rows = [
        {
            "D": case["features"],
            "rows": case["rows"],
            "inverse": name,
            "forward, ms": f"{timed['forward_milliseconds']:,.1f}",
            "inverse, ms": f"{timed['inverse_milliseconds']:,.1f}",
            "inverse / forward": ratio(timed["inverse_to_forward"]),
        }
        for case in results["cases"]
        for name, timed in case["inverses"].items()
    ]
    return "\n".join([text, markdown(rows), *skipped(results)])


def exactness_page(results: Results) -> str:
    """Errors of gradients, bits/dim in two precisions, and errors of round trips."""
    text = (
        f"{results['preset']} preset, {results['num_layers']} mixer layers, "
        f"{results['parameters']:,} parameters, {results['data']} (split "
        f"{results['split_hash']}), seed {results['seed']}; steps of {results['batch_size']} at "
        f"a rate of {results['learning_rate']:g}; {on_what(results)}.\n"
    )
    states, bits = results["gradient_errors"], results["bits_per_dim"]
    errors = [
        {"error of the gradients": name, **{s: f"{of[name]:.1e}" for s, of in states.items()}}
        for name in next(iter(states.values()))
    ]
    difference = {"difference": abs(bits["bf16"] - bits["float32"])}
    head = f"conditioners, {results['evaluated']} test images"
    precision = [{head: k, "bits/dim": f"{v:.4f}"} for k, v in {**bits, **difference}.items()]
    trips = [
        {"round trip": name, "largest error, of the range": f"{value:.1e}"}
        for name, value in results["round_trip_errors"].items()
    ]
    return "\n".join([text, *map(markdown, (errors, precision, trips))])


# DenseFlow


def cost_page(results: Results) -> str:
    """Times and their ratios to the convolutions alone, and the memory of an image."""
    adds = results["multiply_adds"]
    text = (
        f"{results['preset']}, {results['parameters']:,} parameters, images of "
        f"{size(results['image_shape'])}, batches of {results['batch_size']}, {results['dtype']}; "
        f"medians of {results['rounds']} interleaved rounds of {results['clock']} on "
        f"{on_what(results)}. Multiply-adds of the convolutions for one image: "
        + ", ".join(f"{value / 1e9:.2f} G in {kind}" for kind, value in adds.items())
        + ".\n\nRatios are to the same convolutions alone in the same round, median (smallest); "
        "the invertible 1x1 convolutions are among them. Training is forward and backward.\n"
    )
    rows = [
        {
            "measure": kind,
            "memory": name,
            "ms an image": f"{timed['milliseconds'] / results['batch_size']:,.1f}",
            "images/s": f"{timed['images_per_second']:,.2f}",
            "/ convolutions": ratio(None if name == ALONE else timed["to_floor"]),
            "/ full": ratio(None if name in (ALONE, "full") else timed["to_full"]),
            "GFLOP/s": f"{2 * adds[kind] * timed['images_per_second'] / 1e9:,.0f}",
        }
        for kind, variants in results["measures"].items()
        for name, timed in variants.items()
    ]
    small, large = results["memory_batch_sizes"]
    memory = (
        f"MiB for one image more, between batches of {small} and {large}: kept for the backward "
        "pass beyond parameters and buffers, and at the peak of forward and backward:\n"
    )
    kept = [
        {"memory": name, "kept": f"{of['kept']:,.1f}", "at the peak": f"{of['peak']:,.1f}"}
        for name, of in results["mib_per_image"].items()
    ]
    parts = [text, markdown(rows), memory, markdown(kept)]
    if results["inexact"]:
        # Their inputs were kept after all.
        parts.append(f"Parts whose inverses were not exact enough: {len(results['inexact'])}.\n")
    return "\n".join(parts)


BOUNDS = ("bits_per_dim", "importance_bits_per_dim")
"""Of one draw, and importance-weighted: what a job of the ablation has."""
CHANGES = (
    *(("1", "2"), ("2", "3"), ("1", "3"), ("4", "5"), ("5", "6"), ("4", "6")),
    *(("1", "4"), ("2", "5"), ("3", "6")),
    *(("6", name) for name in TEXT),
)
"""Pairs of rows that differ in one thing: a step of the noise, or the fusion."""


def ablation_page(results: Results) -> str:
    """Bits/dim of each row beside the published ones, and what each step changes."""
    setting, jobs = results["setting"], results["jobs"]
    by_row = {name: [job for job in jobs if job["row"] == name] for name in ABLATED}
    by_row = {name: found for name, found in by_row.items() if found}
    once, weighted = "here, one draw", f"here, {setting['draws']} draws"
    rows = []
    for name, found in by_row.items():
        row, first = ABLATED[name], found[0]
        growth = "" if first["dense_growth"] is None else f" + {first['dense_growth']}"
        flags = {
            "augmentation": row.augmented,
            "preconditioned noise": row.preconditioned,
            "two-way fusion": row.fused,
        }
        rows.append(
            {
                "row": TEXT.get(name, name),
                **{flag: "yes" if there else "" for flag, there in flags.items()},
                "published": "" if row.published is None else f"{row.published:.2f}",
                once: spread([job[BOUNDS[0]] for job in found]),
                weighted: spread([job[BOUNDS[1]] for job in found]),
                "parameters": f"{first['parameters']:,}",
                "cross-unit": f"{first['cross_unit_parameters']:,}".removeprefix("0"),
                "width": f"{first['hidden_channels']}{growth}",
                "CPU s": f"{mean(job['train_cpu_seconds'] for job in found):.0f}",
            }
        )
    changes = []
    for one, other in CHANGES:
        found = [_changes(by_row, one, other, bound) for bound in BOUNDS]
        if found[1]:
            published = ABLATED[other].published
            by = WORSE if published is None else published - (ABLATED[one].published or nan)
            changes.append(
                {
                    "from row to row": f"{one} → {TEXT.get(other, other)}",
                    "published": f"{by:+.2f}",
                    once: spread(found[0], sign="+"),
                    weighted: spread(found[1], sign="+"),
                    "each seed": ", ".join(f"{value:+.3f}" for value in found[1]),
                    "same sign": "yes" if (mean(found[1]) < 0) == (by < 0) else "no",
                }
            )
    claims = ablation_claims(by_row)
    scale, recipe, data = setting["scale"], setting["recipe"], setting["data"]
    text = (
        "Published: DenseFlow-45-6 and its ablations, CIFAR-10, 310 epochs, as many modules in "
        f"each row. Here: {setting['name']} averaged down to {size(data['image_shape'])}, "
        f"{recipe['steps']} steps of {recipe['batch_size']} of {data['train_images']:,} images, "
        f"split {data['split_hash']}, Adamax at {recipe['learning_rate']:g}, as near to "
        f"{setting['parameters']:,} parameters in each row as widths allow; units "
        f"{scale['units']}, modules in each {scale['modules']}, growth {scale['growth']}, uniform "
        f"dequantization. Bits/dim of the first {setting['evaluated_images']:,} test images; mean "
        f"± standard deviation over seeds. {on_what(results)}. Only what changes from row to row "
        "is to be compared with the paper. Width: hidden channels, and growth of the dense "
        "block.\n"
    )
    parts = [text, markdown(rows)]
    if changes:
        parts.append(markdown(changes))
    if claims:
        parts.append(f"Pairs of rows in the published order: {counted(claims)}.\n")
    return "\n".join(parts)


def _changes(by_row: Mapping[str, list[Results]], one: str, other: str, bound: str) -> list[float]:
    """From one row to another, of each seed that both have."""
    start = {job["seed"]: job[bound] for job in by_row.get(one, ())}
    jobs = by_row.get(other, ())
    return [job[bound] - start[job["seed"]] for job in jobs if job["seed"] in start]


def ablation_claims(by_row: Mapping[str, list[Results]]) -> list[Comparison]:
    """Return the pairs of rows of Table 4, by importance-weighted bits/dim."""
    found = []
    for pair in combinations([name for name in TABLE if name in by_row], 2):
        published = {name: ABLATED[name].published or nan for name in pair}
        better, worse = sorted(pair, key=lambda name: published[name])
        here = _changes(by_row, better, worse, BOUNDS[1])
        if here:
            words = f"{better} better than {worse}"
            by = round(published[worse] - published[better], 4)
            found.append(Comparison(words, by, tuple(here)))
    return found


# Image size, linear blocks, loading


def scaling_page(results: Results) -> str:
    """Cost of an image by its size."""
    rows = {(row["model"], row["way"], row["size"]): row for row in results["rows"]}
    sizes = sorted({row["size"] for row in results["rows"]})
    parts = []
    for key, title, unit in [
        ("cpu_seconds", "CPU time of one training step for one image, in ms:\n", 1e3),
        ("multiply_adds", "Multiply-adds of the same, in millions:\n", 1e-6),
    ]:
        lines = []
        for entry in results["exponents"]:
            model, way = entry["model"], entry["way"]
            costs = {f"{s} x {s}": f"{unit * rows[model, way, s][key]:,.1f}" for s in sizes}
            exponents = {
                "exponent": f"{entry[key]:.2f}",
                "of the last": f"{entry[f'last_{key}']:.2f}",
            }
            count = f"{rows[model, way, sizes[-1]]['parameters']:,}"
            named = {"flow": NAMES[model], "at": WAYS[way], "parameters, largest": count}
            lines.append({**named, **costs, **exponents})
        parts += [title, markdown(lines)]
    batches = {row["batch_size"] for row in results["rows"]}
    parts.append(
        "The exponent is the slope of the logarithm of the cost on that of the number of pixels, "
        "fitted to all sizes; the last is that between the two largest. MixerFlows of "
        f"{results['layers']} layers with {results['flow_layers']} flow layers in each flow, a "
        f"Glow of {results['glow_steps']} steps with {results['glow_channels']} hidden channels; "
        f"{results['pixels_per_batch']:,} pixels in a batch, of {max(batches):,} to "
        f"{min(batches):,} images; {results['data']}; medians of {results['rounds']} interleaved "
        f"rounds, seed {results['seed']}, {on_what(results)}.\n"
    )
    return "\n".join(parts)


def likelihood_page(results: Results) -> str:
    """Bits/dim of MixerFlows that differ in the linear block."""
    model, budget = results["model"], results["budget"]
    rows = []
    for linear in dict.fromkeys(run["linear"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["linear"] == linear]
        seeds = {f"seed {run['seed']}": f"{run['bits_per_dim']:.3f}" for run in runs}
        rows.append(
            {
                "linear block": NAMES[linear],
                "parameters": f"{runs[0]['parameters']:,}",
                **seeds,
                "mean": spread([run["bits_per_dim"] for run in runs], error=True),
                "CPU s to train": f"{mean(run['train_cpu_seconds'] for run in runs):.0f}",
            }
        )
    text = (
        f"Bits/dim of the first {results['evaluated_images']:,} test images of {results['name']}, "
        "one dequantization draw each; ± the standard error of the mean over seeds. "
        f"{model['num_layers']} layers, {model['num_flow_layers']} flow layers in each flow, "
        f"{model['hidden_features']} hidden features, patches of {model['patch_size']} x "
        f"{model['patch_size']} (rows of {3 * model['patch_size'] ** 2}); {budget['steps']} steps "
        f"of {budget['batch_size']} of {results['train_images']:,} training images, rate "
        f"{budget['learning_rate']:g}, split {results['split_hash']}; {on_what(results)}.\n"
    )
    return "\n".join([markdown(rows), text])


def loading_page(results: Results) -> str:
    """Images a second, through the loader."""
    rows = [
        {
            "images": name,
            "a second, through the loader": f"{speed:,.0f}",
            "times the training rate": f"{results['ratio'][name]:,.0f}",
        }
        for name, speed in results["loader_images_per_second"].items()
    ]
    text = (
        f"Training, cifar10 preset: {results['training_images_per_second']:.1f} images a second. "
        f"Batches of {results['batch_size']}, medians of {results['rounds']} interleaved rounds "
        f"on {on_what(results)}.\n"
    )
    return "\n".join([markdown(rows), text])


# Precision and compatibility, pages of the documentation


def precision_page(results: Results) -> str:
    """Round trips, log-determinants, singular values and integrals."""
    models = results["models"]
    parts = [
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
        "## What was measured",
        markdown(map(_model, models)),
    ]
    for model in models:
        parts += [f"## Round trip and log-det: {model['name']}", markdown(_round_trips(model))]
    parts += [
        "## Own samples: log_prob against sample_and_log_prob",
        "Of the deterministic part, `flow.deterministic`; differences in nats, of the samples of "
        "which everything is finite.",
        markdown(row for model in models for row in _own_samples(model)),
        "## Singular values of the Jacobian by depth",
        "Of the flow up to each layer, from dequantized pixels on, in float64: the largest; the "
        "smallest, over the images of a kind. Errors of rounding grow by up to their ratio.",
        "![Largest and smallest singular values by depth](precision.png)",
    ]
    for model in models:
        parts.append(f"### {model['name']}")
        why = model["jacobian"].get("why")
        parts.append(f"None: {why}." if why else markdown(_singular_values(model)))
    found = results["two_pixels"]
    low, high = found["square"]
    parts += [
        "## Flows of two pixels: the integral of the density",
        f"In float64, over the square from {low:g} to {high:g} by {found['points']:,} points a "
        "side, dense in the middle. What lies in the pixels' range of "
        f"{found['levels']} levels is integrated too, and is the sum over all "
        f"{found['levels'] ** 2} images of P(x), here with {found['draws']:,} importance-weighted "
        "draws each (± the standard error): at most 1. Flows are moved off their start by "
        f"{found['moved']:g}, or trained for {found['steps']} steps on toy images, whose entropy "
        f"is {found['entropy_bits_per_dim']:.3f} bits/dim; seed {found['seed']}. The last column "
        f"is the share of an even grid from {-found['far']:g} to {found['far']:g} where the "
        "log-density is NaN or infinite: far from the data an exponential scale overflows.",
        markdown(_integrals(found)),
        f"{results['device']}; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + f"; {results['seconds']} seconds for the whole page.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _model(model: Results) -> dict[str, str]:
    made = f"{model['made']}, seed {model['seed']}" if "seed" in model else model["made"]
    if "recipe" in model:
        recipe, bits = model["recipe"], model["bits_per_dim"]["test"]
        made += (
            f", {recipe['steps']} steps of {recipe['batch_size']} at {recipe['learning_rate']:g}, "
            f"{model['train_seconds']:.0f} s: {bits:.3f} bits/dim of the test images"
        )
    data = f"{model['data']}, {size(model['image_shape'])}, {model['levels']} levels"
    data += f", split {model['split_hash']}" if "split_hash" in model else ""
    return {
        "flow": model["name"],
        "parameters": f"{model['parameters']:,}",
        "images": data,
        "how it was made": made,
    }


def _round_trips(model: Results) -> Iterator[dict[str, str]]:
    for name, precision in model["precisions"].items():
        if "why" in precision:
            yield {"precision": name, "images": precision["why"]}
            continue
        for kind, figures in precision["inputs"].items():
            error, levels = figures["round_trip"], model["levels"]
            logabsdet = figures.get("logabsdet", {"largest": None, "why": "not computed"})
            row = {"precision": name, "images": f"{figures['images']} {kind}"}
            for unit, scale in (("levels", 1), ("of the range", levels)):
                for key in ("largest", "mean"):
                    value = None if error[key] is None else error[key] / scale
                    row[f"{key}, {unit}"] = number(value, error.get("why", ""))
            row["log-det, nats"] = number(logabsdet["largest"], logabsdet.get("why", ""))
            yield {**row, "not finite": share(figures["non_finite"])}


def _own_samples(model: Results) -> Iterator[dict[str, str]]:
    for name, precision in model["precisions"].items():
        row = {"flow": model["name"], "precision": name}
        if "why" in precision:
            yield {**row, "samples": precision["why"]}
            continue
        own = precision["own_samples"]
        error = own["difference"]
        for key in ("largest", "mean"):
            row[key] = number(error[key], error.get("why", ""))
        yield {**row, "samples": str(own["samples"]), "not finite": share(own["non_finite"])}


def _singular_values(model: Results) -> Iterator[dict[str, str]]:
    kinds = model["jacobian"]["inputs"]
    for depth, layers in enumerate(zip(*(entry["depths"] for entry in kinds.values())), 1):
        row = {"up to layer": f"{depth}: {layers[0]['layer']}"}
        for (kind, entry), each in zip(kinds.items(), layers):
            values = f"{number(each['largest'])}; {number(each['smallest'])}"
            row[f"{kind} ({entry['images']})"] = each.get("why", values)
        yield row


def _integrals(found: Results) -> Iterator[dict[str, str]]:
    for row in found["rows"]:
        bits = f", {row['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in row else ""
        line = {"flow": row["flow"] + bits}
        for name, key in [
            ("integral", "integral"),
            ("with half the points", "half the points"),
            ("mass of the range", "mass of the range"),
        ]:
            value = row[key]["value"]
            line[name] = row[key]["why"] if value is None else f"{value:.8f}"
        images = f"{row['sum over all images']:.4f} ± {row['standard error']:.4f}"
        line["sum over images"] = images
        yield {**line, f"not finite out to {found['far']:g}": share(row["not finite far away"])}


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
    for library in dict.fromkeys(row["library"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["library"] == library]
        parts += [f"## {library}", markdown(_working(row) for row in rows if row["works"])]
        refused = [{"flow": row["name"], "why": row["reason"]} for row in rows if not row["works"]]
        if refused:
            parts += ["Refused, with what the error says:", markdown(refused)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _working(row: Results) -> dict[str, str]:
    places = row["channel"], row["patch"]

    def ratios(way: str) -> str:
        return "; ".join(f"{float(f'{place[way]:.1g}'):,g}" for place in places)

    return {
        "flow": row["name"],
        "round trip, float32": f"{max(p['float32']['round_trip'] for p in places):.0e}",
        "float64": f"{max(p['float64']['round_trip'] for p in places):.0e}",
        "log-det error": f"{max(p['logabsdet'] for p in places):.0e}",
        "forward": ratios("forward"),
        "inverse": ratios("inverse"),
        "takes context": "yes" if row["context"] else "",
        "compiles": "yes" if all(place["compiles"] for place in places) else "no",
        "because": row.get("reason", ""),
    }


# The papers' tables


def parameters_page(found: Results) -> str:
    """Numbers of parameters, beside the published ones."""
    rows = []
    for name, count in found.items():
        model, of = MODELS[name], [row for row in ROWS if row.run.model == name]
        tables = dict.fromkeys(TABLES[row.table].split(":")[0] for row in of)
        row = {
            "model": model.label,
            "images": ", ".join(dict.fromkeys(row.run.data for row in of)),
            "tables": "; ".join(tables),
            "parameters": f"{count:,}",
        }
        if model.parameters is not None:
            row["published"] = f"{model.parameters:.4g}M"
            row["difference"] = f"{100 * (count / (1e6 * model.parameters) - 1):+.2f}%"
        rows.append(row)
    return markdown(rows)


def step_times_page(results: Results) -> str:
    """Times of a training step of the scaled-down models."""
    rows = [
        {
            "model": MODELS[name].label,
            f"training step of {results['batch_size']} images, ms": f"{1000 * seconds:.0f}",
            "median ratio within a round to Glow's": f"{results['ratios'][name]['median']:.2f}",
        }
        for name, seconds in sorted(results["seconds"].items(), key=lambda item: item[1])
    ]
    text = (
        f"Medians of {results['rounds']} interleaved rounds, CPU time; 3 x 16 x 16; "
        f"{results['machine']} of {results['cores']} cores, torch {results['versions']['torch']}, "
        f"{results['date']}. `python -m benchmarks.papers.step_time`\n"
    )
    return "\n".join([markdown(rows), text])


DECIMALS = {"probe_accuracy": 2, "training_hours": 0, "fid": 2}
"""Figure -> places behind the point, where they are not three."""
VERDICTS = ("as published", "undecided", "the other way", "not finite", "one seed")
NOTES = {
    "mixerflow-4": "Published costs of a shuffle take the figures without a shuffle from Table 1, "
    "which are of smaller baselines.",
    "mixerflow-9": "Scaled down, 30 layers are 4 and 60 layers 8. The row of both, linear blocks "
    "and shift layers, is MixerFlow with this table's learning rate; its published figure is that "
    "of Table 1.",
    "denseflow-2": "Here: what the published training would take at the speed of the run.",
}
"""Table -> what has to be known beside it."""
NOTES["mixerflow-5"] = NOTES["mixerflow-4"]


def counted(claims: Iterable[Comparison]) -> str:
    """Return how many claims come out in which way; those of one seed are decided in none."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])


def papers_page(kept: Kept) -> str:
    """Return all tables of one size and budget that have a result, and what they claim."""
    with_results = [
        column for column in columns(kept.size) if any(kept.figures(row) for _, row in column.rows)
    ]
    claims = {column: column.claims(kept) for column in with_results}
    parts = [
        f"# {'Published sizes' if kept.size == 'paper' else 'Scaled down'}, budget {kept.budget}",
        "Made by `python -m benchmarks.tables`; not written by hand.",
        "Published figures are of full-size models and full training; ours are of the budget, and "
        + (
            "of scaled-down models on images averaged down to 16 x 16 (MNIST: 28 x 28). "
            if kept.size == "small"
            else ""
        )
        + "What can be compared is the order of rows and what changes between them. Ours are means "
        "± standard deviations over seeds; differences are means ± standard errors, of seeds that "
        "both rows have, above 0 as published. Undecided is what the 95% interval of Student's t "
        "has 0 in; of one seed nothing is decided. The last row of bits/dim, in brackets, is the "
        "best of three simple models of the same images (uniform, a histogram of each pixel, a "
        "normal distribution with full covariance). Seconds are wall times of one thread beside "
        "other work.",
        markdown(
            {"table": _title(column), "differences": counted(found)}
            for column, found in claims.items()
            if found
        ),
    ]
    for column in with_results:
        parts += [f"## {_title(column)}", markdown(_rows(column, kept))]
        parts += [NOTES[column.table]] if column.table in NOTES else []
        failed = [
            f"{label_of(row)}, seed {seed} ({why.split(':')[0]})"
            for _, row in column.rows
            for (name, seed), why in sorted(kept.failed.items())
            if name == row.run.name
        ]
        if failed:
            parts.append(f"In no mean above, as the loss was not finite: {'; '.join(failed)}.")
        if claims[column]:
            parts.append(markdown(map(_claim, claims[column])))
        parts.append(_setting(column, kept))
    if kept.left_out:
        parts.append(f"Left out: {kept.left_out} of other images than the tables'.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _title(column: Column) -> str:
    version = f" of the {column.version} version" if column.version else ""
    return f"{TABLES[column.table]} ({column.data}{version}, {FIGURES[column.figure]})"


def _rows(column: Column, kept: Kept) -> Iterator[dict[str, str]]:
    places = DECIMALS.get(column.figure, 3)
    for original, row in column.rows:
        yield {"model": label_of(row), **_cells(original, row, kept, places)}
    if reference := column.reference(kept):
        yield {"model": f"({reference[0]})", "ours": f"{reference[1]:.{places}f}"}


def _cells(original: Row, row: Row, kept: Kept, places: int) -> dict[str, str]:
    results, model = kept.having(row), MODELS[original.run.model]
    published = original.published
    cells = {
        "published": "" if published is None else f"{published:.{min(places, 2)}f}",
        "published parameters": "" if model.parameters is None else f"{model.parameters:.4g} M",
        "ours": spread(kept.figures(row), places) or "not run",
    }
    if results:
        worst = [worst_image(row, result) for result in results]
        cells |= {
            "parameters": ", ".join(dict.fromkeys(f"{r['parameters']:,}" for r in results)),
            "seeds": str(len(results)),
            "worst image, bits/dim": f"{max(worst) if all(map(isfinite, worst)) else nan:.2f}",
            "training, s": f"{mean(r['train_seconds'] for r in results):,.0f}",
            "images/s": f"{mean(r['images_per_second'] for r in results):,.0f}",
        }
        for key, name, form in [
            ("peak_memory_mb", "peak memory, MB", ",.0f"),
            ("fraction_of_peak", "of the GPU's float32 peak", ".1%"),
        ]:
            if measured := [r[key] for r in results if r.get(key) is not None]:
                cells[name] = f"{mean(measured):{form}}"
    return cells


def _claim(claim: Comparison) -> dict[str, str]:
    return {
        "claim": claim.words,
        "published: by": f"{claim.published:+.2f}",
        "ours: by": spread(claim.here, sign="+", error=True),
        "seeds": str(len(claim.here)),
        "verdict": claim.verdict,
    }


def _setting(column: Column, kept: Kept) -> str:
    """How the results of a table were made."""
    results = [result for _, row in column.rows for result in kept.having(row)]
    rates = {}
    for result in results:
        recipe = result["recipe"]
        text = f"{recipe['optimizer'].capitalize()} at {recipe['learning_rate']:g}"
        rates.setdefault(text, MODELS[result["run"]["model"]].label)
    usual, *others = rates
    facts = [
        [f"{r['steps']:,} steps of {r['recipe']['batch_size']} images" for r in results],
        [usual, *(f"{rates[text]}: {text}" for text in others)],
        [
            f"{data['data']} {data['version']}".strip()
            + f", split {data['split_hash']}, {data['train_images']:,} images of "
            f"{size(data['image_shape'])} to train on"
            for data in (result["data"] for result in results)
        ],
        [_evaluated(result, column.figure) for result in results],
        [r["machine"] for r in results],
        [f"torch {r['versions']['torch']}" for r in results],
        sorted(r["date"] for r in results),
    ]
    asked = command(
        kept.size, kept.budget, f"{column.table}-{column.data}", {r["seed"] for r in results}
    )
    return "; ".join(", ".join(dict.fromkeys(each)) for each in facts) + f". `{asked}`"


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
    """Write figures, their page and, where there is one, their picture.

    Args:
        kind: a key of ``KINDS``.
        path: of the JSON file.
        results: what to keep.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In one step, so that a command that is killed leaves what was there before.
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    whole.replace(path)
    render(kind, path)


def render(kind: str, path: Path) -> None:
    """Write the page, and the picture, of kept figures."""
    results = json.loads(path.read_text())
    path.with_suffix(".md").write_text(KINDS[kind].page(results))
    if (picture := KINDS[kind].picture) is not None:
        picture(path.with_suffix(".png"), results)


def kept_pages(results: Path = RESULTS) -> Iterator[tuple[Path, str]]:
    """Every kept page, as it is to be of the kept figures."""
    for kind in KINDS.values():
        for path in sorted(BENCHMARKS.glob(kind.pattern)):
            yield path.with_suffix(".md"), kind.page(json.loads(path.read_text()))
    for kept in read(results):
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
                print(path.with_suffix(".md"))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
