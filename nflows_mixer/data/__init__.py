"""Image data sets as uint8 tensors (extra: train)."""

from nflows_mixer.data.images import ImageData, load_images

__all__ = ["ImageData", "load_images"]
