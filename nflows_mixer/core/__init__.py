"""What every transform leans on: composites, context, and any flow made into a transform."""

from nflows_mixer.core.as_transform import (
    FlowLike,
    adapted,
    as_transform,
    built,
    register_adapter,
)
from nflows_mixer.core.composite import (
    CompositeTransform,
    InverseTransform,
    no_volume_change,
    route_context,
)
from nflows_mixer.core.context import row_lengths, shape_after, takes_context
from nflows_mixer.core.probe import check_usable

__all__ = [
    "CompositeTransform",
    "FlowLike",
    "InverseTransform",
    "adapted",
    "as_transform",
    "built",
    "check_usable",
    "no_volume_change",
    "register_adapter",
    "route_context",
    "row_lengths",
    "shape_after",
    "takes_context",
]
