"""Measure every row of the catalogue, and write docs/compatibility.json and docs/compatibility.md.

    python -m benchmarks.compatibility.run              # about 10 minutes on one core
    python -m benchmarks.compatibility.run --only zuko  # measure one library anew, keep the rest

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

from benchmarks import tables
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
    tables.write("compatibility", path, results)


if __name__ == "__main__":
    main()
