"""Images of a tensor or of a data set, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import device_of

Images = Union[Tensor, ImageDataset]
"""uint8 [N, C, H, W], in memory, or as a data set of which rows are read when they are needed."""


def batches(
    images: Images,
    batch_size: int,
    rows: Sequence[int] | Tensor | None = None,
    context: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield the images of these rows with their place and context, never more than a batch of them.

    Args:
        images: uint8 [N, C, H, W], or a data set; or any rows.
        batch_size: images at a time.
        rows: places from 0 to N - 1, in any order; all of them where None.
        context: one row for each of the N images, or None.

    Yields:
        places [b], int64 on the CPU, images uint8 [b, C, H, W] where they are kept, and their
        context.

    Raises:
        ValueError: if a row is out of range, ``batch_size`` is not positive, or the context has not
            one row per image.

    Example:
        >>> images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1)
        >>> [batch.flatten().tolist() for _, batch, _ in batches(images, 2, rows=[4, 0, 3])]
        [[4, 0], [3]]
    """
    batch_size = check_positive("batches", "batch_size", batch_size)
    images = _as_images(images)
    context = None if context is None else torch.as_tensor(context)
    if context is not None and len(context) != len(images):
        expected = f"context with one row for each of {len(images)} images"
        raise mismatch("batches", expected, list(context.shape), "pass one row per image")
    places = torch.arange(len(images)) if rows is None else torch.as_tensor(rows, dtype=torch.long)
    if places.numel() and not 0 <= places.min() <= places.max() < len(images):
        got = f"{places.min().item()} to {places.max().item()}"
        raise mismatch("batches", f"rows from 0 to {len(images) - 1}", got, "count from 0")
    for part in places.cpu().split(batch_size) if len(places) else ():
        batch = images.images(part) if isinstance(images, ImageDataset) else images[part]
        yield part, batch, None if context is None else context[part.to(context.device)]


def _as_images(images: Any) -> Images:
    """Images of a numpy array or of a subset of a data set, too; or an error that says what to do.

    A loader is none: what it gives has no place in the data set, which the noise follows.
    """
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images)
    if isinstance(images, Subset):
        whole, rows = _as_images(images.dataset), list(images.indices)
        return whole.subset(rows) if isinstance(whole, ImageDataset) else whole[rows]
    if not isinstance(images, (Tensor, ImageDataset)):
        expected = "images as a tensor or array [N, C, H, W], an ImageDataset or a Subset of one"
        advice = "stack a list (torch.stack), pass the data set of a loader, or an ImageDataset"
        raise mismatch("batches", expected, f"a {type(images).__name__}", advice)
    return images


def in_batches(
    flow: ImageFlow,
    function: Callable[[Tensor, Tensor | None], Tensor],
    rows: Images,
    context: Tensor | None,
    batch_size: int,
) -> Tensor:
    """What a function makes of rows and their context, a batch at a time on the flow's device."""
    device = device_of(flow)
    context = None if context is None else torch.as_tensor(context, device=device)
    parts = batches(rows, batch_size, context=context)
    return torch.cat([function(part.to(device), given) for _, part, given in parts])


def check_pixels(images: Tensor, owner: str) -> None:
    """Raise unless these are images uint8 [N, C, H, W] that are grey or have colours."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        got = f"{images.dtype} {list(images.shape)}"
        expected = "uint8 images [N, C, H, W] with C = 1 or 3"
        raise mismatch(owner, expected, got, "pass grey or colour images, raw pixels")


def check_fit(owner: str, what: str, flow: ImageFlow, data: ImageData, advice: str) -> None:
    """Raise unless a flow is one of images of these sizes and levels."""
    levels = flow.dequantization.levels
    if flow.image_shape != data.image_shape or levels != data.levels:
        of_levels = "real values (levels=None)" if levels is None else f"{levels} levels"
        expected = f"{what} {list(flow.image_shape)} of {of_levels}"
        got = f"{list(data.image_shape)} of {data.levels} levels"
        raise mismatch(owner, expected, got, advice)
