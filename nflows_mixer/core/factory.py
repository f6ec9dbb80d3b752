"""Factories, called with what their signatures name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any


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
