"""Glow with about as many parameters: of this package's parts, of nflows', of normflows'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from nflows.nn.nets import ConvResidualNet
from nflows.transforms import ActNorm as NflowsActNorm
from nflows.transforms import (
    AffineCouplingTransform,
    OneByOneConvolution,
    Transform,
)
from nflows.transforms import CompositeTransform as NflowsComposite
from nflows.transforms import SqueezeTransform as NflowsSqueeze
from torch import Tensor, nn

from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    CompositeTransform,
    InvertibleConv1x1,
    PixelScaling,
    SqueezeTransform,
    UniformDequantization,
)

LEVELS = 3
STEPS = 8


def our_glow(setting: Setting) -> Variant:
    """Three levels of eight steps: ActNorm, 1x1 convolution, coupling with a 3-1-3 network."""
    return _variant(setting, _ours)


def nflows_glow(setting: Setting) -> Variant:
    """Three levels of eight steps: ActNorm, 1x1 convolution, coupling with ConvResidualNet."""
    return _variant(setting, _of_nflows)


def normflows_glow(setting: Setting) -> Variant:
    """Three levels of eight of its GlowBlock, after each its Squeeze."""
    try:
        import normflows  # noqa: F401
    except ImportError as error:
        raise Unavailable(str(error)) from error
    return _variant(setting, NormflowsGlow)


def _variant(setting: Setting, build: Callable[[tuple[int, int, int], int], nn.Module]) -> Variant:
    """The Glow whose conditioners' width brings it nearest to the model's parameters."""
    model = setting.flow()
    shape, aim = model.image_shape, _size(model)
    low, high = 1, 2
    while _size(build(shape, high)) < aim:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _size(build(shape, middle)) < aim else (low, middle)
    found = min((build(shape, low), build(shape, high)), key=lambda flow: abs(_size(flow) - aim))
    return Variant(found, setting, shape, products=False)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _channels(image_shape: tuple[int, int, int]) -> Iterator[int]:
    """Channels of each level: a squeeze by 2 before each, and no part is factored out."""
    channels, height, width = image_shape
    if height % 2**LEVELS or width % 2**LEVELS:
        raise Unavailable(f"{LEVELS} squeezes need sides that are multiples of {2**LEVELS}")
    return (channels * 4 ** (level + 1) for level in range(LEVELS))


def _latent(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    channels, height, width = image_shape
    side = 2**LEVELS
    return channels * side**2, height // side, width // side


def _ours(image_shape: tuple[int, int, int], width: int) -> ImageFlow:
    parts: list[Transform] = [PixelScaling(256)]
    for channels in _channels(image_shape):
        parts.append(SqueezeTransform(2))
        for _ in range(STEPS):
            parts.append(ActNorm(channels))
            parts.append(InvertibleConv1x1(channels))
            parts.append(AffineCoupling(channels, partial(_network, width), "sigmoid"))
    return _flow(CompositeTransform(parts), image_shape)


def _network(width: int, inputs: int, outputs: int) -> nn.Sequential:
    # It need not start at zero, as weights are moved off their start.
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 3, padding=1),
    )


def _of_nflows(image_shape: tuple[int, int, int], width: int) -> ImageFlow:
    parts: list[Transform] = [PixelScaling(256)]
    conditioner = partial(ConvResidualNet, hidden_channels=width, num_blocks=1)
    for channels in _channels(image_shape):
        parts.append(NflowsSqueeze())
        mask = torch.arange(channels) >= channels // 2
        for _ in range(STEPS):
            parts.append(NflowsActNorm(channels))
            parts.append(OneByOneConvolution(channels))
            parts.append(AffineCouplingTransform(mask.int(), conditioner))
    return _flow(NflowsComposite(parts), image_shape)


def _flow(transform: Transform, image_shape: Sequence[int]) -> ImageFlow:
    channels, height, width = image_shape
    base = DiagonalNormal(_latent((channels, height, width)))
    return ImageFlow(transform, image_shape, base)


class NormflowsGlow(nn.Module):
    """Dequantized images in a ``NormalizingFlow``, which runs from noise to data.

    Args:
        image_shape: (C, H, W).
        width: of the conditioners.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        import normflows as nf

        flows = []
        for channels in list(_channels(image_shape))[::-1]:
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
