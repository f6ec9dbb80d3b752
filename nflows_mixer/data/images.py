"""Images from a name, a file or a folder, split into training and held-out parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from nflows_mixer._checks import mismatch

DOWNLOADS = {"cifar10": "CIFAR10", "mnist": "MNIST"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageData:
    """Images to train on and images held out.

    Args:
        name: what they are, for the report.
        train: uint8 [N, C, H, W].
        test: uint8 [M, C, H, W].
        levels: number of pixel values.

    Example:
        >>> images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> ImageData("blank", images, images, levels=17).image_shape
        (1, 8, 8)
    """

    name: str
    train: Tensor
    test: Tensor
    levels: int = 256

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width


def load_images(
    source: str | Path,
    seed: int = 0,
    held_out: float = 0.1,
    test: str | Path | None = None,
    root: str | Path = "data",
) -> ImageData:
    """Load images by name, from an .npz file, or from a folder of image files.

    Args:
        source: "digits" (scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 levels, no
            download), "cifar10" or "mnist" (torchvision downloads them to ``root``), a file .npz
            with an array ``images`` (uint8 [N, H, W] or [N, H, W, C]), or a folder with image
            files of one size, at any depth.
        seed: of the random split; the data sets with a test part of their own keep that.
        held_out: fraction held out where there is no test part; digits hold out 397.
        test: a second .npz file or folder, to be held out whole.
        root: where downloads are kept.

    Returns:
        The images.

    Raises:
        ValueError: if the source is unknown, or its images are no uint8 images of one size.

    Example:
        >>> data = load_images("digits")
        >>> data.train.shape, data.test.shape
        (torch.Size([1400, 1, 8, 8]), torch.Size([397, 1, 8, 8]))
    """
    if test is not None and source in ("digits", *DOWNLOADS):
        raise mismatch(
            "load_images", f"no test images beside {source!r}", test, "it has a held-out part"
        )
    if source in DOWNLOADS:
        train, held = (_torchvision(DOWNLOADS[source], root, train) for train in (True, False))
        return ImageData(str(source), train, held)
    if source == "digits":
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images.astype(np.uint8))[:, None]
        train, held = _split(images, 397, seed)
        return ImageData("digits", train, held, levels=17)
    images = _read(Path(source))
    if test is not None:
        held = _read(Path(test))
        if held.shape[1:] != images.shape[1:]:
            raise mismatch(
                str(test),
                f"images of {list(images.shape[1:])}",
                list(held.shape[1:]),
                "resize them",
            )
        return ImageData(Path(source).stem, images, held)
    if len(images) < 2:
        raise mismatch(str(source), "two images or more", len(images), "one has to be held out")
    train, held = _split(images, max(1, int(held_out * len(images))), seed)
    return ImageData(Path(source).stem, train, held)


def _torchvision(name: str, root: str | Path, train: bool) -> Tensor:
    from torchvision import datasets

    data = getattr(datasets, name)(root, train=train, download=True).data
    return _as_images(np.asarray(data), name)


def _read(path: Path) -> Tensor:
    if path.suffix == ".npz" and path.is_file():
        with np.load(path) as arrays:
            if "images" not in arrays:
                raise mismatch(str(path), "an array 'images'", arrays.files, "save it under that")
            return _as_images(arrays["images"], str(path))
    if path.is_dir():
        from PIL import Image

        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        modes = set()
        for file in files:
            with Image.open(file) as picture:
                modes.add(picture.mode)
        if deep := {mode for mode in modes if mode[0] in "IF"}:
            raise mismatch(str(path), "images of 8 bits", f"modes {sorted(deep)}", "convert them")
        # Grey stays one channel; palettes, alpha and the like become colours.
        mode = "L" if modes <= {"1", "L"} else "RGB"
        images = []
        for file in files:
            with Image.open(file) as picture:
                images.append(np.asarray(picture.convert(mode)))
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise mismatch(
                str(path), "images of one size", sorted(shapes) or "no images", "resize them first"
            )
        return _as_images(np.stack(images), str(path))
    raise mismatch(
        "load_images",
        f"'digits', {', '.join(map(repr, DOWNLOADS))}, an .npz file or a folder that exists",
        repr(str(path)),
        "check the path",
    )


def _as_images(array: np.ndarray, owner: str) -> Tensor:
    channels = {3: 1, 4: array.shape[-1] if array.ndim else 0}.get(array.ndim)
    if array.dtype != np.uint8 or channels not in (1, 3):
        raise mismatch(
            owner,
            "uint8 images [N, H, W] or [N, H, W, C], with 1 or 3 channels last",
            f"{array.dtype} {list(array.shape)}",
            "convert them",
        )
    images = array[..., None] if array.ndim == 3 else array
    return rearrange(torch.from_numpy(images), "n h w c -> n c h w").contiguous()


def _split(images: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[held_out:]], images[order[:held_out]]
