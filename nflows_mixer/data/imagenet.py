"""Down-sampled ImageNet in its two versions, which are never mixed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer.data import mapped
from nflows_mixer.data.archives import npz_chunks, npz_header, read_pickle
from nflows_mixer.data.folders import FolderImages
from nflows_mixer.data.npz_images import read_labels

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
    if all(pictures):
        shape = (3, size, size)
        sources = [
            FolderImages(each[0], image_shape=shape, name=f"imagenet{size}-old-{part}")
            for part, each in zip(("train", "valid"), pictures)
        ]
        train, held = sources
        _check_counts("old", len(train.files()), len(held.files()), folder)
        return mapped.gather(train, root), mapped.gather(held, root), _version("old")
    if all(batches):
        parts = [
            BatchImages(files, size, COUNTS["new"][place], f"imagenet{size}-new-{part}")
            for place, (part, files) in enumerate(zip(("train", "valid"), batches))
        ]
        # The small part first: what is wrong shows before the large one is read.
        validation = mapped.gather(parts[1], root)
        return mapped.gather(parts[0], root), validation, _version("new")
    expected = (
        f"folders train_{size}x{size} and valid_{size}x{size} (old version), or "
        "train_data_batch_1 ... and val_data, pickled or .npz (new version)"
    )
    found = sorted(each.name for each in folder.iterdir())[:9] if folder.is_dir() else "no folder"
    raise mismatch(str(folder), expected, found, f"put one version of ImageNet{size} there")


class BatchImages:
    """Batches of the new version: ``data`` uint8 [N, 3 * S * S] by channels, ``labels`` from 1.

    Args:
        paths: .npz or pickled files, in their order. A pickled one is in memory as a whole.
        size: S.
        count: the number of images that they should hold.
        name: of the source.

    Raises:
        ValueError: if they hold something else, or another number of images.
    """

    def __init__(self, paths: list[Path], size: int, count: int, name: str) -> None:
        self.name = name
        self._paths, self._size, self._count = paths, size, count

    def files(self) -> list[Path]:
        """The files, in their order."""
        return self._paths

    def settings(self) -> str:
        """Size and number."""
        return f"batches {self._size} {self._count}"

    def nbytes(self) -> int:
        """The bytes of as many images as there should be."""
        return self._count * 3 * self._size**2

    def chunks(self) -> Iterator[mapped.Chunk]:
        """Images [n, 3, S, S] and labels [n] from 0."""
        from tqdm import tqdm

        found = 0
        with tqdm(total=self._count, desc=f"reading {self.name}", delay=2) as progress:
            for path in self._paths:
                for data, labels in self._read(path):
                    if labels.size and not 1 <= labels.min() <= labels.max() <= 1000:
                        got = f"{labels.min()} to {labels.max()}"
                        raise mismatch(str(path), "labels 1 to 1000", got, "use the whole files")
                    found += len(data)
                    yield data.reshape(-1, 3, self._size, self._size), labels - 1
                    progress.update(len(data))
        if found != self._count:
            folder = self._paths[0].parent
            expected = f"{self._count:,} images in {len(self._paths)} batches of {self.name}"
            raise mismatch(str(folder), expected, f"{found:,}", "fetch the missing files again")

    def _read(self, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if path.suffix == ".npz":
            shape, dtype = npz_header(path, "data")
            self._check_data(shape, dtype, path)
            labels = read_labels(path, shape[0])
            start = 0
            for rows in npz_chunks(path, "data", mapped.CHUNK_BYTES):
                yield rows, labels[start : start + len(rows)]
                start += len(rows)
            return
        batch = read_pickle(path)
        data, labels = batch.get("data"), np.asarray(batch.get("labels"))
        if not isinstance(data, np.ndarray) or "labels" not in batch:
            advice = "use the files of the data set"
            raise mismatch(str(path), "arrays 'data' and 'labels'", list(batch), advice)
        self._check_data(data.shape, data.dtype, path)
        if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
            expected = f"one integer label for each of {len(data)} images"
            got = f"{labels.dtype} {list(labels.shape)}"
            raise mismatch(str(path), expected, got, "use the whole files")
        yield data, labels.astype(np.int64)

    def _check_data(self, shape: tuple[int, ...], dtype: np.dtype, path: Path) -> None:
        columns = 3 * self._size**2
        if dtype != np.uint8 or len(shape) != 2 or shape[1] != columns:
            advice = f"use the files of ImageNet{self._size}"
            got = f"{dtype} {list(shape)}"
            raise mismatch(str(path), f"'data' as uint8 [N, {columns}]", got, advice)


def _find(folder: Path, pattern: str) -> list[Path]:
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def _find_batches(folder: Path, pattern: str) -> list[Path]:
    """Batches in the order of their numbers; of the same ones in two formats, the .npz."""
    files = [each for each in _find(folder, pattern) if each.is_file()]
    archives = [each for each in files if each.suffix == ".npz"]
    pickles = [each for each in files if each.suffix in ("", ".pkl", ".pickle")]
    return sorted(archives or pickles, key=lambda each: (len(each.stem), each.stem))


def _version(version: str) -> str:
    train, held = COUNTS[version]
    return f"{VERSIONS[version]}, {train:,} / {held:,}"


def _check_counts(version: str, train: int, held: int, folder: Path) -> None:
    if (train, held) != COUNTS[version]:
        expected = f"{COUNTS[version][0]:,} images to train on and {COUNTS[version][1]:,} held out"
        raise mismatch(
            str(folder),
            f"{expected}, the {VERSIONS[version]} version",
            f"{train:,} and {held:,}",
            "fetch the missing files again; other images go by the path of their folder",
        )
