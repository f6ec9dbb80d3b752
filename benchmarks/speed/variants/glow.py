"""Glow with about as many parameters: of this package's parts, of nflows', of normflows'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from nflows import transforms as nft
from nflows.nn.nets import ConvResidualNet
from nflows.transforms import Transform
from torch import Tensor, nn

from benchmarks.sizes import nearest, parameters_of
from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from nflows_mixer import transforms as ours
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import PixelScaling, UniformDequantization

LEVELS, STEPS = 3, 8


def our_glow(setting: Setting) -> Variant:
    """Three levels of eight steps: ActNorm, 1x1 convolution, coupling with a 3-1-3 network."""
    return _variant(setting, partial(_glow, ours, _our_step))


def glow_of_nflows(setting: Setting) -> Variant:
    """Three levels of eight steps: ActNorm, 1x1 convolution, coupling with ConvResidualNet."""
    return _variant(setting, partial(_glow, nft, _nflows_step))


def glow_of_normflows(setting: Setting) -> Variant:
    """Three levels of eight of its GlowBlock, after each its Squeeze."""
    if find_spec("normflows") is None:
        raise Unavailable("normflows is not installed")
    return _variant(setting, NormflowsGlow)


def _variant(setting: Setting, build: Callable[[Sequence[int], int], nn.Module]) -> Variant:
    """The Glow whose conditioners' width brings it nearest to the model's parameters."""
    if any(side % 2**LEVELS for side in setting.image_shape[1:]):
        raise Unavailable(f"{LEVELS} squeezes need sides that are multiples of {2**LEVELS}")
    build = partial(build, setting.image_shape)
    width = nearest(lambda width: parameters_of(build(width)), parameters_of(setting.flow()))
    return Variant(build(width), setting, products=False)


def _channels(image_shape: Sequence[int]) -> list[int]:
    """Channels of each level: a squeeze by 2 before each, and no part is factored out."""
    return [image_shape[0] * 4 ** (level + 1) for level in range(LEVELS)]


def _latent(image_shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = image_shape
    side = 2**LEVELS
    return channels * side**2, height // side, width // side


def _glow(
    library: Any,
    step: Callable[[int, int], list[Transform]],
    image_shape: Sequence[int],
    width: int,
) -> ImageFlow:
    parts: list[Transform] = [PixelScaling(256)]
    for channels in _channels(image_shape):
        parts += [
            library.SqueezeTransform(2),
            *(part for _ in range(STEPS) for part in step(channels, width)),
        ]
    base = DiagonalNormal(_latent(image_shape))
    return ImageFlow(library.CompositeTransform(parts), image_shape, base)


def _our_step(channels: int, width: int) -> list[Transform]:
    coupling = ours.AffineCoupling(channels, partial(_network, width), "sigmoid")
    return [ours.ActNorm(channels), ours.InvertibleConv1x1(channels), coupling]


def _network(width: int, inputs: int, outputs: int) -> nn.Sequential:
    # It need not start at zero, as weights are moved off their start.
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )


def _nflows_step(channels: int, width: int) -> list[Transform]:
    conditioner = partial(ConvResidualNet, hidden_channels=width, num_blocks=1)
    mask = torch.arange(channels) >= channels // 2
    coupling = nft.AffineCouplingTransform(mask.int(), conditioner)
    return [nft.ActNorm(channels), nft.OneByOneConvolution(channels), coupling]


class NormflowsGlow(nn.Module):
    """Dequantized images in a ``NormalizingFlow``, which runs from noise to data."""

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        super().__init__()
        import normflows as nf

        flows = []
        for channels in _channels(image_shape)[::-1]:
            flows += [nf.flows.GlowBlock(channels, width) for _ in range(STEPS)]
            flows.append(nf.flows.Squeeze())
        self.dequantization = UniformDequantization()
        self.scaling = PixelScaling(256)
        base = nf.distributions.DiagGaussian(_latent(image_shape))
        self.flow = nf.NormalizingFlow(base, flows)

    def log_prob(self, images: Tensor) -> Tensor:
        """Log-likelihoods [B], one draw of the bound."""
        values, of_noise = self.dequantization(images)
        values, of_scaling = self.scaling(values)
        return of_noise + of_scaling + self.flow.log_prob(values)

    def sample(self, num_samples: int) -> Tensor:
        """Images, uint8 [num_samples, C, H, W]."""
        values, _ = self.scaling.inverse(self.flow.sample(num_samples)[0])
        return self.dequantization.inverse(values)[0]
