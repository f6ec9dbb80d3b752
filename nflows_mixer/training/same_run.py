"""Whether a run is the one that a folder holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from nflows_mixer.flows.weights import FAMILIES
from nflows_mixer.training.recipe import Recipe

UNREAD = {"name"}
"""Of a description, what only a report reads."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in what two descriptions of runs differ, each as a few words.

    What an older version did not write down yet was what is the default now.

    Args:
        before: of the run in the folder, from JSON.
        now: of the run that wants to go on with it, as JSON has it.

    Example:
        >>> differences({"seed": 1, "recipe": {}}, {"seed": 2, "recipe": {"flip": False}})
        ['seed: 1 there, 2 now']
    """
    family = now.get("family")
    # A family that is not written down is in the architecture.
    known: dict[str, Any] = {"family": family, "recipe": _defaults(Recipe)}
    if family in FAMILIES:
        known |= dict.fromkeys(("model", "architecture"), _defaults(FAMILIES[family].spec))
    return list(_differences("", before, now, known))


def _differences(
    name: str, before: Mapping[str, Any], now: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[str]:
    for key in sorted({*before, *now} - (set() if name else UNREAD)):
        there, here = before.get(key), now.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(f"{name}{key}.", there, here, known.get(key) or {})
        elif there != here and (key in before or key not in known or here != known[key]):
            yield f"{name}{key}: {there} there, {here} now"


def _defaults(kind: type) -> dict[str, Any]:
    """What the fields of a dataclass are where nobody says it, as JSON has them."""
    fields = dataclasses.fields(kind)
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(given, default=str))
