"""Domains of zuko's transformations, followed from part to part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.distributions import constraints

from nflows_mixer._checks import mismatch


def check_domains(built: Any, rows: Tensor, owner: str) -> None:
    """Raise unless a built transformation of zuko maps all of R^D to all of R^D.

    Domains are followed from part to part, through masked flows and couplings to their univariate
    transformations: zuko checks nothing.

    Args:
        built: a transformation, as a lazy one builds it.
        rows: a few inputs [N, D], to build the univariate transformations with.
        owner: whose argument it is, for the error.

    Raises:
        ValueError: if a part is bounded where it is not given bounded values, or no bijection.

    Example:
        >>> import torch, zuko
        >>> check_domains(zuko.flows.MAF(3).transform(), torch.zeros(2, 3), "example")
    """
    from zuko.transforms import SoftclipTransform

    here: Any = constraints.real
    parts = list(_elementary(built, rows))
    for index, (part, inverted) in enumerate(parts):
        if isinstance(part, SoftclipTransform) and 0 < index < len(parts) - 1:
            # SOSPF, NAF and UNAF are made with it; ``solve`` looks whether values are in range.
            continue
        ends = [_base(part.domain), _base(part.codomain)][:: -1 if inverted else 1]
        error = mismatch(
            owner,
            "a bijection from all real numbers to all real numbers",
            f"{type(part).__name__} from {ends[0]} to {ends[1]}",
            "use a transform of all real numbers, such as those of zuko.flows.NSF, or put this one "
            "between others that map to its domain and back",
        )
        if not part.bijective or not _same(here, ends[0]):
            raise error
        here = ends[1]
    if not _same(here, constraints.real):
        raise error


def _elementary(built: Any, rows: Tensor, inverted: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the elementary parts in the order of the map, and whether each runs backwards."""
    from torch.distributions.transforms import _InverseTransform
    from zuko import transforms

    if isinstance(built, _InverseTransform):
        yield from _elementary(built.inv, rows, not inverted)
    elif isinstance(built, transforms.ComposedTransform):
        for part in list(built.transforms)[:: -1 if inverted else 1]:
            yield from _elementary(part, rows, inverted)
    elif isinstance(built, transforms.AutoregressiveTransform):
        yield from _elementary(built.meta(rows), rows, inverted)
    elif isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(rows)
        yield from _elementary(built.meta(fixed), moved, inverted)
    elif isinstance(built, transforms.DependentTransform):
        yield from _elementary(built.base, rows, inverted)
    else:
        yield built, inverted


def _base(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _same(one: Any, other: Any) -> bool:
    """Constraints of torch compare by identity, so that their kind and bounds are compared here."""
    return type(one) is type(other) and vars(one) == vars(other)
