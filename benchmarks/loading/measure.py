"""How many images a second the loader gives, and how many training takes, in one run.

    python -m benchmarks.loading.measure                  # writes results.json and results.md here
    python -m benchmarks.loading.measure --accelerator cuda --batch_size 512

The loader runs in Lightning's trainer with a model that does nothing, over as many images of
32 x 32 as CIFAR-10 has to train on: in memory, mapped from a file, and shuffled pixel by pixel.
Then the cifar10 preset makes training steps. Rounds of all are interleaved; medians are given.
"""

import platform
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import tables
from nflows_mixer.data import ImageData, ImageDataset, shuffled
from nflows_mixer.flows import mixerflow
from nflows_mixer.training import FlowModule, ImageDataModule, Recipe

HERE = Path(__file__).parent
IMAGES = 48_000


class DoNothing(LightningModule):
    """Takes batches, onto its device, and has no parameters."""

    def training_step(self, batch, batch_idx):  # noqa: D102
        return None

    def configure_optimizers(self):  # noqa: D102
        return None


class Clock(Callback):
    """Seconds from the first batch to the last."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):  # noqa: D102
        if batch_idx == 1:
            self.start = time.perf_counter()

    def on_train_end(self, trainer, module):  # noqa: D102
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start


def images_per_second(module, data, batches, batch_size, accelerator):
    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning on models that do nothing
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_steps=batches + 1 if isinstance(module, FlowModule) else -1,
            limit_train_batches=batches + 1,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[clock],
        )
        recipe = Recipe(steps=batches + 1, batch_size=batch_size)
        trainer.fit(module, datamodule=ImageDataModule(data, recipe))
    return batches * batch_size / clock.seconds


def sources(folder):
    """The same images in memory, in a file, and with shuffled pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(IMAGES, 3, 32, 32), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    memory = ImageDataset(torch.from_numpy(pixels))
    parts = {"in memory": memory, "mapped from a file": ImageDataset(folder / "images.npy")}
    data = {name: ImageData(name, part, part.subset([0]), None) for name, part in parts.items()}
    return {**data, "in memory, pixels shuffled": shuffled(data["in memory"], "global")}


def main(
    batch_size: int = 64,
    rounds: int = 3,
    loader_batches: int = 200,
    training_steps: int = 3,
    accelerator: str = "cpu",
    out: str = str(HERE),
):
    """How many images a second the loader gives, and how many training takes, in one run.

    Args:
        batch_size: images per step.
        rounds: of which medians are taken.
        loader_batches: of each source and round.
        training_steps: of the cifar10 preset in each round.
        accelerator: cpu or cuda.
        out: folder for results.json and results.md.
    """
    speeds = {}
    flow = mixerflow("cifar10")
    with tempfile.TemporaryDirectory() as folder:
        data = sources(Path(folder))
        for _ in range(rounds):
            for name, source in data.items():
                speed = images_per_second(
                    DoNothing(), source, loader_batches, batch_size, accelerator
                )
                speeds.setdefault(name, []).append(speed)
            # So small a rate that the random images, which no flow fits, do no harm in a few steps.
            recipe = Recipe(1e-6, steps=training_steps + 1, batch_size=batch_size)
            speed = images_per_second(
                FlowModule(flow, recipe), data["in memory"], training_steps, batch_size, accelerator
            )
            speeds.setdefault("training", []).append(speed)
    training = median(speeds.pop("training"))
    cuda = accelerator == "cuda"
    results = {
        "batch_size": batch_size,
        "rounds": rounds,
        "loader_batches": loader_batches,
        "training_steps": training_steps,
        "images": IMAGES,
        "training_images_per_second": training,
        "loader_images_per_second": {name: median(values) for name, values in speeds.items()},
        "ratio": {name: median(values) / training for name, values in speeds.items()},
        "machine": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    tables.write("loading", Path(out, "results.json"), results)


if __name__ == "__main__":
    auto_cli(main)
