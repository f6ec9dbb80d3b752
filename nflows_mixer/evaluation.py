"""Bits per dimension over a data set, and yardsticks to stand beside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import bits_per_dim


@torch.no_grad()
def evaluate(
    flow: ImageFlow,
    images: Tensor,
    context: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> Tensor:
    """Bits per dimension of each image, in evaluation mode, one dequantisation draw each.

    Args:
        flow: any flow on images.
        images: uint8 [N, C, H, W].
        context: [N, F], for a flow that takes one.
        seed: of the dequantisation noise, which does not depend on ``batch_size``.
        batch_size: images at a time.

    Returns:
        [N], on the images' device; nothing is averaged or dropped.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> evaluate(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8)).shape
        torch.Size([3])
    """
    device = next(flow.parameters()).device
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    log_probs = []
    with in_mode(flow, training=False):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            given = None if context is None else context[part].to(device)
            log_probs.append(flow.log_prob(images[part].to(device), given, noise[part].to(device)))
    return bits_per_dim(torch.cat(log_probs), flow.image_shape).to(images.device)


def uniform_bits_per_dim(levels: int) -> float:
    """Bits per dimension of pixels drawn at random: the logarithm of the number of levels.

    Args:
        levels: number of pixel values.

    Example:
        >>> uniform_bits_per_dim(256)
        8.0
    """
    return math.log2(levels)


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
    pixels = train.flatten(1).long()
    counts = torch.ones(pixels.shape[1], levels, dtype=torch.float64)
    counts.scatter_add_(1, pixels.T, torch.ones_like(pixels.T, dtype=torch.float64))
    log_probs = (counts / counts.sum(1, keepdim=True)).log2()
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


@torch.no_grad()
def round_trip_error(flow: ImageFlow, images: Tensor, context: Tensor | None = None) -> float:
    r"""Largest error of inverting the flow, as a fraction of the pixel range.

    .. math:: \max |f^{-1}(f(x + \tfrac12)) - (x + \tfrac12)|\, /\, \mathrm{levels}

    Args:
        flow: any flow on images, evaluated in the precision that it has.
        images: uint8 [N, C, H, W], on the flow's device.
        context: [N, F], for a flow that takes one.

    Returns:
        The largest error over all pixels of all images; NaN if the inverse gives one.

    References:
        Behrmann et al., Understanding and mitigating exploding inverses, 2021.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> round_trip_error(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
        0.0
    """
    with in_mode(flow, training=False):
        latents = flow.transform_to_noise(images, context)
        back, _ = flow._transform.inverse(latents, flow._embedding_net(context))
    pixels = images.to(back.dtype) + 0.5
    return ((back - pixels).abs().max() / flow.dequantization.levels).item()
