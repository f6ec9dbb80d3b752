"""Images of an .npz file, with labels or without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nflows_mixer._checks import mismatch
from nflows_mixer.data import mapped
from nflows_mixer.data.archives import npz_chunks, npz_header, npz_names


class NpzImages:
    """The array ``images`` of an .npz file, uint8 [N, H, W] or [N, H, W, C], and its ``labels``.

    Args:
        path: the file. It is read in chunks of rows, whatever its size.

    Raises:
        ValueError: if the arrays are no such images, or there is not one label for each.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "two.npz"
        ...     np.savez(file, images=np.zeros((2, 4, 5, 3), np.uint8))
        ...     [images.shape for images, labels in NpzImages(file).chunks()]
        [(2, 3, 4, 5)]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        names = npz_names(path)
        if "images" not in names:
            raise mismatch(str(path), "an array 'images'", names, "save it under that")
        shape, dtype = npz_header(path, "images")
        check_channels_last(shape, dtype, str(path))
        self._shape = shape
        self.labels = read_labels(path, shape[0]) if "labels" in names else None

    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    def settings(self) -> str:
        """Nothing is done to the pixels."""
        return "npz"

    def nbytes(self) -> int:
        """The bytes of all images."""
        return int(np.prod(self._shape))

    def chunks(self) -> Iterator[mapped.Chunk]:
        """Images [n, C, H, W] and labels [n]."""
        start = 0
        for rows in npz_chunks(self.path, "images", mapped.CHUNK_BYTES):
            images = channels_first(rows)
            stop = start + len(images)
            yield images, None if self.labels is None else self.labels[start:stop]
            start = stop


def read_labels(path: Path, count: int) -> np.ndarray:
    """Return the array ``labels`` of an .npz file as int64 [count], or raise."""
    shape, dtype = npz_header(path, "labels")
    if shape not in [(count,), (count, 1)] or dtype.kind not in "iu":
        expected = f"one integer label for each of {count} images"
        raise mismatch(str(path), expected, f"{dtype} {list(shape)}", "save class indices")
    chunks = list(npz_chunks(path, "labels", mapped.CHUNK_BYTES))
    return np.concatenate(chunks or [np.empty(0)]).astype(np.int64).reshape(-1)


def check_channels_last(shape: tuple[int, ...], dtype: np.dtype, owner: str) -> None:
    """Raise unless these are uint8 images [N, H, W] or [N, H, W, C] of 1 or 3 channels."""
    channels = {3: 1, 4: shape[-1] if shape else 0}.get(len(shape))
    if dtype != np.uint8 or channels not in (1, 3):
        raise mismatch(
            owner,
            "uint8 images [N, H, W] or [N, H, W, C], with 1 or 3 channels last",
            f"{dtype} {list(shape)}",
            "convert them",
        )


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return [N, H, W] or [N, H, W, C] as [N, C, H, W], contiguous."""
    images = images[..., None] if images.ndim == 3 else images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
