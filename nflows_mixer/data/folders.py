"""Images of a folder of files, resized and cropped where asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data import mapped
from nflows_mixer.data.npz_images import channels_first

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, at any depth, sorted; hidden ones are left out."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [each for each in folders if not each.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found)


def find_classes(files: Sequence[Path], folder: Path) -> list[str] | None:
    """Return the sorted names of the class folders, or None if these are no class folders.

    They are if each file lies in a folder of ``folder`` and there are two of those or more, as for
    torchvision's ImageFolder.
    """
    parents = {file.parent for file in files}
    if len(parents) < 2 or {parent.parent for parent in parents} != {folder}:
        return None
    return sorted(parent.name for parent in parents)


class FolderImages:
    """Image files, decoded chunk by chunk: grey if all of them are, else colours.

    Args:
        folder: where the files are, at any depth.
        size: the shorter side is resized to it (bilinear, antialiased) and the centre cropped;
            if None the images have to be of one size.
        crop: (left, top, right, bottom), before any resize.
        classes: names of class folders; the label of a file is the place of its folder's name.
            Found by ``find_classes`` if "find"; no labels if None.
        files: the files to read, instead of all in the folder.
        image_shape: (C, H, W) of what is read, where it is known: the files need not be looked
            at one by one beforehand.
        name: of the source; the folder's if None.

    Raises:
        ValueError: if the folder has no images, they are not of one size or not of 8 bits, a file
            is damaged, or lies in no class folder.
    """

    def __init__(
        self,
        folder: Path,
        size: int | None = None,
        crop: tuple[int, int, int, int] | None = None,
        classes: Sequence[str] | str | None = None,
        files: list[Path] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        name: str | None = None,
    ) -> None:
        if size is not None:
            check_positive("load_images", "size", size)
        self.folder = folder
        self.name = folder.name if name is None else name
        self._files = find_images(folder) if files is None else files
        if not self._files:
            raise mismatch(str(folder), "images of one size", "no images", "check the path")
        self._size, self._crop, self._given_shape = size, crop, image_shape
        self.classes = find_classes(self._files, folder) if classes == "find" else classes
        self._labels = None if self.classes is None else self._label_files(self.classes)

    def files(self) -> list[Path]:
        """The files, in their order."""
        return self._files

    def settings(self) -> str:
        """Resize, crop, shape and classes."""
        classes = None if self.classes is None else list(self.classes)
        return repr(("folder", self._size, self._crop, self._given_shape, classes))

    def nbytes(self) -> int:
        """The bytes of all decoded images."""
        return len(self._files) * int(np.prod(self.image_shape))

    def chunks(self) -> Iterator[mapped.Chunk]:
        """Images [n, C, H, W] and labels [n]."""
        from tqdm import tqdm

        shape = self.image_shape
        step = max(1, mapped.CHUNK_BYTES // int(np.prod(shape)))
        # Nothing is shown of what takes two seconds or less.
        with tqdm(total=len(self._files), desc=f"decoding {self.name}", delay=2) as progress:
            for start in range(0, len(self._files), step):
                part = self._files[start : start + step]
                images = channels_first(np.stack([self._decode(file, shape) for file in part]))
                labels = None if self._labels is None else self._labels[start : start + step]
                yield images, labels
                progress.update(len(part))

    def _label_files(self, classes: Sequence[str]) -> np.ndarray:
        places = {name: place for place, name in enumerate(classes)}
        for file in self._files:
            if file.parent.name not in places:
                expected = f"files in the class folders {list(classes)}"
                got = str(file.relative_to(self.folder))
                raise mismatch(str(self.folder), expected, got, "use the same classes in all parts")
        return np.array([places[file.parent.name] for file in self._files], dtype=np.int64)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), from the headers of all files where it was not given."""
        from tqdm import tqdm

        if self._given_shape is not None:
            return self._given_shape
        modes, sizes = set(), set()
        for file in tqdm(self._files, desc=f"opening {self.name}", delay=2):
            with _open(file) as picture:
                modes.add(picture.mode)
                sizes.add(picture.size)
        _check_depth(modes, self.folder)
        if self._size is None and len(sizes) != 1:
            raise mismatch(
                str(self.folder),
                "images of one size",
                f"{len(sizes)} of (width, height), such as {sorted(sizes)[:4]}",
                "pass size=... to resize them",
            )
        # Grey stays one channel; palettes, alpha and the like become colours.
        channels = 1 if modes <= {"1", "L"} else 3
        width, height = sizes.pop() if self._size is None else (self._size, self._size)
        return channels, height, width

    def _decode(self, file: Path, shape: tuple[int, int, int]) -> np.ndarray:
        """One image [H, W, C]."""
        channels, height, width = shape
        with _open(file) as picture:
            _check_depth({picture.mode}, file)
            try:
                converted = picture.convert("L" if channels == 1 else "RGB")
            except (OSError, SyntaxError) as error:  # PIL's for truncated and broken files.
                raise mismatch(str(file), "a whole image file", error, "remove it") from error
        if self._crop is not None:
            _, _, right, bottom = self._crop
            if right > converted.width or bottom > converted.height:
                expected = f"an image to crop at (left, top, right, bottom) {self._crop}"
                got = f"(width, height) {converted.size}"
                raise mismatch(str(file), expected, got, "use the images of the data set")
            converted = converted.crop(self._crop)
        if self._size is not None:
            converted = resize_and_crop(converted, self._size)
        array = np.asarray(converted).reshape(converted.height, converted.width, channels)
        if array.shape[:2] != (height, width):
            got = f"{array.shape[0]} x {array.shape[1]}"
            raise mismatch(str(file), f"an image of {height} x {width}", got, "check the folder")
        return array


def resize_and_crop(picture: Any, size: int) -> Any:
    """Resize the shorter side of a PIL image to ``size``, antialiased, and crop the centre.

    The same pixels as torchvision's Resize(size), bilinear, and CenterCrop(size).
    """
    from PIL import Image

    width, height = picture.size
    shorter = min(width, height)
    resized = int(size * width / shorter), int(size * height / shorter)
    if resized != picture.size:
        picture = picture.resize(resized, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in resized)
    return picture.crop((left, top, left + size, top + size))


def _open(file: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(file)
    except OSError as error:  # PIL's UnidentifiedImageError is one.
        raise mismatch(str(file), "an image file", error, "remove it") from error


def _check_depth(modes: set[str], owner: Path) -> None:
    if deep := sorted(mode for mode in modes if mode[0] in "IF"):
        raise mismatch(str(owner), "images of 8 bits", f"modes {deep}", "convert them")
