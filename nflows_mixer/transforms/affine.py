"""Affine maps of features, many of the same size at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nflows.transforms import Permutation, Transform
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from nflows_mixer._checks import mismatch


@dataclass(frozen=True)
class AffineMaps:
    r"""G affine maps of D features.

    .. math:: y = A x + t, \qquad \log|\det A| \text{ at each position that the map acts on}

    Args:
        weight: A, [G, D, D], or its diagonal, [G, D].
        bias: t, [G, D].
        logabsdet: [G].

    Example:
        >>> maps = AffineMaps(torch.full((1, 2), 3.0), torch.zeros(1, 2), torch.zeros(1))
        >>> maps.then(maps).weight.tolist()
        [[9.0, 9.0]]
    """

    weight: Tensor
    bias: Tensor
    logabsdet: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, biases and log-dets."""
        return self.weight, self.bias, self.logabsdet

    @property
    def diagonal(self) -> bool:
        """Whether the maps scale each feature by itself."""
        return self.weight.dim() == 2

    def then(self, other: AffineMaps) -> AffineMaps:
        """The maps followed by others, one by one."""
        if other.diagonal:
            of_rows = other.weight if self.diagonal else other.weight.unsqueeze(2)
            weight, bias = of_rows * self.weight, other.weight * self.bias + other.bias
        else:
            product = other.weight @ self.bias.unsqueeze(2)
            bias = product.squeeze(2) + other.bias
            columns = other.weight * self.weight.unsqueeze(1) if self.diagonal else None
            weight = other.weight @ self.weight if columns is None else columns
        return AffineMaps(weight, bias, self.logabsdet + other.logabsdet)

    def inverse(self) -> AffineMaps:
        """The inverse maps, computed in float64 where the device has it."""
        dtype = self.weight.dtype
        wide = dtype if self.weight.device.type == "mps" else torch.float64
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        if self.diagonal:
            weight = weight.reciprocal()
            bias = -weight * bias
        else:
            # inv checks for singular matrices, which waits for the device. Those that come here
            # have log-dets that are finite, or the likelihood would have told.
            weight = torch.linalg.inv_ex(weight)[0]
            bias = -(weight @ bias.unsqueeze(2)).squeeze(2)
        return AffineMaps(weight.to(dtype), bias.to(dtype), -self.logabsdet)


def is_affine(transform: Transform) -> bool:
    """Whether ``affine_maps`` knows the transform, as it is now.

    A class says that it is affine by a class method ``affine_maps(parts) -> AffineMaps`` of its
    own; those that inherit it may do something else, and do not count (parametrised ones do). Nor
    do instances whose methods were replaced, or that say ``folds = False``, as an ActNorm that has
    no scale yet.

    Example:
        >>> from nflows_mixer.transforms.linear import LULinear
        >>> is_affine(LULinear(3))
        True
    """
    kind = type(transform)
    if any(hasattr(kind, name) for name in vars(transform)):
        return False
    if kind.forward is Permutation.forward and kind.inverse is Permutation.inverse:
        return transform._dim == 1
    if is_parametrized(transform):
        kind = kind.__mro__[1]
    return "affine_maps" in vars(kind) and getattr(transform, "folds", True)


def affine_maps(parts: Sequence[Transform], dtype: torch.dtype) -> AffineMaps:
    """Return the maps of transforms of one class and size, differentiable in their parameters.

    Args:
        parts: transforms for which ``is_affine`` holds, with equal ``affine_key``.
        dtype: of the maps of permutations, which have no parameters.

    Example:
        >>> from nflows_mixer.transforms.linear import LULinear
        >>> affine_maps([LULinear(3), LULinear(3)], torch.float32).weight.shape
        torch.Size([2, 3, 3])
    """
    if isinstance(parts[0], Permutation):
        orders = torch.stack([part._permutation for part in parts])
        weight = torch.eye(orders.shape[1], dtype=dtype, device=orders.device)[orders]
        return AffineMaps(weight, weight.new_zeros(orders.shape), weight.new_zeros(len(parts)))
    return type(parts[0]).affine_maps(parts)  # type: ignore[attr-defined]


def affine_key(transform: Transform) -> tuple:
    """Return what transforms have to share to be stacked: class, sizes, dtype and device.

    Example:
        >>> from nflows_mixer.transforms.linear import LULinear
        >>> affine_key(LULinear(3)) == affine_key(LULinear(3)), affine_key(LULinear(4))[1]
        (True, (4, 4))
    """
    if isinstance(transform, Permutation):
        return Permutation, tuple(transform._permutation.shape)
    example = next(transform.parameters())
    names = tuple(name for name, _ in transform.named_parameters())
    return type(transform), tuple(example.shape), names, example.dtype, example.device


def apply_affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply one map to the features of [N, D], or to the channels of [B, D, H, W].

    Args:
        inputs: [N, D] or [B, D, ...].
        weight: [D, D], or a diagonal [D].
        bias: [D].

    Raises:
        ValueError: if inputs have other features.

    Example:
        >>> apply_affine(torch.ones(1, 2, 1, 1), torch.tensor([2.0, 3.0]), torch.ones(2)).flatten()
        tensor([3., 4.])
    """
    if inputs.dim() < 2 or inputs.shape[1] != len(bias):
        raise mismatch(
            "affine map",
            f"inputs of shape [B, {len(bias)}, ...]",
            list(inputs.shape),
            "build it for this number of features",
        )
    if weight.dim() == 1:
        aligned = (-1, *(1,) * (inputs.dim() - 2))
        return torch.addcmul(bias.reshape(aligned), inputs, weight.reshape(aligned))
    if inputs.dim() == 2:
        return torch.nn.functional.linear(inputs, weight, bias)
    return torch.nn.functional.linear(inputs.movedim(1, -1), weight, bias).movedim(-1, 1)
