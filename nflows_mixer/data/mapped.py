"""Images in memory, or in a file mapped into it where they are too many."""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, Union

import numpy as np
import torch
from torch import Tensor

from nflows_mixer._checks import mismatch

# Image sets of more bytes than this are written to a file once, and mapped.
MAPPED_BYTES = 2**30
# How much of an image set is in memory at once while it is written.
CHUNK_BYTES = 2**24
# Part of every fingerprint: a change of what the files hold has to change their names.
CACHE_FORMAT = "1"

Chunk = tuple[np.ndarray, Union[np.ndarray, None]]


class ImageSource(Protocol):
    """Images that can be read chunk by chunk, from files that can be told apart."""

    name: str

    def files(self) -> list[Path]:
        """The files that are read."""

    def settings(self) -> str:
        """What decides the pixels beside the files, such as a resize."""

    def nbytes(self) -> int:
        """The bytes of all images, or about that."""

    def chunks(self) -> Iterator[Chunk]:
        """Images uint8 [n, C, H, W] and their labels [n], or None, in a fixed order."""


def gather(source: ImageSource, root: Path) -> tuple[Tensor | Path, Tensor | None]:
    """Read a source into memory, or into a file under ``root/cache`` if it is large.

    The file is written once: its name holds a fingerprint of the source, of the paths, sizes and
    times of its files and of what is done to them. It takes its name when it is complete.

    Args:
        source: what to read.
        root: where the folder ``cache`` is kept.

    Returns:
        The images uint8 [N, C, H, W], or the .npy file that holds them; and the labels, or None.

    Raises:
        ValueError: if the source has no images, or as reading it does.
    """
    target = root / "cache" / f"{source.name}-{fingerprint(source)}.npy"
    if _complete(target):
        return target, _read_labels(target)
    if source.nbytes() > MAPPED_BYTES:
        _write(source, target)
        return target, _read_labels(target)
    chunks = list(source.chunks())
    if not chunks:
        raise mismatch(source.name, "one image or more", "none", "check the path")
    images = torch.from_numpy(np.concatenate([images for images, _ in chunks]))
    labels = _join([labels for _, labels in chunks])
    return images, None if labels is None else torch.from_numpy(labels)


def fingerprint(source: ImageSource) -> str:
    """Return 16 hexadecimal digits that change with a source: its files, what is done to them."""
    digest = hashlib.sha256(f"{CACHE_FORMAT}\n{source.settings()}\n".encode())
    for file in source.files():
        status = file.stat()
        entry = f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(os.fsencode(entry))
    return digest.hexdigest()[:16]


def map_images(file: Path) -> Tensor:
    """Return the array of a .npy file as a tensor of which only what is used is read.

    It must not be written to: the file is mapped for reading. (A private, writable mapping counts
    as memory of the process, and Linux refuses one larger than the machine's memory.)
    """
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.asarray(array))


def _complete(target: Path) -> bool:
    """Whether images and labels are there, and the images as long as their header says."""
    if not target.exists() or not _labels_file(target).exists():
        return False
    try:
        images = map_images(target)
        return images.dim() == 4 and images.dtype == torch.uint8
    except (ValueError, OSError, EOFError):
        return False


def _labels_file(target: Path) -> Path:
    return target.with_suffix(".labels.npy")


def _read_labels(target: Path) -> Tensor | None:
    labels = np.load(_labels_file(target), allow_pickle=False)
    return torch.from_numpy(labels) if len(labels) else None


def _write(source: ImageSource, target: Path) -> None:
    """Write the images, and the labels before them: where there are images, both are whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    labels: list[np.ndarray | None] = []
    with _Partial(target) as file:
        start, shape, count = file.tell(), (), 0
        for images, of_images in source.chunks():
            if not count:
                shape = images.shape[1:]
                _write_header(file, (0, *shape))
            file.write(np.ascontiguousarray(images).data)
            labels.append(of_images)
            count += len(images)
        if not count:
            raise mismatch(source.name, "one image or more", "none", "check the path")
        # numpy leaves room in the header for the first axis to grow: the length stays.
        file.seek(start)
        _write_header(file, (count, *shape))
        joined = _join(labels)
        with _Partial(_labels_file(target)) as labels_file:
            # Without labels an empty array, so that labels that were lost are noticed.
            np.save(labels_file, np.empty(0, np.int64) if joined is None else joined)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _join(labels: list[np.ndarray | None]) -> np.ndarray | None:
    given = [each for each in labels if each is not None]
    return np.concatenate(given).astype(np.int64) if len(given) == len(labels) else None


class _Partial:
    """A file under a temporary name, which takes its own when everything has been written.

    Both names are in one folder, thus on one file system, where replacing is atomic.
    """

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> BinaryIO:
        # A name of its own: two processes may write the same images at once.
        name = f"{self.target.name}.{uuid.uuid4().hex}.partial"
        self.partial = self.target.with_name(name)
        self.file = self.partial.open("xb")
        return self.file

    def __exit__(self, kind: object, *rest: object) -> None:
        with self.file:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
        if kind is None:
            os.replace(self.partial, self.target)
        else:
            self.partial.unlink()
