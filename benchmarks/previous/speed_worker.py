"""One side of ``speed.py``: run as a file with the tree to time on PYTHONPATH.

It reads one JSON line at a time and answers each with one: ``{"task", "batch", "norm"}`` builds and
warms up a task, ``{"calls"}`` times so many calls of it, in seconds of this process' CPU time. Each
tree has its own ``benchmarks.speed.variants``, which build the model in the same way.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.speed.variants import VARIANTS, Setting

TASKS = {
    "step": ("eager", "training_step"),
    "compiled step": ("compiled", "training_step"),
    "constant step": ("constant", "training_step"),
    "log_prob": ("eager", "log_prob"),
    "sample": ("eager", "sample"),
}
"""Name -> (variant, its method)."""


def build(task: str, batch: int, norm: str | None) -> Callable[[], object]:
    """Return the task on a CIFAR-10 MixerFlow of four layers; no norm is that of the preset."""
    changes = {} if norm is None else {"norm": norm}
    name, method = TASKS[task]
    variant = VARIANTS[name](Setting("cifar10", 4, batch, changes=changes))
    variant.flow.train(method == "training_step")
    return getattr(variant, method)


def main() -> None:
    """Answer requests until there are no more."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # The pipe has answers alone; what compilers print goes elsewhere.
    answers, sys.stdout = sys.stdout, sys.stderr
    task: Callable[[], object] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "task" in request:
            task = build(request["task"], request["batch"], request["norm"])
            for _ in range(3):
                task()
        assert task is not None
        start = time.process_time()
        for _ in range(request.get("calls", 1)):
            task()
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
