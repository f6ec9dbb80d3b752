"""From log-likelihoods to bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def bits_per_dim(log_prob: Tensor, image_shape: Sequence[int]) -> Tensor:
    r"""Bits per dimension of images with the given log-likelihoods.

    .. math:: \mathrm{bits/dim}(x) = -\frac{\log p(x)}{D \log 2}, \qquad D = C H W

    ``log_prob`` must be that of the *discrete* image (what ``ImageFlow.log_prob`` returns). A NaN
    stays a NaN: nothing is dropped.

    Args:
        log_prob: log-likelihoods in nats, any shape.
        image_shape: (C, H, W).

    Returns:
        Bits per dimension, of the shape of ``log_prob``; lower is better.

    References:
        Theis et al., A note on the evaluation of generative models, 2016, Section 3.1.

    Example:
        >>> import math, torch
        >>> uniform = torch.tensor(-3 * 32 * 32 * math.log(256))  # each pixel one of 256 levels
        >>> round(bits_per_dim(uniform, (3, 32, 32)).item(), 4)
        8.0
    """
    return -log_prob / (math.prod(image_shape) * math.log(2))
