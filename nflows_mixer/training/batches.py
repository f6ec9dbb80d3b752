"""Batches as a function of the step and the process, so that a run can be resumed or split."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.training.recipe import Recipe


def check_data(owner: str, data: object) -> None:
    """Raise unless these are the parts of a data set."""
    if not isinstance(data, ImageData):
        raise TypeError(
            f"{owner}: expected an ImageData, got {type(data).__name__}; load_images makes one, "
            "and ImageData(name, train, validation, test) of your own images; a DataLoader is "
            "for Lightning's Trainer: Trainer(max_steps=recipe.steps).fit(module, loader)"
        )


@dataclass(eq=False)
class ShuffledBatches(Sampler):
    r"""Rows of the training batches, shuffled anew in each pass over the data.

    Batch b of the run is batch :math:`b \bmod m` of pass :math:`\lfloor b / m \rfloor`, where m
    whole batches are in a pass, and a pass is a permutation that is a function of (seed, pass).
    Nothing else is kept, so that a run goes on at any batch. A batch comes in ``parts``, one after
    another, of each of which process r of W has rows r, r + W, ...

    Args:
        num_images: in the data set.
        batch_size: over all processes together.
        num_batches: of the whole run.
        start: the first batch.
        seed: of the order.
        rank: r.
        world_size: W.
        parts: that a batch is computed in, where gradients are accumulated.

    Raises:
        ValueError: if a batch is larger than the data set or does not split evenly.

    Example:
        >>> batches = list(ShuffledBatches(num_images=5, batch_size=2, num_batches=4))
        >>> later = list(ShuffledBatches(num_images=5, batch_size=2, num_batches=4, start=3))
        >>> len(batches), torch.equal(later[0], batches[3])
        (4, True)
    """

    num_images: int
    batch_size: int
    num_batches: int
    start: int = 0
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        size, shares = self.batch_size, self.world_size * self.parts
        if size > self.num_images:
            expected = f"a batch of at most {self.num_images} images, which is all there are"
            raise mismatch("ShuffledBatches", expected, size, "make batch_size smaller")
        if size % shares:
            expected = (
                f"a batch_size that {self.world_size} processes share evenly in {self.parts} parts"
            )
            raise mismatch("ShuffledBatches", expected, size, f"take a multiple of {shares}")

    # There is no length: Lightning would take the batches before ``start`` off it once more.

    def __iter__(self) -> Iterator[Tensor]:
        per_pass = self.num_images // self.batch_size
        order, passes = torch.empty(0, dtype=torch.long), -1
        for batch in range(self.start, self.num_batches):
            if batch // per_pass != passes:
                passes = batch // per_pass
                # Of a seed torch reads 32 bits. Multiples of the golden ratio lie apart, so that
                # the passes of one seed do not meet those of another.
                word = (self.seed ^ self.seed >> 32) * 0x9E3779B1 + passes
                generator = torch.Generator().manual_seed(word % 2**32)
                order = torch.randperm(self.num_images, generator=generator)
            first = batch % per_pass * self.batch_size
            rows = order[first : first + self.batch_size]
            for part in rows.chunk(self.parts):
                yield part[self.rank :: self.world_size]


class ImageDataModule(LightningDataModule):
    """The parts of a data set, as Lightning's trainer takes them.

    Batches are tuples (images,) or (images, labels), uint8 until they are on the device.

    Args:
        data: what ``load_images`` gave.
        recipe: says the batch size and how many batches there are; a ``decay_every`` that it
            leaves out is an epoch of these data.
        seed: of the order.
        evaluation_images: images of each part that are evaluated, the first ones, at most; all
            where None, but of the training part not more than are held out.
        evaluation_batch_size: images at a time in evaluation, of each process.
        num_workers: processes that load; 0 is best for images that are in memory.

    Example:
        >>> from nflows_mixer.data import load_images
        >>> module = ImageDataModule(load_images("digits"), Recipe(batch_size=50))
        >>> module.test_names
        ['train', 'validation', 'test']
    """

    validation_names = ["validation"]

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe,
        seed: int = 0,
        evaluation_images: int | None = None,
        evaluation_batch_size: int = 500,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_data("ImageDataModule", data)
        if evaluation_images is not None:
            check_positive("ImageDataModule", "evaluation_images", evaluation_images)
        self.data, self.recipe, self.seed = data, recipe.resolved(len(data.train)), seed
        self.evaluation_batch_size = evaluation_batch_size
        self.num_workers = num_workers
        held_out = {"validation": data.validation, "test": data.test}
        parts = {name: part for name, part in held_out.items() if part is not None}
        # As many to train on as are held out: enough to compare, and no further pass over millions.
        count = max(map(len, parts.values()))
        parts = {"train": data.train.subset(slice(count)), **parts}
        self.parts = {name: part.subset(slice(evaluation_images)) for name, part in parts.items()}

    @property
    def test_names(self) -> list[str]:
        """What is evaluated at the end; the training part to compare the others with."""
        return list(self.parts)

    def train_dataloader(self) -> DataLoader:
        """Batches from the one on that follows the trainer's last step, in each epoch.

        Where the trainer overfits, those of one pass over the data, the same in each epoch.
        """
        trainer = self._trainer()
        batches = self.batches(trainer)  # and an error, if it cannot be
        if not trainer.overfit_batches:
            return self._loader(self.data.train, _Remaining(self))
        count = len(self.data.train) // self.recipe.batch_size * trainer.accumulate_grad_batches
        return self._loader(PartInBatches(self.data.train, list(islice(batches, count))))

    def batches(self, trainer: Trainer, start: int = 0) -> ShuffledBatches:
        """Return the rows of this process's training batches, from batch ``start`` on.

        As many as the recipe has steps, or more where the trainer is to make more.
        """
        longest = trainer.max_steps
        if longest == trainer.max_epochs == -1:  # it ends by another rule
            longest = sys.maxsize
        return ShuffledBatches(
            len(self.data.train),
            self.recipe.batch_size,
            max(self.recipe.steps, longest),
            start,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            trainer.accumulate_grad_batches,
        )

    def val_dataloader(self) -> list[DataLoader]:
        """The validation images."""
        return [self._ordered(name) for name in self.validation_names]

    def test_dataloader(self) -> list[DataLoader]:
        """Training, validation and test images, in that order."""
        return [self._ordered(name) for name in self.test_names]

    def predict_dataloader(self) -> list[DataLoader]:
        """The same as for the test."""
        return self.test_dataloader()

    def _ordered(self, name: str) -> DataLoader:
        """The images of a part in order, each in exactly one process: rank r has r, r + W, ..."""
        trainer, part = self._trainer(), self.parts[name]
        rows = torch.arange(len(part))[trainer.global_rank :: trainer.world_size]
        # Lightning's own sampler would repeat images until all processes have as many.
        batches = rows.split(self.evaluation_batch_size) if len(rows) else ()
        return self._loader(PartInBatches(part, batches, name))

    def _loader(self, part: Dataset, batches: Sampler | None = None) -> DataLoader:
        return DataLoader(
            part,
            batch_size=None,
            sampler=batches,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # An iterator draws a seed for its workers: not from the state that training uses.
            generator=torch.Generator(),
        )

    def _trainer(self):
        if self.trainer is None:
            raise RuntimeError(
                "ImageDataModule: expected to be used by a Trainer, got none; "
                "pass it to trainer.fit(module, datamodule=...)"
            )
        return self.trainer


@dataclass(eq=False)
class PartInBatches(Dataset):
    """Batches as the items of a data set, so that Lightning can take the first ones, in order.

    Args:
        part: the images.
        rows: of each batch.
        name: of the figures.
    """

    part: ImageDataset
    rows: Sequence[Tensor]
    name: str = "train"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        return self.part[self.rows[number]]


@dataclass(eq=False)
class _Remaining(Sampler):
    """Rows of the batches that are still to come, where each epoch begins.

    Not where the loader is made: that may be before a checkpoint is read.
    """

    images: ImageDataModule

    def __iter__(self) -> Iterator[Tensor]:
        trainer = self.images._trainer()
        return iter(self.images.batches(trainer, start=trainer.global_step))
