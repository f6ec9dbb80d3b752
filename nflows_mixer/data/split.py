"""Parts of a data set, drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nflows_mixer._checks import mismatch
from nflows_mixer.data.dataset import ImageDataset


def validation_size(count: int) -> int:
    """Return int(0.04 n), the validation part of n training images, but at least 1.

    References:
        MixerFlow, Table 8: the numbers of training points, such as 48,000 of CIFAR-10's 50,000.

    Example:
        >>> validation_size(50_000), validation_size(63_565), validation_size(3)
        (2000, 2542, 1)
    """
    # 4 n // 100 is int(0.04 n) without the rounding of 0.04.
    return max(1, 4 * count // 100)


def split(dataset: ImageDataset, sizes: Sequence[int], seed: int) -> list[ImageDataset]:
    """Return parts of these sizes, and the rest as the last, in the order of a random permutation.

    Args:
        dataset: what to split; its images are shared, not copied.
        sizes: the number of images of each part but the last.
        seed: the permutation is a function of it and of the number of images.

    Returns:
        One data set more than there are sizes.

    Raises:
        ValueError: if nothing is left for the last part.

    Example:
        >>> images = ImageDataset(torch.zeros(10, 1, 2, 2, dtype=torch.uint8))
        >>> [len(part) for part in split(images, [2, 3], seed=0)]
        [2, 3, 5]
    """
    count, taken = len(dataset), sum(sizes)
    if count <= taken:
        expected = f"more than {taken} images to split"
        raise mismatch("split", expected, count, "use a larger data set, or smaller parts")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [dataset.subset(part) for part in order.split([*sizes, count - taken])]
