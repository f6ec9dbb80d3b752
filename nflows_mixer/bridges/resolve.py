"""A transform or a factory of one, made into the transform for its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import mismatch
from nflows_mixer.bridges.composite import gated
from nflows_mixer.bridges.inspect import row_lengths

FlowLike = Union[Transform, Callable[[int], Transform]]
"""A transform on rows, or a factory: row length -> transform."""


def as_transform(flow: FlowLike, features: int, owner: str = "as_transform") -> Transform:
    """Return the transform that ``flow`` describes, for rows of length ``features``.

    Plain composites of nflows become this package's, with the same parts (see ``gated``).

    Args:
        flow: an nflows transform on rows, or a factory (a class, a function) that takes the row
            length and returns one.
        features: the row length.
        owner: whose argument this is, for the error.

    Raises:
        TypeError: if ``flow`` is neither, or the factory returns something else.
        ValueError: if the transform says that it is for rows of another length.

    Example:
        >>> from nflows.transforms import LULinear
        >>> as_transform(LULinear, 48).features
        48
    """
    transform = built(flow, features, owner)
    lengths = row_lengths(transform)
    if lengths - {features}:
        raise mismatch(
            owner,
            f"a transform of rows of length {features}",
            f"{type(transform).__name__} of length {', '.join(map(str, sorted(lengths)))}",
            "pass a factory, `lambda features: ...`, so that it is built for its place",
        )
    return transform


def built(flow: Transform | Callable[[Any], Transform], argument: Any, owner: str) -> Transform:
    """Return ``flow`` if it is a transform, or what the factory makes of ``argument``.

    Args:
        flow: an nflows transform, or a factory.
        argument: what the factory takes: a row length, an image shape.
        owner: whose argument this is, for the error.

    Raises:
        TypeError: if the result is no nflows transform.

    Example:
        >>> from nflows.transforms import LULinear
        >>> built(LULinear(3), 3, "example").features
        3
    """
    is_factory = callable(flow) and not isinstance(flow, nn.Module)
    transform = flow(argument) if is_factory else flow
    if not isinstance(transform, Transform):
        what = f"factory({argument}) to return" if is_factory else "a factory, or"
        raise TypeError(
            f"{owner}: expected {what} an nflows Transform, got {type(transform).__name__}; "
            "give a subclass of nflows.transforms.Transform"
        )
    return gated(transform)
