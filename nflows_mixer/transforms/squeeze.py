"""Trading resolution for channels."""

from __future__ import annotations

from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.bridges import no_volume_change


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

    @staticmethod
    def _pattern(inverse: bool = False) -> str:
        image, squeezed = "b c (h s) (w t)", "b (c s t) h w"
        return f"{squeezed} -> {image}" if inverse else f"{image} -> {squeezed}"
