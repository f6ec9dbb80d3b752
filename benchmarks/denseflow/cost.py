"""Time and memory of a DenseFlow, and how near its time is to that of its convolutions alone.

    python -m benchmarks.denseflow.cost           # writes results/cost-cpu.json, .md and .png
    python -m benchmarks.denseflow.cost --preset denseflow-45-6 --rounds 3
    python -m benchmarks.denseflow.cost --device cuda --batch_size 64 --calls 3

What is timed:

- log_prob, in evaluation mode without gradients;
- sampling, of as many images as a batch has;
- training: mean bits/dim of a batch and its gradients, with each way to keep, or rebuild,
  activations;
- the convolutions of each alone, see ``convolutions.py``.

All are rounds of one run, see ``benchmarks.speed.interleaved``, and ratios are of times in the same
round. Images are random; the weights, the same for all, are moved off their start, see
``settle`` in ``benchmarks/speed/variants/base.py``. What an image keeps is counted from the tensors
that are saved for the backward pass, each storage once; the peak is that of
``benchmarks/speed/memory.py``.

Results of another setting than the usual one are written to files of other names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks import tables
from benchmarks.denseflow.convolutions import ALONE, Convolution, convolutions
from benchmarks.speed.environment import machine, versions
from benchmarks.speed.files import path_of
from benchmarks.speed.floor import Floor, multiply_adds
from benchmarks.speed.interleaved import clock, interleaved, ratios
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.variants.base import settle
from nflows_mixer.flows import ImageFlow, denseflow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.transforms import GlowStep, ReversibleCompositeTransform

RESULTS = Path(__file__).parent / "results"
MEMORY = ("full", "checkpoint", "constant")


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
    out: str = str(RESULTS),
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
        changes: other arguments of ``denseflow``.
        out: folder for the results.
    """
    path = path_of("cost", main, locals())
    torch.set_num_threads(threads)
    models = Models(preset, changes, batch_size, device, getattr(torch, dtype))
    results = {
        "preset": preset,
        "changes": changes,
        "image_shape": list(models.image_shape),
        "parameters": sum(p.numel() for p in models.evaluated.parameters()),
        "batch_size": batch_size,
        "memory_batch_sizes": list(memory_batch_sizes),
        "dtype": dtype,
        "rounds": rounds,
        "calls": calls,
        "clock": clock(device),
        "machine": machine(device, threads),
        "versions": versions(),
        **models.times(rounds, calls),
        "mib_per_image": models.mib_per_image(memory_batch_sizes),
        "inexact": models.inexact(),
    }
    tables.write("cost", path, results)
    print(path.with_suffix(".md").read_text())


