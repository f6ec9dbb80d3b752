"""The rows of DenseFlow's Table 4, scaled down to equal numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from torch import nn

from benchmarks.sizes import nearest, parameters_of
from nflows_mixer.flows import denseflow
from nflows_mixer.nn import ConvConditioner, CrossUnitNetwork, DenseAttentionConditioner

OFFSETS = range(-2, 3)
"""Of the growth of dense blocks from 4/3 of the width, which is 64 of 48 in the published models:
with one width alone, parameters come in steps too large to be equal."""


@dataclass(frozen=True)
class Row:
    """A model that is compared.

    Args:
        preset: of the paper's model, whose choices it has.
        published: bits/dim on CIFAR-10 in Table 4; None for what the paper has in words alone.
        augmented: whether noise is appended.
        preconditioned: whether that noise is computed from earlier representations.
        fused: whether the couplings' networks are dense blocks beside attention, or Glow's.
        changes: arguments that differ from the preset's.
        attention: whether fused networks have it.
    """

    preset: str
    published: float | None
    augmented: bool
    preconditioned: bool
    fused: bool
    changes: dict[str, Any] = field(default_factory=dict)
    attention: bool = True


ROWS = {
    "1": Row("table4-none", 3.42, False, False, False),
    "2": Row("table4-white", 3.40, True, False, False),
    "3": Row("table4-preconditioned", 3.37, True, True, False),
    "4": Row("table4-fused", 3.14, False, False, True),
    "5": Row("table4-fused-white", 3.08, True, False, True),
    "6": Row("denseflow-45-6", 3.07, True, True, True),
    "previous": Row("denseflow-45-6", None, True, True, True, {"preconditioning": "previous"}),
    "no attention": Row("denseflow-45-6", None, True, True, True, attention=False),
}
"""Name -> row; numbers as in Table 4, then the two ablations of Section 3.5's text."""
TABLE = tuple(name for name, row in ROWS.items() if row.published is not None)
"""Names of the rows of Table 4."""
WORSE = 0.01
"""Than row 6, by which the paper's text has each of the rows below."""
TEXT = {"previous": "noise from the previous unit alone", "no attention": "no attention"}
"""Rows of that text; it compared the second on ImageNet32."""


@dataclass(frozen=True)
class Scale:
    """What all rows have in common, in the place of DenseFlow-45-6's sizes."""

    units: tuple[int, ...] = (3, 1)
    modules: tuple[int, ...] = (2, 4)
    growth: int = 6
    dense_layers: int = 2
    attention_channels: int = 8


def arguments_of(row: Row, scale: Scale, image_shape: Sequence[int], levels: int) -> dict[str, Any]:
    """Return arguments of ``denseflow``, all but the conditioner."""
    arguments = {
        "preset": row.preset,
        "image_shape": tuple(image_shape),
        "levels": levels,
        "dequantization": "uniform",
        "units": scale.units,
        "modules": scale.modules,
        "growth": scale.growth,
        **row.changes,
    }
    if not row.augmented:
        arguments["growth"] = 0
        arguments["units"] = (1,) * len(scale.units)
        arguments["modules"] = tuple(u * m for u, m in zip(scale.units, scale.modules))
    return arguments


def conditioner_of(row: Row, scale: Scale, widths: Mapping[str, int]) -> Callable[..., nn.Module]:
    """Return the networks of the couplings."""
    hidden = widths["hidden_channels"]
    if not row.fused:
        return partial(ConvConditioner, hidden_channels=hidden)
    sizes: dict[str, Any] = {"num_layers": scale.dense_layers, "attention": row.attention}
    if row.attention:
        sizes["attention_channels"] = scale.attention_channels
    growth = widths["dense_growth"]
    return partial(DenseAttentionConditioner, hidden_channels=hidden, growth=growth, **sizes)


def widths_of(row: Row, scale: Scale, arguments: dict[str, Any], parameters: int) -> dict[str, int]:
    """Return the widths with which a model comes nearest to a number of parameters.

    Args:
        row: what is built.
        scale: how large.
        arguments: of ``denseflow``, all but the conditioner.
        parameters: how many are aimed at.

    Returns:
        ``hidden_channels``, and of fused networks ``dense_growth``, too.
    """

    def widths(hidden: int, offset: int) -> dict[str, int]:
        growth = {"dense_growth": max(1, round(4 * hidden / 3) + offset)} if row.fused else {}
        return {"hidden_channels": hidden, **growth}

    @cache
    def count(hidden: int, offset: int) -> int:
        conditioner = conditioner_of(row, scale, widths(hidden, offset))
        return parameters_of(denseflow(**arguments, conditioner=conditioner))

    found = [
        (nearest(partial(count, offset=offset), parameters), offset)
        for offset in (OFFSETS if row.fused else (0,))
    ]
    return widths(*min(found, key=lambda pair: abs(count(*pair) - parameters)))


def cross_unit_parameters(flow: nn.Module) -> int:
    """Return the number of parameters that precondition noise."""
    return sum(parameters_of(part) for part in flow.modules() if isinstance(part, CrossUnitNetwork))
