"""From whatever describes a flow to the nflows transform that it is."""

from nflows_mixer.bridges.resolve import FlowLike, as_transform, row_length, takes_context

__all__ = ["FlowLike", "as_transform", "row_length", "takes_context"]
