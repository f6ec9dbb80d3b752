"""What every transform leans on: composites, context, and any flow made into a transform."""

from nflows_mixer.core.as_transform import (
    FlowLike,
    adapted,
    as_transform,
    built,
    deterministic_transform,
    register_adapter,
)
from nflows_mixer.core.composite import (
    CompositeTransform,
    InverseTransform,
    Passage,
    no_volume_change,
    route_context,
    run_chain,
)
from nflows_mixer.core.context import (
    context_lengths,
    input_shape,
    row_lengths,
    shape_after,
    takes_context,
)
from nflows_mixer.core.factory import UNSET, Unset, call_factory, named_keywords
from nflows_mixer.core.probe import check_usable

__all__ = [
    "UNSET",
    "Unset",
    "CompositeTransform",
    "FlowLike",
    "InverseTransform",
    "Passage",
    "adapted",
    "as_transform",
    "built",
    "call_factory",
    "check_usable",
    "context_lengths",
    "deterministic_transform",
    "input_shape",
    "named_keywords",
    "no_volume_change",
    "register_adapter",
    "route_context",
    "row_lengths",
    "run_chain",
    "shape_after",
    "takes_context",
]
