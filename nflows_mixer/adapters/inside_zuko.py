"""The classes of ``to_zuko``: lazy transforms of zuko that run transforms of nflows.

Importing this module imports zuko, which changes torch.distributions for the whole process;
``to_zuko`` therefore imports it at its first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Size, Tensor
from torch.distributions import Transform as TorchTransform
from torch.distributions import constraints
from zuko.lazy import LazyTransform

from nflows_mixer._checks import mismatch
from nflows_mixer.core.as_transform import deterministic_transform
from nflows_mixer.core.context import row_lengths, takes_context
from nflows_mixer.numerics.autoregressive import inverse_of


class LazyNflowsTransform(LazyTransform):
    """A lazy transform of zuko that runs a transform of nflows; ``to_zuko`` builds it.

    Args:
        transform: nflows transform, data to noise.
        event_shape: shape of one input.
        noise_shape: shape of one output.
        context_features: length of the context, 0 for none.

    Example:
        >>> from nflows.transforms import LULinear
        >>> lazy = LazyNflowsTransform(LULinear(4), (4,), (4,), context_features=0)
        >>> lazy()(torch.zeros(7, 2, 4)).shape
        torch.Size([7, 2, 4])
    """

    def __init__(
        self,
        transform: Transform,
        event_shape: Sequence[int],
        noise_shape: Sequence[int],
        context_features: int,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.event_shape = Size(event_shape)
        self.noise_shape = Size(noise_shape)
        self.context_features = context_features

    def forward(self, c: Tensor | None = None) -> NflowsTransform:
        """Build the transformation given a context [..., context_features]."""
        if c is not None and not c.is_floating_point():
            raise mismatch(
                "to_zuko",
                "a context of real features",
                c.dtype,
                "class labels go through the embedding net of their flow first",
            )
        got = 0 if c is None else c.shape[-1]
        if got != self.context_features:
            raise mismatch(
                "to_zuko",
                f"context of {self.context_features} features",
                f"{got} features",
                "pass flow(c) that context, and to_zuko the context_features of its transform",
            )
        return NflowsTransform(self, c)


class NflowsTransform(TorchTransform):
    """What ``LazyNflowsTransform`` builds: it runs over any batch shape, as zuko's own.

    Args:
        lazy: where it comes from.
        context: [..., context_features], broadcast against the batch of the inputs; None for none.
        inverted: whether it runs from noise to data.

    Example:
        >>> from nflows.transforms import LULinear
        >>> built = NflowsTransform(LazyNflowsTransform(LULinear(4), (4,), (4,), 0), None)
        >>> built.call_and_ladj(torch.zeros(4))[1].shape
        torch.Size([])
    """

    bijective = True

    def __init__(
        self, lazy: LazyNflowsTransform, context: Tensor | None, inverted: bool = False
    ) -> None:
        super().__init__()
        self.lazy = lazy
        self.context = context
        self.inverted = inverted
        shapes = (lazy.event_shape, lazy.noise_shape)
        self.in_shape, self.out_shape = shapes[::-1] if inverted else shapes
        self.domain = constraints.independent(constraints.real, len(self.in_shape))
        self.codomain = constraints.independent(constraints.real, len(self.out_shape))

    @property
    def inv(self) -> NflowsTransform:
        """The transformation the other way."""
        return NflowsTransform(self.lazy, self.context, not self.inverted)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NflowsTransform)
            and (self.lazy, self.inverted) == (other.lazy, other.inverted)
            and self.context is other.context
        )

    def __hash__(self) -> int:
        return hash((self.lazy, self.inverted))

    def __repr__(self) -> str:
        arrow = "noise to data" if self.inverted else "data to noise"
        return f"NflowsTransform({type(self.lazy.transform).__name__}, {arrow})"

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, and log-dets of the batch's shape, for inputs [..., *in_shape]."""
        rank = len(self.in_shape)
        if x.shape[x.dim() - rank :] != self.in_shape:
            expected = ", ".join(["...", *map(str, self.in_shape)])
            raise mismatch(
                "to_zuko", f"inputs of shape [{expected}]", list(x.shape), "build it for this shape"
            )
        batch, context = x.shape[: x.dim() - rank], self.context
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            context = context.expand(*batch, -1).reshape(-1, context.shape[-1])
        rows = x.expand(*batch, *self.in_shape).reshape(-1, *self.in_shape)
        transform = self.lazy.transform
        function = inverse_of(transform) if self.inverted else transform
        outputs, logabsdet = function(rows, context)
        if outputs.shape[1:] != self.out_shape:
            raise mismatch(
                "to_zuko",
                f"outputs of shape {[len(rows), *self.out_shape]}",
                list(outputs.shape),
                "pass to_zuko the event_shape of its inputs and the noise_shape of its outputs",
            )
        return outputs.reshape(*batch, *self.out_shape), logabsdet.reshape(batch)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inv.call_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-dets of the batch's shape; prefer ``call_and_ladj``, which gives the outputs too."""
        return self.call_and_ladj(x)[1]

    def forward_shape(self, shape: Size) -> Size:
        """Shape of the outputs for inputs of ``shape``."""
        return Size((*shape[: len(shape) - len(self.in_shape)], *self.out_shape))

    def inverse_shape(self, shape: Size) -> Size:
        """Shape of the inputs for outputs of ``shape``."""
        return Size((*shape[: len(shape) - len(self.out_shape)], *self.in_shape))


def lazy_transform(
    flow: Transform | Flow,
    context_features: int,
    event_shape: Sequence[int] | None,
    noise_shape: Sequence[int] | None,
) -> LazyNflowsTransform:
    """Build what ``to_zuko`` documents, or say what is missing."""
    transform = deterministic_transform(flow, "to_zuko")
    if isinstance(flow, Flow):
        base = flow._distribution
        noise_shape = noise_shape or getattr(base, "shape", getattr(base, "_shape", None))
    known: Any = getattr(flow, "image_shape", None)
    if known is None and isinstance(flow, Transform) and len(lengths := row_lengths(flow)) == 1:
        known = tuple(lengths)
    if None not in (known, event_shape) and tuple(known) != tuple(event_shape or ()):
        raise mismatch(
            "to_zuko", f"event_shape {tuple(known)}", tuple(event_shape or ()), "leave it out"
        )
    shape = event_shape or known or noise_shape
    if shape is None:
        raise mismatch(
            "to_zuko",
            "a transform that says what it is for (features, image_shape)",
            f"a {type(flow).__name__} that does not",
            "pass event_shape=(D,), or (C, H, W)",
        )
    if takes_context(transform) != (context_features > 0):
        declared = getattr(flow, "context_features", None)
        raise mismatch(
            "to_zuko",
            "context_features" + (f"={declared}" if declared else " as its transform takes them"),
            context_features,
            "pass the length of its context (of class labels, of their vectors: labels go through "
            "the flow's embedding net first), and 0 where no part takes one",
        )
    return LazyNflowsTransform(transform, shape, noise_shape or shape, context_features)
