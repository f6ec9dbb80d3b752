"""Down-sampled ImageNet in its two versions, which are never mixed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer.data.cache import Chunk, ImageFiles, gather
from nflows_mixer.data.folder import folder_images
from nflows_mixer.data.npz import as_labels, read_npz
from nflows_mixer.data.pickles import read_pickle

# Images to train on, and of the official validation part.
COUNTS = {"old": (1_281_149, 49_999), "new": (1_281_167, 50_000)}
VERSIONS = {"old": "old (van den Oord et al. 2016)", "new": "new (Chrabaszcz et al. 2017)"}

Part = tuple["Tensor | Path", "Tensor | None"]


def load_imagenet(size: int, root: Path) -> tuple[Part, Part, str]:
    """Load ImageNet32 or ImageNet64 from ``root/imagenet32`` or ``root/imagenet64``.

    The old version is two folders of PNG files, ``train_32x32`` and ``valid_32x32``. The new one is
    batches ``train_data_batch_1`` ... and ``val_data``, pickled or .npz. Both are found in that
    folder or in a folder of it. The images of the two differ, and so do results on them.

    Args:
        size: 32 or 64.
        root: where the folder is; files for images in numbers are kept in ``root/cache``.

    Returns:
        Images and labels to train on, those of the official validation part, and the version.

    Raises:
        ValueError: if neither version is there, or both, or the numbers of images are not those of
            the version.

    References:
        van den Oord et al., Pixel recurrent neural networks, 2016 (old). Chrabaszcz et al., A
        downsampled variant of ImageNet, 2017 (new).
    """
    folder = root / f"imagenet{size}"
    pictures = _find(folder, f"train_{size}x{size}"), _find(folder, f"valid_{size}x{size}")
    batches = _find_batches(folder, "train_data_batch_*"), _find_batches(folder, "val_data*")
    if any(pictures) and any(batches):
        got = [each.name for part in (*pictures, *batches) for each in part]
        expected = "the old version or the new one, never a mix of both"
        raise mismatch(str(folder), expected, got, "move one of them to another root")
    names = [f"imagenet{size}-{{}}-{part}" for part in ("train", "valid")]
    if all(pictures):
        version, shape = "old", (3, size, size)
        train, held = [
            folder_images(each[0], image_shape=shape, name=name.format(version))
            for each, name in zip(pictures, names)
        ]
        if (found := (len(train.files), len(held.files))) != COUNTS[version]:
            expected = "{:,} images to train on and {:,} held out".format(*COUNTS[version])
            raise mismatch(
                str(folder),
                f"{expected}, the {VERSIONS[version]} version",
                "{:,} and {:,}".format(*found),
                "fetch the missing files again; other images go by the path of their folder",
            )
    elif all(batches):
        version = "new"
        train, held = [
            _batch_images(files, size, count, name.format(version))
            for files, count, name in zip(batches, COUNTS[version], names)
        ]
    else:
        expected = (
            f"folders train_{size}x{size} and valid_{size}x{size} (old version), or "
            "train_data_batch_1 ... and val_data, pickled or .npz (new version)"
        )
        listed = sorted(each.name for each in folder.glob("*"))[:9] or "no folder"
        raise mismatch(str(folder), expected, listed, f"put one version of ImageNet{size} there")
    # The small part first: what is wrong shows before the large one is read.
    validation = gather(held, root)
    counts = "{:,} / {:,}".format(*COUNTS[version])
    return gather(train, root), validation, f"{VERSIONS[version]}, {counts}"


def _batch_images(files: list[Path], size: int, count: int, name: str) -> ImageFiles:
    """Return the images and labels of the new version.

    A file has ``data`` uint8 [N, 3 * S * S] by channels, and ``labels`` from 1; one is in memory at
    a time.
    """
    columns = 3 * size**2

    def chunks() -> Iterator[Chunk]:
        found = 0
        for path in files:
            archive = path.suffix == ".npz"
            batch = read_npz(path, "data", "labels") if archive else read_pickle(path)
            data = batch.get("data")
            if not isinstance(data, np.ndarray) or "labels" not in batch:
                advice = "use the files of the data set"
                raise mismatch(str(path), "arrays 'data' and 'labels'", list(batch), advice)
            if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != columns:
                got, advice = f"{data.dtype} {list(data.shape)}", f"use the files of ImageNet{size}"
                raise mismatch(str(path), f"'data' as uint8 [N, {columns}]", got, advice)
            labels = as_labels(batch["labels"], len(data), path)
            if labels.size and not 1 <= labels.min() <= labels.max() <= 1000:
                got = f"{labels.min()} to {labels.max()}"
                raise mismatch(str(path), "labels 1 to 1000", got, "use the whole files")
            found += len(data)
            yield data.reshape(-1, 3, size, size), labels - 1
        if found != count:
            expected = f"{count:,} images in {len(files)} batches of {name}"
            advice = "fetch the missing files again"
            raise mismatch(str(files[0].parent), expected, f"{found:,}", advice)

    return ImageFiles(name, files, f"batches {size} {count}", lambda: count * columns, chunks)


def _find(folder: Path, pattern: str) -> list[Path]:
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def _find_batches(folder: Path, pattern: str) -> list[Path]:
    """Batches in the order of their numbers; of the same ones in two formats, the .npz."""
    files = [each for each in _find(folder, pattern) if each.is_file()]
    archives = [each for each in files if each.suffix == ".npz"]
    pickles = [each for each in files if each.suffix in ("", ".pkl", ".pickle")]
    return sorted(archives or pickles, key=lambda each: (len(each.stem), each.stem))
