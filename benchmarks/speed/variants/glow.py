"""What the Glow variants share: their shape, and a width that matches the model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from benchmarks.speed.variants.base import Setting, Unavailable

LEVELS = 3
STEPS = 8


def channels_of_levels(image_shape: tuple[int, int, int]) -> Iterator[int]:
    """Channels of each level: a squeeze by 2 before each, and no part is factored out."""
    channels, height, width = image_shape
    if height % 2**LEVELS or width % 2**LEVELS:
        raise Unavailable(f"{LEVELS} squeezes need sides that are multiples of {2**LEVELS}")
    return (channels * 4 ** (level + 1) for level in range(LEVELS))


def of_equal_size(setting: Setting, build: Callable[[int], nn.Module]) -> nn.Module:
    """Build the Glow whose conditioners' width brings it nearest to the model's parameters.

    Args:
        setting: of the model.
        build: width -> flow.
    """
    aim = _size(setting.flow())
    low, high = 1, 2
    while _size(build(high)) < aim:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _size(build(middle)) < aim else (low, middle)
    return min((build(low), build(high)), key=lambda flow: abs(_size(flow) - aim))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
