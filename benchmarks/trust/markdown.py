"""The trust figures as Markdown, from the JSON alone.

*Round trip* is |x - inverse(forward(x))| of dequantised images x, in pixel levels and as a part of
their range. *Log-det* is its largest difference, in nats, from that of autograd's Jacobian in
float64, over as many images as have singular values below. *Not finite* is the share of latents,
log-dets and pixels that are NaN or infinite; errors are of the images of which nothing is. All are
of flows in evaluation mode. Autocast reaches the conditioners only, and those of an untrained flow
answer zero in any precision. *bf16 autocast* has it in both directions, the rows below it in
forward alone: there the inverse, in float32, undoes a slightly different function.
"""

from __future__ import annotations

from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """Return the page.

    Args:
        results: what the JSON file holds.
    """
    models = results["models"]
    lines = [
        "# How far the figures can be trusted",
        "",
        "Made by `python -m benchmarks.trust.table`; not written by hand. Machine and versions are "
        "at the foot.",
        "",
        *(line.strip() for line in (__doc__ or "").split("\n\n")[-1].strip().split("\n")),
        "",
        "## What was measured",
        "",
        *table(["flow", "parameters", "images", "how it was made"], map(model_cells, models)),
        "",
        "*Uniform noise*, *constant* images (one value for all pixels), *checkerboards* of black "
        "and white and *inverted* test images are like nothing that the flows have seen.",
    ]
    for model in models:
        lines += ["", f"## Round trip and log-det: {model['name']}", ""]
        header = ["precision", "images", "largest, levels", "mean, levels"]
        header += ["largest, of the range", "mean, of the range", "log-det, nats", "not finite"]
        lines += table(header, round_trip_cells(model))
    lines += [
        "",
        "## Own samples: log_prob against sample_and_log_prob",
        "",
        "Of the deterministic part, `flow.deterministic`; differences in nats, of the samples of",
        "which everything is finite.",
        "",
        *table(
            ["flow", "precision", "samples", "largest", "mean", "not finite"],
            [cells for model in models for cells in sample_cells(model)],
        ),
        *singular_values(models),
        *two_pixels(results["two_pixels"]),
        "",
        "## Machine",
        "",
        f"{results['device']}; "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + f"; {results['seconds']} seconds for the whole page.",
    ]
    return "\n".join(lines) + "\n"


