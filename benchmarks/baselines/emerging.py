"""Emerging convolutions: Glow with two autoregressive convolutions for each 1x1 convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from nflows.transforms import ReversePermutation, Transform
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.backbone import ImageShape, multi_scale_flow
from benchmarks.baselines.glow import affine_coupling
from nflows_mixer._checks import check_channels, check_positive, mismatch
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows import ImageFlow

_START_STD = 0.02


def check_odd(owner: str, kernel_size: int) -> None:
    """Raise unless a kernel has a centre."""
    check_positive(owner, "kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise mismatch(owner, "an odd kernel_size", kernel_size, "give one that has a centre")


class AutoregressiveConvolution(Transform):
    r"""Convolution of a pixel with those above and left of it, triangular over the channels.

    .. math:: y_{i,j} = \sum_{a,b=0}^{(d-1)/2} K_{a,b}\,x_{i-a,\,j-b}, \qquad
              K_{0,0} = \mathrm{tril}_{-1}(w) + \mathrm{diag}(e^{\mathrm{diag}(w)}), \qquad
              \log|\det J| = H W \sum_c w_{c,c}

    In the order of rows, columns and channels its Jacobian is lower triangular. w is the centre of
    a d x d kernel that is kept whole, d^2 C^2 parameters as in the published counts; of the other
    taps those of the upper left quadrant are read. Starts near the identity, with noise of
    standard deviation 0.02. Forward is one matrix product; inverse takes H steps, each of which
    solves for a row.

    Args:
        channels: C.
        kernel_size: d, odd.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if the kernel is even, or inputs are no images of C channels.

    References:
        Hoogeboom, van den Berg and Welling, Emerging convolutions for generative normalizing
        flows, 2019, Section 3.

    Example:
        >>> image = torch.zeros(1, 1, 3, 3)
        >>> image[0, 0, 1, 1] = 1.0
        >>> AutoregressiveConvolution(1)(image)[0].ne(0).int()[0, 0].tolist()
        [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        check_positive("AutoregressiveConvolution", "channels", channels)
        check_odd("AutoregressiveConvolution", kernel_size)
        self.channels = channels
        self.reach = kernel_size // 2
        weight = _START_STD * torch.randn(channels, channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W]."""
        check_channels(inputs, self.channels, "AutoregressiveConvolution")
        padded = F.pad(inputs, (self.reach, 0, self.reach, 0))
        windows = F.unfold(padded, self.reach + 1)
        # As a product it has the precision of the inverse: convolutions on a GPU may round to TF32.
        with torch.autocast(inputs.device.type, enabled=False):
            outputs = self.kernel().flatten(1) @ windows
        return outputs.view_as(inputs), self._logabsdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] back, row by row."""
        check_channels(inputs, self.channels, "AutoregressiveConvolution")
        width = inputs.shape[3]
        with torch.autocast(inputs.device.type, enabled=False):
            own, *above = self._row_maps(width)
            rows: list[Tensor] = []
            for row in rearrange(inputs, "b c h w -> h (w c) b"):
                known = zip(above, reversed(rows))
                rest = row - sum(weight @ before for weight, before in known)
                rows.append(torch.linalg.solve_triangular(own, rest, upper=False))
        outputs = rearrange(torch.stack(rows), "h (w c) b -> b c h w", w=width)
        return outputs.contiguous(), -self._logabsdet(inputs)

    def kernel(self) -> Tensor:
        """Return the taps that are read, [C, C, reach + 1, reach + 1], the last at the pixel."""
        taps = self.weight[:, :, : self.reach + 1, : self.reach + 1].clone()
        centre = self._centre()
        taps[:, :, -1, -1] = centre.tril(-1) + centre.diagonal().exp().diag()
        return taps

    def _row_maps(self, width: int) -> list[Tensor]:
        """How a row, and each of those above it, enters a row of outputs: [W C, W C] each."""
        kernel = self.kernel().flip(2, 3)
        # A tap b columns left of the pixel stands on the b-th diagonal below the main one.
        diagonals = [
            torch.diag(kernel.new_ones(width - b), -b) for b in range(min(self.reach + 1, width))
        ]
        return [
            torch.stack([torch.kron(d, kernel[:, :, a, b]) for b, d in enumerate(diagonals)]).sum(0)
            for a in range(self.reach + 1)
        ]

    def _centre(self) -> Tensor:
        return self.weight[:, :, self.reach, self.reach]

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        pixels = inputs.shape[2] * inputs.shape[3]
        return pixels * self._centre().diagonal().sum() * inputs.new_ones(inputs.shape[0])


class EmergingConvolution(Transform):
    r"""Invertible d x d convolution: two autoregressive ones of opposite orders.

    .. math:: y = R\,K_2\,R\,K_1\,x, \qquad
              \log|\det J| = \log|\det K_1| + \log|\det K_2|

    R turns rows, columns and channels around, so that R K_2 R looks below and right. Together they
    look at the pixels of a standard convolution, with two kernels of d^2 C^2 parameters that are
    kept whole.

    Args:
        channels: C.
        kernel_size: d, odd.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if the kernel is even, or inputs are no images of C channels.

    References:
        Hoogeboom, van den Berg and Welling, Emerging convolutions for generative normalizing
        flows, 2019, Section 3.

    Example:
        >>> convolution = EmergingConvolution(12)
        >>> sum(parameter.numel() for parameter in convolution.parameters())
        2592
        >>> images = torch.randn(2, 12, 4, 4)
        >>> outputs, logabsdet = convolution(images)
        >>> torch.allclose(convolution.inverse(outputs)[0], images, atol=1e-4)
        True
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.first = AutoregressiveConvolution(channels, kernel_size)
        self.second = AutoregressiveConvolution(channels, kernel_size)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W]."""
        outputs, first = self.first(inputs)
        outputs, second = self.second(_turn(outputs))
        return _turn(outputs), first + second

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] back, by rows from below and then from above."""
        outputs, second = self.second.inverse(_turn(inputs))
        outputs, first = self.first.inverse(_turn(outputs))
        return outputs, first + second


def _turn(images: Tensor) -> Tensor:
    return images.flip(1, 2, 3)


def emerging(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    kernel_size: int = 3,
    levels: int = 256,
) -> ImageFlow:
    r"""Build Glow with each 1x1 convolution replaced by an emerging one.

    .. math:: g = \mathrm{coupling} \circ R K_2 R K_1 \circ P \circ \mathrm{ActNorm}

    P reverses the channels: products of triangular matrices near the identity leave each channel
    in its half, and all couplings of a scale would move the same half.

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: of flow at each scale.
        kernel_size: of the emerging convolutions, odd.
        levels: number of pixel values.

    References:
        Hoogeboom, van den Berg and Welling, Emerging convolutions for generative normalizing
        flows, 2019, Section 3.

    Example:
        >>> sum(parameter.numel() for parameter in emerging((3, 32, 32)).parameters())
        11401740
    """

    def convolution(shape: ImageShape) -> Transform:
        channels = shape[0]
        return CompositeTransform(
            [ReversePermutation(channels), EmergingConvolution(channels, kernel_size)]
        )

    coupling = affine_coupling(hidden_channels)
    return multi_scale_flow(image_shape, convolution, coupling, scales, steps, levels)
