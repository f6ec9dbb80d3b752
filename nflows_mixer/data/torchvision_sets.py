"""Data sets that torchvision downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nflows_mixer.data.cache import gather
from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.data.folder import folder_images
from nflows_mixer.data.npz import as_images

# The class of torchvision.datasets.
DOWNLOADS = {"cifar10": "CIFAR10", "mnist": "MNIST"}
# RealNVP takes rows 40 to 188 and columns 15 to 163 of the 218 x 178 aligned images: the centre of
# the width, and five rows below the centre of the height.
REALNVP_CROP = (15, 40, 163, 188)


def load_download(name: str, root: Path) -> tuple[ImageDataset, ImageDataset]:
    """Return the official training and test parts of "cifar10" or "mnist", with labels."""
    from torchvision import datasets

    parts = []
    for train in (True, False):
        stored = getattr(datasets, DOWNLOADS[name])(str(root), train=train, download=True)
        images = torch.from_numpy(as_images(np.asarray(stored.data), name))
        parts.append(ImageDataset(images, torch.as_tensor(stored.targets)))
    return parts[0], parts[1]


def load_celeba64(root: Path) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """Return the official training, validation and test parts of CelebA at 64 x 64, unlabelled.

    The aligned images, cropped to 148 x 148 as RealNVP does, and resized (bilinear, antialiased).

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 4.1.
    """
    from torchvision import datasets

    parts = []
    for part in ("train", "valid", "test"):
        stored = datasets.CelebA(str(root), split=part, download=True)
        folder = Path(stored.root, stored.base_folder, "img_align_celeba")
        source = folder_images(
            folder,
            size=64,
            crop=REALNVP_CROP,
            files=[folder / file for file in stored.filename],
            image_shape=(3, 64, 64),
            name=f"celeba64-{part}",
        )
        parts.append(ImageDataset(*gather(source, root)))
    return parts[0], parts[1], parts[2]
