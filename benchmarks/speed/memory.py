"""Memory of a training step, for one image more, by depth.

    python -m benchmarks.speed.memory             # writes to runs/benchmarks
    python -m benchmarks.speed.memory --depths "[4, 8]" --variants '["eager"]'

The peak of forward and backward above what was there before, at two batch sizes: the slope is
what an image costs, free of parameters, their gradients (there before) and whatever else does not
grow with the batch. Weights are moved off their start, those of more than 30 layers by less, see
``settle`` in ``variants/base.py``. On the CPU it is the profiler's record of every allocation and
release, in bytes, the same at every run; the resident size would depend on what the allocator gives
back. On CUDA it is the caching allocator's peak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch.profiler import ProfilerActivity, profile

from benchmarks import tables
from benchmarks.speed.measure import Name
from benchmarks.speed.variants import VARIANTS, Setting, Unavailable
from benchmarks.timing import environment, given

NAMES = ("stock nflows parts", "eager", "compiled", "checkpoint", "compiled checkpoint")
NAMES += ("constant", "compiled constant")


def main(
    preset: str = "cifar10",
    depths: tuple[int, ...] = (4, 8, 16, 30, 60),
    batch_sizes: tuple[int, int] = (8, 16),
    device: str = "cpu",
    threads: int = 1,
    variants: Sequence[Name] = NAMES,
    changes: Mapping[str, Any] = {},  # noqa: B006 (read only)
    out: str = "runs/benchmarks",
):
    """Measure the memory of a training step for one image more, by depth.

    Args:
        preset: of ``mixerflow``.
        depths: numbers of mixer layers.
        batch_sizes: two, the smaller first.
        device: cpu or cuda.
        threads: of torch, on the CPU.
        variants: which are measured.
        changes: arguments of ``mixerflow`` that are not the preset's.
        out: folder for the results.
    """
    asked = given(locals())
    torch.set_num_threads(threads)
    setting = Setting(preset, device=device, changes=changes)
    found: dict[str, list[float]] = {}
    skipped = {}
    for name in variants:
        try:
            found[name] = [
                mib_per_image(replace(setting, num_layers=depth), name, batch_sizes)
                for depth in depths
            ]
        except Unavailable as reason:
            skipped[name] = str(reason)
    results = {
        **asked,
        "image_shape": setting.image_shape,
        **environment(device),
        "mib_per_image": found,
        "skipped": skipped,
    }
    tables.write("memory", Path(out, f"memory-{device}.json"), results)


def mib_per_image(setting: Setting, name: str, batch_sizes: tuple[int, int]) -> float:
    """MiB at the peak of a training step that one image more adds."""
    peaks = []
    for batch_size in batch_sizes:
        variant = VARIANTS[name](replace(setting, batch_size=batch_size))
        variant.forward_backward()
        peaks.append(peak_bytes(variant.add_gradients, setting.device))
    small, large = batch_sizes
    return (peaks[1] - peaks[0]) / (large - small) / 2**20


def peak_bytes(task: Callable[[], object], device: str) -> int:
    """The most bytes that ``task`` holds at one time, of what it allocates itself."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        task()
    events: Any = recorded.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    clock = "start_ns" if hasattr(changes[0], "start_ns") else "start_us"  # torch 2.2 and 2.3
    held = peak = 0
    for event in sorted(changes, key=lambda event: getattr(event, clock)()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    auto_cli(main)
