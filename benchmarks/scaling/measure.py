"""How the cost of a training step grows with the pixels of an image.

    python -m benchmarks.scaling.measure        # writes results.json, results.md, results.png here
    python -m benchmarks.scaling.measure --sizes '[16, 32]' --rounds 1 --out runs/scaling

MixerFlows of two layers with full LU, butterfly and Kronecker blocks, at a fixed number of patches
and at a fixed patch size, beside a Glow with as many couplings. Each batch has the same number of
pixels, so that what a step costs whatever the size does not make small images look dear and
growth look slow. Rounds of all are interleaved; medians of CPU time are given, and multiply-adds
counted in the same step.
"""

import math
from pathlib import Path
from statistics import median

import numpy as np
import torch
from jsonargparse import auto_cli
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import tables
from benchmarks.baselines.glow import glow
from benchmarks.scaling.models import PATCH_SIZE, PATCHES, mixer
from benchmarks.speed.variants import Setting, Variant
from benchmarks.timing import environment, given, interleaved

HERE = Path(__file__).parent
LAYERS, FLOW_LAYERS = 2, 4
GLOW_CHANNELS = 64


def configurations(sizes, linears):
    """Name, way, size and patch size of all that is to be compared."""
    for size in sizes:
        for linear in linears:
            yield linear, "patches", size, size // math.isqrt(PATCHES)
            yield linear, "patch size", size, PATCH_SIZE
        yield "glow", "any", size, None


def build(name, size, patch_size):
    if name == "glow":
        return glow((3, size, size), GLOW_CHANNELS, scales=1, steps=2 * LAYERS * FLOW_LAYERS)
    return mixer(name, size, patch_size, num_layers=LAYERS, num_flow_layers=FLOW_LAYERS)


def measured(names, pixels_per_batch, rounds, seed):
    """CPU seconds of each round and multiply-adds, of one image in a step of training."""
    torch.manual_seed(seed)
    steps, figures = {}, {}
    for key in names:
        name, size, patch_size = key
        batch = max(1, pixels_per_batch // size**2)
        setting = Setting(batch_size=batch, changes={"image_shape": (3, size, size)})
        variant = Variant(build(name, size, patch_size), setting)
        steps[key] = variant.training_step
        with FlopCounterMode(display=False) as counter:
            steps[key]()
        figures[key] = {
            "parameters": variant.num_parameters,
            "batch_size": batch,
            "multiply_adds": counter.get_total_flops() / 2 / batch,
        }
    for key, seconds in interleaved(steps, rounds).items():
        figures[key]["rounds"] = [each / figures[key]["batch_size"] for each in seconds]
    return figures


def exponents(rows):
    """Slopes of log cost on log pixels: over all sizes, and over the last step between two."""
    lines = {}
    for row in rows:
        lines.setdefault((row["model"], row["way"]), []).append(row)
    found = []
    for (model, way), line in lines.items():
        line.sort(key=lambda row: row["size"])
        pixels = np.log([row["size"] ** 2 for row in line])
        entry = {"model": model, "way": way}
        for key in ("cpu_seconds", "multiply_adds"):
            costs = np.log([row[key] for row in line])
            entry[key] = float(np.polyfit(pixels, costs, 1)[0])
            entry[f"last_{key}"] = float(np.diff(costs)[-1] / np.diff(pixels)[-1])
        found.append(entry)
    return found


def main(
    sizes: list[int] = [16, 32, 64, 128],  # noqa: B006 (read only)
    linears: list[str] = ["lu", "butterfly", "kronecker"],  # noqa: B006
    pixels_per_batch: int = 8 * 128**2,
    rounds: int = 5,
    seed: int = 0,
    out: str = str(HERE),
):
    """How the cost of a training step grows with the pixels of an image.

    Args:
        sizes: heights, and widths, of the images; two or more, each a multiple of 8.
        linears: linear blocks, see ``benchmarks.scaling.models.mixer``.
        pixels_per_batch: of which a batch has as many images as they make, or one.
        rounds: of which medians are taken.
        seed: of the parameters and of the random images.
        out: folder for results.json, results.md and results.png.
    """
    asked = given(locals())
    torch.set_num_threads(1)
    wanted = list(configurations(sizes, linears))
    # The two ways meet in one size, which is measured once.
    unique = dict.fromkeys((name, size, patch) for name, _, size, patch in wanted)
    figures = measured(unique, pixels_per_batch, rounds, seed)
    rows = [
        {
            "model": name,
            "way": way,
            "size": size,
            "patch_size": patch,
            **figures[name, size, patch],
            "cpu_seconds": median(figures[name, size, patch]["rounds"]),
        }
        for name, way, size, patch in wanted
    ]
    results = {
        "layers": LAYERS,
        "flow_layers": FLOW_LAYERS,
        "glow_steps": 2 * LAYERS * FLOW_LAYERS,
        "glow_channels": GLOW_CHANNELS,
        **asked,
        "data": "uniform random pixels, 3 channels",
        "rows": rows,
        "exponents": exponents(rows),
        **environment(),
    }
    tables.write("scaling", Path(out, "results.json"), results)


if __name__ == "__main__":
    auto_cli(main)
