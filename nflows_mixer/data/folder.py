"""Images of a folder of files, resized and cropped where asked."""

from __future__ import annotations

import glob
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data import cache
from nflows_mixer.data.cache import Chunk, ImageFiles

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
ORIENTATION = 0x0112
"""The EXIF entry that says how an image is turned."""


FORMATS = {"PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB"}
"""PIL's names of what is in such files; an MPO is a JPEG file with further ones behind it."""
MODES = {"1": "grey", "L": "grey", "LA": "colour", "RGB": "colour", "P": "colour"}
MODES |= {"PA": "colour", "RGBA": "colour"}
"""PIL's modes of pixels that uint8 in one or three channels holds, where nothing is transparent."""


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, at any depth, sorted; hidden ones are left out.

    A warning says how many files there are of other formats that PIL knows.
    """
    from PIL import Image

    found = map(Path, glob.iglob(f"{glob.escape(str(folder))}/**/*", recursive=True))
    files = sorted(file for file in found if file.is_file())
    others = set(Image.registered_extensions()) - SUFFIXES
    if left := [file.name for file in files if file.suffix.lower() in others]:
        warnings.warn(
            f"{folder}: {len(left)} image files of other formats are left out, such as {left[0]}; "
            f"convert them to one of {', '.join(sorted(SUFFIXES))}",
            stacklevel=2,
        )
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def find_classes(files: Sequence[Path], folder: Path) -> list[str] | None:
    """Return the sorted names of the class folders, or None if these are no class folders.

    They are if each file lies in a folder of ``folder`` and there are two of those or more, as for
    torchvision's ImageFolder. A warning names a file that lies elsewhere beside two of them.
    """
    parents = {file.parent for file in files if file.parent.parent == folder}
    if len(parents) < 2:
        return None
    if strays := [file for file in files if file.parent not in parents]:
        warnings.warn(
            f"{folder}: {len(strays)} of {len(files)} files are in no class folder, such as "
            f"{strays[0].relative_to(folder)}, so that no image has a label",
            stacklevel=2,
        )
        return None
    return sorted(parent.name for parent in parents)


def folder_images(
    folder: Path,
    size: int | None = None,
    crop: tuple[int, int, int, int] | None = None,
    classes: Sequence[str] | str | None = None,
    files: list[Path] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    name: str | None = None,
) -> ImageFiles:
    """Return the images of files, grey if all of them are, else colours.

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

    Images that the camera's EXIF entry says to turn are turned.

    Raises:
        ValueError: if the folder has no images, they are not of one size, a file is damaged or
            lies in no class folder, or has more than is read: other than 8 bits, other colours
            than grey or RGB, transparency, several pictures.
    """
    if size is not None:
        check_positive("load_images", "size", size)
    files = find_images(folder) if files is None else files
    if not files:
        raise mismatch(str(folder), "images of one size", "no images", "check the path")
    classes = find_classes(files, folder) if classes == "find" else classes
    labels = None if classes is None else _labels(files, list(classes), folder)

    @lru_cache
    def shape() -> tuple[int, int, int]:
        return image_shape or _find_shape(files, size, folder)

    def chunks() -> Iterator[Chunk]:
        step = max(1, cache.CHUNK_BYTES // math.prod(shape()))
        for start in range(0, len(files), step):
            rows = slice(start, start + step)
            images = np.stack([_decode(file, shape(), size, crop) for file in files[rows]])
            yield images, None if labels is None else labels[rows]

    settings = ("folder", size, crop, image_shape, classes and list(classes))
    return ImageFiles(
        folder.name if name is None else name,
        files,
        repr(settings),
        lambda: len(files) * math.prod(shape()),
        chunks,
        classes,
    )


def _labels(files: list[Path], classes: list[str], folder: Path) -> np.ndarray:
    for file in files:
        if file.parent.name not in classes:
            expected, got = f"files in the class folders {classes}", str(file.relative_to(folder))
            raise mismatch(str(folder), expected, got, "use the same classes in all parts")
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places[file.parent.name] for file in files], dtype=np.int64)


def _find_shape(files: list[Path], size: int | None, folder: Path) -> tuple[int, int, int]:
    """(C, H, W), from the headers of all files."""
    from PIL import Image
    from tqdm import tqdm

    kinds, sizes = set(), set()
    for file in tqdm(files, desc=f"opening {folder.name}", delay=2):
        with _open(file) as picture:
            kinds.add(MODES[picture.mode])
            # Exactly PIL's own: that of PNG files would read all pixels for it.
            turned = Image.Image.getexif(picture).get(ORIENTATION, 1) in (5, 6, 7, 8)
            sizes.add(picture.size[::-1] if turned else picture.size)
    if size is None and len(sizes) != 1:
        raise mismatch(
            str(folder),
            "images of one size",
            f"{len(sizes)} of (width, height), such as {sorted(sizes)[:4]}",
            "pass size=... to resize them",
        )
    width, height = sizes.pop() if size is None else (size, size)
    # Grey stays one channel; palettes and the like become colours.
    return 1 if kinds == {"grey"} else 3, height, width


def _decode(
    file: Path,
    shape: tuple[int, int, int],
    size: int | None,
    crop: tuple[int, int, int, int] | None,
) -> np.ndarray:
    """One image [C, H, W]."""
    from PIL import ImageOps

    channels, height, width = shape
    with _open(file) as picture:
        try:
            whole = ImageOps.exif_transpose(picture)
            if "A" in whole.mode or "transparency" in whole.info:
                whole = whole.convert("RGBA")
                if (least := np.asarray(whole.getchannel("A")).min()) < 255:
                    raise _refused(file, "no transparency", f"an alpha of {least}")
            image = whole.convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError) as error:  # PIL's for truncated and broken files.
            raise mismatch(str(file), "a whole image file", error, "remove it") from error
    if crop is not None:
        if crop[2] > image.width or crop[3] > image.height:
            expected = f"an image to crop at (left, top, right, bottom) {crop}"
            got = f"(width, height) {image.size}"
            raise mismatch(str(file), expected, got, "use the images of the data set")
        image = image.crop(crop)
    if size is not None:
        from torchvision.transforms import functional

        image = functional.center_crop(functional.resize(image, size), size)
    if image.size != (width, height):
        got = f"{image.height} x {image.width}"
        raise mismatch(str(file), f"an image of {height} x {width}", got, "check the folder")
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _open(file: Path) -> Any:
    """Open a file whose pixels are read as they are, or raise: nothing is left out unseen."""
    from PIL import Image

    try:
        picture = Image.open(file)
    except OSError as error:  # PIL's UnidentifiedImageError is one.
        raise mismatch(str(file), "an image file", error, "remove it") from error
    mode = picture.mode
    # PIL reads 16 bits of grey alone; of colours it drops the lower 8 and says RGB.
    raw = str(picture.tile[0][3]) if picture.format == "PNG" and picture.tile else ""
    if ";16" in raw or mode[0] in "IF":
        bits = 16 if "16" in raw + mode else 32
        wanted, got = "images of 8 bits", f"{bits} bits (mode {raw or mode})"
    elif picture.format not in FORMATS:
        wanted, got = f"one of {', '.join(sorted(FORMATS))}", f"{picture.format} inside"
    elif mode not in MODES:
        wanted, got = "grey or RGB", f"mode {mode}"
    elif picture.format != "MPO" and (count := getattr(picture, "n_frames", 1)) > 1:
        wanted, got = "one picture", f"an animation of {count}"
    else:
        return picture
    picture.close()
    raise _refused(file, wanted, got)


def _refused(file: Path, expected: str, got: str) -> ValueError:
    advice = "convert it, choosing yourself what is lost"
    return mismatch(str(file), expected, got, advice)
