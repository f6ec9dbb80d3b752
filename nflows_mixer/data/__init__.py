"""Image data sets as uint8 tensors, in memory or mapped from a file (extra: train)."""

from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.data.image_data import ImageData
from nflows_mixer.data.load import load_images
from nflows_mixer.data.shuffle import shuffled

__all__ = ["ImageData", "ImageDataset", "load_images", "shuffled"]
