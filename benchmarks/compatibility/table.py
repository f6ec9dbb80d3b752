"""Measure every row of the catalogue, and write docs/compatibility.json and docs/compatibility.md.

    python -m benchmarks.compatibility.table              # about 10 minutes on one core
    python -m benchmarks.compatibility.table --only zuko  # measure one library anew, keep the rest

Correctness is measured on images of 1 x 4 x 6 in patches of 2 (rows of 4 and of 6), at parameters
moved off their start by a standard deviation of 0.05; times on 4 images of 3 x 32 x 32 in patches
of 4 (rows of 48 and of 64), without gradients, on one thread, relative to this package's affine
coupling in the same place, measured right before each row, and good to about a factor of two.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.compatibility.catalogue import CATALOGUE, Row
from benchmarks.compatibility.measure import (
    compiles,
    draw,
    errors,
    logabsdet_error,
    mixer,
    seconds,
    settle,
)
from nflows_mixer.core.context import takes_context
from tests.jacobian import jacobian_logabsdet

DOCS = Path(__file__).parents[2] / "docs"
SMALL, LARGE = ((1, 4, 6), 2), ((3, 32, 32), 4)


def times(row: Row, place: str) -> dict[str, float]:
    """Seconds of both directions."""
    layer = settle(row, mixer(row, place, *LARGE), std=0.01)
    images, context = draw(row, layer, 4, torch.float32)
    with torch.no_grad():
        latents = layer(images, context)[0]
        return {
            "forward": seconds(lambda: layer(images, context)),
            "inverse": seconds(lambda: layer.inverse(latents, context)),
        }


def measured(row: Row, place: str) -> dict[str, Any]:
    """All columns of a row that works, in one place."""
    layer = settle(row, mixer(row, place, *SMALL).double())
    found: dict[str, Any] = {"logabsdet": logabsdet_error(row, layer, jacobian_logabsdet)}
    for dtype in (torch.float64, torch.float32):
        found[str(dtype).removeprefix("torch.")] = errors(row, layer, dtype, batch=16)
    found["compiles"] = compiles(row, layer)
    affine, own = times(CATALOGUE["nflows_mixer"]["AffineCoupling"], place), times(row, place)
    found |= {way: own[way] / affine[way] for way in own}
    return found


def measure(library: str, name: str) -> dict[str, Any]:
    """One row of the JSON."""
    row = CATALOGUE[library][name]
    found: dict[str, Any] = {"library": library, "name": name, "works": not row.refused}
    try:
        found["context"] = takes_context(mixer(row, "channel", *SMALL))
    except (ValueError, TypeError) as error:
        if not row.refused:
            raise
        return found | {"reason": str(error).split(", got ", 1)[1]}
    for place in ("channel", "patch"):
        found[place] = measured(row, place)
    return found | ({"reason": row.because} if row.because else {})


def markdown(results: dict[str, Any]) -> str:
    """Tables of all rows: what works, and what does not and why."""
    lines = [
        "# Which flows can be a channel or a patch flow",
        "",
        "Made by `python -m benchmarks.compatibility.table`; not written by hand. "
        f"{results['machine']}.",
        "",
        *(line.strip() for line in __doc__.split("\n\n")[-1].strip().split("\n")),
        "Errors are the larger of the two places, relative to max(1, |value|); times are given as",
        "channel flow; as patch flow. *Compiles*: the forward pass, in one graph.",
    ]
    for library in CATALOGUE:
        rows = [row for row in results["rows"] if row["library"] == library]
        lines += [
            "",
            f"## {library}",
            "",
            "| flow | channel | patch | round trip, float32 | float64 | log-det error | forward | "
            "inverse | takes context | compiles | |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(working_line(row) for row in rows if row["works"]),
        ]
        if not all(row["works"] for row in rows):
            lines += ["", "Refused, with what the error says:", "", "| flow | why |", "|---|---|"]
            lines += [refused_line(row) for row in rows if not row["works"]]
    return "\n".join(lines) + "\n"


def refused_line(row: dict[str, Any]) -> str:
    """One line of Markdown."""
    name = row["name"].split(",")[0]
    reason = row["reason"].removeprefix(f"{name}, which ").removeprefix(f"{name}, ")
    return f"| {row['name']} | {reason} |"


def working_line(row: dict[str, Any]) -> str:
    """One line of Markdown."""
    places = row["channel"], row["patch"]

    def worst(*keys: str) -> str:
        values = []
        for place in places:
            for key in keys:
                place = place[key]
            values.append(place)
        return f"{max(values):.0e}"

    def ratios(way: str) -> str:
        return "; ".join(f"{float(f'{place[way]:.1g}'):,g}" for place in places)

    cells = [
        row["name"],
        *("yes" if place in row else "no" for place in ("channel", "patch")),
        worst("float32", "round_trip"),
        worst("float64", "round_trip"),
        worst("logabsdet"),
        ratios("forward"),
        ratios("inverse"),
        "yes" if row["context"] else "",
        "yes" if all(place["compiles"] for place in places) else "no",
        row.get("reason", ""),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=CATALOGUE, help="measure this library alone")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = DOCS / "compatibility.json"
    kept = json.loads(path.read_text())["rows"] if only else []
    rows = []
    names = [(library, name) for library in CATALOGUE for name in CATALOGUE[library]]
    for library, name in (progress := tqdm(names, unit="row")):
        progress.set_postfix_str(f"{library} {name}")
        if only not in (None, library):
            rows += [row for row in kept if (row["library"], row["name"]) == (library, name)]
        else:
            rows.append(measure(library, name))
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "nflows", "zuko", "normflows"))
    machine = f"{packages}, Python {platform.python_version()}, CPU, one thread"
    results = {"machine": machine, "rows": rows}
    DOCS.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "compatibility.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
