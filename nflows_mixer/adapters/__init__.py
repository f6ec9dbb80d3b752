"""Flows of other libraries as nflows transforms, and back: a file or folder for each library.

Neither library is imported before a flow of it is met, or a function of its file is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nflows.transforms import Transform

from nflows_mixer._checks import libraries_of
from nflows_mixer.adapters.foreign import ForeignTransform
from nflows_mixer.core.as_transform import register_adapter

if TYPE_CHECKING:
    from nflows_mixer.adapters.normflows import from_normflows, to_normflows
    from nflows_mixer.adapters.zuko import from_zuko, to_zuko

__all__ = ["ForeignTransform", "from_normflows", "from_zuko", "to_normflows", "to_zuko"]


def _register(library: str) -> None:
    def recognizes(flow: object) -> bool:
        return library in libraries_of(flow)

    def adapt(flow: Any, features: int | None) -> Transform:
        return __getattr__(f"from_{library}")(flow, features)

    register_adapter(recognizes, adapt)


_register("zuko")
_register("normflows")


def __getattr__(name: str) -> Any:
    """Import a function, and with it its library, when it is asked for."""
    if name in __all__:
        return getattr(import_module(f"nflows_mixer.adapters.{name.split('_')[1]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
