"""Pickles of arrays, read without running the code that they name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from nflows_mixer._checks import mismatch


def _latin1(text: str, encoding: str) -> bytes:
    """The bytes of an array, which protocol 2 writes as text; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


# What a pickled array of numbers calls, under the module names of numpy 1 and numpy 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in [
            ("multiarray", "_reconstruct", np.empty(0).__reduce__()[0]),
            ("multiarray", "scalar", np.float64(0).__reduce__()[0]),
            ("numeric", "_frombuffer", np.empty(1).__reduce_ex__(5)[0]),
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
    except Exception as error:  # A damaged pickle can raise anything.
        got = f"{type(error).__name__}: {error}"
        raise mismatch(str(path), "a pickle of plain arrays", got, advice) from error
    if not isinstance(read, dict):
        raise mismatch(str(path), "a pickled dictionary", type(read).__name__, advice)
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in read.items()}
