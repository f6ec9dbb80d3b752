"""Measure every row of the catalogue, and write results.json and results.md.

    python -m benchmarks.compatibility.run              # about 10 minutes on one core
    python -m benchmarks.compatibility.run --only zuko  # measure one library anew, keep the rest

Correctness is measured on images of 1 x 4 x 6 in patches of 2 (rows of 4 and of 6), at parameters
moved off their start by a standard deviation of 0.05; times on 4 images of 3 x 32 x 32 in patches
of 4 (rows of 48 and of 64), without gradients, on one thread, relative to this package's affine
coupling in the same place, in rounds of the same run, and good to about a factor of two.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from nflows.transforms import IdentityTransform, Transform
from torch import Tensor
from tqdm import tqdm

from benchmarks import tables
from benchmarks.compatibility.catalogue import CATALOGUE, Row
from benchmarks.timing import Task, interleaved, ratios
from nflows_mixer.core.context import takes_context
from nflows_mixer.transforms import PatchMixerTransform
from tests.jacobian import jacobian_logabsdet

SMALL, LARGE = ((1, 4, 6), 2), ((3, 32, 32), 4)
ROUNDS = 3


def nothing(features: int) -> Transform:
    """Return the identity: the other half of the mixer layer under test."""
    return IdentityTransform()


def mixer(row: Row, place: str, image_shape: tuple[int, int, int], patch_size: int) -> Transform:
    """Return a mixer layer with the row's flow in one place, "channel" or "patch"."""
    flows = {"channel_flow": nothing, "patch_flow": nothing, f"{place}_flow": row.make}
    torch.manual_seed(0)
    return PatchMixerTransform(image_shape, patch_size, **flows)


def draw(row: Row, layer: Any, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Draw standard normal images, and a context where the row takes one."""
    images = torch.randn(batch, *layer.image_shape, dtype=dtype)
    return images, torch.randn(batch, 3, dtype=dtype) if row.context else None


def settle(row: Row, layer: Any, std: float = 0.05) -> Any:
    """Initialize from data, and move every parameter off its start; leaves evaluation mode on."""
    parameter = next(layer.parameters(), torch.empty(0, dtype=torch.float64))
    images, context = draw(row, layer, 16, parameter.dtype)
    layer.train()
    with torch.no_grad():
        layer(images, context)
        for parameter in layer.parameters():
            parameter += std * torch.randn_like(parameter)
    return layer.eval()


@torch.no_grad()
def errors(row: Row, layer: Any, dtype: torch.dtype, batch: int = 2) -> dict[str, float]:
    """Largest error of the round trip, and of the sum of the two log-dets; see ``relative``."""
    layer = layer.to(dtype)
    torch.manual_seed(1)
    images, context = draw(row, layer, batch, dtype)
    outputs, logabsdet = layer(images, context)
    back, logabsdet_back = layer.inverse(outputs, context)
    return {
        "round_trip": relative(back, images),
        "logabsdet_both_ways": relative(-logabsdet_back, logabsdet),
    }


def logabsdet_error(row: Row, layer: Any, jacobian: Callable) -> float:
    """Log-det against autograd's Jacobian of the whole layer, in float64."""
    layer = layer.double()
    torch.manual_seed(1)
    images, context = draw(row, layer, 1, torch.float64)
    _, logabsdet = layer(images, context)
    return relative(logabsdet.detach(), jacobian(layer.forward, images, context))


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest |got - expected| / max(1, |expected|); NaN where anything is NaN."""
    return ((got - expected).abs() / expected.abs().clamp(min=1)).max().item()


def compiles(row: Row, layer: Any) -> bool:
    """Whether ``torch.compile(fullgraph=True)`` takes the forward pass in one graph."""
    layer = layer.float()
    images, context = draw(row, layer, 2, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled(images, context)
    except Exception:
        return False
    return True


def times(row: Row, place: str) -> dict[str, float]:
    """Times of both directions, in those of this package's affine coupling."""
    tasks: dict[str, Task] = {}
    for name, each in {"row": row, "affine": CATALOGUE["nflows_mixer"]["AffineCoupling"]}.items():
        layer = settle(each, mixer(each, place, *LARGE), std=0.01)
        images, context = draw(each, layer, 4, torch.float32)
        latents = torch.no_grad()(layer)(images, context)[0]
        tasks[f"{name}, forward"] = torch.no_grad()(partial(layer, images, context))
        tasks[f"{name}, inverse"] = torch.no_grad()(partial(layer.inverse, latents, context))
    seconds = interleaved(tasks, ROUNDS)
    return {
        way: ratios(seconds, f"row, {way}", f"affine, {way}")["median"]
        for way in ("forward", "inverse")
    }


def measured(row: Row, place: str) -> dict[str, Any]:
    """All columns of a row that works, in one place."""
    layer = settle(row, mixer(row, place, *SMALL).double())
    found: dict[str, Any] = {"logabsdet": logabsdet_error(row, layer, jacobian_logabsdet)}
    for dtype in (torch.float64, torch.float32):
        found[str(dtype).removeprefix("torch.")] = errors(row, layer, dtype, batch=16)
    return {**found, "compiles": compiles(row, layer), **times(row, place)}


def measure(library: str, name: str) -> dict[str, Any]:
    """One row of the JSON."""
    row = CATALOGUE[library][name]
    found: dict[str, Any] = {"library": library, "name": name, "works": not row.refused}
    try:
        found["context"] = takes_context(mixer(row, "channel", *SMALL))
    except (ValueError, TypeError) as error:
        if not row.refused:
            raise
        return found | {"reason": str(error).split(", got ", 1)[1].split("; it has to take")[0]}
    for place in ("channel", "patch"):
        found[place] = measured(row, place)
    return found | ({"reason": row.because} if row.because else {})


def main(only: str | None = None, out: str = str(Path(__file__).parent)):
    """Measure every row of the catalogue.

    Args:
        only: measure this library alone, and keep the rest.
        out: folder for results.json and results.md.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = Path(out, "results.json")
    rows = []
    if only is not None:
        rows = [row for row in json.loads(path.read_text())["rows"] if row["library"] != only]
    libraries = list(CATALOGUE) if only is None else [only]
    names = [(library, name) for library in libraries for name in CATALOGUE[library]]
    rows += [measure(library, name) for library, name in tqdm(names, unit="row")]
    rows.sort(key=lambda row: list(CATALOGUE).index(row["library"]))
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "nflows", "zuko", "normflows"))
    machine = f"{packages}, Python {platform.python_version()}, CPU, one thread"
    tables.write("compatibility", path, {"machine": machine, "rows": rows})


if __name__ == "__main__":
    auto_cli(main)
