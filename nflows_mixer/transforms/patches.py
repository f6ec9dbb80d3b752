"""What only rearranges pixels: matrices of patches in four layouts, and squeezes."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import (
    as_pair,
    check_choice,
    check_image_shape,
    check_positive,
    mismatch,
    wrong_event,
)
from nflows_mixer.core.composite import no_volume_change

LAYOUTS = ("patch", "band", "stripe", "dilated")


class PatchTransform(Transform):
    r"""Cut an image into patches: one row of the matrix per patch, one column per offset in it.

    Pixel (i, j) goes to (patch ; offset), its channels carried along, with patch size p and
    n = size / p on each axis; a fixed permutation, so :math:`\log|\det| = 0`.

    =========  ====================================
    layout     pixel (i, j) -> (patch ; offset)
    =========  ====================================
    patch      (i // p, j // p ; i % p, j % p)
    band       patch, with the width of the image
    stripe     patch, with the height of the image
    dilated    (i % n, j % n ; i // n, j // n)
    =========  ====================================

    Args:
        image_shape: (C, H, W).
        patch_size: p, or (height, width); a band reads its height alone, a stripe its width alone.
        layout: one of the four above.

    Shapes:
        inputs [B, C, H, W], outputs [B, n_patches, channels]; channels = p_h * p_w * C.

    Raises:
        ValueError: if the patch does not divide the image, or inputs have another shape.

    References:
        MixerFlow, Section 4 and, for the layouts, Section 10 (named there, defined here).

    Example:
        >>> import torch
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> matrix, _ = PatchTransform((1, 4, 4), patch_size=2)(image)
        >>> matrix[0].tolist()[:2]
        [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """

    rearranges = True

    def __init__(
        self, image_shape: Sequence[int], patch_size: int | Sequence[int], layout: str = "patch"
    ) -> None:
        super().__init__()
        check_choice("PatchTransform", "layout", layout, LAYOUTS)
        self.image_shape = check_image_shape(image_shape, "PatchTransform")
        channels, height, width = self.image_shape
        patch_height, patch_width = as_pair(patch_size, "PatchTransform", "patch_size")
        if layout == "band":
            patch_width = width
        if layout == "stripe":
            patch_height = height
        for name, patch, size in [
            ("height", patch_height, height),
            ("width", patch_width, width),
        ]:
            if patch < 1 or size % patch:
                raise mismatch(
                    "PatchTransform",
                    f"a patch {name} that divides the image's {name} {size}",
                    patch,
                    f"choose one of {[n for n in range(1, size + 1) if size % n == 0]}",
                )
        self.patch_size = (patch_height, patch_width)
        self.layout = layout
        self.n_patches = (height // patch_height) * (width // patch_width)
        self.channels = channels * patch_height * patch_width
        rows, columns = ("(ph nh)", "(pw nw)") if layout == "dilated" else ("(nh ph)", "(nw pw)")
        self._image_axes = f"b c {rows} {columns}"
        self._matrix_axes = "b (nh nw) (ph pw c)"

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image to matrix."""
        if inputs.shape[1:] != self.image_shape:
            raise wrong_event(
                inputs, self.image_shape, "PatchTransform", "pass images of that shape"
            )
        matrix = rearrange(inputs, f"{self._image_axes} -> {self._matrix_axes}", **self._sizes)
        return matrix, no_volume_change(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Matrix to image."""
        matrix_shape = (self.n_patches, self.channels)
        if inputs.shape[1:] != matrix_shape:
            raise wrong_event(inputs, matrix_shape, "PatchTransform", "pass what forward returned")
        image = rearrange(inputs, f"{self._matrix_axes} -> {self._image_axes}", **self._sizes)
        return image, no_volume_change(inputs)

    @property
    def _sizes(self) -> dict[str, int]:
        patch_height, patch_width = self.patch_size
        rows = self.image_shape[1] // patch_height
        columns = self.image_shape[2] // patch_width
        return {"ph": patch_height, "pw": patch_width, "nh": rows, "nw": columns}


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
        check_positive(type(self).__name__, "factor", factor)
        self.factor = factor

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
            check_positive("SqueezeAndSplit", "kept_channels", kept_channels)
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
