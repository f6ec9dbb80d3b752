"""The same fixed shuffle of the pixels for every image of a data set."""

from __future__ import annotations

from torch import Tensor

from nflows_mixer.transforms.permute import PermutePixels


class PixelShuffle:
    """Shuffle the pixels of batches of images: PermutePixels as a function of images alone.

    Args:
        image_shape: (C, H, W).
        mode: "global" or "local".
        patch_size: of the local shuffle; 4 if None.
        seed: the permutation is a function of it.

    Raises:
        ValueError: as PermutePixels does.

    References:
        MixerFlow, Section 5.4.1.

    Example:
        >>> import torch
        >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> shuffle = PixelShuffle((1, 2, 2), "global", seed=1)
        >>> shuffle(image).flatten().tolist(), shuffle.describe()
        ([1, 3, 2, 0], {'mode': 'global', 'patch_size': None, 'seed': 1})
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        mode: str,
        patch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if mode == "local" and patch_size is None:
            patch_size = 4
        self.permute = PermutePixels(image_shape, mode, patch_size, seed)
        self._described = {"mode": mode, "patch_size": patch_size, "seed": seed}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images [n, C, H, W] with their pixels shuffled."""
        shuffled, _ = self.permute(images)
        return shuffled

    def describe(self) -> dict[str, str | int | None]:
        """Return the mode, the patch size and the seed."""
        return dict(self._described)
