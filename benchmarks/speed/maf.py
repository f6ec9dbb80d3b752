"""Sampling from masked autoregressive flows: what an inverse costs, in forward passes.

    python -m benchmarks.speed.maf                # writes to runs/benchmarks

The MAF of the mnist preset (one residual block with batch normalization), in evaluation mode and
without gradients, at weights moved off their start. Times are of interleaved rounds, see
``benchmarks/timing.py``; each inverse is divided by a forward of the same flow in the same round.
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
from benchmarks.timing import Task, environment, given, interleaved, ratios
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms import AffineAutoregressive

NFLOWS = partial(MaskedAffineAutoregressiveTransform, num_blocks=1, use_batch_norm=True)
OURS = partial(AffineAutoregressive, num_blocks=1, norm="batch")
MAFS: dict[str, tuple[Callable[..., Transform], Callable[[Transform], Callable]]] = {
    "nflows, D passes": (NFLOWS, lambda maf: maf.inverse),
    "nflows, inverse_of": (NFLOWS, inverse_of),
    "AffineAutoregressive": (OURS, lambda maf: maf.inverse),
}
"""Name -> (row length, hidden features) -> flow, and flow -> its inverse."""


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
    asked = given(locals())
    torch.set_num_threads(threads)
    like = torch.zeros((), device=device, dtype=getattr(torch, dtype))
    cases = [
        {"features": d, "rows": rows, "inverses": measure(d, rows, hidden_features, like, rounds)}
        for d, rows in sizes
    ]
    results = {
        **asked,
        **environment(device),
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
    for name, (build, inverse) in MAFS.items():
        maf = build(features, hidden_features).to(like).eval()
        for parameter in maf.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter))
        tasks[f"{name}, forward"] = partial(maf, inputs)
        tasks[f"{name}, inverse"] = partial(inverse(maf), inputs)
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


if __name__ == "__main__":
    auto_cli(main)
