"""Trading resolution for channels."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.core.composite import no_volume_change


class SqueezeTransform(Transform):
    r"""Move each s x s square of pixels into the channels; :math:`\log|\det| = 0`.

    Unlike nflows' own, it takes any factor and any number of channels both ways.

    Args:
        factor: s.

    Shapes:
        inputs [B, C, H, W], outputs [B, C s^2, H / s, W / s].

    Raises:
        ValueError: if s does not divide height and width, or s^2 the channels of an inverse.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 3.6.

    Example:
        >>> import torch
        >>> SqueezeTransform(3)(torch.zeros(2, 1, 6, 9))[0].shape
        torch.Size([2, 9, 2, 3])
    """

    rearranges = True
    image_shape = None  # of any size

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = check_positive(type(self).__name__, "factor", factor)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels into channels."""
        s = self.factor
        if inputs.dim() != 4 or inputs.shape[2] % s or inputs.shape[3] % s:
            expected = f"[B, C, H, W] with H and W multiples of {s}"
            raise mismatch("SqueezeTransform", expected, list(inputs.shape), "crop or pad them")
        outputs = rearrange(inputs, "b c (h s) (w t) -> b (c s t) h w", s=s, t=s)
        return outputs, no_volume_change(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Channels into pixels."""
        s = self.factor
        if inputs.dim() != 4 or inputs.shape[1] % s**2:
            expected = f"[B, C, H, W] with C a multiple of {s**2}"
            raise mismatch("SqueezeTransform", expected, list(inputs.shape), "invert what it gave")
        outputs = rearrange(inputs, "b (c s t) h w -> b c (h s) (w t)", s=s, t=s)
        return outputs, no_volume_change(inputs)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one output, for one input [C, H, W]."""
        channels, height, width = input_shape
        s = self.factor
        if height % s or width % s:
            expected = f"[C, H, W] with H and W multiples of {s}"
            raise mismatch(type(self).__name__, expected, list(input_shape), "crop or pad them")
        return channels * s**2, height // s, width // s


class SqueezeAndSplit(SqueezeTransform):
    r"""A squeeze, and the place where a multi-scale flow splits off a part of the channels.

    On its own it is the squeeze, :math:`\log|\det| = 0`. In a ``MultiScaleTransform`` the first
    channels of its output go on, and the others are latents already.

    Args:
        factor: s, of the squeeze; 1 only splits.
        kept_channels: how many of the squeezed channels go on; half, rounded up, where None.

    Shapes: as ``SqueezeTransform``.

    Raises:
        ValueError: if s does not divide height and width, or one of the parts would be empty.

    References:
        DenseFlow, Section 2.3; Dinh et al., Density estimation using Real NVP, 2017, Section 3.6.

    Example:
        >>> import torch
        >>> step = SqueezeAndSplit()
        >>> kept, latents = step.split(step(torch.zeros(2, 12, 8, 8))[0])
        >>> kept.shape, latents.shape
        (torch.Size([2, 24, 4, 4]), torch.Size([2, 24, 4, 4]))
    """

    def __init__(self, factor: int = 2, kept_channels: int | None = None) -> None:
        super().__init__(factor)
        if kept_channels is not None:
            kept_channels = check_positive("SqueezeAndSplit", "kept_channels", kept_channels)
        self.kept_channels = kept_channels

    def split(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        """Kept channels of [B, C s^2, H / s, W / s], and those that are latents."""
        kept = self.number_kept(squeezed.shape[1])
        return squeezed[:, :kept], squeezed[:, kept:]

    def number_kept(self, channels: int) -> int:
        """How many of so many squeezed channels go on."""
        kept = (channels + 1) // 2 if self.kept_channels is None else self.kept_channels
        if not 0 < kept < channels:
            expected = f"1 to {channels - 1} of {channels} squeezed channels to keep"
            raise mismatch("SqueezeAndSplit", expected, kept, "give kept_channels")
        return kept
