"""A flow of any library, or a factory of one, made into the transform for its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from nflows.flows import Flow
from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import mismatch
from nflows_mixer.core.context import row_lengths, stochastic_part
from nflows_mixer.core.factory import call_factory
from nflows_mixer.core.probe import check_usable

FlowLike = Union[Transform, nn.Module, Callable[[int], Union[Transform, nn.Module]]]
"""A transform of nflows, a flow or lazy transform of zuko, a flow of normflows, or a factory of
one: row length -> flow (a class like ``zuko.flows.NSF``, a function, a ``functools.partial``)."""

Adapter = tuple[Callable[[object], bool], Callable[[Any, Union[int, None]], Transform]]
_ADAPTERS: list[Adapter] = []


def register_adapter(
    recognizes: Callable[[object], bool],
    adapt: Callable[[Any, int | None], Transform],
) -> None:
    """Make the flows of one more library known to ``adapted``, and so to every transform.

    Args:
        recognizes: whether an object is a flow of the library; asked of every flow, so that it
            should not import the library.
        adapt: (flow, row length or None) -> nflows transform.

    Example:
        >>> from nflows.transforms import IdentityTransform
        >>> class Nothing: "The flow of a library of your own."
        >>> register_adapter(lambda flow: isinstance(flow, Nothing), lambda *_: IdentityTransform())
        >>> adapted(Nothing(), "example")
        IdentityTransform()
    """
    _ADAPTERS.append((recognizes, adapt))


def as_transform(
    flow: FlowLike,
    features: int,
    owner: str = "as_transform",
    validate_args: bool = True,
    **offered: Any,
) -> Transform:
    """Return the nflows transform that ``flow`` describes, for rows of length ``features``.

    Flows of zuko and normflows are adapted (see ``from_zuko``, ``from_normflows``), and plain
    composites of nflows become this package's, with the same parts (see ``route_context``).

    Args:
        flow: a flow on rows, or a factory of one: row length -> flow.
        features: the row length.
        owner: whose argument this is, for the error.
        validate_args: whether a transform of another library is tried out (``check_usable``).
        offered: what a factory is given if its signature names it (see ``call_factory``).

    Raises:
        TypeError: if ``flow`` is neither, or the factory returns something else.
        ValueError: if the flow says that it is for rows of another length, or proves not to map
            R^D to R^D and back.

    Example:
        >>> import zuko
        >>> as_transform(lambda features: zuko.flows.NSF(features, transforms=1), 48).features
        48
    """
    transform = built(flow, features, owner, features, **offered)
    lengths = row_lengths(transform)
    if lengths - {features}:
        raise mismatch(
            owner,
            f"a transform of rows of length {features}",
            f"{type(transform).__name__} of length {', '.join(map(str, sorted(lengths)))}",
            "pass a factory, `lambda features: ...`, so that it is built for its place",
        )
    factory = None if isinstance(flow, nn.Module) else flow
    check_usable(transform, owner, features, validate_args, factory)
    return transform


def built(
    flow: Transform | nn.Module | Callable[..., Any],
    argument: Any,
    owner: str,
    features: int | None = None,
    **offered: Any,
) -> Transform:
    """Return ``flow``, or what the factory makes of ``argument``, as an nflows transform.

    Args:
        flow: a flow of nflows, zuko or normflows, or a factory of one.
        argument: what the factory takes: a row length, an image shape.
        owner: whose argument this is, for the error.
        features: row length, for flows of zuko and normflows that do not say it.
        offered: what a factory is given if its signature names it (see ``call_factory``).

    Raises:
        TypeError: if the result is no flow of any of the three.

    Example:
        >>> from nflows.transforms import LULinear
        >>> built(LULinear, 3, "example").features
        3
    """
    if callable(flow) and not isinstance(flow, nn.Module):
        made = call_factory(flow, argument, **offered)
        return adapted(made, owner, features, f"factory({argument}) to return")
    return adapted(flow, owner, features, "a factory, or")


def adapted(
    flow: Transform | nn.Module, owner: str, features: int | None = None, expected: str = "a flow:"
) -> Transform:
    """Return a ready flow of any of the three libraries as an nflows transform.

    Args: as those of ``built``; ``expected`` begins the error.

    Raises:
        TypeError: if it is none.

    Example:
        >>> import torch, zuko
        >>> adapted(zuko.flows.NICE(4), "example")(torch.randn(2, 4))[1].shape
        torch.Size([2])
    """
    for recognizes, adapt in _ADAPTERS:
        if recognizes(flow):
            return adapt(flow, features)
    got = f"the class {flow.__name__}" if isinstance(flow, type) else type(flow).__name__
    raise TypeError(
        f"{owner}: expected {expected} an nflows Transform, a zuko Flow or LazyTransform, or a "
        f"normflows Flow, got {got}; a flow of your own subclasses nflows.transforms.Transform"
    )


def deterministic_transform(flow: Transform | Flow, owner: str) -> Transform:
    """Return what another library can run: a transform, or what lies above the base of a flow.

    Raises:
        TypeError: if ``flow`` is neither.
        ValueError: if a part of it is stochastic.

    Example:
        >>> from nflows.transforms import LULinear
        >>> deterministic_transform(LULinear(3), "example").features
        3
    """
    transform = flow._transform if isinstance(flow, Flow) else flow
    if not isinstance(transform, Transform):
        raise TypeError(
            f"{owner}: expected an nflows Transform or Flow, got {type(flow).__name__}; the "
            "library's own flows need no adapter"
        )
    if (part := stochastic_part(transform)) is not None:
        got, advice = f"one with {part} in it", "leave it out, and add its noise to the data"
        raise mismatch(owner, "a deterministic transform", got, advice)
    return adapted(transform, owner)
