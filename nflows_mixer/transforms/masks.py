"""Which features of a coupling condition, and which move."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nflows_mixer._checks import check_choice, check_positive, mismatch

MASKS = ("halves", "checkerboard", "rows", "columns", "random")


def mask_order(mask: str, axes: Sequence[int], seed: int = 0) -> Tensor:
    r"""Order of features in which those that condition come first.

    A coupling splits a row of D features after the first :math:`\lceil D / 2 \rceil`. In this order
    of them that is

    ============  ===========================================================
    mask          first half: the position (i, j) has
    ============  ===========================================================
    halves        the order as it is: the upper half of the positions
    checkerboard  i + j even
    rows          i even
    columns       j even
    random        drawn once for a seed and a length
    ============  ===========================================================

    Channels behind a position stay together, but for "random", which draws all features. Where the
    even positions are more or fewer than :math:`\lceil D / 2 \rceil`, the split falls among the
    others, and numbers of parameters stay what they are without a mask.

    Args:
        mask: one of the above.
        axes: sizes that a row was flattened from: (n_h, n_w) of a grid of patches, (p_h, p_w, C)
            of a patch, or (D,) of a row without any, whose i is 0.
        seed: of "random".

    Returns:
        A permutation [D] of integers: the feature that comes first, second, and so on.

    Raises:
        ValueError: if the mask is unknown, or a size is not positive.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 3.4 (checkerboard). MixerFlow
        does not say which half conditions.

    Example:
        >>> mask_order("checkerboard", (2, 2)).tolist()
        [0, 3, 1, 2]
        >>> mask_order("rows", (4, 2)).tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """
    check_choice("mask_order", "mask", mask, MASKS)
    for size in axes:
        check_positive("mask_order", "axes", size)
    if not axes:
        raise mismatch("mask_order", "the sizes of a row as axes", axes, "give (D,) at least")
    features = math.prod(axes)
    if mask == "halves":
        return torch.arange(features)
    if mask == "rows" and len(axes) == 1:
        advice = "give the axes that it was flattened from, or mask='columns'"
        raise mismatch("mask_order", "a grid for the mask 'rows'", f"a row of {features}", advice)
    if mask == "random":
        generator = torch.Generator().manual_seed(int(seed))
        return torch.randperm(features, generator=generator)
    height, width = (1, axes[0]) if len(axes) == 1 else axes[:2]
    i, j = torch.arange(height)[:, None], torch.arange(width)
    parity = {"checkerboard": i + j, "rows": i + 0 * j, "columns": 0 * i + j}[mask] % 2
    of_features = parity.flatten().repeat_interleave(features // (height * width))
    return of_features.argsort(stable=True)
