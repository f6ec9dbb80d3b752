"""ButterflyFlow: linear maps of all values of an image, as stages of small blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from nflows.transforms import Transform
from torch import Tensor, nn

from benchmarks.baselines.backbone import multi_scale_flow
from benchmarks.baselines.glow import affine_coupling
from nflows_mixer._checks import check_event, check_image_shape
from nflows_mixer.flows import ImageFlow


class ButterflyTransform(Transform):
    r"""Invertible linear map of all values of an image, by a butterfly matrix and a transposed one.

    The image is one vector of D = C H W values, seen as an array whose axes are the prime factors
    :math:`f_1, \dots, f_n` of C, then of H, then of W; these are 2 where the sizes are powers of
    two. A stage multiplies every line of values along one of the axes by an f x f block of its
    own, and the stages go through the axes there and back:

    .. math:: y = S_1 \cdots S_{n-1}\, S_n\, S'_{n-1} \cdots S'_1\, x, \qquad
              \log|\det J| = \sum_S \sum_{l \in \mathrm{lines}} \log|\det S_l|, \qquad
              \det \begin{pmatrix} a & b \\ c & d \end{pmatrix} = ad - bc

    There alone is a butterfly matrix: log2(D) factors, and too few of them for most permutations.
    There and back represents every permutation of the D values (the network of Benes), which a
    butterfly of LU blocks does not, as the LU form has no exchange of two values. D f parameters
    and O(D f) per stage both ways. Nothing keeps a block from becoming singular but the
    likelihood, as in ``FullLinear``.

    The stages of positions start at the identity; those of channels start orthogonal and the same
    at every position, so that the whole starts as an orthogonal 1x1 convolution, as Glow's does.

    Args:
        image_shape: (C, H, W).

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if a size is not positive, or inputs have another shape.

    References:
        Meng et al., ButterflyFlow: Building invertible layers with butterfly matrices, 2022,
        Section 3; Dao et al., Kaleidoscope: An efficient, learnable representation for all
        structured linear maps, 2020, Section 2; Benes, Mathematical theory of connecting networks
        and telephone traffic, 1965.

    Example:
        >>> butterfly = ButterflyTransform((12, 16, 16))
        >>> butterfly.factors
        (2, 2, 3, 2, 2, 2, 2, 2, 2, 2, 2)
        >>> sum(parameter.numel() for parameter in butterfly.parameters())
        135168
        >>> images = torch.randn(2, 12, 16, 16)
        >>> torch.allclose(butterfly.inverse(butterfly(images)[0])[0], images, atol=1e-4)
        True
    """

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape, "ButterflyTransform")
        channels, height, width = self.image_shape
        of_channels = prime_factors(channels)
        self.factors = (*of_channels, *prime_factors(height), *prime_factors(width))
        there = range(len(self.factors))
        blocks = []
        for axis in [*there, *there[-2::-1]]:
            factor = self.factors[axis]
            before, after = math.prod(self.factors[:axis]), math.prod(self.factors[axis + 1 :])
            if axis < len(of_channels):
                lines = before * math.prod(of_channels[axis + 1 :])
                starts = [nn.init.orthogonal_(torch.empty(factor, factor)) for _ in range(lines)]
                shared = rearrange(torch.stack(starts), "(o n) i j -> o i j n", o=before)
                start = repeat(shared, "o i j n -> o i j (n p)", p=height * width)
            else:
                start = repeat(torch.eye(factor), "i j -> o i j n", o=before, n=after)
            blocks.append(nn.Parameter(start.contiguous()))
        self.stages = nn.ParameterList(blocks)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images."""
        return self._through(list(self.stages), inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images back, by the inverse of each block."""
        return self._through([_inverse(blocks) for blocks in reversed(self.stages)], inputs)

    def _through(self, stages: list[Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        check_event(inputs, self.image_shape, "ButterflyTransform", "build it for these images")
        channels, height, _ = self.image_shape
        # With the images as the last axis all lines are contiguous, whatever the stride.
        outputs = rearrange(inputs, "b c h w -> (c h w) b").contiguous()
        logabsdet = inputs.new_zeros(())
        for blocks in stages:
            outputs = _stage(blocks, outputs)
            logabsdet = logabsdet + _logabsdet(blocks)
        images = rearrange(outputs, "(c h w) b -> b c h w", c=channels, h=height).contiguous()
        return images, logabsdet * inputs.new_ones(inputs.shape[0])


def butterfly(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    levels: int = 256,
) -> ImageFlow:
    r"""Build ButterflyFlow: Glow with butterfly layers in the place of the 1x1 convolutions.

    .. math:: g = \mathrm{coupling} \circ \mathrm{butterfly} \circ \mathrm{ActNorm}

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks; no number of parameters was published, and it
            is Glow's.
        scales: number of resolutions.
        steps: of flow at each scale.
        levels: number of pixel values.

    References:
        Meng et al., ButterflyFlow: Building invertible layers with butterfly matrices, 2022.

    Example:
        >>> sum(parameter.numel() for parameter in butterfly((3, 32, 32)).parameters())
        12760332
    """
    coupling = affine_coupling(hidden_channels)
    return multi_scale_flow(image_shape, ButterflyTransform, coupling, scales, steps, levels)


def prime_factors(number: int) -> tuple[int, ...]:
    """Return the prime factors in ascending order.

    Args:
        number: 1 or more; 1 has none.

    Example:
        >>> prime_factors(12), prime_factors(1)
        ((2, 2, 3), ())
    """
    for divisor in range(2, math.isqrt(number) + 1):
        if number % divisor == 0:
            return divisor, *prime_factors(number // divisor)
    return (number,) if number > 1 else ()


def _stage(blocks: Tensor, vectors: Tensor) -> Tensor:
    """Multiply the lines of [D, B] along one axis by blocks [before, f, f, after]."""
    before, factor, _, after = blocks.shape
    lines = rearrange(vectors, "(o j n) b -> o j n b", o=before, j=factor, n=after)
    # One product for each column of the blocks: as matrix products they are too small to pay.
    columns = [column.unsqueeze(-1) for column in blocks.unbind(2)]
    values = [value.unsqueeze(1) for value in lines.unbind(1)]
    outputs = columns[0] * values[0]
    for column, value in zip(columns[1:], values[1:]):
        outputs = torch.addcmul(outputs, column, value)
    return rearrange(outputs, "o i n b -> (o i n) b")


def _logabsdet(blocks: Tensor) -> Tensor:
    """Sum of the log-determinants of blocks [before, f, f, after]."""
    if blocks.shape[1] == 2:
        (a, b), (c, d) = (row.unbind(1) for row in blocks.unbind(1))
        return (a * d - b * c).abs().log().sum()
    matrices = rearrange(blocks, "o i j n -> o n i j")
    return torch.linalg.slogdet(matrices).logabsdet.sum()


def _inverse(blocks: Tensor) -> Tensor:
    """Inverses of blocks [before, f, f, after]."""
    if blocks.shape[1] == 2:
        (a, b), (c, d) = (row.unbind(1) for row in blocks.unbind(1))
        adjugate = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1)
        return adjugate / rearrange(a * d - b * c, "o n -> o 1 1 n")
    inverses = torch.linalg.inv_ex(rearrange(blocks, "o i j n -> o n i j"))[0]
    return rearrange(inverses, "o n i j -> o i j n")
