"""Images in memory, or in a file mapped into it where they are too many."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

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


@dataclass(frozen=True)
class ImageFiles:
    """Images that can be read chunk by chunk.

    Args:
        name: what they are called.
        files: those that are read.
        settings: what decides the pixels beside the files, such as a resize.
        nbytes: returns the bytes of all images, or about that.
        chunks: gives uint8 [n, C, H, W] and labels [n], or None, in a fixed order, about
            ``CHUNK_BYTES`` at a time.
        classes: names of the classes, where they are known.
    """

    name: str
    files: Sequence[Path]
    settings: str
    nbytes: Callable[[], int]
    chunks: Callable[[], Iterator[Chunk]]
    classes: Sequence[str] | None = None


def gather(source: ImageFiles, root: Path) -> tuple[Tensor | Path, Tensor | None]:
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
    if not _complete(target):
        if source.nbytes() <= MAPPED_BYTES:
            images, labels = zip(*_read(source))
            return torch.from_numpy(np.concatenate(images)), _as_tensor(_join(labels))
        _write(source, target)
    return target, _as_tensor(np.load(_labels_file(target), allow_pickle=False))


def fingerprint(source: ImageFiles) -> str:
    """Return 16 hexadecimal digits that change with a source: its files, what is done to them."""
    digest = hashlib.sha256(f"{CACHE_FORMAT}\n{source.settings}\n".encode())
    for file in source.files:
        status = file.stat()
        entry = f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(os.fsencode(entry))
    return digest.hexdigest()[:16]


def contents_hash(images: Tensor, file: Path | None = None) -> str:
    """Return the SHA-256 of images [N, C, H, W] and of their shape, in hexadecimal digits.

    Args:
        images: what is hashed.
        file: that they are mapped from, beside which ``gather`` has written the hash.
    """
    if file is not None and (written := _hash_file(file)).exists():
        known, *state = written.read_text().split()
        if state == _state(file):
            return known
    digest = hashlib.sha256(images.contiguous().numpy().data)
    return _with_shape(digest, images.shape)


def _with_shape(digest: Any, shape: Sequence[int]) -> str:
    digest.update(repr(tuple(shape)).encode())
    return digest.hexdigest()


def map_images(file: Path) -> Tensor:
    """Return the array of a .npy file as a tensor of which only what is used is read.

    It must not be written to: the file is mapped for reading. (A private, writable mapping counts
    as memory of the process, and Linux refuses one larger than the machine's memory.)
    """
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.asarray(array))


def _labels_file(target: Path) -> Path:
    return target.with_suffix(".labels.npy")


def _hash_file(target: Path) -> Path:
    return target.with_suffix(".sha256")


def _state(file: Path) -> list[str]:
    """By which a file is known to be the one whose hash was written: other files are hashed."""
    status = file.stat()
    return [str(status.st_size), str(status.st_mtime_ns)]


def _complete(target: Path) -> bool:
    """Whether all three files are there, and the images as long as their header says."""
    try:
        beside = _labels_file(target).exists() and _hash_file(target).exists()
        return beside and map_images(target).dim() == 4
    except (ValueError, OSError, EOFError):
        return False


def _read(source: ImageFiles) -> Iterator[Chunk]:
    from tqdm import tqdm

    count = 0
    # Nothing is shown of what takes two seconds or less.
    total, title = source.nbytes(), f"reading {source.name}"
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, delay=2) as progress:
        for images, labels in source.chunks():
            count += len(images)
            progress.update(images.nbytes)
            yield images, labels
    if not count:
        raise mismatch(source.name, "one image or more", "none", "check the path")


def _write(source: ImageFiles, target: Path) -> None:
    """Write images, labels and hash, and name the images last: where they are, all are."""
    target.parent.mkdir(parents=True, exist_ok=True)
    labels: list[np.ndarray | None] = []
    # In a folder beside the target, thus on one file system, where replacing is atomic.
    with tempfile.TemporaryDirectory(dir=target.parent, suffix=".partial") as folder:
        partial = Path(folder, "whole.npy")
        with partial.open("wb") as file:
            shape, count, digest = (), 0, hashlib.sha256()
            for images, of_images in _read(source):
                if not count:
                    shape = images.shape[1:]
                    _write_header(file, (0, *shape))
                content = np.ascontiguousarray(images).data
                file.write(content)
                digest.update(content)
                labels.append(of_images)
                count += len(images)
            # numpy leaves room in the header for the first axis to grow: the length stays.
            file.seek(0)
            _write_header(file, (count, *shape))
            file.flush()
            os.fsync(file.fileno())
        with _labels_file(partial).open("wb") as file:
            np.save(file, _join(labels))
            os.fsync(file.fileno())
        with _hash_file(partial).open("w") as file_of_hash:
            file_of_hash.write(" ".join([_with_shape(digest, (count, *shape)), *_state(partial)]))
            file_of_hash.flush()
            os.fsync(file_of_hash.fileno())
        os.replace(_hash_file(partial), _hash_file(target))
        os.replace(_labels_file(partial), _labels_file(target))
        os.replace(partial, target)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _join(labels: Sequence[np.ndarray | None]) -> np.ndarray:
    """All labels; an empty array where there are none, so that labels that were lost are seen."""
    return np.concatenate([np.empty(0, np.int64), *(each for each in labels if each is not None)])


def _as_tensor(labels: np.ndarray) -> Tensor | None:
    return torch.from_numpy(labels) if len(labels) else None
