"""Matrices of patches, in four layouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
from nflows_mixer.transforms.masks import MASKS, mask_order

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

    Patches and offsets come in the order of a mask, in which couplings of rows and of columns find
    what conditions first. The inverse restores the positions.

    Args:
        image_shape: (C, H, W).
        patch_size: p, or (height, width); a band reads its height alone, a stripe its width alone.
        layout: one of the four above.
        mask: order of the patches in their grid, and of the pixels in a patch, see ``mask_order``.
        seed: of the mask "random".

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
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        layout: str = "patch",
        mask: str = "halves",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("PatchTransform", "layout", layout, LAYOUTS)
        check_choice("PatchTransform", "mask", mask, MASKS)
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
        self.mask = mask
        self.grid = (height // patch_height, width // patch_width)
        self.n_patches = self.grid[0] * self.grid[1]
        self.channels = channels * patch_height * patch_width
        rows, columns = ("(ph nh)", "(pw nw)") if layout == "dilated" else ("(nh ph)", "(nw pw)")
        self._image_axes = f"b c {rows} {columns}"
        self._matrix_axes = "b (nh nw) (ph pw c)"
        orders: tuple[Tensor | None, ...] = (None, None)
        if mask != "halves":
            axes = self.grid, (*self.patch_size, channels)
            orders = tuple(mask_order(mask, sizes, seed) for sizes in axes)
        self.register_buffer("patch_order", orders[0])
        self.register_buffer("channel_order", orders[1])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image to matrix."""
        if inputs.shape[1:] != self.image_shape:
            raise wrong_event(
                inputs, self.image_shape, "PatchTransform", "pass images of that shape"
            )
        if self.patch_order is None:
            matrix = self._matrix(inputs)
        else:
            pixels = torch.arange(self.n_patches * self.channels, device=inputs.device)
            pixels = self._matrix(pixels.reshape(1, *self.image_shape))[0]
            source = pixels[self.patch_order][:, self.channel_order]
            matrix = inputs.flatten(1).index_select(1, source.flatten())
            matrix = matrix.unflatten(1, (self.n_patches, self.channels))
        return matrix, no_volume_change(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Matrix to image."""
        matrix_shape = (self.n_patches, self.channels)
        if inputs.shape[1:] != matrix_shape:
            raise wrong_event(inputs, matrix_shape, "PatchTransform", "pass what forward returned")
        if self.patch_order is None:
            image = self._image(inputs)
        else:
            # Two short sorts in place of one over all pixels.
            entries = torch.arange(self.n_patches * self.channels, device=inputs.device).reshape(
                matrix_shape
            )
            entries = entries[self.patch_order.argsort()][:, self.channel_order.argsort()]
            image = inputs.flatten(1).index_select(1, self._image(entries[None]).flatten())
            image = image.unflatten(1, self.image_shape)
        return image, no_volume_change(inputs)

    def _matrix(self, image: Tensor) -> Tensor:
        return rearrange(image, f"{self._image_axes} -> {self._matrix_axes}", **self._sizes)

    def _image(self, matrix: Tensor) -> Tensor:
        return rearrange(matrix, f"{self._matrix_axes} -> {self._image_axes}", **self._sizes)

    @property
    def _sizes(self) -> dict[str, int]:
        (patch_height, patch_width), (rows, columns) = self.patch_size, self.grid
        return {"ph": patch_height, "pw": patch_width, "nh": rows, "nw": columns}
