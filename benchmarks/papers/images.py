"""Where the images of a row come from: a folder of data sets, or noise where they are absent."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer.data import ImageData, ImageDataset, load_images, shuffled

SIZES = {
    "cifar10": (3, 32, 32),
    "mnist": (1, 28, 28),
    "galaxy32": (3, 32, 32),
    "imagenet32": (3, 32, 32),
    "imagenet64": (3, 64, 64),
    "animefaces": (3, 64, 64),
    "celeba64": (3, 64, 64),
}
"""Data set -> (C, H, W)."""
SMALL = {"cifar10": 16, "mnist": 28}
"""Data sets of the rows that are scaled down -> height and width, by means over squares."""
PATCH = {16: 2, 28: 4, 32: 4, 64: 8}
"""Height of images -> that of the patches of a local shuffle, which are those of MixerFlow."""
FOLDERS = {"cifar10": "cifar-10-batches-py", "mnist": "MNIST", "celeba64": "celeba"}
"""Data set -> the folder that torchvision leaves; the others have folders of their own names."""


NOISE = "synthetic: random pixels"
"""Version of images that stand in for a data set; what is trained on them is no result."""


class Absent(Exception):
    """The images of a row are not there; the message says where they are looked for."""


@cache
def images_of(
    data: str, root: str, shuffle: str | None = None, size: int | None = None, version: str = ""
) -> ImageData:
    """Return a data set, which is looked for; no download is started where there is none.

    ``NAME_train.npz`` with ``NAME_test.npz`` come first, as ``load_images`` reads them; then
    ``NAME_test.npz`` alone, of which a tenth is held out and which is called what it is; then what
    ``load_images(NAME)`` finds without a download.

    Args:
        data: key of ``SIZES``.
        root: folder of data sets.
        shuffle: "global", "local" or None.
        size: height and width that images are averaged down to; None for as they are.
        version: that the data set has to be of, where there are two; .npz files say none.

    Raises:
        Absent: if there is none, or one of the other version.
    """
    if shuffle is not None:
        plain = images_of(data, root, None, size, version)
        patch = PATCH[plain.image_shape[1]] if shuffle == "local" else None
        return shuffled(plain, shuffle, patch)
    folder = Path(root).absolute()
    train, test = (folder / f"{data}_{part}.npz" for part in ("train", "test"))
    if train.exists() and test.exists():
        images = replace(load_images(train, test_data=test), name=data)
    elif test.exists():
        images = replace(load_images(test), name=data, version="of the test images alone")
    elif (folder / FOLDERS.get(data, data)).is_dir():
        images = load_images(data, root=folder)
    else:
        raise Absent(
            f"expected {train.name} and {test.name}, or a folder {FOLDERS.get(data, data)}, in "
            f"{root}; load_images({data!r}, root={root!r}) says how to get them, or does it"
        )
    if version and images.version != version:
        got = images.version or "images that do not say theirs, as an .npz file does not"
        raise Absent(
            f"expected the {version} version of {data} in {root}, got {got}: the two do not compare"
        )
    if size is not None and size != images.image_shape[1]:
        images = averaged_down(images, size)
    return images


def first_images(images: ImageData, train: int, held_out: int) -> ImageData:
    """Return the first images of each part."""
    parts = {
        "train": images.train.subset(slice(train)),
        "validation": images.validation.subset(slice(held_out)),
        "test": None if images.test is None else images.test.subset(slice(held_out)),
    }
    return replace(images, **parts, version=f"{images.version} first images".strip())


def noise_images(data: str, size: int | None = None) -> ImageData:
    """Return random images, so that a command can run where a data set is absent."""
    channels, height, width = SIZES[data]
    shape = (channels, size or height, size or width)
    generator = torch.Generator().manual_seed(0)
    parts = [
        ImageDataset(
            torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8),
            torch.arange(count) % 10,
        )
        for count in (64, 16, 16)
    ]
    return ImageData(data, *parts, version=NOISE)


def averaged_down(images: ImageData, size: int) -> ImageData:
    """Return images of this height and width: means over squares of pixels, rounded.

    Args:
        images: square ones, of a multiple of the size.
        size: height and width.

    Raises:
        ValueError: if they are not.
    """
    _, height, width = images.image_shape
    if height != width or height % size:
        raise ValueError(
            f"expected square images of a multiple of {size}, got {height} x {width}; give "
            "another size"
        )
    parts = {}
    for name in ("train", "validation", "test"):
        part = getattr(images, name)
        pixels = averaged(part.images(), height // size)
        parts[name] = ImageDataset(pixels, part.labels() if part.labelled else None)
    return replace(images, **parts)


def averaged(pixels: Tensor, factor: int) -> Tensor:
    """Return means over squares of ``factor`` by ``factor`` pixels, rounded, uint8 [N, C, H, W]."""
    parts = [F.avg_pool2d(part.float(), factor).round() for part in pixels.split(5000)]
    return torch.cat(parts).to(torch.uint8)
