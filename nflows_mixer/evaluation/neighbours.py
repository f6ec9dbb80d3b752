"""Nearest images of a data set, to see whether samples are copies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.evaluation.batches import Images, batches


@torch.no_grad()
def nearest_images(
    samples: Tensor, dataset: Images, k: int = 1, batch_size: int = 1000
) -> tuple[Tensor, Tensor]:
    r"""The k images of a data set that are nearest to each sample, pixel by pixel.

    .. math:: d(x, y) = \frac1D \sum_{i=1}^D (x_i - y_i)^2

    Exact: sums of products of uint8 pixels are integers that float64 holds. The data set is read
    once, in its order; of images at the same distance the first ones count.

    Args:
        samples: uint8 [M, C, H, W]; distances are computed on their device.
        dataset: uint8 images [N, C, H, W], or a data set, such as the training images.
        k: how many neighbours, at most N.
        batch_size: images of the data set at a time.

    Returns:
        indices int64 [M, k], nearest first, and distances float64 [M, k], mean squared
        differences of pixel values; both on the samples' device.

    Raises:
        ValueError: if images are not uint8 of one shape, or there are fewer than k.

    Example:
        >>> images = torch.tensor([0, 10, 14], dtype=torch.uint8).reshape(3, 1, 1, 1)
        >>> indices, distances = nearest_images(images[1:2], images, k=2)
        >>> indices.tolist(), distances.tolist()
        ([[1, 2]], [[0.0, 16.0]])
    """
    check_positive("nearest_images", "k", k)
    if samples.dtype != torch.uint8 or samples.dim() != 4:
        got = f"{samples.dtype} {list(samples.shape)}"
        raise mismatch("nearest_images", "uint8 samples [M, C, H, W]", got, "pass raw pixels")
    if len(dataset) < k:
        raise mismatch("nearest_images", f"{k} images or more", len(dataset), "ask for fewer")
    points = samples.flatten(1).double()
    lengths = points.square().sum(1, keepdim=True)
    indices = torch.empty(len(samples), 0, dtype=torch.long, device=samples.device)
    distances = points.new_empty(len(samples), 0)
    for places, images in batches(dataset, batch_size):
        if images.shape[1:] != samples.shape[1:] or images.dtype != torch.uint8:
            got = f"{images.dtype} images of shape {list(images.shape[1:])}"
            expected = f"uint8 images of shape {list(samples.shape[1:])}"
            raise mismatch("nearest_images", expected, got, "compare images of one data set")
        others = images.to(samples.device).flatten(1).double()
        squared = lengths + others.square().sum(1) - 2 * points @ others.T
        distances = torch.cat([distances, squared], dim=1)
        indices = torch.cat([indices, places.to(indices.device).expand_as(squared)], dim=1)
        # A stable sort keeps the order of the data set among equals; topk would not.
        distances, order = (part[:, :k] for part in distances.sort(dim=1, stable=True))
        indices = indices.gather(1, order)
    return indices, distances / math.prod(samples.shape[1:])
