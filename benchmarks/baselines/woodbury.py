"""Woodbury transformations: low-rank updates of the identity over channels and positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.backbone import multi_scale_flow
from benchmarks.baselines.glow import affine_coupling
from nflows_mixer._checks import check_event, check_image_shape, check_positive
from nflows_mixer.flows import ImageFlow


class LowRankUpdate(nn.Module):
    r"""The matrix I + U V of rank-d factors, with its inverse and log-determinant.

    .. math:: (I + U V)^{-1} = I - U (I_d + V U)^{-1} V, \qquad
              \log|\det(I + U V)| = \log|\det(I_d + V U)|

    Entries of U and V start normal with standard deviation :math:`0.1 / \sqrt n`, so that the
    matrix is within a few percent of the identity and both factors get gradients. Nothing keeps it
    from becoming singular but the likelihood, which then tends to minus infinity.

    Args:
        size: n, of the matrix.
        rank: d.

    Shapes:
        inputs and outputs [..., n].

    References:
        Lu and Huang, Woodbury transformations for deep generative flows, 2020, Section 3.

    Example:
        >>> matrix = LowRankUpdate(100, 3)
        >>> rows = torch.randn(7, 100)
        >>> torch.allclose(matrix.inverse(matrix(rows)), rows, atol=1e-5)
        True
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        std = 0.1 / math.sqrt(size)
        self.left = nn.Parameter(std * torch.randn(size, rank))
        self.right = nn.Parameter(std * torch.randn(rank, size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply vectors [..., n] by the matrix."""
        return inputs + F.linear(F.linear(inputs, self.right), self.left)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Multiply vectors [..., n] by the inverse."""
        # Its checked variant waits for the device.
        right = torch.linalg.solve_ex(self._small(), self.right)[0]
        return inputs - F.linear(F.linear(inputs, right), self.left)

    def logabsdet(self) -> Tensor:
        """Return the log-determinant, a scalar."""
        return torch.linalg.slogdet(self._small()).logabsdet

    def _small(self) -> Tensor:
        """The d x d matrix that has the same determinant."""
        product = self.right @ self.left
        return product + torch.eye(len(product), dtype=product.dtype, device=product.device)


class WoodburyTransform(Transform):
    r"""Low-rank updates of the identity, one along the channels and one along the positions.

    An image is a C x HW matrix X, whose rows are the channels:

    .. math:: Y = (I + U_c V_c)\, X\, (I + U_s V_s)^\top, \qquad
              \log|\det J| = H W \log|\det(I_d + V_c U_c)| + C \log|\det(I_d + V_s U_s)|

    2 d (C + HW) parameters, and O(d C H W) per image both ways. Starts near the identity (see
    ``LowRankUpdate``).

    Args:
        image_shape: (C, H, W).
        rank: d, of all factors.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if a size is not positive, or inputs have another shape.

    References:
        Lu and Huang, Woodbury transformations for deep generative flows, 2020, Section 3.

    Example:
        >>> transform = WoodburyTransform((12, 16, 16))
        >>> sum(parameter.numel() for parameter in transform.parameters())
        8576
        >>> images = torch.randn(2, 12, 16, 16)
        >>> outputs, logabsdet = transform(images)
        >>> torch.allclose(transform.inverse(outputs)[0], images, atol=1e-4)
        True
    """

    def __init__(self, image_shape: Sequence[int], rank: int = 16) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape, "WoodburyTransform")
        check_positive("WoodburyTransform", "rank", rank)
        channels, height, width = self.image_shape
        sizes = (channels, height * width)
        self.maps = nn.ModuleList(LowRankUpdate(size, rank) for size in sizes)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images, the channels first."""
        check_event(inputs, self.image_shape, "WoodburyTransform", "build it for these images")
        of_channels, of_positions = self.maps
        with torch.autocast(inputs.device.type, enabled=False):
            outputs = of_channels(inputs.flatten(2).transpose(1, 2))
            outputs = of_positions(outputs.transpose(1, 2))
            return outputs.reshape(inputs.shape), self._logabsdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images back, by a d x d system for each side."""
        check_event(inputs, self.image_shape, "WoodburyTransform", "build it for these images")
        of_channels, of_positions = self.maps
        with torch.autocast(inputs.device.type, enabled=False):
            outputs = of_positions.inverse(inputs.flatten(2))
            outputs = of_channels.inverse(outputs.transpose(1, 2)).transpose(1, 2)
            return outputs.reshape(inputs.shape), -self._logabsdet(inputs)

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        of_channels, of_positions = (each.logabsdet() for each in self.maps)
        channels, height, width = self.image_shape
        logabsdet = height * width * of_channels + channels * of_positions
        return logabsdet * inputs.new_ones(inputs.shape[0])


def woodbury(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    rank: int = 16,
    levels: int = 256,
) -> ImageFlow:
    r"""Build Glow with Woodbury transformations in the place of the 1x1 convolutions.

    .. math:: g = \mathrm{coupling} \circ \mathrm{Woodbury} \circ \mathrm{ActNorm}

    11.07 million parameters for 3 x 32 x 32, where MixerFlow's tables have 11.02; the rank was
    chosen for this count.

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: of flow at each scale.
        rank: of all factors.
        levels: number of pixel values.

    References:
        Lu and Huang, Woodbury transformations for deep generative flows, 2020, Sections 3 and 5.

    Example:
        >>> sum(parameter.numel() for parameter in woodbury((3, 32, 32)).parameters())
        11073804
    """
    linear = partial(WoodburyTransform, rank=rank)
    coupling = affine_coupling(hidden_channels)
    return multi_scale_flow(image_shape, linear, coupling, scales, steps, levels)
