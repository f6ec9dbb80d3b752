"""How far one call walks through the package: files entered, changes of file, functions called.

    python -m benchmarks.previous.walk                          # this code
    PYTHONPATH=OLD python benchmarks/previous/walk.py           # that of a worktree

One ``log_prob`` and one ``sample`` of a CIFAR-10 MixerFlow of two layers, in evaluation mode, are
counted by ``sys.setprofile``: calls of functions whose code is in the package, and how often such
a call is in another file than the one before it.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import nflows_mixer
from nflows_mixer.flows import mixerflow

BOUNDS = {"files": 16, "changes": 300, "calls": 1300}


def main() -> int:
    """Count, print, and return 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the calls of each file")
    parser.add_argument("--out", type=Path, help="JSON file of the counts")
    arguments = parser.parse_args()
    counts = {name: walk(task) for name, task in tasks().items()}
    missed = False
    for name, count in counts.items():
        figures = {key: count[key] for key in BOUNDS}
        missed |= any(figures[key] > BOUNDS[key] for key in BOUNDS)
        print(f"{name}: {figures}, at most {BOUNDS}")
        if arguments.list:
            for file, calls in count["calls_of"].items():
                print(f"  {calls:5d} {file}")
    if arguments.out:
        arguments.out.write_text(json.dumps(counts, indent=1) + "\n")
    return int(missed)


def tasks() -> dict[str, Callable[[], object]]:
    """What is counted, warmed up."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    flow = mixerflow("cifar10", num_layers=2).initialize(images).eval()
    found = {"log_prob": lambda: flow.log_prob(images), "sample": lambda: flow.sample(4)}
    with torch.no_grad():
        for task in found.values():
            task()
    return found


@torch.no_grad()
def walk(task: Callable[[], object]) -> dict[str, Any]:
    """Return the counts of one call of a task."""
    package = str(Path(nflows_mixer.__file__).parent)
    files: list[str] = []

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            files.append(frame.f_code.co_filename)

    sys.setprofile(count)
    try:
        task()
    finally:
        sys.setprofile(None)
    calls_of = {
        str(Path(file).relative_to(package)): files.count(file) for file in sorted(set(files))
    }
    # The first is entered from outside.
    changes = sum(one != other for one, other in zip(["", *files], files))
    return {
        "files": len(calls_of),
        "changes": changes,
        "calls": len(files),
        "calls_of": dict(sorted(calls_of.items(), key=lambda item: -item[1])),
    }


if __name__ == "__main__":
    sys.exit(main())
