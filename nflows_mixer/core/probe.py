"""Which transforms of nflows are no maps from R^D to R^D, and what to use in their place."""

from __future__ import annotations

from nflows import transforms as nflows_transforms
from nflows.transforms import (
    CompositeTransform,
    IdentityTransform,
    InverseTransform,
    Permutation,
    Transform,
)

from nflows_mixer._checks import mismatch

_LIBRARIES = ("nflows", "nflows_mixer")
_REAL, _UNIT, _OPEN = "R^D", "(0, 1)^D", "(-1, 1)^D"
_SPLINE = "tails='linear', or nflows_mixer.transforms.RationalQuadraticCoupling"
_ENDS = {
    "Sigmoid": (_REAL, _UNIT, "the composite [Sigmoid(), a flow of (0, 1)^D, Logit()]"),
    "CauchyCDF": (_REAL, _UNIT, "the composite [CauchyCDF(), a flow of (0, 1)^D, its inverse]"),
    "LogitTransform": (_UNIT, _REAL, "the composite [Sigmoid(), a flow of (0, 1)^D, Logit()]"),
    "Tanh": (_REAL, _OPEN, "LogTanh, which is Tanh near 0 and unbounded"),
    "MaskedPiecewiseLinearAutoregressiveTransform": (
        _UNIT,
        _UNIT,
        "MaskedPiecewiseRationalQuadraticAutoregressiveTransform with tails='linear'",
    ),
    "MaskedPiecewiseCubicAutoregressiveTransform": (
        _UNIT,
        _UNIT,
        "MaskedPiecewiseRationalQuadraticAutoregressiveTransform with tails='linear'",
    ),
}
_SPLINES = tuple(
    getattr(nflows_transforms, name)
    for name in (
        "MaskedPiecewiseQuadraticAutoregressiveTransform",
        "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
        "PiecewiseLinearCouplingTransform",
        "PiecewiseQuadraticCouplingTransform",
        "PiecewiseCubicCouplingTransform",
        "PiecewiseRationalQuadraticCouplingTransform",
        "PiecewiseLinearCDF",
        "PiecewiseQuadraticCDF",
        "PiecewiseCubicCDF",
        "PiecewiseRationalQuadraticCDF",
    )
)
UNUSABLE = {
    "NaiveLinear": (
        "calls torch.qr and torch.solve, which torch has removed",
        "nflows.transforms.LULinear, or nflows_mixer.transforms.LULinear",
    ),
    "GatedLinearUnit": (
        "scales all features by its context and reports one log-scale per element of it",
        "an AffineCoupling whose conditioner takes the context",
    ),
    "OneByOneConvolution": (
        "maps images, not rows",
        "LULinear here, or nflows_mixer.transforms.InvertibleConv1x1 on the image",
    ),
    "SqueezeTransform": (
        "reshapes images",
        "nflows_mixer.transforms.SqueezeTransform on the image",
    ),
    "MultiscaleCompositeTransform": ("flattens what it gives", "CompositeTransform"),
}
"""Class of nflows -> why it cannot be a flow of rows, and a substitute."""


def check_usable(transform: Transform, owner: str) -> None:
    """Raise if a transform of nflows is known not to map all of R^D to all of R^D.

    Bounded transforms inside a composite are followed from part to part: a sigmoid, a spline of
    (0, 1) and a logit are a flow of R^D together.

    Args:
        transform: any nflows transform; one of an unknown class is believed.
        owner: whose argument this is, for the error.

    Raises:
        ValueError: with the reason, and what to use instead.

    Example:
        >>> from nflows.transforms import Logit, Sigmoid
        >>> check_usable(CompositeTransform([Sigmoid(), Logit()]), "example")
        >>> check_usable(Sigmoid(), "example")
        Traceback (most recent call last):
        ValueError: example: expected a flow from R^D to R^D, got Sigmoid, from R^D to (0, 1)^D; ...
    """
    here = _REAL
    for part, inverted, name in _flat(transform):
        if reason := unusable(type(part)):
            raise mismatch(owner, "a flow of rows that works with this torch", *reason)
        if (ends := _ends(part)) is None:
            continue
        start, end, substitute = ends
        if inverted:
            start, end = end, start
        error = mismatch(
            owner,
            f"a flow from {_REAL} to {_REAL}",
            f"{name}, from {start} to {end}" + ("" if start == here else f", for values in {here}"),
            f"use {substitute}",
        )
        if start != here:
            raise error
        here = end
    if here != _REAL:
        raise error


def unusable(kind: object) -> tuple[str, str] | None:
    """Return what a class of nflows is and what to use instead, if no object of it can be used.

    Args:
        kind: a class, or anything else, of which nothing is known.

    Example:
        >>> unusable(nflows_transforms.SqueezeTransform)[0]
        'SqueezeTransform, which reshapes images'
    """
    name = getattr(kind, "__name__", "")
    if name not in UNUSABLE or getattr(nflows_transforms, name) is not kind:
        return None
    reason, substitute = UNUSABLE[name]
    return f"{name}, which {reason}", f"use {substitute}"


def _flat(transform: Transform, inverted: bool = False) -> list[tuple[Transform, bool, str]]:
    """Elementary parts in the order of the map, whether each runs backwards, and its name."""
    name = type(transform).__name__
    if isinstance(transform, InverseTransform):
        parts = _flat(transform._transform, not inverted)
        # Logit is one by itself; a plain inverse is named by what it turns round.
        return parts if name == "InverseTransform" else [(*part[:2], name) for part in parts]
    if isinstance(transform, CompositeTransform):
        children = list(transform._transforms)[:: -1 if inverted else 1]
        return [part for child in children for part in _flat(child, inverted)]
    return [(transform, inverted, name)]


def _ends(part: Transform) -> tuple[str, str, str] | None:
    name = type(part).__name__
    if name in _ENDS and type(part).__module__.split(".")[0] in _LIBRARIES:
        return _ENDS[name]
    if isinstance(part, _SPLINES) and part.tails is None:
        return _UNIT, _UNIT, _SPLINE
    library = type(part).__module__.split(".")[0]
    if isinstance(part, (Permutation, IdentityTransform)) or library not in _LIBRARIES:
        # A permutation keeps any box, and a class of the user's own is believed.
        return None
    return _REAL, _REAL, "a flow of (0, 1)^D there, such as a spline with tails=None"
