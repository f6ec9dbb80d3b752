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
import os
import platform
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from jsonargparse import auto_cli
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import tables
from benchmarks.scaling.models import PATCH_SIZE, PATCHES, glow, mixer, parameters

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
        return glow(size, 2 * LAYERS * FLOW_LAYERS, GLOW_CHANNELS)
    return mixer(name, size, patch_size, num_layers=LAYERS, num_flow_layers=FLOW_LAYERS)


def training_step(flow, optimizer, images):
    optimizer.zero_grad()
    loss = -flow.log_prob(images).mean()
    loss.backward()
    optimizer.step()


def measured(names, pixels_per_batch, rounds, seed):
    """CPU seconds of each round and multiply-adds, of one image in a step of training."""
    torch.manual_seed(seed)
    steps, figures = {}, {}
    for name, size, patch_size in names:
        flow = build(name, size, patch_size)
        # So small a rate that random images, which no flow fits, do no harm in a few steps.
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-6)
        batch = max(1, pixels_per_batch // size**2)
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
        training_step(flow, optimizer, images)  # which initialises ActNorm
        with FlopCounterMode(display=False) as counter:
            training_step(flow, optimizer, images)
        key = (name, size, patch_size)
        steps[key] = (flow, optimizer, images)
        figures[key] = {
            "parameters": parameters(flow),
            "batch_size": batch,
            "multiply_adds": counter.get_total_flops() / 2 / batch,
            "rounds": [],
        }
    for _ in range(rounds):
        for key, step in steps.items():
            start = time.process_time()
            training_step(*step)
            seconds = time.process_time() - start
            figures[key]["rounds"].append(seconds / figures[key]["batch_size"])
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
    start = time.process_time()
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
        "pixels_per_batch": pixels_per_batch,
        "rounds": rounds,
        "seed": seed,
        "data": "uniform random pixels, 3 channels",
        "rows": rows,
        "exponents": exponents(rows),
        "seconds": round(time.process_time() - start),
        "machine": f"CPU, {torch.get_num_threads()} thread",
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    path = Path(out, "results.json")
    tables.write("scaling", path, results)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    auto_cli(main)
