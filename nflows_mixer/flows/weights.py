"""Weights of a flow as a file: safetensors, with the architecture in its metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nflows_mixer import __version__
from nflows_mixer._checks import mismatch
from nflows_mixer._files import replace_file
from nflows_mixer.core.factory import UNSET
from nflows_mixer.flows.architecture import ADVICE, decoded, encoded
from nflows_mixer.flows.denseflow import DenseFlowSpec, build_denseflow
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.jet import JetSpec, build_jet
from nflows_mixer.flows.mixer_layers import build_mixerflow
from nflows_mixer.flows.mixerflow_spec import MixerFlowSpec
from nflows_mixer.flows.tarflow import TarFlowSpec, build_tarflow

BUILDERS: dict[str, tuple[type, Callable[[Any, bool, str], ImageFlow]]] = {
    "mixerflow": (MixerFlowSpec, build_mixerflow),
    "denseflow": (DenseFlowSpec, build_denseflow),
    "tarflow": (TarFlowSpec, build_tarflow),
    "jet": (JetSpec, build_jet),
}
"""By the name under which a file keeps the architecture."""
LAYOUT = "2"
"""Of the names of parameters and of the metadata; those of before have none."""


def save_weights(
    flow: ImageFlow, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights of a flow, and what it is made of, to a safetensors file.

    The file appears whole or not at all: it is written beside its place and renamed. What the flow
    is made of is data: numbers, and names of classes and functions of this package, nflows and
    zuko. Of a flow with parts of your own it has the weights alone.

    Args:
        flow: its parameters and buffers are written, ActNorm's state among them.
        path: file to write, usually ``*.safetensors``.
        metadata: more of it, such as the data set and its split.

    Raises:
        ImportError: if safetensors is not installed (it comes with the extra ``train``).

    Example:
        >>> import tempfile
        >>> from nflows_mixer import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> save_weights(flow, path, {"data": "noise"})
        >>> load_weights(path).architecture == flow.architecture, read_metadata(path)["data"]
        (True, 'noise')
    """
    facts = {"nflows_mixer": __version__, "layout": LAYOUT, **(metadata or {})}
    if flow.architecture is not None and (arguments := flow.architecture.as_data()) is not None:
        facts |= {"builder": flow.architecture.builder, "architecture": json.dumps(arguments)}
    save_state(flow, path, facts)


def save_state(
    module: nn.Module, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write parameters and buffers of any network to a safetensors file, whole or not at all.

    Args:
        module: what has the state.
        path: file to write.
        metadata: strings that are kept in it.

    Errors as ``save_weights``.

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
            what a builder of this package made of parts of this package, nflows and zuko. A file
            never chooses what else is imported or called.

    Returns:
        The flow, on the CPU where it was built here.

    Raises:
        ValueError: if the file is no whole safetensors file, is of an older layout, does not say
            what the flow is made of in names of ``ROOMS`` and none is given, or is of another flow.
        ImportError: as ``save_weights``, whose example reads what it wrote.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    if "nflows_mixer" in metadata and metadata.get("layout") != LAYOUT:
        got = f"one of nflows-mixer {metadata['nflows_mixer']}, before that layout"
        advice = "read it with that version, or train again"
        raise mismatch(str(path), f"a file of layout {LAYOUT}", got, advice)
    builder = metadata.get("builder")
    saved: dict[str, Any] = {}
    if builder is not None:
        text = metadata.get("architecture", "")
        try:
            saved = json.loads(text)
        except json.JSONDecodeError:
            saved = {}
        if not (isinstance(saved, dict) and saved) or builder not in BUILDERS:
            raise mismatch(str(path), f"arguments of {' or '.join(BUILDERS)}", repr(text), ADVICE)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise _broken(path, error) from None
    if flow is None:
        if builder is None:
            raise mismatch(str(path), "the architecture in its metadata", "none", ADVICE)
        spec, build = BUILDERS[builder]
        try:
            known = {name: decoded(value, str(path)) for name, value in saved.items()}
            flow = build(spec(**known), False, "full")
        except TypeError as error:
            raise mismatch(str(path), f"arguments of {builder}", f"{error}", ADVICE) from error
        flow.to(next(value.dtype for value in state.values() if value.is_floating_point()))
    check_state(flow.state_dict(), state, str(path))
    own = None if flow.architecture is None else flow.architecture.as_data()
    if own is not None and builder is not None:
        # What an older version did not write down yet was what is the default now.
        fields = {field.name: field.default for field in dataclasses.fields(BUILDERS[builder][0])}
        unwritten = (dataclasses.MISSING, UNSET)
        defaults = {name: encoded(v) for name, v in fields.items() if v not in unwritten}
        there, here = ({**defaults, **known} for known in (saved, own))
        if differing := [name for name in here if here[name] != there.get(name)]:
            of_each = (f"{name}: {there.get(name)} there, {here[name]} here" for name in differing)
            raise mismatch(
                str(path),
                "the weights of this flow",
                f"those of another that has as many: {', '.join(of_each)}",
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
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise mismatch(str(path), "a safetensors file", "none of that name", "check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _broken(path, error) from None


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
