"""The same fixed shuffle of the pixels for every image of a data set."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from nflows_mixer.data.image_data import ImageData
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

    Example:
        >>> import torch
        >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> shuffle = PixelShuffle((1, 2, 2), "global", seed=1)
        >>> shuffle(image).flatten().tolist(), shuffle.described
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
        self.described = {"mode": mode, "patch_size": patch_size, "seed": seed}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images [n, C, H, W] with their pixels shuffled."""
        return self.permute(images)[0]


def shuffled(data: ImageData, mode: str, patch_size: int | None = None, seed: int = 0) -> ImageData:
    """Return the images with the pixels of all of them shuffled in the same way.

    Args:
        data: the images.
        mode: "global" or "local".
        patch_size: of the local shuffle; 4 if None.
        seed: the permutation is a function of it.

    Raises:
        ValueError: as ``PermutePixels`` does.

    References:
        MixerFlow, Section 5.4.1.

    Example:
        >>> from nflows_mixer.data import load_images
        >>> shuffled(load_images("digits"), "local", patch_size=2).shuffle
        {'mode': 'local', 'patch_size': 2, 'seed': 0}
    """
    pixels = PixelShuffle(data.image_shape, mode, patch_size, seed)
    return replace(
        data,
        train=data.train.transformed(pixels),
        validation=data.validation.transformed(pixels),
        test=None if data.test is None else data.test.transformed(pixels),
        shuffle=pixels.described,
    )
