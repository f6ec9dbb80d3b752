"""Flows of nflows, zuko and normflows, each made into what another of them can use."""

from nflows_mixer.bridges.composite import (
    CompositeTransform,
    InverseTransform,
    gated,
    no_volume_change,
)
from nflows_mixer.bridges.domains import check_usable
from nflows_mixer.bridges.inside import to_normflows, to_zuko
from nflows_mixer.bridges.inspect import row_lengths, shape_after, takes_context
from nflows_mixer.bridges.invert import inverse_of
from nflows_mixer.bridges.normflows_flows import from_normflows
from nflows_mixer.bridges.residual import ResidualTransform
from nflows_mixer.bridges.resolve import FlowLike, adapted, as_transform, built
from nflows_mixer.bridges.zuko_flows import from_zuko

__all__ = [
    "CompositeTransform",
    "FlowLike",
    "InverseTransform",
    "ResidualTransform",
    "adapted",
    "as_transform",
    "built",
    "check_usable",
    "from_normflows",
    "from_zuko",
    "gated",
    "inverse_of",
    "no_volume_change",
    "row_lengths",
    "shape_after",
    "takes_context",
    "to_normflows",
    "to_zuko",
]
