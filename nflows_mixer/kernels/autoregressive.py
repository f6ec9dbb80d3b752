"""Inverse of masked affine autoregressive flows in one kernel, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from nflows_mixer._modes import is_compiling, is_transformed
from nflows_mixer.kernels.ops import has_kernel

ACTIVATIONS: dict[Any, str] = {F.gelu: "gelu", F.relu: "relu", torch.relu: "relu"}


def kernel_of_inverse(
    latents: Tensor, activations: Sequence[Callable[[Tensor], Tensor]], *others: Tensor
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    r"""Return the C++ kernel that inverts a masked affine flow, if it is in use and fits.

    .. math:: x_d = \frac{y_d - t_d(x_{<d})}{c + g(u_d(x_{<d}))}, \qquad
              g(u) = e^u \text{ or } g(u) = \log(1 + e^u)

    It has no derivatives, and so is for where none are needed. Its measure is plain torch:
    ``bridges.incremental.invert_incrementally``, of which it is one branch.

    Args:
        latents: y, [N, D].
        activations: of the hidden stages: all GELU, or all ReLU.
        others: the other tensors on which the inverse depends.

    Returns:
        A function of pairs (reader, source, weight) of stages, counted from 1, where 0 are the
        features; biases, [units, 1] or [units, N]; ``below`` of each stage, sorted by degree; the
        name of g, "exp" or "softplus"; and c. It gives x [N, D] and (u, t) [D, 2, N].

    Example:
        >>> kernel_of_inverse(torch.ones(2, 3), [torch.tanh]) is None
        True
    """
    # First of all, as the compiler of an old torch does not get through what follows.
    if not has_kernel("masked_affine_inverse", latents) or is_watched():
        return None
    names = {ACTIVATIONS.get(activation) for activation in activations}
    if len(names) != 1 or None in names:
        return None
    tensors = (latents, *others)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return None
    # Tangents would be lost without a word.
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        return None
    (name,) = names

    def kernel(
        products: Sequence[tuple[int, int, Tensor]],
        biases: Sequence[Tensor],
        below: Sequence[Sequence[int]],
        scale: str,
        floor: float,
    ) -> tuple[Tensor, Tensor]:
        readers, sources, weights = zip(*products)
        counts = [count for stage in below for count in stage]
        return torch.ops.nflows_mixer.masked_affine_inverse(
            *(latents, weights, readers, sources, biases, counts),
            *(name == "gelu", scale == "softplus", floor),
        )

    return kernel


def is_watched() -> bool:
    """Whether ``torch.func`` (vmap, jvp, grad) is at work, for which nothing must be written over.

    Example:
        >>> is_watched(), torch.vmap(lambda x: x + is_watched())(torch.zeros(1))
        (False, tensor([1.]))
    """
    return not is_compiling() and is_transformed()


def units_below(degrees: Sequence[int], features: int) -> list[int]:
    """Return how many units have a degree below 0, 1, ..., D.

    Args:
        degrees: of the units; those of degree D are seen by no feature.
        features: D.

    Example:
        >>> units_below([1, 1, 2], 3)
        [0, 0, 2, 3]
    """
    counts = [0] * (features + 1)
    for degree in degrees:
        counts[degree] += 1
    return [0, *accumulate(counts[:-1])]


def in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the activation that writes over its argument, which is contiguous.

    Args:
        activation: elementwise.

    Example:
        >>> values = torch.tensor([-1.0, 2.0])
        >>> in_place(torch.relu)(values) is values, values.tolist()
        (True, [0.0, 2.0])
    """
    # A dictionary of functions is more than the compiler of an old torch gets through.
    if activation is F.gelu:
        return _gelu_
    if activation is F.relu or activation is torch.relu:
        return torch.relu_
    return lambda values: values.copy_(activation(values))


def _gelu_(values: Tensor) -> Tensor:
    # oneDNN takes what is contiguous, and spends more on a short row than GELU itself needs.
    halves = (2, values.numel() // 2)
    apart = values if values.numel() % 2 else values.view(halves).mT
    torch.ops.aten.gelu_.default(apart)
    return values
