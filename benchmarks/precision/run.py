"""Measure the figures of precision, and write docs/precision.json, its page and picture.

python -m benchmarks.precision.run                           # under 6 minutes on two cores
python -m benchmarks.precision.run --weights FILE --out DIR  # and those of a flow of your own
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import tables
from benchmarks.precision.inputs import input_images
from benchmarks.precision.measure import (
    PRECISIONS,
    in_precision,
    jacobian_figures,
    own_samples,
    round_trip,
)
from benchmarks.precision.models import Model, digits_models, model_of_file, preset_models
from benchmarks.precision.two_pixels import measure_two_pixels
from nflows_mixer.evaluation import top_level_layers
from nflows_mixer.noise import uniform_noise

DOCS = Path(__file__).parents[2] / "docs"
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


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured with."""
    packages = ("torch", "nflows", "zuko", "lightning")
    name = f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} used"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    versions = {package: version(package) for package in packages}
    return {"device": name, "versions": {**versions, "Python": platform.python_version()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", help="weights.safetensors of a flow to measure too")
    parser.add_argument("--data", help="images of that flow; those that the file names if left out")
    parser.add_argument("--root", default="data", help="folder of downloads and named data sets")
    parser.add_argument("--images", help=".npz file of real images of 3 x 32 x 32 for the preset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder to write to")
    given = parser.parse_args()
    tables.write("precision", given.out / "precision.json", measure_all(given))


def measure_all(given: argparse.Namespace) -> dict[str, Any]:
    """What the JSON file holds."""
    warnings.simplefilter("ignore")
    start, device = time.perf_counter(), torch.device(given.device)
    models = [*digits_models(), *preset_models(given.images)]
    if given.weights is not None:
        models.append(model_of_file(given.weights, given.data, given.root))
    results: dict[str, Any] = {"models": []}
    for model in (progress := tqdm(models, unit="model")):
        progress.set_postfix_str(model.name)
        results["models"].append(measure(model, device))
    results["two_pixels"] = measure_two_pixels()
    results |= machine(device)
    return {**results, "seconds": round(time.perf_counter() - start)}


if __name__ == "__main__":
    main()
