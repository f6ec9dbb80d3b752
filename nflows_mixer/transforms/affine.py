"""Affine maps of features, many of the same size at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    return reduce(AffineMaps.then, [type(alike[0]).affine_maps(alike) for alike in parts])
