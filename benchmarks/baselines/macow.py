"""MaCow: Glow with masked convolutional flows from four sides before each 1x1 convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.backbone import ImageShape, multi_scale_flow
from benchmarks.baselines.glow import affine_coupling, conv1x1
from nflows_mixer._checks import check_channels, check_choice, check_positive, mismatch
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows import ImageFlow
from nflows_mixer.nn.dense_block import zero_convolution
from nflows_mixer.transforms import ActNorm
from nflows_mixer.transforms.coupling import LOG_SCALES

SIDES = ("above", "below", "left", "right")


class MaskedConvolutionalFlow(Transform):
    r"""Affine map of each pixel, conditioned by a masked convolution on pixels at one side of it.

    .. math:: y_{i,j} = e^{s_{i,j}} \odot x_{i,j} + t_{i,j}, \qquad
              (s, t)_{i,j} = f(x_{i-k:i-1,\;j-m:j+m}), \qquad
              \log|\det J| = \sum_{i,j,c} s_{i,j,c}

    f is a k x (2 m + 1) convolution, an ELU, and a 1x1 convolution, which starts at zero; outside
    the image there are zeros. The formula is that of "above": f reads the k rows before a row. The
    other sides turn the image around. The log-scale is Glow's
    :math:`\log(0.1 + 1.8\,\sigma(u))`. Starts at the identity. Forward is one convolution; inverse
    takes H steps, one for each row ("left" and "right": W, one for each column).

    Args:
        channels: C.
        side: where the pixels lie that f reads: "above", "below", "left" or "right".
        kernel_size: (k, 2 m + 1), of rows read and columns; turned around for "left" and "right".
        hidden_channels: between the convolutions of f.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if the side is unknown, the kernel has no middle column, or inputs are no
            images of C channels.

    References:
        Ma, Kong, Zhang and Hovy, MaCow: masked convolutional generative flow, 2019, Section 3.

    Example:
        >>> flow = MaskedConvolutionalFlow(4, "left")
        >>> images = torch.randn(2, 4, 3, 5)
        >>> torch.allclose(flow(images)[0], images)
        True
    """

    def __init__(
        self,
        channels: int,
        side: str = "above",
        kernel_size: tuple[int, int] = (2, 3),
        hidden_channels: int = 20,
    ) -> None:
        super().__init__()
        owner = "MaskedConvolutionalFlow"
        check_choice(owner, "side", side, SIDES)
        sizes = {"channels": channels, "hidden_channels": hidden_channels}
        for name, value in (*sizes.items(), *zip(("rows", "columns"), kernel_size)):
            check_positive(owner, name, value)
        if kernel_size[1] % 2 == 0:
            expected = "a kernel_size of an odd number of columns"
            raise mismatch(owner, expected, kernel_size, "give one that has a middle column")
        self.channels = channels
        self.side = side
        self.rows = kernel_size[0]
        self.network = nn.Sequential(
            nn.Conv2d(channels, hidden_channels, kernel_size, padding=(0, kernel_size[1] // 2)),
            nn.ELU(),
            zero_convolution(hidden_channels, 2 * channels),
        )

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W]."""
        check_channels(inputs, self.channels, "MaskedConvolutionalFlow")
        images = self._turn(inputs)
        log_scale, shift = self._scale_and_shift(F.pad(images, (0, 0, self.rows, 0))[:, :, :-1])
        outputs = images * log_scale.exp() + shift
        return self._turn_back(outputs), log_scale.flatten(1).sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] back, row by row or column by column."""
        check_channels(inputs, self.channels, "MaskedConvolutionalFlow")
        images = self._turn(inputs)
        known = [torch.zeros_like(images[:, :, :1])] * self.rows
        logabsdet = inputs.new_zeros(inputs.shape[0])
        for row in images.split(1, dim=2):
            log_scale, shift = self._scale_and_shift(torch.cat(known[-self.rows :], dim=2))
            known.append((row - shift) * (-log_scale).exp())
            logabsdet = logabsdet - log_scale.flatten(1).sum(1)
        return self._turn_back(torch.cat(known[self.rows :], dim=2)), logabsdet

    def _scale_and_shift(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift of rows, the first of which has ``rows`` of them before it."""
        # Under autocast the network answers in half precision; the flow itself never runs in it.
        unconstrained, shift = self.network(before).to(before.dtype).chunk(2, dim=1)
        return LOG_SCALES["sigmoid"](unconstrained), shift

    def _turn(self, images: Tensor) -> Tensor:
        """Bring the side that is read to the top."""
        if self.side in ("left", "right"):
            images = rearrange(images, "b c h w -> b c w h")
        return images.flip(2) if self.side in ("below", "right") else images

    def _turn_back(self, images: Tensor) -> Tensor:
        if self.side in ("below", "right"):
            images = images.flip(2)
        if self.side in ("left", "right"):
            images = rearrange(images, "b c w h -> b c h w")
        return images.contiguous()


def macow(
    image_shape: Sequence[int],
    hidden_channels: int = 512,
    scales: int = 3,
    steps: int = 8,
    kernel_size: tuple[int, int] = (2, 3),
    masked_channels: int = 20,
    levels: int = 256,
) -> ImageFlow:
    r"""Build MaCow: Glow with a unit of masked convolutional flows before each of its steps.

    .. math:: g = \mathrm{coupling} \circ W \circ \mathrm{ActNorm} \circ
              f_\mathrm{right} \circ f_\mathrm{left} \circ f_\mathrm{below} \circ f_\mathrm{above}
              \circ \mathrm{ActNorm}

    ``kernel_size`` and ``masked_channels`` were chosen for the published number of parameters,
    11.43M for images of 3x32x32.

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: of flow at each scale.
        kernel_size: of the masked convolutions, see ``MaskedConvolutionalFlow``.
        masked_channels: hidden channels of their networks.
        levels: number of pixel values.

    References:
        Ma, Kong, Zhang and Hovy, MaCow: masked convolutional generative flow, 2019, Section 3.

    Example:
        >>> sum(parameter.numel() for parameter in macow((3, 32, 32)).parameters())
        11429196
    """

    def unit(shape: ImageShape) -> Transform:
        channels = shape[0]
        masked = [
            MaskedConvolutionalFlow(channels, side, kernel_size, masked_channels) for side in SIDES
        ]
        # The ActNorm of the backbone, in front, is that of the unit; this one is Glow's.
        return CompositeTransform([*masked, ActNorm(channels), conv1x1(shape)])

    return multi_scale_flow(
        image_shape, unit, affine_coupling(hidden_channels), scales, steps, levels
    )
