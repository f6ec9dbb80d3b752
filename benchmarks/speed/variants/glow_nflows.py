"""Glow of nflows' own parts."""

from __future__ import annotations

from functools import partial

import torch
from nflows.nn.nets import ConvResidualNet
from nflows.transforms import (
    ActNorm,
    AffineCouplingTransform,
    CompositeTransform,
    OneByOneConvolution,
    SqueezeTransform,
    Transform,
)

from benchmarks.speed.variants.base import Setting, Variant
from benchmarks.speed.variants.glow import STEPS, channels_of_levels, of_equal_size
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import PixelScaling


def nflows_glow(setting: Setting) -> Variant:
    """Three levels of eight steps: ActNorm, 1x1 convolution, coupling with ConvResidualNet."""
    shape = setting.flow().image_shape
    flow = of_equal_size(setting, partial(_build, shape))
    return Variant(flow, setting, shape, products=False)


def _build(image_shape: tuple[int, int, int], width: int) -> ImageFlow:
    transforms: list[Transform] = [PixelScaling(256)]
    conditioner = partial(ConvResidualNet, hidden_channels=width, num_blocks=1)
    for channels in channels_of_levels(image_shape):
        transforms.append(SqueezeTransform())
        mask = torch.arange(channels) >= channels // 2
        for _ in range(STEPS):
            transforms.append(ActNorm(channels))
            transforms.append(OneByOneConvolution(channels))
            transforms.append(AffineCouplingTransform(mask.int(), conditioner))
    side = 2 ** len(list(channels_of_levels(image_shape)))
    latent = (channels, image_shape[1] // side, image_shape[2] // side)
    return ImageFlow(CompositeTransform(transforms), image_shape, DiagonalNormal(latent))
