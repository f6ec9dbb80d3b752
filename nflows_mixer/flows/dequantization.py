"""The dequantisation of a flow, by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from nflows_mixer._checks import check_choice, check_positive, mismatch
from nflows_mixer.nn import DenseConditioner, DenseEncoder
from nflows_mixer.transforms import UniformDequantization, VariationalDequantization
from nflows_mixer.transforms.variational import NEARLY_UNIFORM

DEQUANTIZATIONS = ("uniform", "variational")
CHANNELS = 64


def dequantization_of(
    kind: str,
    image_shape: tuple[int, int, int],
    levels: int,
    channels: int = CHANNELS,
    checkpoint: bool = False,
) -> UniformDequantization | VariationalDequantization:
    """Return the dequantisation of this name.

    Args:
        kind: "uniform" or "variational".
        image_shape: (C, H, W).
        levels: number of pixel values.
        channels: of the networks of a variational one: their width, growth and features.
        checkpoint: whether these are computed again in the backward pass.

    Example:
        >>> small = dequantization_of("variational", (1, 8, 8), 17, channels=8)
        >>> sum(p.numel() for p in small.parameters())
        38344
    """
    if kind == "uniform":
        return UniformDequantization(levels)
    return VariationalDequantization(
        image_shape,
        levels,
        partial(NEARLY_UNIFORM, conditioner=noise_network(channels)),
        noise_encoder(channels),
        context_features=channels,
        checkpoint=checkpoint,
    )


def noise_network(channels: int) -> Callable[..., nn.Module]:
    """Return a factory of the couplings' networks of learned noise, of this width.

    Args:
        channels: width, and growth of the dense block.

    Example:
        >>> sum(p.numel() for p in noise_network(8)(2, 4).parameters())
        8836
    """
    return partial(DenseConditioner, hidden_channels=channels, growth=channels)


def noise_encoder(channels: int, stride: int = 2) -> Callable[..., nn.Module]:
    """Return a factory of the network whose features learned noise is conditioned on.

    Args:
        channels: width.
        stride: of the resolution.

    Example:
        >>> sum(p.numel() for p in noise_encoder(8)(1, 8).parameters())
        2656
    """
    growth = max(1, channels // 4)
    return partial(DenseEncoder, hidden_channels=channels, stride=stride, growth=growth)


def check_dequantization(owner: str, kind: str, channels: int) -> None:
    """Raise unless the dequantisation is known, and reads the number of channels if it is given.

    Args:
        owner: who asks, for the error.
        kind: its name.
        channels: of the networks of a variational one.

    Example:
        >>> check_dequantization("example", "uniform", CHANNELS)
    """
    check_choice(owner, "dequantization", kind, DEQUANTIZATIONS)
    check_positive(owner, "dequantization_channels", channels)
    if kind == "uniform" and channels != CHANNELS:
        expected = f"dequantization='variational' beside dequantization_channels={channels}"
        raise mismatch(owner, expected, "'uniform'", "leave dequantization_channels out")
