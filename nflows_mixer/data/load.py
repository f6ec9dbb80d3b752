"""Images from a name, a file or a folder, split into parts to train on, to choose by, to report."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nflows_mixer._checks import as_python, check_choice, mismatch
from nflows_mixer.data.cache import ImageFiles, gather
from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.data.folder import folder_images
from nflows_mixer.data.image_data import (
    ImageData,
    split,
    validation_size,
    with_numbered_labels,
)
from nflows_mixer.data.imagenet import load_imagenet
from nflows_mixer.data.npz import npz_images
from nflows_mixer.data.shuffle import shuffled
from nflows_mixer.data.torchvision_sets import DOWNLOADS, load_celeba64, load_download

IMAGENETS = {"imagenet32": 32, "imagenet64": 64}
# Folders under the root that have no test part, and the size they are resized to.
FOLDERS = {"animefaces": 64, "galaxy32": 32}
NAMES = ("digits", *DOWNLOADS, "celeba64", *IMAGENETS, *FOLDERS)


def load_images(
    data: str | Path = "digits",
    *,
    test_data: str | Path | None = None,
    root: str | Path = "data",
    seed: int = 0,
    shuffle: Literal["global", "local"] | None = None,
    shuffle_patch: int | None = None,
    size: int | None = None,
    remap_labels: bool = False,
) -> ImageData:
    """Load images by name, from an .npz file, or from a folder of image files.

    =============  ============================================================================
    data           images, and the parts they come in
    =============  ============================================================================
    "digits"       scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 levels; 397 held out
    "cifar10"      torchvision; official test part
    "mnist"        torchvision; official test part
    "celeba64"     torchvision, RealNVP's crop, 64 x 64; official parts
    "imagenet32"   ``root/imagenet32``, old or new version, see ``version``; official validation
                   part as test part
    "imagenet64"   likewise
    "animefaces"   ``root/animefaces``, a folder resized to 64 x 64; no test part
    "galaxy32"     ``root/galaxy32``, a folder resized to 32 x 32; no test part
    a file .npz    arrays ``images``, uint8 [N, H, W] or [N, H, W, C], and ``labels`` if any
    a folder       image files at any depth; class folders give labels, as in ImageFolder
    =============  ============================================================================

    Files and folders without ``test_data`` lose a tenth of their images to the test part. The
    validation part is int(0.04 n) of the n other images, but for CelebA's own. Image sets larger
    than 1 GiB are written to ``root/cache`` once and mapped.

    Args:
        data: digits, cifar10, mnist, celeba64, imagenet32, imagenet64, animefaces, galaxy32, a
            file .npz or a folder of images.
        test_data: a second .npz file or folder, held out whole; otherwise a tenth of the first is.
            It is refused where more than 1% of its images are in the first, too.
        root: folder of downloads, of the data sets that are named, and of the cache.
        seed: of the random split and of the shuffle.
        shuffle: shuffle the pixels of all images in the same way; local keeps patches together.
        shuffle_patch: patch size of the local shuffle; 4 if None.
        size: of a folder: the shorter side of each image is resized to it, the centre cropped.
        remap_labels: number labels such as 0, 10, 1000 anew, 0, 1, 2; ``label_values`` of the
            images, results and weights has what they were.

    Returns:
        The images.

    Raises:
        ValueError: if the source is unknown, its images are no uint8 images of one size, or they
            are too few to split.

    References:
        MixerFlow, Section 5.4.1 (shuffles) and Table 8 (sizes of the parts).

    Example:
        >>> data = load_images("digits")
        >>> len(data.train), len(data.validation), len(data.test), data.split_hash
        (1344, 56, 397, 'b669f0cb2ebffae4-...')
    """
    root = Path(root).absolute()
    seed, shuffle_patch, size = as_python((seed, shuffle_patch, size))
    named = isinstance(data, str) and data in NAMES
    if named and test_data is not None:
        expected = f"no test images beside {data!r}"
        raise mismatch("load_images", expected, test_data, "its test part is decided by its name")
    if size is not None and (named or not Path(data).is_dir()):
        expected = "no size but with a folder of image files"
        raise mismatch("load_images", expected, f"{data!r}, size={size}", "leave size out")
    if shuffle is not None:
        check_choice("load_images", "shuffle", shuffle, ("global", "local"))
    if shuffle_patch is not None and shuffle != "local":
        expected = "a shuffle_patch with shuffle='local' alone"
        raise mismatch("load_images", expected, f"shuffle={shuffle!r}", "leave it out")
    images = _named(str(data), root, seed) if named else _paths(data, test_data, root, seed, size)
    images = replace(images, split_seed=seed)
    images = with_numbered_labels(images) if remap_labels else images
    return images if shuffle is None else shuffled(images, shuffle, shuffle_patch, seed)


def _named(name: str, root: Path, seed: int) -> ImageData:
    if name == "celeba64":
        return ImageData(name, *load_celeba64(root))
    version = ""
    test: ImageDataset | None = None
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
        everything = ImageDataset(images, torch.from_numpy(digits.target))
        return _split(name, everything, None, seed, held_out=397, levels=17)
    if name in DOWNLOADS:
        everything, test = load_download(name, root)
    elif name in IMAGENETS:
        train_part, test_part, version = load_imagenet(IMAGENETS[name], root)
        everything, test = ImageDataset(*train_part), ImageDataset(*test_part)
    else:
        folder = root / name
        if not folder.is_dir():
            raise mismatch(str(folder), "a folder of images", "none", "put the images there")
        size = FOLDERS[name]
        source = folder_images(folder, size, image_shape=(3, size, size))
        everything = ImageDataset(*gather(source, root))
    return _split(name, everything, test, seed, version=version)


def _paths(
    path: str | Path, test_path: str | Path | None, root: Path, seed: int, size: int | None
) -> ImageData:
    name = Path(path).absolute().stem
    opened = _open(Path(path), size, "find")
    everything = ImageDataset(*gather(opened, root))
    count, needed = len(everything), 3 if test_path is None else 2
    if count < needed:
        expected = f"{('two', 'three')[needed - 2]} images or more"
        raise mismatch(str(path), expected, count, "each part needs one")
    if test_path is None:
        return _split(name, everything, None, seed, held_out=max(1, count // 10))
    # The classes of the images to train on, so that a label says the same in both parts.
    test = ImageDataset(*gather(_open(Path(test_path), size, opened.classes), root))
    if test.image_shape != everything.image_shape:
        expected = f"images of {list(everything.image_shape)}"
        raise mismatch(str(test_path), expected, list(test.image_shape), "resize them")
    known = set(_hashes(everything))
    if both := sum(each in known for each in _hashes(test)):
        got = f"{both} of {len(test)} that are in {str(path)!r}, too"
        error = mismatch(
            str(test_path), "images that are not trained on", got, "leave them out of either"
        )
        if both > len(test) / 100:
            raise error
        warnings.warn(str(error), stacklevel=3)  # the data sets of papers have a few
    return _split(name, everything, test, seed)


def _hashes(images: ImageDataset) -> Iterator[bytes]:
    """One of each image's pixels."""
    for start in range(0, len(images), 1000):
        for image in images.images(slice(start, start + 1000)).numpy():
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _split(
    name: str,
    images: ImageDataset,
    test: ImageDataset | None,
    seed: int,
    held_out: int = 0,
    levels: int = 256,
    version: str = "",
) -> ImageData:
    """Divide images into a test part of ``held_out`` of them, validation and training parts."""
    parts = split(images, [held_out, validation_size(len(images) - held_out)], seed)
    return ImageData(name, parts[2], parts[1], parts[0] if held_out else test, levels, version)


def _open(path: Path, size: int | None, classes: str | Sequence[str] | None) -> ImageFiles:
    if path.suffix == ".npz" and path.is_file():
        return npz_images(path)
    if path.is_dir():
        return folder_images(path, size, classes=classes)
    raise mismatch(
        "load_images",
        f"{', '.join(map(repr, NAMES))}, an .npz file or a folder that exists",
        repr(str(path)),
        "check the path",
    )
