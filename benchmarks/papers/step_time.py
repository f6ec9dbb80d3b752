"""Time of a training step of the scaled-down models, in one interleaved run on one thread.

    python -m benchmarks.papers.step_time          # writes results/step-times.json and .md

The rows of the tables are trained one after the other, beside whatever else a machine does; curves
over seconds are drawn with these times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.papers.budgets import BUDGETS
from benchmarks.papers.images import SIZES, SMALL
from benchmarks.papers.kept import RESULTS
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import ROWS_OF
from benchmarks.speed.environment import machine, versions
from benchmarks.speed.interleaved import interleaved, ratios
from nflows_mixer.training import Recipe

FLOOR = "glow-11"


def main(rounds: int = 10, out: str = str(RESULTS)):
    """Time training steps of all models that are trained on scaled-down CIFAR-10.

    Args:
        rounds: each of which times a step of every model.
        out: folder for step-times.json and step-times.md.
    """
    torch.set_num_threads(1)
    batch_size = BUDGETS["small"]["short"].batch_size
    assert batch_size is not None
    names = dict.fromkeys(row.run.model for row in ROWS_OF["small"] if row.run.data == "cifar10")
    steps = {name: training_step(name, batch_size) for name in names}
    seconds = interleaved(steps, rounds)
    results = {
        "batch_size": batch_size,
        "rounds": rounds,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "ratios": {name: ratios(seconds, name, FLOOR) for name in names},
        "machine": machine("cpu", 1),
        "cores": os.cpu_count(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    path = Path(out, "step-times.json")
    tables.write("step times", path, results)
    print(path.with_suffix(".md").read_text())


def training_step(name: str, batch_size: int) -> Callable[[], None]:
    """Return a step of a model as training takes it: gradient, its bound, Adam.

    Args:
        name: key of ``MODELS``.
        batch_size: images, random ones of scaled-down CIFAR-10's size.
    """
    shape = (SIZES["cifar10"][0], SMALL["cifar10"], SMALL["cifar10"])
    torch.manual_seed(0)
    flow = MODELS[name].at("small", shape, 256)
    images = torch.randint(256, (batch_size, *shape), dtype=torch.uint8)
    flow.initialize(images)
    flow.validate_args = False
    # Too small a rate to move anything: a step takes as long.
    recipe = Recipe(1e-12, batch_size=batch_size)
    optimizer = torch.optim.Adam(flow.parameters(), recipe.learning_rate, recipe.betas)
    bound = recipe.gradient_clip
    assert bound is not None

    def step() -> None:
        optimizer.zero_grad()
        (-flow.log_prob(images).mean()).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), bound)
        optimizer.step()

    return step


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
