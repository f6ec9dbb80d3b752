"""What a flow is made of: a builder and its arguments, as data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from numbers import Integral, Real
from typing import Any

from torch import nn

from nflows_mixer._checks import mismatch
from nflows_mixer.core.factory import UNSET
from nflows_mixer.flows.pixels import Pixels

ROOMS = (
    "nflows_mixer.transforms",
    "nflows_mixer.nn",
    "nflows_mixer.distributions",
    "nflows.transforms",
    "zuko.flows",
)
"""Modules whose classes and functions a weights file may name."""
ADVICE = "build the flow, and pass it: load_weights(path, flow)"


@dataclass(frozen=True, eq=False)
class Architecture:
    """What a flow is made of; two are equal where their data are.

    Args:
        builder: name of the function that builds it, "mixerflow", "denseflow",
            "tarflow" or "jet".
        arguments: its keyword arguments, those of the preset and the defaults among them.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> architecture = mixerflow("mnist").architecture
        >>> architecture.arguments["patch_size"], architecture.as_data()["channel_flow"]
        (4, {'name': 'nflows_mixer.transforms.identity_maf'})
    """

    builder: str
    arguments: Mapping[str, Any]

    def as_data(self) -> dict[str, Any] | None:
        """Return the arguments as JSON has them, or None where one of them is not data.

        A class or function is its dotted name, ``functools.partial`` adds its keywords. Those of
        ``ROOMS`` are data; a lambda, a class of one's own or a ready distribution is not.
        """
        given = {name: value for name, value in self.arguments.items() if value is not UNSET}
        try:
            return {name: encoded(value) for name, value in given.items()}
        except TypeError:
            return None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture) or self.builder != other.builder:
            return False
        data = self.as_data()
        return self is other or data is not None and data == other.as_data()

    __hash__ = None  # type: ignore[assignment]


def encoded(value: Any) -> Any:
    """Return a value as JSON has it.

    Args:
        value: None, a number, a string, ``Pixels``, a class or function of ``ROOMS``, a
            ``functools.partial`` of one, or a list or tuple of these.

    Raises:
        TypeError: if it is none of these.

    Example:
        >>> from nflows_mixer.transforms import RationalQuadraticCoupling
        >>> encoded(partial(RationalQuadraticCoupling, num_bins=4))["keywords"]
        {'num_bins': 4}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, Pixels):
        return {"pixels": {name: encoded(v) for name, v in vars(value).items()}}
    if isinstance(value, partial) and not value.args:
        keywords = {name: encoded(v) for name, v in value.keywords.items()}
        return {"name": _name_of(value.func), "keywords": keywords}
    return {"name": _name_of(value)}


def decoded(value: Any, owner: str) -> Any:
    """Return what ``encoded`` returned as it was, with tuples for lists.

    Args:
        value: from JSON.
        owner: where it was read, for the error.

    Raises:
        ValueError: if it names anything but a network, transform or distribution, or a function
            that makes one, of ``ROOMS``: no other is looked up, let alone called.

    Example:
        >>> decoded({"name": "zuko.flows.NSF", "keywords": {"bins": 4}}, "example").keywords
        {'bins': 4}
    """
    if isinstance(value, list):
        return tuple(decoded(item, owner) for item in value)
    if not isinstance(value, dict):
        return value
    given = value.get("pixels", value.get("keywords", {}))
    if not isinstance(given, dict) or not set(value) <= {"name", "keywords", "pixels"}:
        raise mismatch(owner, "arguments of a builder", value, ADVICE)
    keywords = {name: decoded(v, owner) for name, v in given.items()}
    if "pixels" in value:
        return Pixels(**keywords)
    room, _, name = str(value.get("name")).rpartition(".")
    found = _of_room(room, name) if room in ROOMS else None
    if found is None:
        expected = f"a class or function of {', '.join(ROOMS)}"
        raise mismatch(owner, expected, repr(value.get("name")), ADVICE)
    return partial(found, **keywords) if keywords else found


def _name_of(thing: Any) -> str:
    """The name under which a room has a class or function."""
    name = getattr(thing, "__name__", "")
    for room in ROOMS:
        if _of_room(room, name) is thing and thing is not None:
            return f"{room}.{name}"
    raise TypeError(f"{thing!r} is not data")


def _of_room(room: str, name: str) -> Any:
    """A room's own public class of modules, or function, of this name; None if there is none."""
    found = vars(import_module(room)).get(name)
    library = room.split(".")[0]
    is_kind = isinstance(found, type) and issubclass(found, nn.Module)
    if name.startswith("_") or not (is_kind or inspect.isfunction(found)):
        return None
    home = found.__module__
    is_own = home.split(".")[0] == library if is_kind else f"{home}.".startswith(f"{room}.")
    return found if is_own else None
