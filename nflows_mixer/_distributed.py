"""Sums over the processes of a distributed run."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Return the number of processes that run together; 1 where nothing was started."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def is_first_process() -> bool:
    """Whether this is the process that writes files, also before the others have joined it."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    # What launchers set in the processes that they start, torchrun's and Lightning's among them.
    named = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in named)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes, which differentiates; itself where there is one.

    Every process has to call it. The loss of a run is the sum of its processes' losses, so that
    the gradient that a value gets is the sum of what all processes send back.
    """
    return values if world_size() == 1 else _AllReduceSum.apply(values)


@torch.no_grad()
def all_reduce_max(values: Tensor) -> Tensor:
    """Largest of ``values`` over all processes, element by element; a NaN stays one."""
    if world_size() == 1:
        return values
    # Neither library of processes promises to keep a NaN, so it is sent apart.
    broken = values.isnan().to(values.dtype)
    largest = values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    distributed.all_reduce(broken, op=distributed.ReduceOp.MAX)
    return torch.where(broken > 0, torch.nan, largest)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
