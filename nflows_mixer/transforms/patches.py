"""Matrices of patches, in four layouts."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import (
    as_pair,
    check_choice,
    check_image_shape,
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
