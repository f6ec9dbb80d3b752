"""Names of files of results, of which each setting has its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LONGEST = 200
"""Letters of a name; file systems end at 255."""


def path_of(kind: str, command: Callable[..., Any], given: Mapping[str, Any]) -> Path:
    """Return where results are written: KIND-DEVICE.json, and what of the setting is not usual.

    So that no measurement is written over one of another setting.

    Args:
        kind: first part of the name, a key of ``tables.KINDS``.
        command: whose defaults are the usual setting; its ``out`` is the folder.
        given: the arguments that it got, by name.
    """
    name = f"{kind}-{given['device']}"
    for key, parameter in inspect.signature(command).parameters.items():
        if key not in ("device", "out") and given[key] != parameter.default:
            name += "-" + "-".join(re.findall(r"[a-z0-9.]+", f"{key} {given[key]}".lower()))
    return Path(given["out"], f"{name[:LONGEST]}.json")
