"""What the command line knows of each family of flows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer.flows import DENSEFLOW_PRESETS, MIXERFLOW_PRESETS
from nflows_mixer.flows.weights import FAMILIES
from nflows_mixer.nn import FusedConditioner

SMALL_RECIPE = {"learning_rate": 3e-3, "steps": 1000, "batch_size": 100, "warmup": 0.05}


@dataclass(frozen=True)
class Defaults:
    """What is trained where neither a preset nor an argument says more.

    Args:
        name: of the family, for reports.
        presets: of the family.
        small: arguments of a small flow.
        recipe: of the small flow.
    """

    name: str
    presets: Mapping[str, Any]
    small: Mapping[str, Any]
    recipe: Mapping[str, Any]


DEFAULTS = {
    "mixerflow": Defaults(
        "MixerFlow",
        MIXERFLOW_PRESETS,
        small={"patch_size": 4, "num_layers": 4, "hidden_features": 64},
        recipe=SMALL_RECIPE,
    ),
    "denseflow": Defaults(
        "DenseFlow",
        DENSEFLOW_PRESETS,
        small={
            "units": (2, 1),
            "modules": (3, 4),
            "growth": 3,
            "conditioner": partial(
                FusedConditioner,
                hidden_channels=24,
                num_layers=2,
                growth=16,
                attention_channels=12,
            ),
            "noise_channels": 12,
        },
        recipe={
            **SMALL_RECIPE,
            "optimizer": "adamax",
            "learning_rate": 1e-2,
            "steps": 800,
            "ema_decay": 0.99,
        },
    ),
}
"""By family."""


def small_model(family: str, data: str | None) -> dict[str, Any]:
    """Return the arguments of a small flow.

    Args:
        family: of the flow.
        data: what it is for; the digits where None, whose 8 x 8 pixels want smaller patches.

    Example:
        >>> small_model("mixerflow", "digits")["patch_size"]
        2
    """
    digits = {"patch_size": 2} if family == "mixerflow" and data in (None, "digits") else {}
    return {**DEFAULTS[family].small, **digits}


def check_names(names: Collection[str], family: str) -> None:
    """Refuse arguments of a model that only another family has.

    Args:
        names: of the arguments.
        family: what is trained.

    Raises:
        ValueError: if there are such; it says whose they are.

    Example:
        >>> check_names(["patch_size"], "mixerflow")
    """
    fields = {
        name: {field.name for field in dataclasses.fields(kind.spec)}
        for name, kind in FAMILIES.items()
    }
    for name in names:
        for other, theirs in fields.items():
            if name in theirs - fields[family]:
                expected = f"an argument of a {family}"
                raise mismatch(
                    f"--model.{name}", expected, f"one of a {other}", f"give --family {other}"
                )


def family_named(preset: str | None, given: str | None, default: str) -> str:
    """Return the family of a preset, or that which was given, or the default.

    Args:
        preset: of any family, or None.
        given: name of a family, or None.
        default: where neither says more.

    Raises:
        ValueError: if the family or the preset is unknown, or the two do not go together.

    Example:
        >>> family_named(None, None, "mixerflow"), family_named("galaxy32", None, "denseflow")
        ('mixerflow', 'mixerflow')
    """
    if given is not None:
        check_choice("--family", "the family", given, tuple(DEFAULTS))
    if preset is None:
        return default if given is None else given
    of = [family for family, defaults in DEFAULTS.items() if preset in defaults.presets]
    if not of:
        names = [name for defaults in DEFAULTS.values() for name in defaults.presets]
        raise mismatch("--preset", f"one of {', '.join(names)}", preset, "name one of these")
    if given not in (None, *of):
        expected = f"{of[0]}, as the preset {preset} is one"
        raise mismatch("--family", expected, given, "leave out one of the two")
    return of[0]
