"""Markdown tables of the kept figures.

python -m benchmarks.speed.table              # every results/*.md anew from its JSON
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.speed.picture import save_memory, save_ratios

RESULTS = Path(__file__).parent / "results"


def speed_table(results: dict[str, Any]) -> str:
    """Milliseconds, images a second and ratios to both floors, of each measure."""
    kinds = dict.fromkeys(k for entry in results["variants"].values() for k in entry["measures"])
    parts = [_settings(results)]
    for kind in kinds:
        rows = []
        for name, entry in results["variants"].items():
            timed = entry["measures"].get(kind)
            if timed is None:
                continue
            parameters = entry.get("parameters")
            cells = [
                name,
                "" if parameters is None else f"{parameters / 1e6:.2f} M",
                f"{timed['milliseconds']:,.1f}",
                f"{timed['images_per_second']:,.0f}",
                _ratio(timed.get("to_floor")),
                _ratio(timed.get("to_collapsed_floor")),
            ]
            if results["peak_tflops"] is not None:
                of_model = parameters is not None and "to_floor" in timed
                cells.append(f"{100 * _share(results, timed, kind):.2f}" if of_model else "")
            rows.append(cells)
        head = [kind, "parameters", "ms", "images/s", "/ floor", "/ collapsed floor"]
        if results["peak_tflops"] is not None:
            head.append("% of bf16 peak")
        parts.append(_markdown(head, rows))
    return "\n".join([*parts, *_of_compiled(results), *_skipped(results)])


def memory_table(results: dict[str, Any]) -> str:
    """MiB of one image at the peak of a training step, by depth."""
    depths = results["depths"]
    rows = [
        [name, *("" if value is None else f"{value:.2f}" for value in values)]
        for name, values in results["mib_per_image"].items()
    ]
    small, large = results["batch_sizes"]
    text = (
        f"MiB for one image more, between batches of {small} and {large}, at the peak of forward "
        f"and backward; {_model(results)}, {results['machine']}, "
        f"torch {results['versions']['torch']}.\n"
    )
    head = ["mixer layers", *map(str, depths)]
    return "\n".join([text, _markdown(head, rows), *_skipped(results)])


def maf_table(results: dict[str, Any]) -> str:
    """Milliseconds of inverses and of one forward, and their ratio."""
    rows = []
    for case in results["cases"]:
        for name, timed in case["inverses"].items():
            rows.append(
                [
                    f"{case['features']}",
                    f"{case['rows']}",
                    name,
                    f"{timed['forward_milliseconds']:,.1f}",
                    f"{timed['inverse_milliseconds']:,.1f}",
                    _ratio(timed["inverse_to_forward"]),
                ]
            )
    text = (
        f"Masked affine autoregressive flow, {results['hidden_features']} hidden features, one "
        f"residual block with batch normalisation, {results['dtype']}; medians of "
        f"{results['rounds']} interleaved rounds of {results['clock']} on {results['machine']}, "
        f"torch {results['versions']['torch']}. Ratios are median (smallest).\n"
    )
    head = ["D", "rows", "inverse", "forward, ms", "inverse, ms", "inverse / forward"]
    return "\n".join([text, _markdown(head, rows), *_skipped(results)])


def _settings(results: dict[str, Any]) -> str:
    adds = results["multiply_adds"]
    return (
        f"{_model(results)}, {results['num_layers']} mixer layers, batches of "
        f"{results['batch_size']}, {results['dtype']}; medians of {results['rounds']} interleaved "
        f"rounds of {results['clock']} on {results['machine']}, torch "
        f"{results['versions']['torch']}. Multiply-adds of an image, forward: "
        f"{adds['floor'] / 1e9:.3f} G, collapsed {adds['collapsed floor'] / 1e9:.3f} G.\n\n"
        "The floor is the model's matrix products alone, the collapsed floor those that are left "
        "when the linear tails of conditioners are multiplied out, as the library does it. Ratios "
        "are of times of the same round, median (smallest); bf16 rows are divided by the floors in "
        f"{results['dtype']}, too. checkpoint and constant change training alone: their rows of "
        "log_prob and sampling run the code of eager and compiled, and differ from those by "
        "noise.\n"
    )


def _model(results: dict[str, Any]) -> str:
    sizes = " x ".join(map(str, results["image_shape"]))
    return f"{results['preset']} preset, images of {sizes}"


def _of_compiled(results: dict[str, Any]) -> list[str]:
    """How long compiled variants compile, and what those that save memory cost beside the first."""
    variants, parts = results["variants"], []
    rows = [
        [name, f"{entry['compile_seconds']:,.0f}"]
        for name, entry in variants.items()
        if "compile_seconds" in entry
    ]
    if rows:
        parts.append(_markdown(["compilation from nothing", "s, wall time"], rows))
    ratios = {
        name: {k: m["to_compiled"] for k, m in entry["measures"].items() if "to_compiled" in m}
        for name, entry in variants.items()
    }
    kinds = list(dict.fromkeys(kind for of_kinds in ratios.values() for kind in of_kinds))
    rows = [
        [name, *(_ratio(of_kinds.get(kind)) for kind in kinds)]
        for name, of_kinds in ratios.items()
        if of_kinds
    ]
    if rows:
        parts.append(_markdown(["time / that of compiled, same round", *kinds], rows))
    return parts


def _share(results: dict[str, Any], timed: dict[str, Any], kind: str) -> float:
    # Of the products that have to be made: what collapses is no work done.
    passes = 1 if kind in ("log_prob", "sampling") else 3
    operations = 2 * passes * results["multiply_adds"]["collapsed floor"]
    return operations * timed["images_per_second"] / (results["peak_tflops"] * 1e12)


def _skipped(results: dict[str, Any]) -> list[str]:
    return [f"- not measured: {name}: {reason}" for name, reason in results["skipped"].items()]


def _ratio(values: dict[str, float] | None) -> str:
    return "" if values is None else f"{values['median']:.2f} ({values['min']:.2f})"


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def exactness_table(results: dict[str, Any]) -> str:
    """Errors of gradients, bits/dim in two precisions, and errors of round trips."""
    text = (
        f"{results['preset']} preset, {results['num_layers']} mixer layers, "
        f"{results['parameters']:,} parameters, {results['data']} (split "
        f"{results['split_hash']}), seed {results['seed']}; steps of {results['batch_size']} at "
        f"a rate of {results['learning_rate']:g}; {results['machine']}, "
        f"torch {results['versions']['torch']}.\n"
    )
    states = results["gradient_errors"]
    rows = [
        [name, *(f"{of_state[name]:.1e}" for of_state in states.values())]
        for name in next(iter(states.values()))
    ]
    errors = _markdown(["error of the gradients", *states], rows)
    bits = results["bits_per_dim"]
    rows = [[name, f"{value:.4f}"] for name, value in bits.items()]
    rows.append(["difference", f"{abs(bits['bf16'] - bits['float32']):.4f}"])
    precision = _markdown([f"conditioners, {results['evaluated']} test images", "bits/dim"], rows)
    rows = [[name, f"{value:.1e}"] for name, value in results["round_trip_errors"].items()]
    trips = _markdown(["round trip", "largest error, of the range"], rows)
    return "\n".join([text, errors, precision, trips])


TABLES = {
    "speed": speed_table,
    "memory": memory_table,
    "maf": maf_table,
    "exactness": exactness_table,
}
"""Beginning of a file's name -> its table."""
PICTURES = {"speed": save_ratios, "memory": save_memory}
"""Beginning of a file's name -> its picture."""


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the JSON file, its table and, where there is one, its picture.

    Args:
        path: of the JSON file; its name begins with a key of ``TABLES``.
        results: what to keep.
    """
    kind = path.name.split("-")[0].removesuffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    path.with_suffix(".md").write_text(TABLES[kind](results))
    if kind in PICTURES:
        PICTURES[kind](path.with_suffix(".png"), results)


def main():
    for path in sorted(RESULTS.glob("*.json")):
        write(path, json.loads(path.read_text()))


if __name__ == "__main__":
    main()
