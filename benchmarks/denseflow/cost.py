"""Time and memory of a DenseFlow, and how near its time is to that of its convolutions alone.

    python -m benchmarks.denseflow.cost           # writes to runs/benchmarks
    python -m benchmarks.denseflow.cost --preset denseflow-45-6 --rounds 3
    python -m benchmarks.denseflow.cost --device cuda --batch_size 64 --calls 3

What is timed:

- log_prob, in evaluation mode without gradients;
- sampling, of as many images as a batch has;
- training: mean bits/dim of a batch and its gradients, with each way to keep, or rebuild,
  activations;
- the convolutions of each alone, see ``convolutions.py``.

Each kind is rounds of one run, see ``benchmarks/timing.py``, and ratios are of times in
the same round. Images are random; the weights are moved off their start, see ``settle`` in
``benchmarks/speed/variants/base.py``. What an image keeps is counted from the tensors that are
saved for the backward pass, each storage once; the peak is that of ``benchmarks/speed/memory.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks import tables
from benchmarks.denseflow.convolutions import ALONE, convolutions
from benchmarks.sizes import parameters_of
from benchmarks.speed.floor import Floor, multiply_adds
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.variants import Setting, Variant
from benchmarks.timing import environment, interleaved, ratios, timed
from nflows_mixer.flows import DENSEFLOW_PRESETS, ImageFlow, denseflow
from nflows_mixer.transforms import GlowStep, ReversibleCompositeTransform

MEMORY = ("full", "checkpoint", "constant")


class DenseSetting(Setting):
    """A DenseFlow, and what it runs on; its layers are its modules."""

    def flow(self, **arguments: Any) -> ImageFlow:
        """Build the model as the library does."""
        return denseflow(self.preset, **self.changes, **arguments)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return {**DENSEFLOW_PRESETS[self.preset].arguments, **self.changes}["image_shape"]


def main(
    preset: str = "denseflow-74-10",
    batch_size: int = 4,
    memory_batch_sizes: tuple[int, int] = (8, 16),
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
    rounds: int = 4,
    calls: int = 1,
    changes: dict[str, Any] = {},  # noqa: B006 (read only)
    out: str = "runs/benchmarks",
):
    """Time a DenseFlow beside the floor of its convolutions, and measure the memory of an image.

    Args:
        preset: of ``denseflow``.
        batch_size: images.
        memory_batch_sizes: between which the memory of an image is measured, the smaller first.
        device: cpu or cuda.
        dtype: float32 or float64.
        threads: of torch, on the CPU.
        rounds: in each of which everything runs once.
        calls: of everything in each round.
        changes: arguments of ``denseflow`` that are not the preset's.
        out: folder for the results.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    setting = DenseSetting(preset, 0, batch_size, device, getattr(torch, dtype), changes)
    plain = setting.flow()
    modules = sum(isinstance(part, GlowStep) for part in plain.modules())
    setting = replace(setting, num_layers=modules)
    variants = {memory: Variant(setting.flow(memory=memory), setting) for memory in MEMORY}
    results = {
        "preset": preset,
        "image_shape": list(plain.image_shape),
        "parameters": parameters_of(plain),
        "batch_size": batch_size,
        "memory_batch_sizes": list(memory_batch_sizes),
        "dtype": dtype,
        "rounds": rounds,
        "calls": calls,
        **environment(device),
        **times(setting, variants, rounds, calls),
        "mib_per_image": mib_per_image(setting, variants, memory_batch_sizes),
        # Parts whose inverses were not exact enough for memory="constant".
        "inexact": sorted(
            name
            for part in variants["constant"].flow.modules()
            if isinstance(part, ReversibleCompositeTransform)
            for name in part.inexact
        ),
    }
    tables.write("cost", Path(out, f"cost-{device}.json"), results)


def times(
    setting: Setting, variants: dict[str, Variant], rounds: int, calls: int
) -> dict[str, Any]:
    """Return multiply-adds, and times and ratios of everything that is timed."""
    full = {"full": variants["full"]}
    adds: dict[str, int] = {}
    measures: dict[str, dict[str, Any]] = {}
    for kind, method, timed_here in [
        ("log_prob", "log_prob", full),
        ("sampling", "sample", full),
        ("training", "forward_backward", variants),
    ]:
        training = kind == "training"
        for variant in timed_here.values():
            variant.flow.train(training)
        once = variants["full"].sample if kind == "sampling" else variants["full"].log_prob
        found = convolutions(variants["full"].flow, once)
        # Of a training step: forward, and the products of inputs and weights.
        adds[kind] = multiply_adds(found) * (3 if training else 1)
        floor = Floor(found, setting.batch_size, setting.device, setting.dtype)
        tasks: dict[str, Callable] = {ALONE: floor.training if training else floor.forward}
        tasks |= {name: getattr(variant, method) for name, variant in timed_here.items()}
        seconds = interleaved(tasks, rounds, setting.device, calls)
        measures[kind] = {
            name: {
                **timed(seconds[name], setting.batch_size),
                "to_floor": ratios(seconds, name, ALONE),
                "to_full": ratios(seconds, name, "full"),
            }
            for name in tasks
        }
    return {"multiply_adds": adds, "measures": measures}


def mib_per_image(
    setting: Setting, variants: dict[str, Variant], batch_sizes: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Return MiB that one image more keeps, and adds to the peak, of each way to train."""
    small, large = batch_sizes
    found = {}
    for memory, variant in variants.items():
        kept, peaks = [], []
        variant.forward_backward()  # so that gradients are there, to which others are added
        for size in batch_sizes:
            variant.images = replace(setting, batch_size=size).images()
            kept.append(kept_bytes(variant.flow, variant.loss))
            peaks.append(peak_bytes(variant.add_gradients, setting.device))
        per_image = (large - small) * 2**20
        found[memory] = {
            "kept": (kept[1] - kept[0]) / per_image,
            "peak": (peaks[1] - peaks[0]) / per_image,
        }
        variant.flow.zero_grad(set_to_none=True)
    return found


def kept_bytes(flow: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of what is saved for the backward pass, each storage once, beyond the flow's own."""
    own = {t.untyped_storage().data_ptr() for t in (*flow.parameters(), *flow.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = loss()
    del kept  # until here, so that no storage takes the place of another
    return sum(sizes.values())


if __name__ == "__main__":
    auto_cli(main)
