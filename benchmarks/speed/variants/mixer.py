"""The library's own MixerFlow: as it is, compiled, in bf16, and with less memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.speed.variants.base import Setting, Variant


def library(setting: Setting, autocast: bool = False, **arguments: Any) -> Variant:
    """``mixerflow`` of the preset, with arguments of its way to run."""
    flow = setting.flow(**arguments)
    compiled = arguments.get("compile", False)
    return Variant(flow, setting, flow.image_shape, autocast, compiled=compiled)


MIXER_VARIANTS: dict[str, Callable[[Setting], Variant]] = {
    "eager": library,
    "compiled": partial(library, compile=True),
    "bf16 conditioner": partial(library, autocast=True),
    "compiled bf16 conditioner": partial(library, autocast=True, compile=True),
    "checkpoint": partial(library, memory="checkpoint"),
    "compiled checkpoint": partial(library, memory="checkpoint", compile=True),
    "constant": partial(library, memory="constant"),
    "compiled constant": partial(library, memory="constant", compile=True),
}
"""Name -> (setting -> variant)."""
