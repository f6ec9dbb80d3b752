"""Affine maps of features, many of the same size at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import without_autocast
from nflows_mixer.transforms.gradients import Gradients


class AffineMaps(NamedTuple):
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


def fold(parts: Sequence[Sequence[Any]]) -> AffineMaps:
    """One affine map for each of G chains of affine transforms.

    Args:
        parts: for each place in the chain the G transforms there: of one class, which says by
            ``affine_maps(transforms)`` what maps they are.

    Example:
        >>> from nflows_mixer.transforms import LULinear
        >>> fold([[LULinear(3), LULinear(3)], [LULinear(3), LULinear(3)]]).weight.shape
        torch.Size([2, 3, 3])
    """
    maps = None
    for alike in parts:
        found = type(alike[0]).affine_maps(alike)
        maps = found if maps is None else maps.then(found)
    assert maps is not None
    return maps


def apply_maps(
    inputs: Tensor, context: Tensor | None, maps: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """One map, in the contract of a transform: weight, bias, and log-det at each position.

    Args:
        inputs: [N, D] or [B, D, ...].
        context: takes no part.
        maps: weight, bias and log-det of one map.

    Example:
        >>> maps = torch.tensor([2.0]), torch.zeros(1), torch.tensor(0.5)
        >>> apply_maps(torch.ones(1, 1, 3), None, maps)[1]
        tensor([1.5000])
    """
    with without_autocast(inputs):
        outputs = apply_affine(inputs, maps[0], maps[1])
    return outputs, (inputs.shape[2:].numel() * maps[2]).expand(len(inputs))


def rebuild_affine(
    maps: tuple[Tensor, Tensor, Tensor],
    inverse: tuple[Tensor, Tensor, Tensor],
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """Inputs of a map of rows, and their gradient; those of the map are added.

    Args:
        maps: weight, bias and log-det of one map.
        inverse: of its inverse.
        outputs: [N, D].
        grad_outputs: their gradient.
        grad_logabsdet: that of the log-dets [N].
        gradients: takes those of ``maps``.
    """
    weight, bias, logabsdet = maps
    with without_autocast(outputs):
        inputs = apply_affine(outputs, inverse[0], inverse[1])
        if weight.dim() == 2:
            grad_inputs, grad_weight = grad_outputs @ weight, grad_outputs.t() @ inputs
        else:
            grad_inputs, grad_weight = grad_outputs * weight, (grad_outputs * inputs).sum(0)
    gradients.add(
        [weight, bias, logabsdet], [grad_weight, grad_outputs.sum(0), grad_logabsdet.sum()]
    )
    return inputs, grad_inputs
