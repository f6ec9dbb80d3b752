"""Whatever describes a flow, made into the nflows transform for its place."""

from nflows_mixer.bridges.composite import CompositeTransform, gated, no_volume_change
from nflows_mixer.bridges.inspect import row_lengths, takes_context
from nflows_mixer.bridges.resolve import FlowLike, as_transform, built

__all__ = [
    "CompositeTransform",
    "FlowLike",
    "as_transform",
    "built",
    "gated",
    "no_volume_change",
    "row_lengths",
    "takes_context",
]
