"""Images from a name, a file or a folder, split into parts to train on, to choose by, to report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer.data.cache import ImageFiles, gather
from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.data.folder import folder_images
from nflows_mixer.data.image_data import ImageData
from nflows_mixer.data.imagenet import load_imagenet
from nflows_mixer.data.npz import npz_images
from nflows_mixer.data.shuffle import shuffled
from nflows_mixer.data.split import split, validation_size
from nflows_mixer.data.torchvision_sets import DOWNLOADS, load_celeba64, load_download

IMAGENETS = {"imagenet32": 32, "imagenet64": 64}
# Folders under the root that have no test part, and the size they are resized to.
FOLDERS = {"animefaces": 64, "galaxy32": 32}
NAMES = ("digits", *DOWNLOADS, "celeba64", *IMAGENETS, *FOLDERS)


def load_images(
    source: str | Path,
    *,
    test: str | Path | None = None,
    root: str | Path = "data",
    seed: int = 0,
    shuffle: str | None = None,
    shuffle_patch: int | None = None,
    size: int | None = None,
) -> ImageData:
    """Load images by name, from an .npz file, or from a folder of image files.

    =============  ============================================================================
    source         images, and the parts they come in
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

    Files and folders without a ``test`` lose a tenth of their images to the test part. The
    validation part is int(0.04 n) of the n other images, but for CelebA's own. Image sets larger
    than 1 GiB are written to ``root/cache`` once and mapped.

    Args:
        source: one of the above.
        test: a second .npz file or folder, to be the test part.
        root: where downloads and named folders are, and the cache.
        seed: of the random split and of the shuffle.
        shuffle: "global" or "local": shuffle the pixels of all images in the same way.
        shuffle_patch: patch size of the local shuffle; 4 if None.
        size: of a folder: the shorter side of each image is resized to it, the centre cropped.

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
        (1344, 56, 397, 'b669f0cb2ebffae4')
    """
    root = Path(root).absolute()
    named = isinstance(source, str) and source in NAMES
    if named and test is not None:
        expected = f"no test images beside {source!r}"
        raise mismatch("load_images", expected, test, "its test part is decided by its name")
    if size is not None and (named or not Path(source).is_dir()):
        expected = "no size but with a folder of image files"
        raise mismatch("load_images", expected, f"{source!r}, size={size}", "leave size out")
    if shuffle is not None:
        check_choice("load_images", "shuffle", shuffle, ("global", "local"))
    if shuffle_patch is not None and shuffle != "local":
        expected = "a shuffle_patch with shuffle='local' alone"
        raise mismatch("load_images", expected, f"shuffle={shuffle!r}", "leave it out")
    data = _named(str(source), root, seed) if named else _paths(source, test, root, seed, size)
    return data if shuffle is None else shuffled(data, shuffle, shuffle_patch, seed)


def _named(name: str, root: Path, seed: int) -> ImageData:
    version = ""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
        everything = ImageDataset(images, torch.from_numpy(digits.target))
        sizes = [397, validation_size(1400)]
        held, validation, train = split(everything, sizes, seed)
        return ImageData(name, train, validation, held, levels=17)
    if name == "celeba64":
        return ImageData(name, *load_celeba64(root))
    test: ImageDataset | None = None
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
    validation, train = split(everything, [validation_size(len(everything))], seed)
    return ImageData(name, train, validation, test, version=version)


def _paths(
    source: str | Path, test: str | Path | None, root: Path, seed: int, size: int | None
) -> ImageData:
    name = Path(source).absolute().stem
    opened = _open(Path(source), size, "find")
    everything = ImageDataset(*gather(opened, root))
    count, needed = len(everything), 3 if test is None else 2
    if count < needed:
        expected = f"{('two', 'three')[needed - 2]} images or more"
        raise mismatch(str(source), expected, count, "each part needs one")
    if test is None:
        tenth = max(1, count // 10)
        sizes = [tenth, validation_size(count - tenth)]
        held, validation, train = split(everything, sizes, seed)
        return ImageData(name, train, validation, held)
    # The classes of the images to train on, so that a label says the same in both parts.
    held = ImageDataset(*gather(_open(Path(test), size, opened.classes), root))
    if held.image_shape != everything.image_shape:
        expected = f"images of {list(everything.image_shape)}"
        raise mismatch(str(test), expected, list(held.image_shape), "resize them")
    validation, train = split(everything, [validation_size(count)], seed)
    return ImageData(name, train, validation, held)


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
