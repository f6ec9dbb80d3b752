"""The same fixed shuffle of the pixels for every image of a data set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from nflows_mixer.data.image_data import ImageData
from nflows_mixer.transforms.permute import PermutePixels


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
    patch_size = 4 if mode == "local" and patch_size is None else patch_size
    pixels = partial(_permuted, PermutePixels(data.image_shape, mode, patch_size, seed))
    return replace(
        data,
        train=data.train.transformed(pixels),
        validation=data.validation.transformed(pixels),
        test=None if data.test is None else data.test.transformed(pixels),
        shuffle={"mode": mode, "patch_size": patch_size, "seed": seed},
    )


def _permuted(permute: PermutePixels, images: Tensor) -> Tensor:
    return permute(images)[0]
