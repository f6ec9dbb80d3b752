"""Glow: invertible 1x1 convolutions and affine couplings at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nflows.transforms import Transform

from benchmarks.baselines.backbone import ImageShape, Part, multi_scale_flow
from nflows_mixer.flows import ImageFlow
from nflows_mixer.nn import ConvConditioner
from nflows_mixer.transforms import AffineCoupling, InvertibleConv1x1


def conv1x1(shape: ImageShape) -> Transform:
    """Glow's linear map: a full C x C matrix at every pixel, which starts orthogonal."""
    return InvertibleConv1x1(shape[0], "full")


def affine_coupling(hidden_channels: int) -> Part:
    r"""Glow's coupling, as a factory: half of the channels conditions an affine map of the others.

    The log-scale is :math:`\log(0.1 + 1.8\,\sigma(u))`, which is 0 at the start and bounded.

    Args:
        hidden_channels: of its network, convolutions of 3x3, 1x1 and 3x3.
    """

    def build(shape: ImageShape) -> Transform:
        network = partial(ConvConditioner, hidden_channels=hidden_channels)
        return AffineCoupling(shape[0], network, "sigmoid")

    return build


def glow(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    levels: int = 256,
) -> ImageFlow:
    r"""Build Glow.

    .. math:: g = \mathrm{coupling} \circ W \circ \mathrm{ActNorm}, \qquad
              \log|\det W| = H W \log|\det W_{C \times C}|

    The networks have biases where the original has ActNorm, which is half a percent of their
    parameters fewer.

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: of flow at each scale.
        levels: number of pixel values.

    References:
        Kingma and Dhariwal, Glow: generative flow with invertible 1x1 convolutions, 2018.

    Example:
        >>> sum(parameter.numel() for parameter in glow((3, 32, 32)).parameters())
        10990476
    """
    return multi_scale_flow(
        image_shape, conv1x1, affine_coupling(hidden_channels), scales, steps, levels
    )
