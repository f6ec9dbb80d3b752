"""Linear blocks: in LU form, reversed, by a full matrix, and as a 1x1 convolution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import (
    ROWS_ADVICE,
    check_channels,
    check_choice,
    check_positive,
    mismatch,
    wrong_event,
)


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


class LinearBlock(Transform):
    r"""Base of linear blocks: an invertible linear map of rows.

    .. math:: y = W x + b, \qquad \log|\det J| = \log|\det W|

    A subclass says what W and its log-det are, and a ``FlowLayer`` folds it into its neighbor; one
    with a faster way to compute them for many blocks at once overrides ``affine_maps``, too.

    Args:
        features: row length D.

    Shapes:
        inputs and outputs [N, D].

    Raises:
        ValueError: if inputs are no rows of this length.

    Example:
        >>> class Scaling(LinearBlock):
        ...     def __init__(self, features):
        ...         super().__init__(features)
        ...         self.log_scale = nn.Parameter(torch.zeros(features))
        ...
        ...     def weight(self):
        ...         return self.log_scale.exp().diag()
        ...
        ...     def logabsdet(self):
        ...         return self.log_scale.sum()
        >>> Scaling(3)(torch.ones(2, 3))[0].shape
        torch.Size([2, 3])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = check_positive(type(self).__name__, "features", features)
        self.register_parameter("bias", None)

    @abstractmethod
    def weight(self) -> Tensor:
        """W, [D, D]."""

    @abstractmethod
    def logabsdet(self) -> Tensor:
        """Logarithm of the absolute value of the determinant of W, a scalar."""

    def weight_inverse(self) -> Tensor:
        """Inverse of W, [D, D]."""
        return type(self).affine_maps([self]).inverse().weight[0]

    @classmethod
    def affine_maps(cls, blocks: Sequence[Any]) -> AffineMaps:
        """Maps of G blocks of this class and of one length, differentiable.

        Args:
            blocks: of this class.
        """
        weight = torch.stack([block.weight() for block in blocks])
        logabsdet = torch.stack([block.logabsdet() for block in blocks])
        return AffineMaps(weight, cls._biases(blocks, weight), logabsdet)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D]."""
        return self._map(inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back."""
        return self._map(inputs, inverse=True)

    def _map(self, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self._check_rows(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            maps = type(self).affine_maps([self])
            maps = maps.inverse() if inverse else maps
            outputs = F.linear(inputs, maps.weight[0], maps.bias[0])
        return outputs, maps.logabsdet.expand(len(inputs))

    @staticmethod
    def _biases(blocks: Sequence[Any], like: Tensor) -> Tensor:
        biases = [block.bias for block in blocks if block.bias is not None]
        return torch.stack(biases) if biases else like.new_zeros(like.shape[:2])

    def _check_rows(self, inputs: Tensor) -> None:
        if inputs.shape[1:] != (self.features,):
            raise wrong_event(inputs, (self.features,), type(self).__name__, ROWS_ADVICE)


class LULinear(LinearBlock):
    r"""Invertible linear map of rows, as a product of triangular matrices.

    .. math:: y = L U x + b, \qquad \log|\det J| = \sum_i d_i

    L is unit lower triangular, U upper triangular with diagonal :math:`e^{d_i}`. Both are kept
    packed in one matrix, L below the diagonal, d on it, U above it: D^2 + D parameters. Starts at
    the identity. Forward costs O(D^2) per row and O(D^3) per call, inverse O(D^2) per row.

    Args:
        features: row length D.
        bias: whether b is there.

    Shapes, errors: as ``LinearBlock``.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3.2; MixerFlow, Section 4, "Linear block".

    Example:
        >>> linear = LULinear(48)
        >>> sum(p.numel() for p in linear.parameters())
        2352
        >>> rows = torch.randn(7, 48)
        >>> torch.equal(linear(rows)[0], rows)
        True
    """

    def __init__(self, features: int, bias: bool = True) -> None:
        super().__init__(features)
        self.packed = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None

    def weight(self) -> Tensor:
        """L U, [D, D]."""
        return type(self).affine_maps([self]).weight[0]

    def logabsdet(self) -> Tensor:
        """Sum of d, a scalar."""
        return self.packed.diagonal().sum()

    @classmethod
    def affine_maps(cls, blocks: Sequence[LULinear]) -> AffineMaps:
        """Products L U of G of them, in one batch."""
        packed = torch.stack([block.packed for block in blocks])
        diagonal = packed.diagonal(dim1=1, dim2=2)
        unit = torch.eye(packed.shape[1], dtype=packed.dtype, device=packed.device)
        weight = torch.bmm(packed.tril(-1) + unit, packed.triu(1) + diagonal.exp().diag_embed())
        return AffineMaps(weight, cls._biases(blocks, packed), diagonal.sum(1))

    @torch.no_grad()
    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        r"""Start at another map than the identity: L U x + b = S x + t.

        With the Cholesky factor C of S and its diagonal D, :math:`S = (C D^{-1})(D C^T)`.

        Args:
            weight: S, [D, D], symmetric and positive definite.
            bias: t, [D]; left out where there is no b.

        Raises:
            ValueError: if the block is not at the identity, which is all that this replaces.
        """
        if self.packed.any():
            got, advice = "one that was changed", "build another, or leave it as it is"
            raise mismatch(type(self).__name__, "a block at the identity", got, advice)
        factor = torch.linalg.cholesky(weight)
        diagonal = factor.diagonal()
        lower, upper = factor / diagonal, diagonal.unsqueeze(1) * factor.mT
        self.packed.copy_(lower.tril(-1) + upper.triu(1) + 2 * diagonal.log().diag())
        if self.bias is not None:
            self.bias.copy_(bias)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back, by two triangular solves."""
        self._check_rows(inputs)
        diagonal = self.packed.diagonal()
        upper = self.packed.triu(1) + diagonal.exp().diag()
        rows = inputs if self.bias is None else inputs - self.bias
        # Rows are solved from the right: X (LU)^T = Y. The diagonal of L is not looked at.
        rows = torch.linalg.solve_triangular(
            self.packed.mT, rows, upper=True, left=False, unitriangular=True
        )
        rows = torch.linalg.solve_triangular(upper.mT, rows, upper=False, left=False)
        return rows, -diagonal.sum() * inputs.new_ones(len(inputs))


class FullLinear(LinearBlock):
    r"""Invertible linear map of rows by a full matrix, which starts orthogonal.

    .. math:: y = W x, \qquad \log|\det J| = \log|\det W|

    D^2 parameters. Forward costs O(D^2) per row, and both directions O(D^3) per call. Nothing
    keeps W from becoming singular but the likelihood, which then tends to minus infinity.

    Args:
        features: row length D.

    Shapes, errors: as ``LinearBlock``.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3.2; DenseFlow, Section 2.2.

    Example:
        >>> linear = FullLinear(12)
        >>> rows = torch.randn(7, 12)
        >>> outputs, logabsdet = linear(rows)
        >>> torch.allclose(outputs.norm(dim=1), rows.norm(dim=1), rtol=1e-4)
        True
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.matrix = nn.Parameter(nn.init.orthogonal_(torch.empty(features, features)))

    def weight(self) -> Tensor:
        """W, [D, D]."""
        return self.matrix

    def logabsdet(self) -> Tensor:
        """By an LU decomposition."""
        return torch.linalg.slogdet(self.matrix).logabsdet

    @classmethod
    def affine_maps(cls, blocks: Sequence[FullLinear]) -> AffineMaps:
        """Those of G of them, decomposed in one batch."""
        weight = torch.stack([block.matrix for block in blocks])
        logabsdet = torch.linalg.slogdet(weight).logabsdet
        return AffineMaps(weight, cls._biases(blocks, weight), logabsdet)

    @torch.no_grad()
    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        """Start at another map, S x, followed by the orthogonal one; arguments as ``LULinear``."""
        self.matrix.copy_(self.matrix.to(weight) @ weight)


class RLULinear(LULinear):
    r"""LU linear map followed by the reversal R of the order of features.

    .. math:: y = R\,(L U x + b), \qquad \log|\det J| = \sum_i d_i

    Starts at the reversal, so that an even number of them starts at the identity, and positions
    are back in their order before a shift layer. Between autoregressive flows it turns the order
    around.

    Args, shapes, errors: as ``LULinear``.

    References:
        MixerFlow, Section 4, "Linear block" (RLU), and Table 8, column MNIST.

    Example:
        >>> RLULinear(3)(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()
        [[3.0, 2.0, 1.0]]
    """

    @classmethod
    def affine_maps(cls, blocks: Sequence[LULinear]) -> AffineMaps:
        """Products R L U of G of them, in one batch."""
        maps = super().affine_maps(blocks)
        return AffineMaps(maps.weight.flip(1), maps.bias.flip(1), maps.logabsdet)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reverse rows [N, D], then map them back."""
        return super().inverse(inputs.flip(-1))


class InvertibleConv1x1(Transform):
    r"""Invertible 1x1 convolution: the same linear map of the channels at every pixel.

    .. math:: y_{:,i,j} = W x_{:,i,j}, \qquad \log|\det J| = H W \log|\det W|

    C^2 parameters (9 for RGB).

    Args:
        channels: C.
        matrix: "lu", W = L U (see ``LULinear``), which starts at the identity; or "full" (see
            ``FullLinear``), which starts orthogonal.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if the matrix is unknown, or inputs are no images of C channels.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3.2; MixerFlow, Section 4; DenseFlow, Section 2.2.

    Example:
        >>> InvertibleConv1x1(3)(torch.rand(2, 3, 4, 4))[1]
        tensor([0., 0.], grad_fn=<MulBackward0>)
    """

    image_shape = None  # of any size

    def __init__(self, channels: int, matrix: str = "lu") -> None:
        super().__init__()
        check_choice("InvertibleConv1x1", "matrix", matrix, ("lu", "full"))
        self.linear: LULinear | FullLinear = (
            LULinear(channels, bias=False) if matrix == "lu" else FullLinear(channels)
        )
        self.channels = self.linear.features

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the channels of every pixel."""
        return self._map_pixels(self.linear, inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the channels of every pixel back."""
        return self._map_pixels(self.linear.inverse, inputs)

    def weight(self) -> Tensor:
        """W, [C, C]."""
        return self.linear.weight()

    def weight_inverse(self) -> Tensor:
        """Inverse of W, [C, C]."""
        return self.linear.weight_inverse()

    def logabsdet(self) -> Tensor:
        """Log-determinant of W, a scalar: of one pixel."""
        return self.linear.logabsdet()

    def _map_pixels(self, function, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 4 or inputs.shape[1] != self.channels:
            check_channels(inputs, self.channels, "InvertibleConv1x1")
        batch, _, height, width = inputs.shape
        pixels, logabsdet = function(rearrange(inputs, "b c h w -> (b h w) c"))
        images = rearrange(pixels, "(b h w) c -> b c h w", b=batch, h=height, w=width)
        # Convolutions behind it guess the strides of their outputs from those of their inputs.
        return images.contiguous(), height * width * logabsdet[:batch]
