"""Glow of this package's parts."""

from __future__ import annotations

from functools import partial

from nflows.transforms import Transform
from torch import nn

from benchmarks.speed.variants.base import Setting, Variant
from benchmarks.speed.variants.glow import STEPS, channels_of_levels, of_equal_size
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    InvertibleConv1x1,
    PixelScaling,
    SqueezeTransform,
)


def our_glow(setting: Setting) -> Variant:
    """Three levels of eight steps: ActNorm, 1x1 convolution, coupling with a 3-1-3 network."""
    shape = setting.flow().image_shape
    flow = of_equal_size(setting, partial(_build, shape))
    return Variant(flow, setting, shape, products=False)


def _build(image_shape: tuple[int, int, int], width: int) -> ImageFlow:
    transforms: list[Transform] = [PixelScaling(256)]
    for channels in channels_of_levels(image_shape):
        transforms.append(SqueezeTransform(2))
        for _ in range(STEPS):
            transforms.append(ActNorm(channels))
            transforms.append(InvertibleConv1x1(channels))
            transforms.append(AffineCoupling(channels, partial(_network, width), "sigmoid"))
    side = 2 ** len(list(channels_of_levels(image_shape)))
    latent = (channels, image_shape[1] // side, image_shape[2] // side)
    return ImageFlow(CompositeTransform(transforms), image_shape, DiagonalNormal(latent))


def _network(width: int, inputs: int, outputs: int) -> nn.Sequential:
    # It need not start at zero, as weights are moved off their start.
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )
