"""Kernels for the CPU, in C++, compiled where they are used."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path
from subprocess import SubprocessError

import torch

from nflows_mixer._checks import mismatch
from nflows_mixer.kernels.ops import KERNEL_DTYPES

SOURCES = [Path(__file__).with_name(name) for name in ("batch_norm.cpp", "autoregressive.cpp")]
# As torch itself is compiled for the processors that it tells apart. Neither flag of the first
# line changes a number: they say that nobody reads errno and traps.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
ADVICE = "go without: plain torch gives the same function"
INSTALL = f"install it, or {ADVICE}"
VECTOR_FLAGS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}


def load_cpu_kernels() -> None:
    """Compile the kernels for the CPU and use them from now on, in this process.

    The first call on a machine takes about 20 seconds; torch keeps what it built. On the CPU,
    GELU after batch normalisation in float32, float64 and bfloat16 then goes through a kernel,
    without second derivatives, and so do inverses of masked affine flows in float32 and float64
    where no gradient is needed; all else stays as it is.

    To use them for a part of a program, call it inside :func:`without_kernels`.

    Raises:
        ValueError: if there is no C++ compiler or no ninja, or the compiler fails.

    Example:
        >>> load_cpu_kernels()  # doctest: +SKIP
    """
    _build()
    KERNEL_DTYPES["gelu_batch_norm", "cpu"] = (torch.float32, torch.float64, torch.bfloat16)
    KERNEL_DTYPES["masked_affine_inverse", "cpu"] = (torch.float32, torch.float64)


@cache
def _build() -> None:
    """Compile the kernels, or find them compiled, and load them into the process."""
    from torch.utils.cpp_extension import is_ninja_available, load

    # CXX may hold more than a program, as "ccache g++".
    compiler = os.environ.get("CXX", "c++").split()[0]
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise mismatch("load_cpu_kernels", "a C++ compiler", f"no program {compiler}", INSTALL)
    if not is_ninja_available():
        raise mismatch("load_cpu_kernels", "ninja", "no program of that name", INSTALL)
    capability = torch.backends.cpu.get_cpu_capability()
    threads = ["-fopenmp"] if sys.platform == "linux" else []
    try:
        load(
            f"nflows_mixer_{capability.lower().replace(' ', '_')}",
            [str(source) for source in SOURCES],
            extra_cflags=FLAGS + VECTOR_FLAGS.get(capability, []) + threads,
            extra_ldflags=threads,
            is_python_module=False,
        )
    except (OSError, RuntimeError, SubprocessError) as error:
        raise mismatch(
            "load_cpu_kernels",
            f"{compiler} to compile the kernels",
            _first_error(str(error)),
            f"the whole message is above; {ADVICE}",
        ) from error


def _first_error(text: str) -> str:
    """Return the first line in which a compiler names an error, or else the first of all."""
    lines = text.splitlines() or [""]
    return next((line.strip() for line in lines if "error:" in line), lines[0])
