"""Time of a training step of the scaled-down models, in one interleaved run on one thread.

    python -m benchmarks.papers.step_time          # writes results/step-times.json and .md

The rows of the tables are trained one after the other, beside whatever else a machine does; curves
over seconds are drawn with these times.
"""

from __future__ import annotations

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
from benchmarks.quality import REFERENCE
from benchmarks.speed.variants import Setting, Variant
from benchmarks.timing import environment, interleaved, ratios

FLOOR, PUBLISHED = "glow-11", "mixerflow-32"


def main(rounds: int = 10, out: str = str(RESULTS)):
    """Time training steps of all models that are trained on scaled-down CIFAR-10.

    Args:
        rounds: each of which times a step of every model.
        out: folder for step-times.json and step-times.md.
    """
    torch.set_num_threads(1)
    batch_size = BUDGETS["small"]["short"].batch_size
    assert batch_size is not None
    trained = [row.run.model for row in ROWS_OF["small"] if row.run.data == "cifar10"]
    names = dict.fromkeys([*trained, REFERENCE])
    shape = (SIZES["cifar10"][0], SMALL["cifar10"], SMALL["cifar10"])
    setting = Setting(batch_size=batch_size, changes={"image_shape": shape})
    flows = {name: MODELS[name].at("small", shape, 256) for name in names}
    steps = {name: Variant(flow, setting).training_step for name, flow in flows.items()}
    seconds = interleaved(steps, rounds)
    results = {
        "batch_size": batch_size,
        "rounds": rounds,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "ratios": {name: ratios(seconds, name, FLOOR) for name in names},
        "ratios to published": {name: ratios(seconds, name, PUBLISHED) for name in names},
        **environment(),
    }
    tables.write("step times", Path(out, "step-times.json"), results)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
