"""The operators that kernels implement, known to torch and its compiler by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Three = tuple[Tensor, Tensor, Tensor]

# For an operator and a type of device, the types of numbers that it has kernels for. They enter
# when they are asked for.
KERNEL_DTYPES: dict[tuple[str, str], tuple[torch.dtype, ...]] = {}
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

LIBRARY = torch.library.Library("nflows_mixer", "DEF")
_STATISTICS = "Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps"
_WEIGHTS = (
    "Tensor inputs, Tensor initial, Tensor initial_bias, Tensor scale1, Tensor shift1,"
    " Tensor hidden, Tensor hidden_bias, Tensor scale2, Tensor shift2,"
    " Tensor output, Tensor skip, Tensor output_bias, float eps1, float eps2, ScalarType dtype"
)
# Name: arguments, number of results, and the module with the function of that name in Triton.
OPERATORS: dict[str, tuple[str, int, str | None]] = {
    "gelu_batch_norm": (
        "Tensor inputs, Tensor weight, Tensor bias, float eps",
        3,
        "batch_norm_triton",
    ),
    "gelu_batch_norm_backward": (
        f"Tensor gradient, Tensor inputs, {_STATISTICS}",
        3,
        "batch_norm_triton",
    ),
    "gelu_normalised": (f"Tensor inputs, {_STATISTICS}", 1, "batch_norm_triton"),
    "conditioner": (_WEIGHTS, 7, "conditioner_triton"),
    "conditioner_of_statistics": (
        f"{_WEIGHTS}, Tensor mean1, Tensor variance1, Tensor mean2, Tensor variance2",
        1,
        "conditioner_triton",
    ),
    "masked_affine_inverse": (
        "Tensor latents, Tensor[] weights, int[] readers, int[] sources, Tensor[] biases,"
        " int[] below, bool gelu, bool softplus, float floor",
        2,
        None,
    ),
}


def has_kernel(operator: str, inputs: Tensor) -> bool:
    """Whether an operator has a kernel for tensors of this device and type."""
    return inputs.dtype in KERNEL_DTYPES.get((operator, inputs.device.type), ())


@contextmanager
def without_kernels() -> Iterator[None]:
    """Compute in plain torch inside a block, and after it by the kernels in use before.

    Kernels that are asked for inside it, by :func:`load_cpu_kernels` or :func:`load_gpu_kernels`,
    are in use up to its end. It holds for all threads of the process.

    Example:
        >>> rows = torch.tensor([[-1.0], [1.0]])
        >>> with without_kernels():
        ...     has_kernel("gelu_batch_norm", rows)
        False
    """
    before = dict(KERNEL_DTYPES)
    KERNEL_DTYPES.clear()
    try:
        yield
    finally:
        KERNEL_DTYPES.clear()
        KERNEL_DTYPES.update(before)


def statistics_dtype(inputs: Tensor) -> torch.dtype:
    """Return the type in which statistics of ``inputs`` are kept: float32 or wider."""
    return torch.promote_types(inputs.dtype, torch.float32)


def register_triton(key: str) -> None:
    """Let Triton, which is imported by the first call, serve the operators on devices of a key."""
    for name, (_, _, module) in OPERATORS.items():
        if module is not None:
            LIBRARY.impl(name, _imported(module, name), key)


def use_triton(device: str) -> None:
    """Let Triton serve the operators on a type of device from now on."""
    for name in ("gelu_batch_norm", "conditioner"):
        KERNEL_DTYPES[name, device] = GPU_DTYPES


def _imported(module: str, name: str) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        return getattr(import_module(f"nflows_mixer.kernels.{module}"), name)(*arguments)

    return function


def _gelu_batch_norm(inputs: Tensor, weight: Tensor, *others: object) -> Three:
    return inputs.new_empty(inputs.shape), torch.empty_like(weight), torch.empty_like(weight)


def _gelu_batch_norm_backward(
    gradient: Tensor, inputs: Tensor, mean: Tensor, *others: object
) -> Three:
    return inputs.new_empty(inputs.shape), torch.empty_like(mean), torch.empty_like(mean)


def _gelu_normalised(inputs: Tensor, *others: object) -> Tensor:
    return inputs.new_empty(inputs.shape)


def _conditioner(inputs: Tensor, initial: Tensor, *others: Any) -> tuple[Tensor, ...]:
    hidden = inputs.new_empty(inputs.shape[0], initial.shape[0], dtype=others[-1])
    statistics = [torch.empty_like(others[1]) for _ in range(4)]
    outputs = _conditioner_of_statistics(inputs, initial, *others)
    return outputs, hidden, torch.empty_like(hidden), *statistics


def _conditioner_of_statistics(inputs: Tensor, initial: Tensor, *others: Any) -> Tensor:
    return inputs.new_empty(inputs.shape[0], others[7].shape[0])


def _masked_affine_inverse(latents: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    rows, features = latents.shape
    return latents.new_empty(rows, features), latents.new_empty(features, 2, rows)


_SHAPES: dict[str, Callable[..., Any]] = {
    "gelu_batch_norm": _gelu_batch_norm,
    "gelu_batch_norm_backward": _gelu_batch_norm_backward,
    "gelu_normalised": _gelu_normalised,
    "conditioner": _conditioner,
    "conditioner_of_statistics": _conditioner_of_statistics,
    "masked_affine_inverse": _masked_affine_inverse,
}
for _name, (_arguments, _results, _) in OPERATORS.items():
    LIBRARY.define(f"{_name}({_arguments}) -> ({', '.join(['Tensor'] * _results)})")
    torch.library.register_fake(f"nflows_mixer::{_name}", _SHAPES[_name], lib=LIBRARY)
register_triton("CUDA")
