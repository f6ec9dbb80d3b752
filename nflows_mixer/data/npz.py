"""Images and labels of .npz files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nflows_mixer._checks import mismatch
from nflows_mixer.data import cache


def npz_images(path: Path) -> cache.ImageFiles:
    """Return the array ``images`` of an .npz file and, if there is one, its array ``labels``.

    Args:
        path: the file. ``images`` is uint8 [N, H, W] or [N, H, W, C].

    Raises:
        ValueError: if there are no images; when they are read, if they are no such images, or
            there is not one label for each.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "two.npz"
        ...     np.savez(file, images=np.zeros((2, 4, 5, 3), np.uint8))
        ...     [images.shape for images, labels in npz_images(file).chunks(None)]
        [(2, 3, 4, 5)]
    """
    with _errors_named(path), zipfile.ZipFile(path) as archive:
        sizes = {each.filename.removesuffix(".npy"): each.file_size for each in archive.infolist()}
    if "images" not in sizes:
        raise mismatch(str(path), "an array 'images'", list(sizes), "save it under that")
    return cache.ImageFiles(
        path.stem, [path], "npz", lambda: sizes["images"], partial(_chunks, path)
    )


def _chunks(path: Path, scratch: Path | None) -> Iterator[cache.Chunk]:
    if scratch is None:
        arrays = read_npz(path, "images", "labels")
        images = as_images(arrays["images"], str(path))
        labels = arrays.get("labels")
        yield images, None if labels is None else as_labels(labels, len(images), path)
        return
    with _errors_named(path), zipfile.ZipFile(path) as archive:
        file = archive.extract("images.npy", scratch)
        count, *shape = np.load(file, mmap_mode="r").shape
    labels = read_npz(path, "labels").get("labels")
    labels = None if labels is None else as_labels(labels, count, path)
    step = max(1, cache.CHUNK_BYTES // max(1, int(np.prod(shape))))
    for start in range(0, count, step):
        # Mapped anew: the pages that have been read count as memory of the process.
        rows = slice(start, start + step)
        images = as_images(np.load(file, mmap_mode="r")[rows], str(path))
        yield images, None if labels is None else labels[rows]


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return those of an .npz file's arrays that have these names.

    Raises:
        ValueError: if the file is damaged, or an array holds Python objects.
    """
    with _errors_named(path), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in names if name in archive}


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # A damaged file can raise anything.
        expected, got = "a whole .npz file of numbers", f"{type(error).__name__}: {error}"
        raise mismatch(str(path), expected, got, "write it again with np.savez") from error


def as_labels(labels: Any, count: int, path: Path) -> np.ndarray:
    """Return labels as int64 [count], or raise unless there is one integer for each image."""
    labels = np.asarray(labels)
    if labels.shape not in [(count,), (count, 1)] or labels.dtype.kind not in "iu":
        expected = f"one integer label for each of {count} images"
        got = f"{labels.dtype} {list(labels.shape)}"
        raise mismatch(str(path), expected, got, "save class indices")
    return labels.astype(np.int64).reshape(-1)


def as_images(images: np.ndarray, owner: str) -> np.ndarray:
    """Return uint8 [N, H, W] or [N, H, W, C] of 1 or 3 channels as [N, C, H, W], or raise."""
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
        raise mismatch(
            owner,
            "uint8 images [N, H, W] or [N, H, W, C], with 1 or 3 channels last",
            f"{images.dtype} {list(images.shape)}",
            "convert them",
        )
    images = images[..., None] if images.ndim == 3 else images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
