"""Arrays out of .npz files, in chunks of rows, and out of pickles, without running their code."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from nflows_mixer._checks import mismatch

# What a pickled array of numbers calls, under the module names of numpy 1 and numpy 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """The bytes of an array, which protocol 2 writes as text; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", function): value
        for core in ("core", "_core")
        for module, function, value in [
            ("multiarray", "_reconstruct", _RECONSTRUCT),
            ("multiarray", "scalar", _SCALAR),
            ("numeric", "_frombuffer", _FROM_BUFFER),
        ]
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows nothing but numpy's arrays, numbers and dtypes."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what arrays need; refuse everything else."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, lists and numbers, from Python 2 or 3.

    Nothing that the file names is imported or called, but what builds numpy's arrays.

    Args:
        path: the file.

    Returns:
        The dictionary; keys that are bytes become str.

    Raises:
        ValueError: if the file asks for anything else, is damaged or holds no dictionary.
    """
    advice = "use a file from the makers of the data set, whole"
    try:
        with path.open("rb") as file:
            # Python 2 wrote the bytes of arrays as str: latin1 keeps them.
            read = _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise mismatch(str(path), "a pickle of plain arrays", error, advice) from error
    except Exception as error:  # A damaged pickle can raise anything.
        got = f"{type(error).__name__}: {error}"
        raise mismatch(str(path), "a pickle of plain arrays", got, advice) from error
    if not isinstance(read, dict):
        raise mismatch(str(path), "a pickled dictionary", type(read).__name__, advice)
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in read.items()}


@contextmanager
def _member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
    """An array of an .npz file, open after its header: file, shape, whether by columns, dtype."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [each.removesuffix(".npy") for each in archive.namelist()]
            if name not in arrays:
                raise mismatch(str(path), f"an array {name!r}", arrays, "save it under that name")
            with archive.open(f"{name}.npy") as file:
                header = _read_header(file, path)
                if header[2].hasobject:
                    raise mismatch(
                        str(path), f"numbers in {name!r}", "Python objects", "save an array"
                    )
                yield file, *header
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise mismatch(str(path), "a whole .npz file", error, "write it again") from error


def _read_header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        raise mismatch(str(path), "arrays of numpy", error, "write it with np.savez") from error


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays of an .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise mismatch(str(path), "a whole .npz file", error, "write it again") from error


def npz_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of an array of an .npz file, without reading it."""
    with _member(path, name) as (_, shape, _, dtype):
        return shape, dtype


def npz_chunks(path: Path, name: str, chunk_bytes: int) -> Iterator[np.ndarray]:
    """Read an array of an .npz file in chunks of rows.

    Args:
        path: the file.
        name: of the array in it.
        chunk_bytes: about how much is in memory at once; an array stored by columns is read whole.

    Yields:
        Some rows, in their order.

    Raises:
        ValueError: if the file has no such array, is damaged, or the array holds Python objects.
    """
    with _member(path, name) as (file, shape, by_columns, dtype):
        if by_columns:
            count = int(np.prod(shape))
            array = np.frombuffer(_read(file, count * dtype.itemsize, path), dtype)
            yield array.reshape(shape, order="F")
            return
        row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        step = max(1, chunk_bytes // max(row_bytes, 1))
        for start in range(0, shape[0], step):
            rows = min(step, shape[0] - start)
            data = _read(file, rows * row_bytes, path)
            yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])


def _read(file: IO[bytes], size: int, path: Path) -> bytearray:
    data = bytearray(file.read(size))
    if len(data) != size:
        got = f"{len(data)} more"
        raise mismatch(str(path), f"{size} bytes of an array", got, "write the file again")
    return data
