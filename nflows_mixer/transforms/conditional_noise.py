"""A small flow that makes noise of noise, given features of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn

from nflows_mixer._checks import check_positive
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.nn import DenseConditioner
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import AffineCoupling
from nflows_mixer.transforms.linear import InvertibleConv1x1


class ConditionalNoise(CompositeTransform):
    r"""Conditional coupling flow on noise maps, from a Gaussian that is learned per channel.

    .. math:: f = \mathrm{conv}_{1 \times 1} \circ \prod_{i = 1}^{n}
              (\mathrm{coupling}_i(\cdot\,; c) \circ \mathrm{conv}_{1 \times 1}) \circ
              (m + e^s \odot \cdot)

    Runs from white noise to what is to be added to, or joined to, an image; the context c are
    features of that image. At its start it is an orthogonal map of the channels, scaled.

    Args:
        channels: K, channels of the noise.
        context_features: channels of c.
        num_steps: n.
        scale: :math:`e^s` at the start.
        conditioner: factory ``(in_channels, out_channels, context_features=...) -> network`` of
            the couplings.

    Shapes:
        inputs and outputs [B, K, H, W], context [B, context_features, H, W].

    References:
        Ho et al., Flow++, 2019, Section 3.1; DenseFlow, Section 3.1.

    Example:
        >>> import torch
        >>> noise = ConditionalNoise(12, context_features=64)
        >>> noise(torch.randn(2, 12, 4, 4), torch.randn(2, 64, 4, 4))[0].shape
        torch.Size([2, 12, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        context_features: int = 64,
        num_steps: int = 4,
        scale: float = 1.0,
        conditioner: Callable[..., nn.Module] = DenseConditioner,
    ) -> None:
        check_positive("ConditionalNoise", "num_steps", num_steps)
        conditioner = partial(conditioner, context_features=context_features)
        gaussian = ActNorm(channels)
        # A Gaussian that is learned, not one that is set from the first noise.
        gaussian.initialize_identity()
        nn.init.constant_(gaussian.log_scale, math.log(scale))
        parts: list = [gaussian]
        for _ in range(num_steps):
            parts.append(InvertibleConv1x1(channels, "full"))
            parts.append(AffineCoupling(channels, conditioner, "tanh"))
        super().__init__([*parts, InvertibleConv1x1(channels, "full")])
        self.channels = channels
