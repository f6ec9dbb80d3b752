"""Images and labels of .npz files."""

from __future__ import annotations

import math
import warnings
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
        ...     [images.shape for images, labels in npz_images(file).chunks()]
        [(2, 3, 4, 5)]
    """
    with _errors_named(path), zipfile.ZipFile(path) as archive:
        sizes = {each.filename.removesuffix(".npy"): each.file_size for each in archive.infolist()}
    if "images" not in sizes:
        raise mismatch(str(path), "an array 'images'", list(sizes), "save it under that")
    if len(sizes) > 1 and "labels" not in sizes:
        left = ", ".join(map(repr, sorted({*sizes} - {"images"})))
        warnings.warn(
            f"{path}: no array 'labels', so that no image has a label; {left} left out",
            stacklevel=2,
        )
    return cache.ImageFiles(
        path.stem, [path], "npz", lambda: sizes["images"], partial(_chunks, path)
    )


def _chunks(path: Path) -> Iterator[cache.Chunk]:
    labels, start = read_npz(path, "labels").get("labels"), 0
    for count, stored in _stored_images(path):
        images = as_images(stored, str(path))
        if not start and labels is not None:
            labels = as_labels(labels, count, path)
        yield images, None if labels is None else labels[start : start + len(images)]
        start += len(images)


def _stored_images(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """How many images there are, and some of them at a time: not all need fit into memory."""
    with _errors_named(path), zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_2_0
        (count, *shape), by_columns, dtype = (
            np.lib.format.read_array_header_1_0(file) if version == (1, 0) else read(file)
        )
        if by_columns or dtype.hasobject:  # whole, or refused
            yield count, read_npz(path, "images")["images"]
            return
        size = math.prod(shape)
        step = max(1, cache.CHUNK_BYTES // max(1, size))
        for start in range(0, count, step):
            rows = min(step, count - start)
            content = file.read(rows * size * dtype.itemsize)
            yield count, np.frombuffer(content, dtype).reshape(rows, *shape)
        file.read()  # at its end the checksum is compared


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
    expected = f"one integer label for each of {count} images"
    if labels.shape not in [(count,), (count, 1)] or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {list(labels.shape)}"
        raise mismatch(str(path), expected, got, "save class indices")
    if labels.size and labels.max() > np.iinfo(np.int64).max:
        raise mismatch(str(path), expected, f"{labels.max()}", "count classes from 0")
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
