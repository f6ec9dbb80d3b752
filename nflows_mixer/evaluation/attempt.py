"""What cannot be had of a flow is left out with a message, and the rest is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def attempt(what: str, function: Callable[[], Value]) -> Value | None:
    """Return what a function makes; None, and a warning, where it raises an error.

    For figures and pictures of a flow that is trained: none of them is worth the weights.

    Args:
        what: it makes, for the warning.
        function: called once.

    Example:
        >>> attempt("a sum", lambda: 1 + 1)
        2
    """
    try:
        return function()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"{what} is left out: {type(error).__name__}: {reason}", RuntimeWarning, stacklevel=2
        )
        return None
