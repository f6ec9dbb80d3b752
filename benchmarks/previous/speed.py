"""As fast as an earlier commit: both in one run, in turns, in CPU time of one thread.

    git worktree add ../old a04558a
    python -m benchmarks.previous.speed --old ../old

A CIFAR-10 MixerFlow of four layers with the preset's batch normalization, and beside it, without a
bound, with the layer normalization that models have by default. Each side is a process that waits
while another works; ratios are those of one round, and the median over the rounds is compared to
the bound. Masked inverses are divided by a forward of the same flow, and memory is what one image
more adds to a training step in constant memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed.maf import measure as measure_masked
from benchmarks.speed.memory import mib_per_image
from benchmarks.speed.variants import Setting
from benchmarks.timing import environment

WORKER = Path(__file__).with_name("speed_worker.py")
TREE = Path(__file__).parents[2]
BOUNDS = {
    **{(task, 64): 1.04 for task in ("step", "compiled step", "log_prob", "sample")},
    **{(task, 8): 1.10 for task in ("step", "compiled step", "log_prob", "sample")},
    **{("constant step", batch): 1.10 for batch in (64, 8)},
}
"""(Task, batch size) -> the largest ratio of times, new to old."""
MASKED_BOUND = 2.0
MASKED = ("nflows, inverse_of", "AffineAutoregressive")
MASKED_SIZES = ((48, 4096), (64, 3072))
MEMORY_BOUND = 0.4
MEMORY_DEPTHS = (8, 30, 60)
FLAT = 1.1
"""The largest ratio of the memory of two depths."""
SECONDS = 0.2
"""At least so long is one measurement."""


class Side:
    """A process with the code of one tree."""

    def __init__(self, tree: Path, norm: str | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
        self.norm = norm
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            cwd=WORKER.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> float:
        """Send a request, and wait for the seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {WORKER.name} ended with {self.process.wait()}")
        return json.loads(answer)["seconds"]

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> int:
    """Time, print, and return 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="worktree of commit a04558a")
    parser.add_argument("--new", type=Path, default=TREE, help="the tree to compare with it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", nargs="*", default=["time", "masked", "memory"])
    parser.add_argument("--tasks", nargs="*", default=sorted({task for task, _ in BOUNDS}))
    parser.add_argument("--no-default", action="store_true", help="leave layer norm out")
    parser.add_argument("--out", type=Path, help="JSON file of what was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {**environment(), "rounds": arguments.rounds}
    lines: list[tuple[str, float, float | None]] = []
    if "time" in arguments.parts:
        sides = {"old": Side(arguments.old), "new": Side(arguments.new)}
        if not arguments.no_default:
            sides["new, layer norm"] = Side(arguments.new, "layer")
        results["time"] = []
        for (task, batch), bound in BOUNDS.items():
            if task in arguments.tasks:
                found = in_turns(sides, task, batch, arguments.rounds)
                results["time"].append({"task": task, "batch": batch, **found})
                for name, ratio in found["ratios"].items():
                    limit = bound if name == "new" else None
                    lines.append(show(f"{task}, batch {batch}, {name} / old", ratio, limit))
        for side in sides.values():
            side.close()
    if "masked" in arguments.parts:
        results["masked"] = []
        for features, rows in MASKED_SIZES:
            found = measure_masked(features, rows, 64, torch.zeros(()), arguments.rounds)
            results["masked"].append({"features": features, "rows": rows, "inverses": found})
            for name in MASKED:
                ratio = found[name]["inverse_to_forward"]["median"]
                lines.append(show(f"{name}, {features}: inverse / forward", ratio, MASKED_BOUND))
    if "memory" in arguments.parts:
        depths = [(d, Setting("cifar10", num_layers=d)) for d in MEMORY_DEPTHS]
        kept = {depth: mib_per_image(setting, "constant", (8, 16)) for depth, setting in depths}
        results["memory"] = kept
        for depth, mib in kept.items():
            lines.append(show(f"MiB for one image, {depth} layers", mib, MEMORY_BOUND))
        lines.append(show("memory, deepest / shallowest", kept[60] / kept[8], FLAT))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return int(not all(bound is None or value <= bound for _, value, bound in lines))


def in_turns(sides: dict[str, Side], task: str, batch: int, rounds: int) -> dict[str, Any]:
    """Time a task in all sides, one after the other, in an order that is turned each round."""
    for side in sides.values():
        side.ask(task=task, batch=batch, norm=side.norm)
    calls = math.ceil(SECONDS / sides["old"].ask(calls=1))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides)
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(sides[name].ask(calls=calls) / calls)
    ratios = {
        name: median(mine / its for mine, its in zip(seconds[name], seconds["old"]))
        for name in sides
        if name != "old"
    }
    return {"calls": calls, "seconds": seconds, "ratios": ratios}


def show(name: str, value: float, bound: float | None) -> tuple[str, float, float | None]:
    """Print a line of the table, and return it."""
    verdict = "" if bound is None else f"  at most {bound:.2f}"
    if bound is not None and not value <= bound:
        verdict += "  MISSED"
    print(f"{name:45} {value:6.3f}{verdict}", flush=True)
    return name, value, bound


if __name__ == "__main__":
    sys.exit(main())
