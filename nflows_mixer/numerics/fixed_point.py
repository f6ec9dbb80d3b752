"""Iteration to a fixed point, and how autoregressive transforms are told to be inverted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nflows_mixer._checks import check_choice, check_positive, mismatch

METHODS = ("auto", "sequential", "jacobi", "gauss-seidel")


class Inversion(NamedTuple):
    """One inverse of an autoregressive transform.

    Args:
        transform: name of its class.
        method: that was used: "sequential", "jacobi" or "gauss-seidel".
        length: elements that depend on each other in turn: features of a row, or tokens.
        passes: evaluations of its network, each of all elements ("jacobi"), of a segment, or of
            one ("sequential").
    """

    transform: str
    method: str
    length: int
    passes: int


class _Request(NamedTuple):
    method: str
    segment: int | None
    report: list[Inversion]


_REQUEST: ContextVar[_Request | None] = ContextVar("inverse_method", default=None)


@contextmanager
def inverse_method(method: str = "auto", segment: int | None = None) -> Iterator[list[Inversion]]:
    r"""Say how autoregressive transforms are inverted within, and see how they were.

    .. math:: x^{(k + 1)} = f^{-1}\big(z;\ \theta(x^{(k)})\big), \qquad x^{(0)} \text{ given}

    "sequential" solves for one element after the other; "jacobi" repeats whole passes until no bit
    changes, or none by more than a transform says, which is after as many as there are elements at
    the latest; "gauss-seidel" does so within segments, one after the other, where a network can go
    on from what is finished; "auto" is the transform's own choice. All give the same numbers, but
    for rounding. A transform without such a method, or one that records gradients, takes the
    nearest that it has, as the report says.

    Args:
        method: one of these four.
        segment: elements of a segment, for "gauss-seidel".

    Yields:
        A list with an entry for each inverse, in their order.

    Raises:
        ValueError: if the method is unknown, or the segment is not read or missing.

    References:
        Song et al., Accelerating feedforward computation via parallel nonlinear equation solving,
        2021; Liu and Qin, Accelerate TarFlow sampling with GS-Jacobi iteration, 2025.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> from nflows_mixer.numerics import inverse_of
        >>> maf = MaskedAffineAutoregressiveTransform(12, 16).eval()
        >>> with torch.no_grad(), inverse_method("jacobi") as report:
        ...     rows, _ = inverse_of(maf)(torch.randn(3, 12))
        >>> report[0].method, report[0].passes <= 12
        ('jacobi', True)
    """
    check_choice("inverse_method", "method", method, METHODS)
    if (method == "gauss-seidel") != (segment is not None):
        expected = "a segment with gauss-seidel, and with no other method"
        got = f"method={method!r}, segment={segment}"
        raise mismatch("inverse_method", expected, got, "segment=16 is usual")
    if segment is not None:
        check_positive("inverse_method", "segment", segment)
    report: list[Inversion] = []
    token = _REQUEST.set(_Request(method, segment, report))
    try:
        yield report
    finally:
        _REQUEST.reset(token)


def requested_method() -> tuple[str, int | None]:
    """Return the method that was asked for, and its segment.

    Example:
        >>> requested_method()
        ('auto', None)
    """
    request = _REQUEST.get()
    return ("auto", None) if request is None else (request.method, request.segment)


def report_inversion(transform: object, method: str, length: int, passes: int) -> None:
    """Add an entry to the report, if somebody asked for one; arguments as ``Inversion``."""
    request = _REQUEST.get()
    if request is not None:
        entry = Inversion(type(transform).__name__, method, length, passes)
        request.report.append(entry)


def until_unchanged(
    one_pass: Callable[[Tensor], tuple[Tensor, Any]],
    start: Tensor,
    most: int | None = None,
    tolerance: float = 0.0,
) -> tuple[Tensor, Any, int]:
    """Repeat ``one_pass`` on rows [N, D, ...] until it changes no bit, or none by much.

    What is not finite is set back to the start before the next pass: elements that are not yet
    exact may overflow, and 0 times infinity in a masked product would spoil those that are.

    Args:
        one_pass: rows -> (rows, anything that comes with them); after ``most`` passes the rows have
            to have reached their fixed point.
        start: where to begin.
        most: passes, at most; D where None.
        tolerance: change of an element that counts as none, relative to its size where this is
            above 1.

    Returns:
        What the last pass returned, and how many there were. A row whose solution is not finite is
        NaN as a whole.

    Example:
        >>> until_unchanged(lambda x: (x.cumsum(1).clamp(max=2.0), "last"), torch.ones(1, 5))
        (tensor([[1., 2., 2., 2., 2.]]), 'last', 2)
    """
    most = start.shape[1] if most is None else most
    if most == 1:  # nothing is looked at, for a compiler and for torch.func
        return *one_pass(start), 1
    values, before, with_them, passes = start, start, None, 0
    while passes < most:
        values, with_them = one_pass(before)
        passes += 1
        finite = torch.isfinite(values)
        usable = values if finite.all() else torch.where(finite, values, start)
        if _unchanged(usable, before, tolerance):
            break
        before = usable
    return nan_rows(values), with_them, passes


def _unchanged(values: Tensor, before: Tensor, tolerance: float) -> bool:
    if not tolerance:
        return torch.equal(values, before)
    return bool(((values - before).abs() <= tolerance * values.abs().clamp_min(1)).all())


def nan_rows(values: Tensor) -> Tensor:
    """Return rows [N, ...] with NaN throughout those that have an element that is not finite.

    Example:
        >>> nan_rows(torch.tensor([[1.0, torch.inf], [2.0, 3.0]]))
        tensor([[nan, nan],
                [2., 3.]])
    """
    finite = torch.isfinite(values).flatten(1).all(1)
    shape = (-1, *[1] * (values.dim() - 1))
    return torch.where(finite.reshape(shape), values, torch.nan)
