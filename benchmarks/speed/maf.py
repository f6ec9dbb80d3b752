"""Sampling from masked autoregressive flows: what an inverse costs, in forward passes.

    python -m benchmarks.speed.maf                # writes to runs/benchmarks

The MAF of the mnist preset (one residual block with batch normalization), in evaluation mode and
without gradients, at weights moved off their start. Times are of interleaved rounds, see
``interleaved.py``; each inverse is divided by a forward of the same flow in the same round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse import auto_cli
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from torch import Tensor

from benchmarks import tables
from benchmarks.speed.environment import machine, versions
from benchmarks.speed.interleaved import Task, clock, interleaved, ratios
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms import AffineAutoregressive

Inverse = Callable[[Tensor], tuple[Tensor, Tensor]]


def stock(features: int, hidden_features: int) -> tuple[Transform, Inverse]:
    """nflows' MAF and its own inverse, of D passes."""
    maf = _nflows_maf(features, hidden_features)
    return maf, maf.inverse


def bridged(features: int, hidden_features: int) -> tuple[Transform, Inverse]:
    """nflows' MAF and this package's inverse of it."""
    maf = _nflows_maf(features, hidden_features)
    return maf, inverse_of(maf)


def own(features: int, hidden_features: int) -> tuple[Transform, Inverse]:
    """This package's MAF, with the norm that the one of nflows has."""
    maf = AffineAutoregressive(features, hidden_features, num_blocks=1, norm="batch")
    return maf, maf.inverse


MAFS = {
    "nflows, D passes": stock,
    "nflows, inverse_of": bridged,
    "AffineAutoregressive": own,
}
"""Name -> ((features, hidden features) -> (transform, its inverse))."""


def main(
    sizes: tuple[tuple[int, int], ...] = ((48, 4096), (64, 3072)),
    hidden_features: int = 64,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
    rounds: int = 9,
    out: str = "runs/benchmarks",
):
    """Time inverses of masked autoregressive flows beside their forward.

    Args:
        sizes: pairs of a row length D and a number of rows.
        hidden_features: of the masked networks.
        device: cpu or cuda.
        dtype: float32 or float64.
        threads: of torch, on the CPU.
        rounds: in each of which everything runs once.
        out: folder for the results.
    """
    torch.set_num_threads(threads)
    like = torch.zeros((), device=device, dtype=getattr(torch, dtype))
    cases = [
        {
            "features": features,
            "rows": rows,
            "inverses": measure(features, rows, hidden_features, like, rounds),
        }
        for features, rows in sizes
    ]
    results = {
        "hidden_features": hidden_features,
        "dtype": dtype,
        "rounds": rounds,
        "clock": clock(device),
        "machine": machine(device, threads),
        "versions": versions(),
        "cases": cases,
        "skipped": {},
    }
    tables.write("maf", Path(out, f"maf-{device}.json"), results)


@torch.no_grad()
def measure(
    features: int, rows: int, hidden_features: int, like: Tensor, rounds: int
) -> dict[str, dict[str, Any]]:
    """Return times and ratios by name."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, features, generator=generator).to(like)
    tasks: dict[str, Task] = {}
    for name, build in MAFS.items():
        maf, inverse = build(features, hidden_features)
        maf.to(like).eval()
        for parameter in maf.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter))
        tasks[f"{name}, forward"] = partial(maf, inputs)
        tasks[f"{name}, inverse"] = partial(inverse, inputs)
    seconds = interleaved(tasks, rounds, like.device.type)
    found = {}
    for name in MAFS:
        there, back = f"{name}, forward", f"{name}, inverse"
        found[name] = {
            "forward_milliseconds": 1000 * median(seconds[there]),
            "inverse_milliseconds": 1000 * median(seconds[back]),
            "inverse_to_forward": ratios(seconds, back, there),
            "forward_rounds": [1000 * value for value in seconds[there]],
            "inverse_rounds": [1000 * value for value in seconds[back]],
        }
    return found


def _nflows_maf(features: int, hidden_features: int) -> MaskedAffineAutoregressiveTransform:
    return MaskedAffineAutoregressiveTransform(
        features, hidden_features, num_blocks=1, use_batch_norm=True
    )


if __name__ == "__main__":
    auto_cli(main)
