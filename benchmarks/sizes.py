"""Models of equal size: numbers of parameters, and the width that comes nearest to one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def nearest(count: Callable[[int], int], aim: int) -> int:
    """Return the integer, 1 or more, whose count comes nearest to an aim, by bisection."""
    low, high = 1, 2
    while count(high) < aim:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < aim else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - aim))


def parameters_of(flow: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in flow.parameters())
