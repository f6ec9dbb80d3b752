"""Flows, networks and distributions named by what to import."""

from __future__ import annotations

from collections.abc import Mapping
from pydoc import locate
from typing import Any

from nflows_mixer._checks import mismatch

FACTORIES = ("channel_flow", "patch_flow", "conditioner", "base")


def imported(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``mixerflow`` with dotted names replaced by what they name.

    Importing runs the code of the module that is named: names come from whoever starts the
    program, never from a file alone.

    Args:
        arguments: of ``mixerflow``; ``channel_flow``, ``patch_flow``, ``conditioner`` and ``base``
            may be names such as "zuko.flows.NSF".

    Raises:
        ValueError: if there is no class or function of a name.

    Example:
        >>> imported({"patch_flow": "zuko.flows.NSF", "channel_flow": "affine"})["patch_flow"]
        <class 'zuko.flows...NSF'>
    """
    return {name: _imported(name, value) for name, value in arguments.items()}


def _imported(name: str, value: Any) -> Any:
    if name not in FACTORIES or not isinstance(value, str) or "." not in value:
        return value
    found = locate(value)
    if not callable(found):
        expected = "the name of a class or function that can be imported"
        raise mismatch(f"--model.{name}", expected, value, "check its path")
    return found