class Models:
    """One DenseFlow in evaluation mode, and one for each way to train; their weights are shared.

    Args:
        preset: of ``denseflow``.
        changes: other arguments of ``denseflow``.
        batch_size: images.
        device: "cpu" or "cuda".
        dtype: of parameters and activations.
    """

    def __init__(
        self,
        preset: str,
        changes: dict[str, Any],
        batch_size: int,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.evaluated = denseflow(preset, **changes).to(device, dtype)
        self.image_shape = self.evaluated.image_shape
        self.images = self.draw(batch_size)
        modules = sum(isinstance(part, GlowStep) for part in self.evaluated.modules())
        settle(self.evaluated, self.images, modules)
        self.trained = {
            memory: _sharing(denseflow(preset, memory=memory, **changes), self.evaluated)
            for memory in MEMORY
        }
        self.evaluated.eval()

    def draw(self, count: int) -> Tensor:
        """Draw random images."""
        generator = torch.Generator().manual_seed(0)
        shape, levels = (count, *self.image_shape), self.evaluated.dequantization.levels
        images = torch.randint(levels, shape, dtype=torch.uint8, generator=generator)
        return images.to(self.device)

    @torch.no_grad()
    def log_prob(self) -> Tensor:
        """Log-likelihoods of the batch."""
        return self.evaluated.log_prob(self.images)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """As many images as a batch has."""
        return self.evaluated.sample(len(self.images))

    def loss(self, memory: str, images: Tensor) -> Tensor:
        """Mean bits/dim of images."""
        return bits_per_dim(self.trained[memory].log_prob(images), self.image_shape).mean()

    def forward_backward(self, memory: str) -> None:
        """Mean bits/dim of the batch and its gradients, from none."""
        self.trained[memory].zero_grad(set_to_none=True)
        self.loss(memory, self.images).backward()

    def times(self, rounds: int, calls: int) -> dict[str, Any]:
        """Return multiply-adds, and times and ratios of everything that is timed."""
        found = {
            "log_prob": convolutions(self.evaluated, self.log_prob),
            "sampling": convolutions(self.evaluated, self.sample),
        }
        found["training"] = found["log_prob"]
        tasks = self._tasks(found)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old parts of torch that nflows still calls
            seconds = interleaved(
                {
                    f"{kind}, {name}": task
                    for kind, of in tasks.items()
                    for name, task in of.items()
                },
                rounds,
                self.device,
                calls,
            )
        measures: dict[str, dict[str, Any]] = {}
        for kind, of_kind in tasks.items():
            measures[kind] = {}
            for name in of_kind:
                key = f"{kind}, {name}"
                middle = median(seconds[key])
                measures[kind][name] = {
                    "milliseconds": 1000 * middle,
                    "images_per_second": len(self.images) / middle,
                    "rounds": [1000 * value for value in seconds[key]],
                    "to_floor": ratios(seconds, key, f"{kind}, {ALONE}"),
                    "to_full": ratios(seconds, key, f"{kind}, full"),
                }
        return {
            # Of a training step: forward, and the products of inputs and weights.
            "multiply_adds": {
                kind: multiply_adds(those) * (3 if kind == "training" else 1)
                for kind, those in found.items()
            },
            "measures": measures,
        }

    def mib_per_image(self, batch_sizes: tuple[int, int]) -> dict[str, dict[str, float]]:
        """Return MiB that one image more keeps, and adds to the peak, of each way to train."""
        small, large = batch_sizes
        found = {}
        for memory in MEMORY:
            kept, peaks = [], []
            self.forward_backward(memory)  # so that gradients are there, to which others are added
            for images in map(self.draw, batch_sizes):
                loss = partial(self.loss, memory, images)
                kept.append(kept_bytes(self.trained[memory], loss))
                peaks.append(peak_bytes(lambda of=loss: of().backward(), self.device))
            per_image = (large - small) * 2**20
            found[memory] = {
                "kept": (kept[1] - kept[0]) / per_image,
                "peak": (peaks[1] - peaks[0]) / per_image,
            }
            self.trained[memory].zero_grad(set_to_none=True)
        return found

    def inexact(self) -> list[str]:
        """Return the parts whose inverses were not exact enough for memory="constant"."""
        return sorted(
            name
            for part in self.trained["constant"].modules()
            if isinstance(part, ReversibleCompositeTransform)
            for name in part.inexact
        )

    def _tasks(self, found: dict[str, list[Convolution]]) -> dict[str, dict[str, Callable]]:
        floors = {
            kind: Floor(those, len(self.images), self.device, self.dtype)
            for kind, those in found.items()
        }
        return {
            "log_prob": {ALONE: floors["log_prob"].forward, "full": self.log_prob},
            "sampling": {ALONE: floors["sampling"].forward, "full": self.sample},
            "training": {
                ALONE: floors["training"].training,
                **{memory: partial(self.forward_backward, memory) for memory in MEMORY},
            },
        }


def kept_bytes(flow: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes of what is saved for the backward pass, each storage once, beyond the flow's own.

    Args:
        flow: whose parameters and buffers are not counted.
        loss: what is computed.
    """
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


def _sharing(flow: ImageFlow, source: ImageFlow) -> ImageFlow:
    """Return the flow with the parameters and buffers of another in the place of its own."""
    first = next(source.parameters())
    flow.to(first.device, first.dtype)
    flow.load_state_dict(source.state_dict(), assign=True)
    return flow.train()


if __name__ == "__main__":
    auto_cli(main)
