"""Fused kernels: each has a path in plain torch, which is also what they are tested against."""

from nflows_mixer.kernels.batch_norm import gelu_batch_norm
from nflows_mixer.kernels.conditioner import conditioner
from nflows_mixer.kernels.cpu import load_cpu_kernels
from nflows_mixer.kernels.gpu import load_gpu_kernels
from nflows_mixer.kernels.ops import without_kernels

__all__ = [
    "conditioner",
    "gelu_batch_norm",
    "load_cpu_kernels",
    "load_gpu_kernels",
    "without_kernels",
]
