"""The variants that are timed, by name: the library's MixerFlow as it can be run, and others'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from benchmarks.speed.variants.glow import glow_of_nflows, glow_of_normflows, our_glow
from benchmarks.speed.variants.stock import inside_zuko, stock_nflows


def library(setting: Setting, autocast: bool = False, **arguments: Any) -> Variant:
    """``mixerflow`` of the preset, with arguments of its way to run."""
    compiled = arguments.get("compile", False)
    return Variant(setting.flow(**arguments), setting, autocast, compiled=compiled)


VARIANTS: dict[str, Callable[[Setting], Variant]] = {
    "eager": library,
    "compiled": partial(library, compile=True),
    "bf16 conditioner": partial(library, autocast=True),
    "compiled bf16 conditioner": partial(library, autocast=True, compile=True),
    "checkpoint": partial(library, memory="checkpoint"),
    "compiled checkpoint": partial(library, memory="checkpoint", compile=True),
    "constant": partial(library, memory="constant"),
    "compiled constant": partial(library, memory="constant", compile=True),
    "stock nflows parts": stock_nflows,
    "inside zuko": inside_zuko,
    "our Glow": our_glow,
    "Glow of nflows": glow_of_nflows,
    "Glow of normflows": glow_of_normflows,
}
"""Name -> (setting -> variant)."""

__all__ = ["VARIANTS", "Setting", "Unavailable", "Variant"]
