"""Measure the figures of precision, and write results.json, results.md and results.png.

python -m benchmarks.precision.run    # under 6 minutes on two cores
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from tqdm import tqdm

from benchmarks import tables
from benchmarks.precision.measure import (
    PRECISIONS,
    in_precision,
    jacobian_figures,
    own_samples,
    round_trip,
)
from benchmarks.precision.models import Model, digits_models, input_images, preset_models
from benchmarks.precision.two_pixels import measure_two_pixels
from benchmarks.timing import environment
from nflows_mixer.evaluation import top_level_layers
from nflows_mixer.noise import uniform_noise

# Of images of more values than the first no Jacobian is computed; up to the second, many are.
LARGEST, SMALL = 512, 100
# In between, one of each of these kinds is.
FEW = ("test", "uniform noise", "checkerboard")


def counts(size: int) -> tuple[int, int]:
    """Return how many images of a kind are measured, and how many of these with a Jacobian."""
    if size <= SMALL:
        return 400, 8
    return 8, 1 if size <= LARGEST else 0


def measure(model: Model, device: torch.device) -> dict[str, Any]:
    """One model of the JSON: its Jacobians, and all precisions on all kinds of images."""
    flow, size = model.flow, model.test[0].numel()
    images, with_jacobian = counts(size)
    pixels = {}
    for kind, batch in input_images(model.test, flow.dequantization.levels, images).items():
        noise = uniform_noise(0, 1, torch.arange(len(batch)), flow.image_shape)
        pixels[kind] = flow.dequantization(batch, noise=noise)[0].to(device)
    found: dict[str, Any] = {**model.describe(), "jacobian": {}, "precisions": {}}
    logabsdets = {}
    if with_jacobian:
        layers = top_level_layers(in_precision(flow, PRECISIONS[0]).to(device))
        found["jacobian"]["inputs"] = {}
        for kind in pixels if size <= SMALL else FEW:
            some = pixels[kind][:with_jacobian].double()
            depths, logabsdets[kind] = jacobian_figures(layers, some)
            found["jacobian"]["inputs"][kind] = {"images": len(some), "depths": depths}
    else:
        found["jacobian"]["why"] = f"a Jacobian of {size:,} x {size:,} is not computed"
    for precision in PRECISIONS:
        why = precision.missing(device)
        if why is not None:
            found["precisions"][precision.name] = {"why": why}
            continue
        copied = in_precision(flow, precision).to(device)
        found["precisions"][precision.name] = {
            "inputs": {
                kind: round_trip(
                    copied._transform, values, precision, logabsdet=logabsdets.get(kind)
                )
                for kind, values in pixels.items()
            },
            "own_samples": own_samples(copied, images, precision),
        }
    return found


def main(
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    out: str = str(Path(__file__).parent),
):
    """Measure the figures of precision.

    Args:
        device: cpu or cuda.
        out: folder for results.json, results.md and results.png.
    """
    warnings.simplefilter("ignore")
    models = [*digits_models(), *preset_models()]
    results = {
        "models": [measure(model, torch.device(device)) for model in tqdm(models, unit="model")],
        "two_pixels": measure_two_pixels(),
        **environment(device),
    }
    tables.write("precision", Path(out, "results.json"), results)


if __name__ == "__main__":
    auto_cli(main)
