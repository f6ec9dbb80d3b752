"""Inverses of monotone functions that have none in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch

_STEPS = 100
_WIDEST = 2.0**20


@torch.no_grad()
def invert_monotone(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    targets: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    r"""Solve f(x) = y for an increasing f, element by element: Newton's steps inside a bracket.

    .. math:: x \leftarrow x + (y - f(x)) / f'(x)
        \quad\text{if that lies in } (a, b), \text{ else } (a + b) / 2

    The bracket starts at [-10, 10] and is doubled until it holds the solution; every evaluation
    narrows it. Iteration ends with a step of Newton below the square root of the precision.

    Args:
        function: x -> (f(x), log f'(x)), element by element.
        targets: y, of any shape.
        start: a first guess of the solution; the middle of the bracket where None.

    Returns:
        x, of the shape of ``targets``, without gradient. Where there is no solution it is an end
        of the bracket: ``check_solution`` tells.

    Example:
        >>> cube = lambda x: (x**3 + x, torch.log(3 * x**2 + 1))
        >>> invert_monotone(cube, torch.tensor([-2.0, 0.0, 1e6]))
        tensor([-1.0000,  0.0000, 99.9967])
    """
    low, high = torch.full_like(targets, -10.0), torch.full_like(targets, 10.0)
    while (too_high := function(low)[0] > targets).any() and low.min() > -_WIDEST:
        low = torch.where(too_high, 2 * low, low)
    while (too_low := function(high)[0] < targets).any() and high.max() < _WIDEST:
        high = torch.where(too_low, 2 * high, high)
    middle = (low + high) / 2
    x = middle if start is None else torch.where((start > low) & (start < high), start, middle)
    eps = torch.finfo(x.dtype).eps
    for _ in range(_STEPS):
        value, log_slope = function(x)
        low = torch.where(value < targets, x, low)
        high = torch.where(value > targets, x, high)
        newton = x + (targets - value) * (-log_slope).exp()
        # A NaN fails both comparisons.
        inside = (newton >= low) & (newton <= high)
        moved = torch.where(inside, newton, (low + high) / 2)
        step = (moved - x).abs() / x.abs().clamp(min=1.0)
        # One that stands still is kept to the bit, so that a solution is its own solution.
        still = step <= 16 * eps
        x = torch.where(still, x, moved)
        # What Newton's step leaves over is of the order of its square: below the precision.
        if (still | (inside & (step <= eps**0.5))).all():
            break
    return x


def check_solution(values: Tensor, targets: Tensor, owner: str) -> None:
    """Raise unless the values of a function at its solution are the targets.

    Args:
        values: f(x), of any shape.
        targets: y, of the same shape.
        owner: whose inverse x is, for the error.

    Raises:
        ValueError: if they are apart by more than 1e-3 (1e-6 in float64), relative to max(1, |y|):
            there is no such x, or f is too flat there for the precision.

    Example:
        >>> check_solution(torch.tensor([1.0]), torch.tensor([1.0]), "example")
    """
    error = (values - targets).abs() / targets.abs().clamp(min=1.0)
    tolerance = 1e-6 if targets.dtype == torch.float64 else 1e-3
    # Written so that a NaN counts as apart.
    if (apart := ~(error <= tolerance)).any():
        raise mismatch(
            owner,
            f"an x with f(x) within {tolerance} of y",
            f"none for {apart.sum().item()} of {apart.numel()} values, such as "
            f"y = {targets[apart][0].item():g}",
            "y lies outside the flow's range, or f is too flat there: standardize its inputs "
            "(ActNorm before it), lower the temperature of samples, or run it in float64",
        )
