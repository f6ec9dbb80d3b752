"""The library's own MixerFlow: as it is, compiled, in bf16, and with less memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.speed.variants.base import Setting, Unavailable, Variant


def library(setting: Setting, autocast: bool = False, **arguments: Any) -> Variant:
    """``mixerflow`` of the preset, with arguments of its way to run."""
    flow = setting.flow(**arguments)
    return Variant(flow, setting, flow.image_shape, autocast)


def cpp_kernel(setting: Setting, **arguments: Any) -> Variant:
    """``mixerflow`` with the C++ kernel of GELU and batch normalisation.

    The kernel serves the whole process from then on: no other variant may run beside it.
    """
    if setting.device != "cpu":
        raise Unavailable("the C++ kernel is for the CPU")
    try:
        kernels = importlib.import_module("nflows_mixer.kernels")
        kernels.load_cpu_kernels()
    except (ImportError, RuntimeError, ValueError) as error:
        raise Unavailable(str(error)) from error
    return library(setting, **arguments)


MIXER_VARIANTS: dict[str, Callable[[Setting], Variant]] = {
    "eager": library,
    "compiled": partial(library, compile=True),
    "bf16 conditioner": partial(library, autocast=True),
    "compiled bf16 conditioner": partial(library, autocast=True, compile=True),
    "checkpoint": partial(library, memory="checkpoint"),
    "compiled checkpoint": partial(library, memory="checkpoint", compile=True),
    "constant": partial(library, memory="constant"),
    "compiled constant": partial(library, memory="constant", compile=True),
    "C++ kernel": cpp_kernel,
    "compiled C++ kernel": partial(cpp_kernel, compile=True),
}
"""Name -> (setting -> variant)."""
