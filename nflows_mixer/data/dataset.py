"""Images as a data set of torch: uint8, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nflows_mixer._checks import mismatch
from nflows_mixer.data.cache import contents_hash, map_images

Rows = Union[int, slice, Sequence[int], np.ndarray, Tensor]


class ImageDataset(Dataset):
    """uint8 images, with labels or without, of which any rows can be taken at once.

    A map-style data set of torch: ``dataset[3]`` is a sample, ``dataset[[3, 5]]`` a batch, so that
    ``DataLoader(dataset, sampler=batches, batch_size=None)`` gathers each batch in one call.
    Images may lie in a file that is mapped into memory: only the rows that are asked for are read,
    and a copy of the data set in another process maps the file again. What is returned is always a
    copy of the rows.

    Args:
        images: uint8 [N, C, H, W], or the .npy file that holds such an array, to be mapped.
        labels: integers [N], or None.
        rows: the rows of ``images`` that are the data set, in their order; all of them if None.
            Nothing is copied.
        transform: applied to each batch [n, C, H, W] that is taken; it keeps shape and dtype.

    Raises:
        ValueError: if the images are not uint8 [N, C, H, W], or there is not one label for each.
        IndexError: as numpy does, where rows are asked for that are not there.

    Example:
        >>> images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
        >>> dataset = ImageDataset(images, labels=torch.tensor([7, 8, 9, 7]), rows=[3, 1, 0])
        >>> len(dataset), dataset.image_shape
        (3, (1, 1, 1))
        >>> batch, labels = dataset[[0, 1]]
        >>> batch.flatten().tolist(), labels.tolist()
        ([3, 1], [7, 8])
    """

    def __init__(
        self,
        images: Tensor | Path,
        labels: Tensor | None = None,
        rows: Sequence[int] | Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._file = None if isinstance(images, Tensor) else Path(images)
        self._images = images if isinstance(images, Tensor) else map_images(images)
        if self._images.dtype != torch.uint8 or self._images.dim() != 4:
            got = f"{self._images.dtype} {list(self._images.shape)}"
            raise mismatch("ImageDataset", "uint8 images [N, C, H, W]", got, "convert them")
        count = len(self._images)
        self._rows = torch.arange(count) if rows is None else torch.as_tensor(rows).long()
        self._labels = None if labels is None else _check_labels(labels, count)[self._rows]
        self.transform = transform

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    @property
    def labelled(self) -> bool:
        """Whether there are labels; samples are then (image, label), else (image,)."""
        return self._labels is not None

    @property
    def mapped(self) -> bool:
        """Whether the images are read from a file as they are asked for."""
        return self._file is not None

    @property
    def rows(self) -> Tensor:
        """The rows of the stored images that are the data set, [N], in their order."""
        return self._rows

    @cached_property
    def contents_hash(self) -> str:
        """SHA-256 of all the stored images, as they are before any transform."""
        return contents_hash(self._images, self._file)

    def shares_images(self, other: ImageDataset) -> bool:
        """Whether both are rows of the same stored images."""
        return self._images is other._images

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Rows) -> tuple[Tensor, ...]:
        images = self.images(index)
        return (images,) if self._labels is None else (images, self.labels(index))

    def images(self, index: Rows = slice(None)) -> Tensor:
        """Return the images of these rows, [n, C, H, W]; all of them where none are named."""
        rows = _take(self._rows, index)
        # Advanced indexing copies: a view of a mapped file must not be written to.
        images = self._images[rows.reshape(-1)]
        if self.transform is not None:
            images = self.transform(images)
        return images if rows.dim() else images[0]

    def labels(self, index: Rows = slice(None)) -> Tensor:
        """Return the labels of these rows, [n]; an error if there are none."""
        if self._labels is None:
            raise mismatch("ImageDataset", "labels", "images alone", "use a data set that has some")
        return _take(self._labels, index)

    def subset(self, index: Rows) -> ImageDataset:
        """Return these rows as a data set that shares the images."""
        labels = None if self._labels is None else _take(self._labels, index).reshape(-1)
        return self._with(_rows=_take(self._rows, index).reshape(-1), _labels=labels)

    def transformed(self, transform: Callable[[Tensor], Tensor] | None) -> ImageDataset:
        """Return the same rows, shared, with this transform in place of the present one."""
        return self._with(transform=transform)

    def with_labels(self, labels: Tensor) -> ImageDataset:
        """Return the same rows, shared, with these labels, [n]: one for each row."""
        return self._with(_labels=_check_labels(labels, len(self)))

    def _with(self, **changes: Any) -> ImageDataset:
        other = ImageDataset.__new__(ImageDataset)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._file is not None:
            del state["_images"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._images = map_images(self._file)


def _check_labels(labels: Tensor, count: int) -> Tensor:
    if labels.shape != (count,) or labels.is_floating_point():
        got = f"{labels.dtype} {list(labels.shape)}"
        expected = f"one integer label for each of {count} images"
        raise mismatch("ImageDataset", expected, got, "pass class indices")
    return labels.long()


def _take(values: Tensor, index: Rows) -> Tensor:
    """A copy of entries, by any index that numpy takes; without dimensions for an integer."""
    index = index.cpu().numpy() if isinstance(index, Tensor) else index
    return torch.from_numpy(np.array(values.numpy()[index]))
