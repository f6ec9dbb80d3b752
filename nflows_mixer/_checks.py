"""Errors at the boundary: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

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


def check_positive(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a positive integer."""
    if not isinstance(value, (int, Integral)) or isinstance(value, bool) or int(value) < 1:
        raise mismatch(owner, f"{name} to be a positive integer", repr(value), "give 1 or more")


def check_sizes(owner: str, **sizes: object) -> None:
    """Raise unless all of these are positive integers."""
    for name, size in sizes.items():
        check_positive(owner, name, size)


def as_python(value: Any) -> Any:
    """Return numbers and sizes of numpy as Python's, also in lists, tuples and mappings."""
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
    if type(value).__module__ == "numpy":
        return as_python(value.tolist())
    return value


def libraries_of(thing: object) -> set[str]:
    """Return the names of the packages that the classes of ``thing`` are from."""
    return {kind.__module__.split(".")[0] for kind in type(thing).__mro__}


def check_levels(owner: str, levels: object) -> None:
    """Raise unless ``levels`` is a number of pixel values that uint8 can hold."""
    if not isinstance(levels, (int, Integral)) or not 2 <= int(levels) <= 256:
        raise mismatch(owner, "2 to 256 levels", levels, "pass 2 ** bits, or 17 for digits")


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
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, (int, Integral)) for n in pair):
        raise mismatch(owner, f"{name} as an integer or (height, width)", size, "give one of these")
    return int(pair[0]), int(pair[1])
