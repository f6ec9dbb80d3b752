"""Images of a tensor or of a data set, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Union

import torch
from torch import Tensor

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data.dataset import ImageDataset

Images = Union[Tensor, ImageDataset]
"""uint8 [N, C, H, W], in memory, or as a data set of which rows are read when they are needed."""


def batches(
    images: Images, batch_size: int, rows: Sequence[int] | Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images of these rows with their place, never more than a batch of them.

    Args:
        images: uint8 [N, C, H, W], or a data set.
        batch_size: images at a time.
        rows: places from 0 to N - 1, in any order; all of them where None.

    Yields:
        places [b], int64 on the CPU, and images uint8 [b, C, H, W] where they are kept.

    Raises:
        ValueError: if a row is out of range, or ``batch_size`` is not positive.

    Example:
        >>> images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1)
        >>> [batch.flatten().tolist() for _, batch in batches(images, 2, rows=[4, 0, 3])]
        [[4, 0], [3]]
    """
    check_positive("batches", "batch_size", batch_size)
    places = torch.arange(len(images)) if rows is None else torch.as_tensor(rows, dtype=torch.long)
    if places.numel() and not 0 <= places.min() <= places.max() < len(images):
        got = f"{places.min().item()} to {places.max().item()}"
        raise mismatch("batches", f"rows from 0 to {len(images) - 1}", got, "count from 0")
    for part in places.cpu().split(batch_size) if len(places) else ():
        yield part, images.images(part) if isinstance(images, ImageDataset) else images[part]