def table(header: list[str], rows: Any) -> list[str]:
    """Return the lines of a table."""
    return [
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def number(value: float | None, why: str = "") -> str:
    """Return two digits of a figure, or why there is none."""
    return why if value is None else f"{value:.1e}"


def share(value: float) -> str:
    """Return a share in per cent."""
    return "0" if value == 0 else f"{100 * value:.3g}%"


def model_cells(model: dict[str, Any]) -> list[str]:
    """What a flow is."""
    made = f"{model['made']}, seed {model['seed']}" if "seed" in model else model["made"]
    if "recipe" in model:
        recipe, bits = model["recipe"], model["bits_per_dim"]["test"]
        made += (
            f", {recipe['steps']} steps of {recipe['batch_size']} at {recipe['learning_rate']:g}, "
            f"{model['train_seconds']:.0f} s: {bits:.3f} bits/dim of the test images"
        )
    data = f"{model['data']}, {' x '.join(map(str, model['image_shape']))}"
    data += f", {model['levels']} levels"
    if "split_hash" in model:
        data += f", split {model['split_hash']}"
    return [model["name"], f"{model['parameters']:,}", data, made]


def round_trip_cells(model: dict[str, Any]) -> list[list[str]]:
    """One line for each precision and kind of images."""
    rows = []
    for name, precision in model["precisions"].items():
        if "why" in precision:
            rows.append([name, "all", *[precision["why"]] * 6])
            continue
        for kind, figures in precision["inputs"].items():
            error, levels = figures["round_trip"], model["levels"]
            why = error.get("why", "")
            cells = [number(error[key], why) for key in ("largest", "mean")]
            for key in ("largest", "mean"):
                part = None if error[key] is None else error[key] / levels
                cells.append(number(part, why))
            logabsdet = figures.get("logabsdet", {"largest": None, "why": "not computed"})
            cells.append(number(logabsdet["largest"], logabsdet.get("why", "")))
            rows.append([name, f"{figures['images']} {kind}", *cells, share(figures["non_finite"])])
    if "why" in model["jacobian"]:
        rows.append(["*no Jacobian*", model["jacobian"]["why"], *[""] * 6])
    return rows


def sample_cells(model: dict[str, Any]) -> list[list[str]]:
    """One line for each precision."""
    rows = []
    for name, precision in model["precisions"].items():
        if "why" in precision:
            rows.append([model["name"], name, *[precision["why"]] * 4])
            continue
        own = precision["own_samples"]
        error, why = own["difference"], own["difference"].get("why", "")
        cells = [number(error[key], why) for key in ("largest", "mean")]
        rows.append([model["name"], name, str(own["samples"]), *cells, share(own["non_finite"])])
    return rows


def singular_values(models: list[dict[str, Any]]) -> list[str]:
    """A picture and a table of each model that has Jacobians."""
    lines = [
        "",
        "## Singular values of the Jacobian by depth",
        "",
        "Of the flow up to each layer, from dequantised pixels on, in float64, exactly (from the",
        "whole Jacobian): the largest; the smallest, over the images of a kind. Errors of rounding",
        "grow by up to their ratio.",
        "",
        "![Largest and smallest singular values by depth](trust-singular-values.png)",
    ]
    for model in models:
        if "why" in model["jacobian"]:
            lines += ["", f"### {model['name']}", "", f"None: {model['jacobian']['why']}."]
            continue
        kinds = model["jacobian"]["inputs"]
        header = [f"{kind} ({entry['images']})" for kind, entry in kinds.items()]
        rows = []
        for depth, layers in enumerate(zip(*(entry["depths"] for entry in kinds.values())), 1):
            cells = [
                each["why"]
                if each["largest"] is None
                else f"{number(each['largest'])}; {number(each['smallest'])}"
                for each in layers
            ]
            rows.append([f"{depth}: {layers[0]['layer']}", *cells])
        lines += ["", f"### {model['name']}", "", *table(["up to layer", *header], rows)]
    return lines


def two_pixels(found: dict[str, Any]) -> list[str]:
    """Densities that can be integrated."""
    low, high = found["square"]
    header = ["flow", "integral", "with half the points", "mass of the range", "sum over images"]
    header += [f"not finite out to {found['far']:g}"]
    rows = []
    for row in found["rows"]:
        bits = f", {row['bits_per_dim']:.3f} bits/dim" if "bits_per_dim" in row else ""
        integrals = [
            each["why"] if each["value"] is None else f"{each['value']:.8f}"
            for each in (row["integral"], row["half the points"], row["mass of the range"])
        ]
        images = f"{row['sum over all images']:.4f} ± {row['standard error']:.4f}"
        rows.append([row["flow"] + bits, *integrals, images, share(row["not finite far away"])])
    count = found["levels"] ** 2
    return [
        "",
        "## Flows of two pixels: the integral of the density",
        "",
        f"In float64, over the square from {low:g} to {high:g} by {found['points']:,} points a",
        "side, dense in the middle. The density is of dequantised pixels; what of it lies in their",
        f"range of {found['levels']} levels is integrated too, and is the sum over all {count}",
        f"images of P(x), here with {found['draws']:,} importance-weighted draws each (plus or",
        "minus the standard error): at most 1. Flows are moved off their start by",
        f"{found['moved']:g}, or trained for {found['steps']} steps on toy images, whose entropy",
        f"is {found['entropy_bits_per_dim']:.3f} bits/dim; seed {found['seed']}. The last column",
        f"is the share of an even grid from {-found['far']:g} to {found['far']:g} where the",
        "log-density is NaN or infinite: far from the data an exponential scale overflows.",
        "",
        *table(header, rows),
    ]
