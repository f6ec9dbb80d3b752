"""Weights of a flow as a file: safetensors, with the architecture in its metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from nflows_mixer import __version__
from nflows_mixer._checks import mismatch
from nflows_mixer._files import replace_file
from nflows_mixer.flows.architecture import MixerFlowArchitecture
from nflows_mixer.flows.denseflow import denseflow
from nflows_mixer.flows.denseflow_architecture import DenseFlowArchitecture
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow import mixerflow


class Family(NamedTuple):
    """Flows that one function builds, of what one class says."""

    build: Callable[..., ImageFlow]
    architecture: type[MixerFlowArchitecture] | type[DenseFlowArchitecture]


FAMILIES = {
    "mixerflow": Family(mixerflow, MixerFlowArchitecture),
    "denseflow": Family(denseflow, DenseFlowArchitecture),
}
"""By the name under which a file keeps the architecture."""
ADVICE = "pass the flow whose weights these are: load_weights(path, flow)"


def save_weights(
    flow: ImageFlow, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights of a flow, and what it is made of, to a safetensors file.

    The file appears whole or not at all: it is written beside its place and renamed. No code is
    stored in it.

    Args:
        flow: its parameters and buffers are written, ActNorm's state among them.
        path: file to write, usually ``*.safetensors``.
        metadata: more of it, such as the data set and its split.

    Raises:
        ImportError: if safetensors is not installed (it comes with the extra ``train``).

    Example:
        >>> import tempfile
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> save_weights(flow, path)
        >>> load_weights(path).architecture == flow.architecture
        True
    """
    facts = {"nflows_mixer": __version__, **(metadata or {})}
    architecture, family = architecture_of(flow), family_of(flow)
    if architecture is not None and family is not None:
        facts[family] = json.dumps(architecture)
    save_state(flow, path, facts)


def save_state(
    module: nn.Module, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write parameters and buffers of any network to a safetensors file, whole or not at all.

    Args:
        module: what has the state.
        path: file to write.
        metadata: strings that are kept in it.

    Raises:
        ImportError: if safetensors is not installed (it comes with the extra ``train``).

    Example:
        >>> import tempfile
        >>> save_state(nn.Linear(2, 3), Path(tempfile.mkdtemp()) / "head.safetensors")
    """
    from safetensors.torch import save

    # Parts that are shared appear under each of their names.
    state = {name: value.clone().contiguous() for name, value in module.state_dict().items()}
    replace_file(Path(path), save(state, metadata=dict(metadata or {})))


def load_weights(path: str | os.PathLike, flow: ImageFlow | None = None) -> ImageFlow:
    """Read the weights of a flow from a safetensors file.

    Args:
        path: file that ``save_weights`` wrote.
        flow: takes the weights; built from the file's metadata where None, which can be done for
            what ``mixerflow`` or ``denseflow`` built from names and numbers alone.

    Returns:
        The flow, on the CPU where it was built here.

    Raises:
        ValueError: if the file is no whole safetensors file, does not say what the flow is made
            of and none is given, or is of another flow.
        ImportError: if safetensors is not installed (it comes with the extra ``train``).

    Example:
        >>> import tempfile
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> save_weights(flow, path, {"data": "noise"})
        >>> read_metadata(path)["data"]
        'noise'
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    family = family_in(metadata)
    arguments = {} if family is None else _tuples(json.loads(metadata[family]))
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise _broken(path, error) from None
    if flow is None:
        if family is None:
            raise mismatch(str(path), "the architecture in its metadata", "none", ADVICE)
        flow = FAMILIES[family].build(**arguments)
        flow.to(next(value.dtype for value in state.values() if value.is_floating_point()))
    check_state(flow.state_dict(), state, str(path))
    own = architecture_of(flow)
    saved = None if family is None else _as_json(FAMILIES[family].architecture(**arguments))
    if own is not None and saved is not None and own != saved:
        differing = ", ".join(
            f"{name}: {saved.get(name)} there, {own[name]} here"
            for name in own
            if own[name] != saved.get(name)
        )
        raise mismatch(
            str(path),
            "the weights of this flow",
            f"those of another that has as many: {differing}",
            "build the flow as it was when they were saved",
        )
    flow.load_state_dict(state)
    return flow


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return what ``save_weights`` wrote beside the weights, without reading them.

    Args:
        path: safetensors file.

    Raises:
        ValueError: if it is no safetensors file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> save_weights(mixerflow(image_shape=(1, 4, 4), patch_size=2, shift=None), path)
        >>> sorted(read_metadata(path))
        ['mixerflow', 'nflows_mixer']
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise mismatch(str(path), "a safetensors file", "none of that name", "check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _broken(path, error) from None


def family_of(flow: ImageFlow) -> str | None:
    """Return the name of the function that built the flow, or None if it was put together by hand.

    Args:
        flow: any.

    Example:
        >>> family_of(mixerflow("mnist"))
        'mixerflow'
    """
    known = (
        name for name, kind in FAMILIES.items() if type(flow.architecture) is kind.architecture
    )
    return next(known, None)


def family_in(metadata: Mapping[str, str]) -> str | None:
    """Return which function builds the flow of a file, or None if the file does not say.

    Args:
        metadata: what ``read_metadata`` returned.

    Example:
        >>> family_in({"data": "cifar10", "denseflow": "{}"})
        'denseflow'
    """
    return next((name for name in FAMILIES if name in metadata), None)


def architecture_of(flow: ImageFlow) -> dict[str, Any] | None:
    """Return the arguments that build the flow, as JSON has them; None if they are not only data.

    Args:
        flow: what ``mixerflow`` or ``denseflow`` built, or any other flow.

    Example:
        >>> architecture_of(mixerflow("mnist"))["patch_size"]
        4
    """
    return None if flow.architecture is None else _as_json(flow.architecture)


def _as_json(architecture: MixerFlowArchitecture | DenseFlowArchitecture) -> dict[str, Any] | None:
    fields = dataclasses.fields(architecture)
    try:
        return json.loads(json.dumps({f.name: getattr(architecture, f.name) for f in fields}))
    except TypeError:  # a factory or a distribution
        return None


def check_state(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], owner: str) -> None:
    """Raise unless ``got`` has the names and shapes of ``expected``.

    Args:
        expected: state of the flow that is to take it.
        got: state from a file.
        owner: name of that file, for the error.

    Example:
        >>> import torch
        >>> check_state({"a": torch.zeros(2)}, {"a": torch.ones(2)}, "file")
    """
    problems = [f"no {name}" for name in expected if name not in got]
    problems += [f"an unknown {name}" for name in got if name not in expected]
    problems += [
        f"{name} of shape {list(got[name].shape)} and not {list(expected[name].shape)}"
        for name in expected
        if name in got and got[name].shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise mismatch(
            owner,
            "the weights of this flow",
            "those of another: " + ", ".join(problems[:3]) + more,
            "build the flow as it was when they were saved",
        )


def _broken(path: str | os.PathLike, error: Exception) -> ValueError:
    return mismatch(
        str(path), "a whole safetensors file", f"{error}", "copy it again, or take an older one"
    )


def _tuples(value: Any) -> Any:
    """JSON has lists where an architecture has tuples; compared, the two differ."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {key: _tuples(v) for key, v in value.items()} if isinstance(value, dict) else value
