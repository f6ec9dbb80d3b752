"""Fixed shuffles of an image's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import check_choice, check_event, check_image_shape, mismatch
from nflows_mixer.core.composite import no_volume_change
from nflows_mixer.transforms.patches import PatchTransform


class PermutePixels(Transform):
    r"""Shuffle the pixels of every image in the same way; :math:`\log|\det| = 0`.

    "global" permutes all pixels of the image. "local" permutes the order of the patches, and the
    pixels within a patch by one permutation that all patches share. The channels of a pixel stay
    together. Works on pixels of any dtype, uint8 among them, to shuffle a data set.

    Args:
        image_shape: (C, H, W).
        mode: "global" or "local".
        patch_size: p, or (height, width), of the local shuffle.
        seed: the permutation is a function of it, and part of the state_dict.

    Shapes:
        inputs and outputs [B, C, H, W].

    Raises:
        ValueError: if the mode is unknown, a local shuffle has no patch size or a global one has,
            the patch does not divide the image, or inputs have another shape.

    References:
        MixerFlow, Section 5.4.1, after Tolstikhin et al., MLP-Mixer, 2021.

    Example:
        >>> shuffle = PermutePixels((1, 2, 2), seed=1)
        >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> shuffle(image)[0].flatten().tolist()
        [1, 3, 2, 0]
    """

    rearranges = True

    def __init__(
        self,
        image_shape: Sequence[int],
        mode: str = "global",
        patch_size: int | Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape, "PermutePixels")
        check_choice("PermutePixels", "mode", mode, ("global", "local"))
        if (patch_size is None) != (mode == "global"):
            raise mismatch(
                "PermutePixels",
                "a patch_size for the local shuffle, and none for the global one",
                f"mode={mode!r}, patch_size={patch_size}",
                "give it with mode='local'",
            )
        _, height, width = self.image_shape
        generator = torch.Generator().manual_seed(int(seed))
        if patch_size is None:
            source = torch.randperm(height * width, generator=generator)
        else:
            patches = PatchTransform((1, height, width), patch_size)
            matrix, _ = patches(torch.arange(height * width).reshape(1, 1, height, width))
            order = torch.randperm(patches.n_patches, generator=generator)
            within = torch.randperm(patches.channels, generator=generator)
            source = patches.inverse(matrix[:, order][:, :, within])[0].flatten()
        # Where the pixel at each place comes from, and where it went.
        self.register_buffer("source", source)
        self.register_buffer("destination", source.argsort())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Shuffle."""
        return self._take(inputs, self.source)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Put back."""
        return self._take(inputs, self.destination)

    def _take(self, inputs: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        check_event(inputs, self.image_shape, "PermutePixels", "pass images of that shape")
        height = self.image_shape[1]
        pixels = rearrange(inputs, "b c h w -> b c (h w)")[:, :, index]
        return rearrange(pixels, "b c (h w) -> b c h w", h=height), no_volume_change(inputs)
