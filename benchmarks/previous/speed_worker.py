"""One side of ``speed.py``: run as a file with the tree to time on PYTHONPATH.

It reads one JSON line at a time and answers each with one: ``{"task", "batch", "norm"}`` builds and
warms up a task, ``{"calls"}`` times so many calls of it, in seconds of this process' CPU time.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nflows_mixer.flows import mixerflow
from nflows_mixer.likelihood import bits_per_dim

LAYERS = 4
MODES: dict[str, dict[str, Any]] = {
    "step": {},
    "compiled step": {"compile": True},
    "constant step": {"memory": "constant"},
    "log_prob": {},
    "sample": {},
}


def settle(flow: Any, images: torch.Tensor) -> None:
    """Move the weights off their start, and set the normalizations from a batch."""
    norms = [m for m in flow.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        for norm in norms:
            norm.momentum = 1.0
        flow.train().log_prob(images)
        for norm in norms:
            norm.momentum = 0.1


def build(task: str, batch: int, norm: str | None) -> Callable[[], object]:
    """Return the task on a CIFAR-10 MixerFlow of four layers; no norm is that of the preset."""
    arguments = MODES[task] if norm is None else {**MODES[task], "norm": norm}
    torch.manual_seed(0)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)
    flow = mixerflow("cifar10", num_layers=LAYERS, **arguments)
    settle(flow, images)
    if task == "sample":
        flow.eval()
        return lambda: flow.sample(batch)
    if task == "log_prob":
        flow.eval()
        return torch.no_grad()(lambda: flow.log_prob(images))
    parameters = list(flow.parameters())
    # So small a rate that images which no flow fits do no harm in a few steps.
    optimizer = torch.optim.Adam(parameters, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        bits_per_dim(flow.log_prob(images), images.shape[1:]).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()

    return step


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
