"""What can be read from a lazy transform of zuko: its sizes, its context, its ODEs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def may_take_context(lazy: nn.Module) -> bool:
    """Whether there is a lazy transform in it of which nothing is known.

    Args:
        lazy: lazy transform.

    Example:
        >>> import zuko
        >>> may_take_context(zuko.lazy.UnconditionalTransform(zuko.transforms.IdentityTransform))
        False
    """
    from zuko import lazy as zuko_lazy

    plain = (
        zuko_lazy.LazyComposedTransform,
        zuko_lazy.LazyInverse,
        zuko_lazy.UnconditionalTransform,
    )
    lazies = [m for m in lazy.modules() if isinstance(m, zuko_lazy.LazyTransform)]
    return not all(isinstance(module, plain) for module in lazies)


def free_form_parts(lazy: nn.Module) -> list[Any]:
    """Those parts of a lazy transform that solve an ODE.

    Args:
        lazy: lazy transform.

    Example:
        >>> import zuko
        >>> len(free_form_parts(zuko.flows.CNF(3)))
        1
    """
    from zuko.flows.continuous import FFJTransform

    return [module for module in lazy.modules() if isinstance(module, FFJTransform)]


def known_parts(lazy: nn.Module) -> Iterator[Any]:
    """Yield the parts of a lazy transform whose sizes can be read from them.

    Args:
        lazy: lazy transform.

    Example:
        >>> import zuko
        >>> len(list(known_parts(zuko.flows.MAF(3, transforms=2))))
        2
    """
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform
    from zuko.flows.continuous import FFJTransform
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.flows.gaussianization import ElementWiseTransform

    known = (
        MaskedAutoregressiveTransform,
        GeneralCouplingTransform,
        ElementWiseTransform,
        FFJTransform,
    )
    return (module for module in lazy.modules() if isinstance(module, known))


def sizes(part: Any) -> tuple[int, int]:
    """(features, context features) of one known part.

    Args:
        part: one of ``known_parts``.

    Example:
        >>> import zuko
        >>> sizes(zuko.flows.MaskedAutoregressiveTransform(3, 2))
        (3, 2)
    """
    if hasattr(part, "ode"):
        features = part.ode[-1].out_features
        return features, part.ode[0].in_features - features - 2 * len(part.freqs)
    if hasattr(part, "mask"):
        features = len(part.mask)
        return features, part.hyper[0].in_features - int(part.mask.sum())
    if hasattr(part, "passes"):
        features = part.hyper[-1].out_features // part.total
        return features, part.hyper[0].in_features - features
    if hasattr(part, "hyper"):
        return part.hyper[-1].out_features // part.total, part.hyper[0].in_features
    return len(part.phi[0]), 0
