"""Glow of normflows: its blocks and their network, at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nflows_mixer.distributions import DiagonalNormal, ProductDistribution
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import (
    MultiScaleTransform,
    PixelScaling,
    SqueezeAndSplit,
    SqueezeTransform,
)


def glow_of_normflows(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    levels: int = 256,
) -> ImageFlow:
    r"""Build the Glow of normflows' own example, of its ``GlowBlock`` as they are.

    .. math:: (h_i, z_i) = \mathrm{split}(g_i(\mathrm{squeeze}(h_{i-1}))), \qquad
              g_i = \big(\mathrm{coupling} \circ \mathrm{conv}_{1 \times 1} \circ
              \mathrm{ActNorm}\big)^K

    Squeezes, splits and bases, which have next to nothing to compute, are this package's: they do
    what ``Squeeze``, ``Merge`` and ``DiagGaussian`` do in a ``MultiscaleFlow``, and the flow is
    trained and evaluated by the same code as all others. A block's ActNorm is initialized by the
    first batch that it sees.

    Args:
        image_shape: (C, H, W), of which two to the power of ``scales`` divides H and W.
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: blocks of flow at each scale, K.
        levels: number of pixel values.

    References:
        Stimper et al., normflows: A PyTorch package for normalizing flows, 2023.
    """
    import normflows as nf  # an extra of the package

    channels = image_shape[0]
    parts: list[Any] = [PixelScaling(levels)]
    for scale in range(scales):
        channels *= 4
        parts.append(SqueezeTransform(2))
        parts += [nf.flows.GlowBlock(channels, hidden_channels) for _ in range(steps)]
        if scale < scales - 1:
            parts.append(SqueezeAndSplit(1))
            channels //= 2
    transform = MultiScaleTransform(parts, image_shape)
    shapes = transform.latent_shapes.items()
    base = ProductDistribution({name: DiagonalNormal(shape) for name, shape in shapes})
    return ImageFlow(transform, image_shape, base, levels)
