"""Images as a data set of torch: uint8, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nflows_mixer._checks import mismatch

Rows = Union[int, slice, Sequence[int], Tensor]


class ImageDataset(Dataset):
    """uint8 images, with labels or without, of which any rows can be taken at once.

    A map-style data set of torch: ``dataset[3]`` is a sample, ``dataset[[3, 5]]`` a batch, so that
    ``DataLoader(dataset, sampler=batches, batch_size=None)`` gathers each batch in one call.
    Images may lie in a file that is mapped into memory: only the rows that are asked for are read.

    Args:
        images: uint8 [N, C, H, W].
        labels: integers [N], or None.
        rows: the rows of ``images`` that are the data set, in their order; all of them if None.
            Nothing is copied.

    Raises:
        ValueError: if the images are not uint8 [N, C, H, W], or there is not one label for each.

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
        images: Tensor,
        labels: Tensor | None = None,
        rows: Sequence[int] | Tensor | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            got = f"{images.dtype} {list(images.shape)}"
            raise mismatch("ImageDataset", "uint8 images [N, C, H, W]", got, "convert them")
        if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point()):
            got = f"{labels.dtype} {list(labels.shape)}"
            expected = f"one integer label for each of {len(images)} images"
            raise mismatch("ImageDataset", expected, got, "pass class indices")
        self._images = images
        self._labels = labels
        self._rows = None if rows is None else torch.as_tensor(rows, dtype=torch.long)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    @property
    def labelled(self) -> bool:
        """Whether there are labels: samples are then (image, label), else (image,)."""
        return self._labels is not None

    def __len__(self) -> int:
        return len(self._images if self._rows is None else self._rows)

    def __getitem__(self, index: Rows) -> tuple[Tensor, ...]:
        rows = self._at(index)
        if self._labels is None:
            return (self._images[rows],)
        return self._images[rows], self._labels[rows]

    def images(self, index: Rows = slice(None)) -> Tensor:
        """Return the images of these rows, [n, C, H, W]; all of them where none are named."""
        return self._images[self._at(index)]

    def labels(self, index: Rows = slice(None)) -> Tensor:
        """Return the labels of these rows, [n]; an error if there are none."""
        if self._labels is None:
            raise mismatch("ImageDataset", "labels", "images alone", "use a data set that has some")
        return self._labels[self._at(index)]

    def subset(self, index: Rows) -> ImageDataset:
        """Return these rows as a data set that shares the images."""
        rows = torch.arange(len(self))[index] if self._rows is None else self._rows[index]
        return ImageDataset(self._images, self._labels, rows)

    def _at(self, index: Rows) -> Rows:
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        if isinstance(index, (list, tuple, np.ndarray)):
            index = torch.as_tensor(np.asarray(index), dtype=torch.long)
        return index if self._rows is None else self._rows[index]
