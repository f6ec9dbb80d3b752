"""Simple models of images, to stand beside a flow on the same split."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer.likelihood import bits_per_dim


def reference_models(train: Tensor, test: Tensor, levels: int) -> dict[str, float]:
    """Bits per dimension of every simple model here that the images can be enough for, by name.

    Args:
        train: uint8 [N, C, H, W], fitted.
        test: uint8 [M, C, H, W], scored.
        levels: number of pixel values.

    Example:
        >>> images = torch.randint(17, (50, 1, 4, 4), dtype=torch.uint8)
        >>> list(reference_models(images, images, levels=17))
        ['uniform, 17 levels', 'normal, full covariance', 'histogram of each pixel']
    """
    scores = {f"uniform, {levels} levels": math.log2(levels)}
    if len(train) > train[0].numel():  # fewer images than pixels do not say what the covariance is
        scores["normal, full covariance"] = gaussian_bits_per_dim(train, test)
    return {**scores, "histogram of each pixel": histogram_bits_per_dim(train, test, levels)}


def histogram_bits_per_dim(train: Tensor, test: Tensor, levels: int) -> float:
    r"""Bits per dimension of independent pixels, each with its own histogram.

    .. math:: P_d(v) = \frac{1 + \#\{x \in \mathrm{train}: x_d = v\}}{\mathrm{levels} + N}

    One is added to each count, so that a value unseen in training has a finite cost.

    Args:
        train: uint8 [N, C, H, W], counted.
        test: uint8 [M, C, H, W], scored.
        levels: number of pixel values.

    Example:
        >>> blank = torch.zeros(15, 1, 1, 1, dtype=torch.uint8)
        >>> round(histogram_bits_per_dim(blank, blank, levels=17), 4)  # log2(32 / 16)
        1.0
    """
    counts = torch.stack([column.bincount(minlength=levels) for column in train.flatten(1).T])
    log_probs = (counts.double() + 1).log2() - math.log2(levels + len(train))
    return -log_probs.gather(1, test.flatten(1).long().T).mean().item()


def gaussian_bits_per_dim(train: Tensor, test: Tensor, seed: int = 0) -> float:
    r"""Bits per dimension of one normal distribution with full covariance, on dequantised pixels.

    .. math:: \log P(x) \ge \mathbb E_u \log \mathcal N(x + u;\ m + \tfrac12,\ S + \tfrac1{12} I)

    m and S are the mean and covariance of the training images; 1/2 and 1/12 are those of the
    noise, so that the fit needs no draw. The score takes one draw for each image.

    Args:
        train: uint8 [N, C, H, W], fitted.
        test: uint8 [M, C, H, W], scored.
        seed: of the dequantisation noise of the test images.

    Raises:
        ValueError: if there are fewer than 2 training images.

    Example:
        >>> noise = torch.randint(16, (5000, 1, 2, 2), dtype=torch.uint8)
        >>> 4.0 < gaussian_bits_per_dim(noise, noise) < 4.3
        True
    """
    if len(train) < 2:
        raise mismatch("gaussian_bits_per_dim", "2 training images or more", len(train), "add some")
    pixels = train.flatten(1).double()
    covariance = torch.cov(pixels.T) + torch.eye(pixels.shape[1], dtype=torch.float64) / 12
    normal = torch.distributions.MultivariateNormal(
        pixels.mean(0) + 0.5, covariance, validate_args=False
    )
    noise = torch.rand(test.shape, generator=torch.Generator().manual_seed(seed))
    log_probs = normal.log_prob((test + noise).flatten(1).double())
    return bits_per_dim(log_probs, train.shape[1:]).mean().item()
