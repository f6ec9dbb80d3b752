"""How many images a second the loader gives, and how many training takes, in one run.

    python -m benchmarks.loading.measure                  # writes results.json and results.md here
    python -m benchmarks.loading.measure --device cuda --batch_size 512

The loader of ``ImageDataModule`` gives batches of as many images of 32 x 32 as CIFAR-10 has to
train on: in memory, mapped from a file, and shuffled pixel by pixel. The cifar10 preset makes
training steps. Rounds of all are interleaved; medians are given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.speed.variants import Setting, Variant
from benchmarks.timing import environment, given, interleaved
from nflows_mixer.data import ImageData, ImageDataset, shuffled
from nflows_mixer.training import ImageDataModule, Recipe

HERE = Path(__file__).parent
IMAGES = 48_000


def sources(folder: Path) -> dict[str, ImageData]:
    """The same images in memory, in a file, and with shuffled pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(IMAGES, 3, 32, 32), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    memory = ImageDataset(torch.from_numpy(pixels))
    parts = {"in memory": memory, "mapped from a file": ImageDataset(folder / "images.npy")}
    data = {name: ImageData(name, part, part.subset([0]), None) for name, part in parts.items()}
    return {**data, "in memory, pixels shuffled": shuffled(data["in memory"], "global")}


def batches_of(data: ImageData, batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches as a trainer of one process takes them."""
    module = ImageDataModule(data, Recipe(steps=1_000_000, batch_size=batch_size))
    alone = {"global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1}
    length = {"max_steps": 1_000_000, "max_epochs": -1, "overfit_batches": 0, "global_step": 0}
    module.trainer = SimpleNamespace(**alone, **length)
    return iter(module.train_dataloader())


def load(batches: Iterator[tuple[torch.Tensor, ...]], count: int, device: str) -> None:
    """Take batches, onto a device."""
    for _ in range(count):
        next(batches)[0].to(device)


def main(
    batch_size: int = 64,
    rounds: int = 3,
    loader_batches: int = 200,
    num_layers: int = 30,
    device: str = "cpu",
    out: str = str(HERE),
):
    """How many images a second the loader gives, and how many training takes, in one run.

    Args:
        batch_size: images per step.
        rounds: of which medians are taken.
        loader_batches: of each source and round.
        num_layers: of the cifar10 preset that is trained.
        device: cpu or cuda.
        out: folder for results.json and results.md.
    """
    asked = given(locals())
    setting = Setting(num_layers=num_layers, batch_size=batch_size, device=device)
    tasks = {"training": Variant(setting.flow(), setting).training_step}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in sources(Path(folder)).items():
            tasks[name] = partial(load, batches_of(data, batch_size), loader_batches, device)
        seconds = interleaved(tasks, rounds, device)
    training = batch_size / median(seconds.pop("training"))
    speeds = {name: loader_batches * batch_size / median(s) for name, s in seconds.items()}
    results = {
        **asked,
        "images": IMAGES,
        "training_images_per_second": training,
        "loader_images_per_second": speeds,
        "ratio": {name: speed / training for name, speed in speeds.items()},
        **environment(device),
    }
    tables.write("loading", Path(out, "results.json"), results)


if __name__ == "__main__":
    auto_cli(main)
