"""Kernels for NVIDIA GPUs, in Triton."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from nflows_mixer._checks import mismatch
from nflows_mixer.kernels.ops import use_triton

ADVICE = "go without: plain torch gives the same function"


def load_gpu_kernels() -> None:
    """Use the kernels for the GPU from now on, in this process.

    GELU after batch normalisation, and the whole conditioner of a coupling where that has one
    residual block and up to 256 hidden features, then go through kernels in float32, float16 and
    bfloat16 on CUDA devices; Triton compiles them at their first call, and all else stays as it is.
    They were checked in Triton's interpreter and by compiling them for compute capabilities 8.0 and
    9.0, and have not been timed on a GPU yet.

    To use them for a part of a program, call it inside :func:`without_kernels`.

    Raises:
        ValueError: if Triton is not installed, or there is no CUDA
            device.

    Example:
        >>> load_gpu_kernels()  # doctest: +SKIP
    """
    if find_spec("triton") is None:
        raise mismatch("load_gpu_kernels", "Triton", "no module of that name", ADVICE)
    if not torch.cuda.is_available():
        raise mismatch("load_gpu_kernels", "a CUDA device", "none", ADVICE)
    use_triton("cuda")
