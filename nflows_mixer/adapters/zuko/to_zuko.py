"""Flows and transforms of nflows inside zuko."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.distributions.base import Distribution
from nflows.flows import Flow as NflowsFlow
from nflows.transforms import Transform
from torch import Size, Tensor, nn
from torch.distributions import Transform as TorchTransform
from torch.distributions import constraints
from zuko.lazy import Flow, LazyTransform

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_own_precision
from nflows_mixer.adapters.zuko.bases import LazyNflowsBase, as_rows
from nflows_mixer.core.as_transform import deterministic_transform
from nflows_mixer.core.context import (
    context_lengths,
    input_shape,
    shape_after,
    takes_context,
)
from nflows_mixer.distributions.as_base import shape_of
from nflows_mixer.numerics.autoregressive import inverse_of


def to_zuko(
    flow: Transform | NflowsFlow,
    context_features: int | None = None,
    event_shape: Sequence[int] | None = None,
    noise_shape: Sequence[int] | None = None,
) -> LazyNflowsTransform | Flow:
    """Return a flow of nflows as one of zuko, base and all, or a transform as a lazy transform.

    Of an ``ImageFlow`` that is the deterministic part below its dequantizer, with its base: it
    takes dequantized pixels [..., C, H, W]. A transform goes into a ``zuko.lazy.Flow`` with a base
    of the noise's shape, or among zuko's own lazy transforms. Parameters are shared; what has to
    be initialized from data (``ActNorm``) is so by the first training call, or before. An
    embedding net of the flow is left behind: ``c`` is what the transform itself takes.

    Args:
        flow: transform, or flow.
        context_features: length of the context ``c``, 0 where no part takes one; read from the
            parts where None.
        event_shape: shape of one input, (D,) or (C, H, W), for transforms that do not say it; of
            a plain nflows flow, that of its base where None.
        noise_shape: shape of one output, where that is another and no base says it.

    Shapes:
        inputs ``[..., *event_shape]``, c [..., context_features], log-dets [...]; batches
        broadcast.

    Raises:
        TypeError: if ``flow`` is no transform and no flow of nflows.
        ValueError: if it is stochastic, does not say its shape, or takes another context.

    References:
        zuko, https://zuko.readthedocs.io (lazy transforms).

    Example:
        >>> import torch, zuko
        >>> from nflows_mixer.flows import mixerflow
        >>> mixer = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> flow = to_zuko(mixer)
        >>> flow().log_prob(256 * torch.rand(5, 1, 4, 4)).shape
        torch.Size([5])
        >>> flow().sample((2,)).shape
        torch.Size([2, 1, 4, 4])
    """
    transform = deterministic_transform(flow, "to_zuko")
    base = flow._distribution if isinstance(flow, NflowsFlow) else None
    known = getattr(flow, "image_shape", None) or input_shape(transform)
    if base is not None:
        noise_shape = noise_shape or shape_of(base)
    if known is not None and event_shape is not None and tuple(known) != tuple(event_shape):
        raise mismatch("to_zuko", f"event_shape {tuple(known)}", tuple(event_shape), "leave it out")
    shape = event_shape or known or noise_shape
    if shape is None:
        raise mismatch(
            "to_zuko",
            "a transform that says what it is for (features, image_shape)",
            f"a {type(flow).__name__} that does not",
            "pass event_shape=(D,), or (C, H, W)",
        )
    context_features = _agreed_context(transform, base, context_features)
    noise_shape = noise_shape or shape_after(transform, shape)
    lazy = LazyNflowsTransform(transform, shape, noise_shape, context_features)
    return lazy if base is None else Flow(lazy, LazyNflowsBase(base, noise_shape))


def _agreed_context(transform: Transform, base: Distribution | None, given: int | None) -> int:
    """Length of the context that a transform and its base take, 0 for none."""
    parts = [part for part in (transform, base) if part is not None and takes_context(part)]
    lengths = set().union(*map(context_lengths, parts))
    if given is None and not parts:
        return 0
    if given is None and len(lengths) == 1:
        return lengths.pop()
    expected = " or ".join(map(str, sorted(lengths))) if parts else "0"
    if given is None or (given > 0) != bool(parts) or (lengths and given not in lengths):
        raise mismatch(
            "to_zuko",
            "context_features" + (f"={expected}" if expected else " as its transform takes them"),
            given,
            "pass the length of its context (of class labels, of their vectors: labels go through "
            "the flow's embedding net first), and 0 where no part takes one",
        )
    return given


class LazyNflowsTransform(LazyTransform):
    """A lazy transform of zuko that runs a transform of nflows; ``to_zuko`` builds it.

    Args:
        transform: nflows transform, data to noise.
        event_shape: shape of one input.
        noise_shape: shape of one output.
        context_features: length of the context, 0 for none.
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
        return NflowsTransform(self, in_own_precision(self, c))


class NflowsTransform(TorchTransform, nn.Module):
    """What ``LazyNflowsTransform`` builds: it runs over any batch shape, as zuko's own.

    A module too, so that who holds one (a guide of pyro, a ``TransformedDistribution`` in a module)
    holds its parameters.

    Args:
        lazy: where it comes from.
        context: [..., context_features], broadcast against the batch of the inputs; None for none.
        inverted: whether it runs from noise to data.

    Example:
        >>> from nflows.transforms import LULinear
        >>> to_zuko(LULinear(4))().call_and_ladj(torch.zeros(7, 2, 4))[1].shape
        torch.Size([7, 2])
    """

    bijective = True

    def __init__(
        self, lazy: LazyNflowsTransform, context: Tensor | None, inverted: bool = False
    ) -> None:
        TorchTransform.__init__(self)
        nn.Module.__init__(self)
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
            context = as_rows(context, batch, context.shape[-1:])
        rows = as_rows(x, batch, self.in_shape)
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

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-dets of the batch's shape; prefer ``call_and_ladj``, which gives the outputs too."""
        return self.call_and_ladj(x)[1]

    def forward_shape(self, shape: Size) -> Size:
        """Shape of the outputs for inputs of ``shape``."""
        return Size((*shape[: len(shape) - len(self.in_shape)], *self.out_shape))

    def inverse_shape(self, shape: Size) -> Size:
        """Shape of the inputs for outputs of ``shape``."""
        return Size((*shape[: len(shape) - len(self.out_shape)], *self.in_shape))
