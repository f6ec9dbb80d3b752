"""The flows that are compared: MixerFlows of several linear blocks."""

from __future__ import annotations

from collections.abc import Callable

from nflows.transforms import Transform

from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.transforms import ButterflyLinear, KroneckerLinear, LULinear

PATCHES = 64
PATCH_SIZE = 4
WAYS = {
    "patches": f"{PATCHES} patches",
    "patch size": f"patches of {PATCH_SIZE} x {PATCH_SIZE}",
    "any": "no patches",
}
NAMES = {
    "lu": "full LU",
    "butterfly": "butterfly",
    "kronecker": "Kronecker",
    "butterfly-root": "butterfly, factors near the root",
    "none": "no linear block",
    "glow": "Glow",
}


BLOCKS: dict[str, Callable[..., Transform] | None] = {
    "lu": LULinear,
    "butterfly": ButterflyLinear,
    "kronecker": KroneckerLinear,
    # Not given the axes of a patch, it takes factors near the square root.
    "butterfly-root": lambda features: ButterflyLinear(features),
    "none": None,
}


def mixer(linear: str, size: int, patch_size: int, **options) -> ImageFlow:
    """Return a MixerFlow of square RGB images with this linear block in all its flows."""
    return mixerflow(
        image_shape=(3, size, size),
        patch_size=patch_size,
        linear=BLOCKS[linear],
        norm="batch",
        **options,
    )
