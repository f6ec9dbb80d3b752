"""The library's own MixerFlow: as it is, compiled, in bf16, with less memory, and by kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from benchmarks.speed.variants.captured import Captured
from benchmarks.speed.variants.kernels import ByCPUKernels, ByGPUKernels


def library(
    setting: Setting, autocast: bool = False, kind: type[Variant] = Variant, **arguments: Any
) -> Variant:
    """``mixerflow`` of the preset, with arguments of its way to run."""
    if reason := kind.missing(setting):
        raise Unavailable(reason)
    flow = setting.flow(**arguments)
    compiled = arguments.get("compile", False)
    return kind(flow, setting, flow.image_shape, autocast, compiled=compiled)


MIXER_VARIANTS: dict[str, Callable[[Setting], Variant]] = {
    "eager": library,
    "compiled": partial(library, compile=True),
    "bf16 conditioner": partial(library, autocast=True),
    "compiled bf16 conditioner": partial(library, autocast=True, compile=True),
    "checkpoint": partial(library, memory="checkpoint"),
    "compiled checkpoint": partial(library, memory="checkpoint", compile=True),
    "constant": partial(library, memory="constant"),
    "compiled constant": partial(library, memory="constant", compile=True),
    "C++ kernel": partial(library, kind=ByCPUKernels),
    "compiled C++ kernel": partial(library, kind=ByCPUKernels, compile=True),
    "GPU kernels": partial(library, kind=ByGPUKernels),
    "CUDA graph": partial(library, kind=Captured),
    "compiled CUDA graph": partial(library, kind=Captured, compile=True),
}
"""Name -> (setting -> variant)."""
