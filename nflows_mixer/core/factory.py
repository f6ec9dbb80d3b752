"""Factories, called with what their signatures name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

from torch import nn

from nflows_mixer._checks import mismatch


class Unset(Enum):
    """The value of an argument that was not given, where None is a choice of its own."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return self.name


UNSET = Unset.UNSET


def call_factory(factory: Callable[..., Any], *arguments: Any, **offered: Any) -> Any:
    """Call a factory with its arguments, and with those keywords that its signature names.

    So one description serves every place: a factory that depends on its place says so by
    naming ``axes``, ``index`` or what else is offered, and others are called with the size alone.

    Args:
        factory: a class, a function, or a ``functools.partial``, whose keywords come first.
        arguments: what every factory takes, by position.
        offered: what it takes if its signature names it; ``**kwargs`` does not count, and what is
            ``UNSET`` is not offered.

    Returns:
        What the factory returns.

    Example:
        >>> call_factory(lambda features, index=0: (features, index), 48, index=3, axes=(4, 4, 3))
        (48, 3)
    """
    names = named_keywords(factory, len(arguments))
    return factory(
        *arguments, **{k: v for k, v in offered.items() if k in names and v is not UNSET}
    )


def check_read(
    owner: str, *factories: Any, positional: int = 1, network: Any = None, **given: Any
) -> None:
    """Raise if a keyword is given that none of the factories reads.

    Args:
        owner: who takes the keywords, for the error.
        factories: classes, functions, ``functools.partial``s; or what one would have made.
        positional: how many arguments they get by position.
        network: what those that take a ``conditioner`` are given as one; their default where None.
        given: the keywords, ``UNSET`` where they are not given.

    Raises:
        ValueError: naming what nothing would read.

    Example:
        >>> check_read("example", lambda size, norm=None: None, norm="batch", width=UNSET)
    """
    for name, value in given.items():
        if value is UNSET or any(reads(f, name, positional, network) for f in factories):
            continue
        ready = [isinstance(factory, nn.Module) for factory in factories]
        got = ", ".join(
            f"a ready {type(f).__name__}" if known else getattr(f, "__name__", repr(f))
            for f, known in zip(factories, ready)
        )
        expected = f"a factory that takes {name}, to read the {name} given"
        advice = f"leave {name} out, or give the factory its own by functools.partial"
        raise mismatch(owner, expected, got, advice)


def reads(factory: Any, name: str, positional: int = 1, network: Any = None) -> bool:
    """Whether a factory, or the network that it hands a keyword on to, takes it.

    Arguments as for ``check_read``.

    Example:
        >>> reads(lambda features, conditioner=lambda i, o: None, norm=None: None, "norm")
        False
    """
    keywords = set() if isinstance(factory, nn.Module) else named_keywords(factory, positional)
    if name not in keywords:
        return False
    parameters = inspect.signature(factory).parameters
    if name not in ("norm", "hidden_features") or "conditioner" not in parameters:
        return True
    own = parameters["conditioner"].default
    network = network if network is not None and "conditioner" in keywords else own
    return not callable(network) or name in named_keywords(network, positional=2)


def named_keywords(factory: Callable[..., Any], positional: int = 1) -> set[str]:
    """Names of the keywords that a factory may still be given.

    Args:
        factory: a class, a function, or a ``functools.partial``.
        positional: how many arguments it gets by position.

    Example:
        >>> from functools import partial
        >>> named_keywords(partial(lambda features, norm, width: None, width=3))
        {'norm'}
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # written in C, and silent about itself
        return set()
    bound = set(getattr(factory, "keywords", ()))  # a partial of a partial is flat
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters[positional:] if p.kind in by_keyword} - bound
