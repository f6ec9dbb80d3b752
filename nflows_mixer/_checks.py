"""Errors at the boundary: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

ROWS_ADVICE = "put it into a ChannelMixingTransform or PatchMixingTransform to map a matrix"


def mismatch(owner: str, expected: object, got: object, advice: str) -> ValueError:
    """Return (not raise) the error that every check of this package raises."""
    return ValueError(f"{owner}: expected {expected}, got {got}; {advice}")


def wrong_event(inputs: Tensor, event_shape: Sequence[int], owner: str, advice: str) -> ValueError:
    """Return (not raise) the error of inputs that are not [B, *event_shape]."""
    expected = ", ".join(["B", *map(str, event_shape)])
    return mismatch(owner, f"inputs of shape [{expected}]", list(inputs.shape), advice)


def check_event(inputs: Tensor, event_shape: Sequence[int], owner: str, advice: str) -> None:
    """Raise unless ``inputs`` is [B, *event_shape]."""
    if tuple(inputs.shape[1:]) != tuple(event_shape):
        raise wrong_event(inputs, event_shape, owner, advice)


def check_channels(inputs: Tensor, channels: int, owner: str) -> None:
    """Raise unless ``inputs`` are images [B, channels, H, W]."""
    if inputs.dim() != 4 or inputs.shape[1] != channels:
        expected = f"images of shape [B, {channels}, H, W]"
        raise mismatch(owner, expected, list(inputs.shape), "build it for this number of channels")


def check_outputs(outputs: Tensor, shape: Sequence[int], owner: str, what: str) -> None:
    """Raise unless a network gives outputs of this shape.

    One that broadcasts would be a right map with a wrong log-det.
    """
    if tuple(outputs.shape) != tuple(shape):
        expected, advice = f"{what} of shape {list(shape)}", "give the network this many outputs"
        raise mismatch(owner, expected, list(outputs.shape), f"{advice}, or pass a factory of it")


def check_context(context: Tensor, batch: int, owner: str) -> None:
    """Raise unless ``context`` is one row of features per image, [B, F]."""
    if context.dim() != 2 or context.shape[0] != batch:
        raise mismatch(
            owner,
            f"context of shape [{batch}, F], one row per image",
            list(context.shape),
            "encode labels (one-hot, an embedding) to one feature vector per image",
        )


def check_choice(owner: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise mismatch(owner, f"{name} to be one of {listed}", repr(value), "choose one of these")


def check_positive(owner: str, name: str, value: object) -> int:
    """Return ``value`` as a positive integer of Python, or raise."""
    number = as_python(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise mismatch(owner, f"{name} to be a positive integer", repr(value), "give 1 or more")
    return number


def check_sizes(owner: str, **sizes: object) -> tuple[int, ...]:
    """Return all of these as positive integers of Python, or raise."""
    return tuple(check_positive(owner, name, size) for name, size in sizes.items())


def as_python(value: Any) -> Any:
    """Return numbers and sizes of numpy and torch as Python's, also in lists and mappings."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {as_python(name): as_python(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(as_python, value))
    if type(value).__module__ == "numpy" or isinstance(value, Tensor):
        return as_python(value.tolist())
    return value


def libraries_of(thing: object) -> set[str]:
    """Return the names of the packages that the classes of ``thing`` are from."""
    return {kind.__module__.split(".")[0] for kind in type(thing).__mro__}


def check_levels(owner: str, levels: object) -> int:
    """Return ``levels`` as a number of pixel values that uint8 can hold, or raise."""
    number = as_python(levels)
    if not isinstance(number, int) or not 2 <= number <= 256:
        raise mismatch(owner, "2 to 256 levels", levels, "pass 2 ** bits, or 17 for digits")
    return number


def check_image_shape(image_shape: Sequence[int], owner: str) -> tuple[int, int, int]:
    """Return ``image_shape`` as (C, H, W), or raise."""
    shape: tuple[Any, ...] = as_python(tuple(image_shape))
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise mismatch(
            owner, "image_shape (channels, height, width)", image_shape, "give three sizes above 0"
        )
    return shape


def as_pair(size: int | Sequence[int], owner: str, name: str) -> tuple[int, int]:
    """Return ``size`` as (height, width), or raise."""
    known = as_python(size)
    pair = tuple(known) if isinstance(known, Sequence) else (known, known)
    if len(pair) != 2 or not all(isinstance(n, int) for n in pair):
        raise mismatch(owner, f"{name} as an integer or (height, width)", size, "give one of these")
    return pair


def as_size(shape: int | Sequence[int]) -> torch.Size:
    """An event shape; a length is that of rows."""
    known = as_python(shape)
    return torch.Size((known,) if isinstance(known, int) else known)
