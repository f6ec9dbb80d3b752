"""A transform or a factory of one, made into the transform for rows of a given length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import nn

from nflows_mixer._checks import mismatch

FlowLike = Union[Transform, Callable[[int], Transform]]
"""A transform on rows, or a factory: row length -> transform."""


def as_transform(flow: FlowLike, features: int, owner: str = "as_transform") -> Transform:
    """Return the transform that ``flow`` describes, for rows of length ``features``.

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
    is_factory = callable(flow) and not isinstance(flow, nn.Module)
    transform = flow(features) if is_factory else flow
    if not isinstance(transform, Transform):
        what = "a factory that returns" if is_factory else "an nflows transform, or a factory of"
        raise TypeError(
            f"{owner}: expected {what} an nflows Transform, got {type(transform).__name__}; "
            "return a subclass of nflows.transforms.Transform"
        )
    length = row_length(transform)
    if length is not None and length != features:
        raise mismatch(
            owner,
            f"a transform of rows of length {features}",
            f"{type(transform).__name__} of length {length}",
            "pass a factory, `lambda features: ...`, so that it is built for its place",
        )
    return transform


def row_length(transform: Transform) -> int | None:
    """Row length that a transform was built for, or None where it does not say.

    Args:
        transform: any nflows transform; of a composite or an inverse, the parts are asked.

    Example:
        >>> from nflows.transforms import CompositeTransform, LULinear, ReversePermutation
        >>> row_length(CompositeTransform([ReversePermutation(3), LULinear(3)]))
        3
    """
    if isinstance(transform, (CompositeTransform, InverseTransform)):
        parts = (m for m in transform.modules() if m is not transform)
        lengths = (row_length(part) for part in parts if isinstance(part, Transform))
        return next((length for length in lengths if length is not None), None)
    features = getattr(transform, "features", None)
    return features if isinstance(features, int) else None


def takes_context(module: nn.Module) -> bool:
    """Whether a transform, base or network makes use of the context that it is handed.

    A module answers by an attribute ``takes_context``, or by ``context_features`` (nflows and this
    package set it); nflows' masked networks have a ``context_layer`` and its conditional bases a
    ``_context_encoder`` where they take one. Everything else is asked for its parts. A module that
    gives no sign is taken not to, so a transform of your own that does take one says so:
    ``takes_context = True``.

    Args:
        module: any module.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF
        >>> takes_context(MAF(8, 16)), takes_context(MAF(8, 16, context_features=3))
        (False, True)
    """
    declared = getattr(module, "takes_context", None)
    if declared is not None:
        return bool(declared)
    asks = bool(getattr(module, "context_features", None))
    asks = asks or hasattr(module, "context_layer") or hasattr(module, "_context_encoder")
    return asks or any(takes_context(child) for child in module.children())
