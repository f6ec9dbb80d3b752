"""The flows that are compared: MixerFlows of several linear blocks, and a Glow of one scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nflows.transforms import Transform
from torch import nn

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    ButterflyLinear,
    InvertibleConv1x1,
    KroneckerLinear,
    LULinear,
    PixelScaling,
    SqueezeTransform,
)

PATCHES = 64
PATCH_SIZE = 4
WAYS = {
    "patches": f"{PATCHES} patches",
    "patch size": f"patches of {PATCH_SIZE} x {PATCH_SIZE}",
    "any": "no patches",
}
NAMES = {
    "lu": "full LU",
    "butterfly": "butterfly",
    "kronecker": "Kronecker",
    "butterfly-root": "butterfly, factors near the root",
    "none": "no linear block",
    "glow": "Glow",
}


BLOCKS: dict[str, Callable[..., Transform] | None] = {
    "lu": LULinear,
    "butterfly": ButterflyLinear,
    "kronecker": KroneckerLinear,
    # Not given the axes of a patch, it takes factors near the square root.
    "butterfly-root": lambda features: ButterflyLinear(features),
    "none": None,
}


def mixer(linear: str, size: int, patch_size: int, **options) -> ImageFlow:
    """Return a MixerFlow of square RGB images with this linear block in all its flows.

    Args:
        linear: "lu"; "butterfly" or "kronecker", with factors that are axes of a patch;
            "butterfly-root", with factors as near to the square root as there are; or "none",
            with which the parts of a coupling alternate.
        size: height and width.
        patch_size: of all layers.
        **options: of ``mixerflow``; ``hidden_features`` is that of the conditioners.
    """
    return mixerflow(
        image_shape=(3, size, size),
        patch_size=patch_size,
        linear=BLOCKS[linear],
        norm="batch",
        **options,
    )


class ConvConditioner(nn.Sequential):
    """The network of Glow's couplings: 3x3, 1x1, 3x3 convolutions, the last starting at zero."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        last = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 1),
            nn.ReLU(),
            last,
        )


def glow(size: int, steps: int, hidden_channels: int) -> ImageFlow:
    """Return a Glow of one scale: a squeeze, then steps of ActNorm, 1x1 convolution, coupling.

    Args:
        size: height and width of RGB images.
        steps: of flow.
        hidden_channels: of the couplings' networks.
    """
    channels = 12
    conditioner = partial(ConvConditioner, hidden_channels=hidden_channels)
    parts: list[Transform] = [PixelScaling(256), SqueezeTransform(2)]
    for _ in range(steps):
        parts += [
            ActNorm(channels),
            InvertibleConv1x1(channels),
            AffineCoupling(channels, conditioner, "sigmoid"),
        ]
    base = DiagonalNormal((channels, size // 2, size // 2))
    return ImageFlow(CompositeTransform(parts), (3, size, size), base)


def parameters(flow: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in flow.parameters())
