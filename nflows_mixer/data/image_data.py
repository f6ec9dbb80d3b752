"""The parts of an image data set, and what a result says about them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nflows_mixer._checks import check_levels, mismatch
from nflows_mixer.data.dataset import ImageDataset


@dataclass(frozen=True)
class ImageData:
    """Images to train on, to choose by and to report.

    Args:
        name: what they are, for the report.
        train: the images to train on.
        validation: those that choose a model; not for the result.
        test: those of the result; None where the data set has no such part, and results are then
            those of the validation part.
        levels: number of pixel values.
        version: which of several data sets of this name it is; "" where there is one only.
        shuffle: mode, patch size and seed of the fixed shuffle of the pixels, or None.
        split_hash: says which images went to which part: the first 16 hexadecimal digits of the
            SHA-256 of the row numbers of train, validation and, where it comes from the same
            images, test; a hyphen; and as many digits of that of the pixels of all the images that
            these are rows of. Computed from the parts where it is not given.
        split_seed: that the split was drawn by, and a shuffle; None where nothing says so.
        test_hash: of the pixels of a test part of its own, likewise; None where there is none.
        label_values: what the labels were before they were numbered anew, that of each class; None
            where they are as they were, see ``with_numbered_labels``.

    Example:
        >>> import torch
        >>> images = ImageDataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
        >>> data = ImageData("blank", images.subset([0, 2, 3]), images.subset([1]), None, levels=17)
        >>> data.image_shape, data.describe()["validation_images"]
        ((1, 8, 8), 1)
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset | None
    levels: int = 256
    version: str = ""
    shuffle: dict[str, Any] | None = None
    split_hash: str = ""
    split_seed: int | None = None
    test_hash: str | None = None
    label_values: list[int] | None = None

    def __post_init__(self) -> None:
        # Stored, so that a part that is cut down later keeps the hash of the split it came from.
        if not self.split_hash:
            parts, test = [self.train, self.validation], self.test
            if test is not None and test.shares_images(self.train):
                parts.append(test)
            elif test is not None:
                object.__setattr__(self, "test_hash", _pixels_of([test]))
            rows = hashlib.sha256()
            for part in parts:
                rows.update(part.rows.numpy().astype("<i8").tobytes())
            object.__setattr__(self, "split_hash", f"{rows.hexdigest()[:16]}-{_pixels_of(parts)}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape

    @property
    def num_classes(self) -> int | None:
        """The highest label of all parts plus 1; None where the images to train on have none.

        Raises:
            ValueError: if more than half of the classes below the highest have no image.
        """
        if not self.train.labelled:
            return None
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        found = torch.cat([part.labels() for part in parts if part.labelled]).unique()
        count = int(found.max()) + 1
        if count > 2 * len(found):  # each class has parameters of its own
            got = f"{len(found)} labels, up to {count - 1:,}"
            advice = "number them anew, by load_images(..., remap_labels=True) or np.unique"
            raise mismatch(self.name, "labels that count the classes from 0", got, advice)
        return count

    def describe(self) -> dict[str, Any]:
        """Return what a result has to say about its data, ready for JSON."""
        described: dict[str, Any] = {
            "data": self.name,
            "version": self.version,
            "levels": self.levels,
            "image_shape": list(self.image_shape),
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": 0 if self.test is None else len(self.test),
            "split_hash": self.split_hash,
            "split_seed": self.split_seed,
            "test_hash": self.test_hash,
        }
        if self.shuffle is not None:
            described["shuffle"] = dict(self.shuffle)
        if self.label_values is not None:
            described["label_values"] = self.label_values
        return described


def _pixels_of(parts: Sequence[ImageDataset]) -> str:
    """16 digits of the hash of the stored images of parts, each store once."""
    stores: list[ImageDataset] = []
    for part in parts:
        if not any(part.shares_images(store) for store in stores):
            stores.append(part)
    digest = hashlib.sha256("".join(store.contents_hash for store in stores).encode())
    return digest.hexdigest()[:16]


def check_same_images(trained: Mapping[str, Any], data: ImageData, owner: str) -> None:
    """Raise unless images are those of a training run, in its order and its split.

    Args:
        trained: what ``describe`` said of the run's data; {} where nothing is known.
        data: the images that there are now.
        owner: who asks, for the error.

    Example:
        >>> from nflows_mixer.data import load_images
        >>> check_same_images(load_images("digits").describe(), load_images("digits"), "example")
    """
    if not trained:
        return
    if (shuffle := trained.get("shuffle")) != data.shuffle:
        expected = f"the shuffle of the training run, {shuffle}"
        raise mismatch(owner, expected, f"{data.shuffle}", "give what it was given")
    if (values := trained.get("label_values")) != data.label_values:
        expected, got = f"the classes of the training run, {values}", f"{data.label_values}"
        raise mismatch(owner, expected, got, "number the labels anew where it did: remap_labels")
    for fact, value in {"split_hash": data.split_hash, "version": data.version}.items():
        known = trained.get(fact, value)
        if known == value:
            continue
        if known == value.partition("-")[0]:  # of before the pixels were part of it
            warnings.warn(
                f"{owner}: the training run knew its images by their row numbers alone; whether "
                "these are the same ones cannot be told",
                stacklevel=2,
            )
        else:
            raise mismatch(
                owner,
                f"the images of the training run, {fact} {known!r}",
                f"{value!r}, where training images may be held out",
                "name the same data, test_data, size and root, with the files as they were",
            )


def with_levels(data: ImageData, levels: int) -> ImageData:
    """Return images as ones of fewer levels, which files and folders do not say that they have.

    Args:
        data: the images.
        levels: number of pixel values.

    Raises:
        ValueError: if a pixel of any part is too large, or the source says how many they are; if
            it is None, which is for flows on real images.

    Example:
        >>> images = ImageDataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
        >>> with_levels(ImageData("blank", images, images, None), 17).levels
        17
    """
    if levels == data.levels:
        return data
    check_levels(data.name, levels)
    if data.levels != 256:
        raise mismatch(data.name, f"{data.levels} levels", levels, "leave the levels out")
    for part in (data.train, data.validation, data.test):
        for start in range(0, 0 if part is None else len(part), 10_000):
            assert part is not None
            if (top := int(part.images(slice(start, start + 10_000)).max())) >= levels:
                expected, got = f"pixels from 0 to {levels - 1}", f"one of {top}"
                raise mismatch(data.name, expected, got, "give levels for all of them")
    return replace(data, levels=levels)


def with_numbered_labels(data: ImageData) -> ImageData:
    """Return images whose labels count the classes from 0, in the order of their labels.

    Args:
        data: the images; labels below 0, of images without a class, stay as they are.

    Example:
        >>> labels = torch.tensor([7, 90, 7])
        >>> images = ImageDataset(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels)
        >>> numbered = with_numbered_labels(ImageData("blank", images, images, None))
        >>> numbered.train.labels().tolist(), numbered.label_values
        ([0, 1, 0], [7, 90])
    """
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    parts = {name: part for name, part in named.items() if part is not None and part.labelled}
    if not parts:
        raise mismatch(data.name, "labels to number anew", "images alone", "leave remap_labels out")
    of_each = {name: part.labels() for name, part in parts.items()}
    values = torch.cat(list(of_each.values())).unique()
    values = values[values >= 0]
    numbered: dict[str, Any] = {
        name: parts[name].with_labels(
            torch.where(labels < 0, labels, torch.searchsorted(values, labels))
        )
        for name, labels in of_each.items()
    }
    return replace(data, **numbered, label_values=values.tolist())


def validation_size(count: int) -> int:
    """Return int(0.04 n), the validation part of n training images, but at least 1.

    References:
        MixerFlow, Table 8: the numbers of training points, such as 48,000 of CIFAR-10's 50,000.

    Example:
        >>> validation_size(50_000), validation_size(63_565), validation_size(3)
        (2000, 2542, 1)
    """
    # 4 n // 100 is int(0.04 n) without the rounding of 0.04.
    return max(1, 4 * count // 100)


def split(dataset: ImageDataset, sizes: Sequence[int], seed: int) -> list[ImageDataset]:
    """Return parts of these sizes, and the rest as the last, in the order of a random permutation.

    Args:
        dataset: what to split; its images are shared, not copied.
        sizes: the number of images of each part but the last.
        seed: the permutation is a function of it and of the number of images.

    Returns:
        One data set more than there are sizes.

    Raises:
        ValueError: if nothing is left for the last part.

    Example:
        >>> images = ImageDataset(torch.zeros(10, 1, 2, 2, dtype=torch.uint8))
        >>> [len(part) for part in split(images, [2, 3], seed=0)]
        [2, 3, 5]
    """
    count, taken = len(dataset), sum(sizes)
    if count <= taken:
        expected = f"more than {taken} images to split"
        raise mismatch("split", expected, count, "use a larger data set, or smaller parts")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [dataset.subset(part) for part in order.split([*sizes, count - taken])]
