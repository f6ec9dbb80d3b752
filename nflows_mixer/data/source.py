"""Where images come from, as arguments of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nflows_mixer.data.image_data import ImageData
from nflows_mixer.data.load import load_images


@dataclass(frozen=True)
class ImageSource:
    """Images by name, with what ``load_images`` needs to find them.

    Args:
        data: digits, cifar10, mnist, celeba64, imagenet32, imagenet64, animefaces, galaxy32, a
            file .npz or a folder of images.
        test_data: a second file or folder, held out whole; otherwise a tenth of the first is.
        root: folder of downloads and of the data sets that are named.
        size: resize images to size x size.
        shuffle: shuffle the pixels of all images in the same way; local keeps patches of 4 x 4.

    Example:
        >>> ImageSource("digits").load().image_shape
        (1, 8, 8)
    """

    data: str = "digits"
    test_data: str | None = None
    root: str = "data"
    size: int | None = None
    shuffle: Literal["global", "local"] | None = None

    def load(self, seed: int = 0, shuffle_patch: int | None = None) -> ImageData:
        """Load the images; the arguments are those of ``load_images``."""
        return load_images(
            self.data,
            test=self.test_data,
            root=self.root,
            seed=seed,
            size=self.size,
            shuffle=self.shuffle,
            shuffle_patch=shuffle_patch,
        )
