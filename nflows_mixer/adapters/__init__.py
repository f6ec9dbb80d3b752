"""Flows of other libraries as nflows transforms, and the other way round: one file a library.

Neither library is imported before a flow of it is met, or a function of its file is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nflows.transforms import Transform

from nflows_mixer.core.as_transform import register_adapter


def _comes_from(library: str) -> Callable[[object], bool]:
    """Whether an object's class is one of the library's, or a subclass."""
    return lambda flow: any(kind.__module__.split(".")[0] == library for kind in type(flow).__mro__)


def _from_zuko(flow: Any, features: int | None) -> Transform:
    from nflows_mixer.adapters.zuko import from_zuko

    return from_zuko(flow, features)


def _from_normflows(flow: Any, features: int | None) -> Transform:
    from nflows_mixer.adapters.normflows_flows import from_normflows

    return from_normflows(flow, features)


register_adapter(_comes_from("zuko"), _from_zuko)
register_adapter(_comes_from("normflows"), _from_normflows)
