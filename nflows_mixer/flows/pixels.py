"""What stands between integer pixels and a flow on real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Union

from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import as_python, check_choice, check_positive, mismatch
from nflows_mixer.nn import DenseConditioner, DenseEncoder
from nflows_mixer.transforms import (
    InvertibleConv1x1,
    LogitTransform,
    PixelScaling,
    SqueezeTransform,
    UniformDequantization,
    VariationalDequantization,
)

Dequantization = Union[UniformDequantization, VariationalDequantization]
DequantizationLike = Union[
    Literal["uniform", "variational", "variational-small"], Callable[..., Dequantization]
]
"""A name, or a factory; it is given those of ``image_shape``, ``levels`` and ``checkpoint`` that
its signature names."""

NOISE_CHANNELS = 64


@dataclass(frozen=True)
class Pixels:
    r"""What stands between uint8 pixels and the mixer layers.

    Dequantization; a scale to [-1/2, 1/2), or to [0, 1) and a logit; an invertible 1x1 convolution
    over the channels; a squeeze. Images that are real (``levels=None``) have the last two alone.

    Args:
        dequantization: "uniform", or "variational" with learned noise, or "variational-small" (see
            ``small_variational``), or a factory such as ``VariationalDequantization`` (by
            ``functools.partial`` with networks of your own).
        noise_channels: width of the networks of a "variational" dequantization; 64 where None.
        logit: alpha of the logit of pixels, see ``LogitTransform``; None for a linear scale.
        squeeze: factor of the squeeze, 1 for none; patches and shifts then count pixels of the
            squeezed image.
        conv1x1: whether the 1x1 convolution is there.

    Raises:
        ValueError: if a choice is unknown, a size is not positive, or ``noise_channels`` would not
            be read.

    References:
        MixerFlow, Section 4 (1x1 convolution) and Section 5 (dequantization).

    Example:
        >>> Pixels(logit=1e-3, squeeze=2).shape((1, 28, 28))
        (4, 14, 14)
    """

    dequantization: DequantizationLike = "uniform"
    noise_channels: int | None = None
    logit: float | None = None
    squeeze: int = 1
    conv1x1: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, as_python(value))
        check_positive("Pixels", "squeeze", self.squeeze)
        check_dequantization("Pixels", self.dequantization, self.noise_channels)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape (C, H, W) of what the mixer layers see of images of this shape."""
        channels, *sizes = image_shape
        if any(size % self.squeeze for size in sizes):
            expected = f"a squeeze that divides {tuple(sizes)}"
            raise mismatch("Pixels", expected, self.squeeze, "1 leaves it out")
        height, width = (size // self.squeeze for size in sizes)
        return channels * self.squeeze**2, height, width

    def transforms(self, image_shape: tuple[int, int, int], levels: int | None) -> list[Transform]:
        """Return the transforms from dequantized, or real, pixels to the first mixer layer.

        Raises:
            ValueError: if ``levels`` is None and something is for integer pixels.
        """
        parts: list[Transform] = [] if levels is None else [PixelScaling(levels)]
        if levels is None and (self.dequantization != "uniform" or self.logit is not None):
            expected = "pixels without a logit or a dequantization beside levels=None"
            got = f"logit={self.logit}, dequantization={self.dequantization!r}"
            raise mismatch("Pixels", expected, got, "leave these out: real images are taken as is")
        if levels is not None and self.logit is not None:
            parts = [PixelScaling(levels, low=0.0, high=1.0), LogitTransform(self.logit)]
        if self.conv1x1:
            parts.append(InvertibleConv1x1(image_shape[0]))
        if self.squeeze > 1:
            parts.append(SqueezeTransform(self.squeeze))
        return parts


def noise_networks(
    channels: int, stride: int = 2
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Return factories of the networks of learned noise.

    Args:
        channels: their width.
        stride: of the resolution at which the second sees the image.

    Returns:
        That of the couplings' networks, and that of the network whose features they are given.

    Example:
        >>> network, encoder = noise_networks(8)
        >>> [sum(p.numel() for p in net.parameters()) for net in (network(2, 4), encoder(1, 8))]
        [8836, 2656]
    """
    encoder = partial(DenseEncoder, hidden_channels=channels, stride=stride)
    network = partial(DenseConditioner, hidden_channels=channels, growth=channels)
    return network, partial(encoder, growth=max(1, channels // 4))


def check_dequantization(
    owner: str, kind: DequantizationLike, channels: int | None, read: bool = False
) -> None:
    """Raise unless the dequantization is known, and the number of channels is read if given.

    Args:
        owner: who asks, for the error.
        kind: its name, or a factory.
        channels: of the networks of a "variational" one, or None.
        read: whether something else reads these, too.

    Example:
        >>> check_dequantization("example", "uniform", None)
    """
    if not callable(kind):
        check_choice(owner, "dequantization", kind, ("uniform", "variational", "variational-small"))
    if channels is not None:
        check_positive(owner, "noise_channels", channels)
        if kind != "variational" and not read:
            expected = f"dequantization='variational' beside noise_channels={channels}"
            raise mismatch(owner, expected, repr(kind), "leave noise_channels out")


BACKGROUND = Pixels(dequantization="variational-small", logit=1e-6)
"""For images many of whose pixels are at an end of their range, as ink on a white page."""
