"""Nearest images of a data set, to see whether samples are copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nflows_mixer._checks import as_pair, check_positive, mismatch
from nflows_mixer.evaluation.batches import Images, batches


@torch.no_grad()
def nearest_images(
    samples: Tensor,
    dataset: Images,
    k: int = 1,
    batch_size: int = 1000,
    *,
    crop: int | Sequence[int] | None = None,
    flipped: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""The k images of a data set that are nearest to each sample, pixel by pixel.

    .. math:: d(x, y) = \frac1D \sum_{i=1}^D (x_i - y_i)^2

    The sum is over the D pixel values of the crop. Exact: sums of products of uint8 pixels are
    integers that float64 holds. The data set is read once, in its order; of images at the same
    distance the first ones count.

    Args:
        samples: uint8 [M, C, H, W]; distances are computed on their device.
        dataset: uint8 images [N, C, H, W], or a data set, such as the training images.
        k: how many neighbours, at most N.
        batch_size: images of the data set at a time.
        crop: side, or height and width, of the part around the centre that is compared, such as 42
            of faces of 64 x 64, without their background; the whole image where None.
        flipped: whether an image may be mirrored, left and right, to be nearer: what a flow
            trained on flipped images would copy.

    Returns:
        indices int64 [M, k], nearest first, and distances float64 [M, k], mean squared
        differences of pixel values; both on the samples' device.

    Raises:
        ValueError: if images are not uint8 of one shape, there are fewer than k, or the crop is
            larger than they are.

    References:
        DenseFlow, Appendix E and Figure 6; Vahdat and Kautz, NVAE, 2020.

    Example:
        >>> images = torch.tensor([0, 10, 14], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> indices, distances = nearest_images(images[1:2], images, k=2)
        >>> indices.tolist(), distances.tolist()
        ([[1, 2]], [[0.0, 16.0]])
    """
    k = check_positive("nearest_images", "k", k)
    if samples.dtype != torch.uint8 or samples.dim() != 4:
        got = f"{samples.dtype} {list(samples.shape)}"
        raise mismatch("nearest_images", "uint8 samples [M, C, H, W]", got, "pass raw pixels")
    if len(dataset) < k:
        raise mismatch("nearest_images", f"{k} images or more", len(dataset), "ask for fewer")
    rows, columns = centre(samples.shape[-2:], crop)
    points = samples[..., rows, columns].flatten(1).double()
    lengths = points.square().sum(1, keepdim=True)
    indices = torch.empty(len(samples), 0, dtype=torch.long, device=samples.device)
    distances = points.new_empty(len(samples), 0)
    for places, images, _ in batches(dataset, batch_size):
        if images.shape[1:] != samples.shape[1:] or images.dtype != torch.uint8:
            got = f"{images.dtype} images of shape {list(images.shape[1:])}"
            expected = f"uint8 images of shape {list(samples.shape[1:])}"
            raise mismatch("nearest_images", expected, got, "compare images of one data set")
        images = images.to(samples.device)
        squared = torch.full((), math.inf, dtype=points.dtype, device=points.device)
        for view in (images, images.flip(-1)) if flipped else (images,):
            others = view[..., rows, columns].flatten(1).double()
            of_view = lengths + others.square().sum(1) - 2 * points @ others.T
            squared = torch.minimum(squared, of_view)
        distances = torch.cat([distances, squared], dim=1)
        indices = torch.cat([indices, places.to(indices.device).expand_as(squared)], dim=1)
        # A stable sort keeps the order of the data set among equals; topk would not.
        distances, order = (part[:, :k] for part in distances.sort(dim=1, stable=True))
        indices = indices.gather(1, order)
    return indices, distances / points.shape[1]


def memorisation_report(
    samples: Tensor,
    train: Images,
    held_out: Tensor,
    k: int = 5,
    batch_size: int = 1000,
    *,
    crop: int | Sequence[int] | None = None,
    flipped: bool = False,
) -> dict[str, Any]:
    """How near samples come to training images, beside how near images come that are no copies.

    A distance says nothing alone: held-out images are the yardstick. Samples nearer than these are
    copies, or have less detail than images have; the picture tells which (``save_neighbours``).

    Args:
        samples: uint8 [M, C, H, W].
        train: the training images.
        held_out: uint8 [L, C, H, W], images of the same kind that were not trained on.
        k: training images to name for each sample.
        batch_size: training images at a time.
        crop: as for ``nearest_images``.
        flipped: as for ``nearest_images``.

    Returns:
        A dictionary that JSON can hold, of "crop", [height, width] of what is compared; "flipped";
        "samples" and "held_out", each with how many "images" there are, and the "smallest", the
        "median" and the "mean" of their mean squared distances to the nearest training image; and
        "indices" and "distances", lists [M][k], of the training images nearest to each sample.

    Raises:
        ValueError: as for ``nearest_images``, or there are no samples or held-out images.

    References:
        DenseFlow, Appendix E.

    Example:
        >>> train = torch.tensor([0, 10, 20], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> report = memorisation_report(train[:1], train, train[1:] + 3, k=2)
        >>> report["indices"], report["samples"]["mean"], report["held_out"]["mean"]
        ([[0, 1]], 0.0, 9.0)
    """
    for name, images in (("samples", samples), ("held-out images", held_out)):
        if not len(images):
            raise mismatch("memorisation_report", f"{name} [N, C, H, W], N > 0", 0, "give some")
    if samples.shape[1:] != held_out.shape[1:]:
        expected = f"held-out images of shape {list(samples.shape[1:])}"
        got = list(held_out.shape[1:])
        raise mismatch("memorisation_report", expected, got, "compare images of one data set")
    # Together, so that the training images are read once.
    both = torch.cat([samples, held_out.to(samples.device)])
    indices, distances = nearest_images(both, train, k, batch_size, crop=crop, flipped=flipped)
    parts = distances[:, 0].split([len(samples), len(held_out)])
    rows, columns = centre(samples.shape[-2:], crop)
    return {
        "crop": [rows.stop - rows.start, columns.stop - columns.start],
        "flipped": flipped,
        **{name: _figures(part) for name, part in zip(("samples", "held_out"), parts)},
        "indices": indices[: len(samples)].tolist(),
        "distances": distances[: len(samples)].tolist(),
    }


def centre(size: Sequence[int], crop: int | Sequence[int] | None) -> tuple[slice, slice]:
    """Return the rows and the columns of the middle of an image; all of them without a crop.

    Args:
        size: (height, width) of the image.
        crop: side, or (height, width), of the middle. Where as much cannot be left out on both
            sides, one pixel less is at the top, or on the left.

    Raises:
        ValueError: if the crop is larger than the image, or not positive.

    Example:
        >>> centre((64, 64), 42)
        (slice(11, 53, None), slice(11, 53, None))
    """
    height, width = as_pair(tuple(size) if crop is None else crop, "nearest_images", "crop")
    if not (0 < height <= size[0] and 0 < width <= size[1]):
        expected = f"a crop of at most {size[0]} x {size[1]} pixels"
        raise mismatch(
            "nearest_images", expected, f"{height} x {width}", "give a side, or two, within it"
        )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _figures(distances: Tensor) -> dict[str, float | int]:
    return {
        "images": len(distances),
        "smallest": distances.min().item(),
        "median": distances.quantile(0.5).item(),
        "mean": distances.mean().item(),
    }
