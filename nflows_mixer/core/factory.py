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


def check_read(owner: str, factory: Any, positional: int = 1, **given: Any) -> None:
    """Raise if a keyword is given for a factory that does not take it, or for what is ready.

    Args:
        owner: who takes the keywords, for the error.
        factory: a class, a function, a ``functools.partial``; or what one would have made.
        positional: how many arguments it gets by position.
        given: the keywords, ``UNSET`` where they are not given.

    Raises:
        ValueError: naming what nothing would read.

    Example:
        >>> check_read("example", lambda size, norm=None: None, norm="batch", width=UNSET)
    """
    ready = isinstance(factory, nn.Module)
    read = set() if ready else named_keywords(factory, positional)
    unread = [name for name, value in given.items() if value is not UNSET and name not in read]
    if unread:
        names = ", ".join(unread)
        got = getattr(factory, "__name__", repr(factory))
        got = f"a ready {type(factory).__name__}" if ready else got
        expected = f"a factory that still takes {names}, to read the one given"
        advice = f"leave {names} out, or give the factory its own by functools.partial"
        raise mismatch(owner, expected, got, advice)


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
