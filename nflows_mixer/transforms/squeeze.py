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

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        check_positive("SqueezeTransform", "factor", factor)
        self.factor = factor

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels into channels."""
        if inputs.dim() != 4 or inputs.shape[2] % self.factor or inputs.shape[3] % self.factor:
            expected = f"[B, C, H, W] with H and W multiples of {self.factor}"
            raise mismatch("SqueezeTransform", expected, list(inputs.shape), "crop or pad them")
        outputs = rearrange(inputs, self._pattern(), s=self.factor, t=self.factor)
        return outputs, no_volume_change(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Channels into pixels."""
        if inputs.dim() != 4 or inputs.shape[1] % self.factor**2:
            expected = f"[B, C, H, W] with C a multiple of {self.factor**2}"
            raise mismatch("SqueezeTransform", expected, list(inputs.shape), "invert what it gave")
        outputs = rearrange(inputs, self._pattern(inverse=True), s=self.factor, t=self.factor)
        return outputs, no_volume_change(inputs)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one output, for one input [C, H, W]."""
        channels, height, width = input_shape
        s = self.factor
        if height % s or width % s:
            expected = f"[C, H, W] with H and W multiples of {s}"
            raise mismatch(type(self).__name__, expected, list(input_shape), "crop or pad them")
        return channels * s**2, height // s, width // s

    @staticmethod
    def _pattern(inverse: bool = False) -> str:
        image, squeezed = "b c (h s) (w t)", "b (c s t) h w"
        return f"{squeezed} -> {image}" if inverse else f"{image} -> {squeezed}"


class SqueezeAndDrop(SqueezeTransform):
    r"""A squeeze, and the place where a multi-scale flow drops a part of the channels.

    On its own it is the squeeze, :math:`\log|\det| = 0`. In a ``MultiScaleTransform`` the first
    channels of its output go on, and the others are latents already.

    Args:
        factor: of the squeeze; 1 only drops.
        kept_channels: how many of the squeezed channels go on; half, rounded up, where None.

    Shapes:
        inputs [B, C, H, W], outputs [B, C s^2, H / s, W / s].

    Raises:
        ValueError: if s does not divide height and width, or nothing would be kept, or dropped.

    References:
        DenseFlow, Section 2.3; Dinh et al., Density estimation using Real NVP, 2017, Section 3.6.

    Example:
        >>> import torch
        >>> step = SqueezeAndDrop()
        >>> kept, dropped = step.divide(step(torch.zeros(2, 12, 8, 8))[0])
        >>> kept.shape, dropped.shape
        (torch.Size([2, 24, 4, 4]), torch.Size([2, 24, 4, 4]))
    """

    def __init__(self, factor: int = 2, kept_channels: int | None = None) -> None:
        super().__init__(factor)
        if kept_channels is not None:
            check_positive("SqueezeAndDrop", "kept_channels", kept_channels)
        self.kept_channels = kept_channels

    def divide(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        """Kept and dropped channels of [B, C s^2, H / s, W / s]."""
        kept = self.number_kept(squeezed.shape[1])
        return squeezed[:, :kept], squeezed[:, kept:]

    def number_kept(self, channels: int) -> int:
        """How many of so many squeezed channels go on."""
        kept = (channels + 1) // 2 if self.kept_channels is None else self.kept_channels
        if not 0 < kept < channels:
            expected = f"1 to {channels - 1} of {channels} squeezed channels to keep"
            raise mismatch("SqueezeAndDrop", expected, kept, "give kept_channels")
        return kept
