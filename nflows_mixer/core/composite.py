"""nflows' composite, with the context handed only to those who take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from nflows import transforms as nflows_transforms
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._modes import EVALUATING, running_statistics, widened
from nflows_mixer.core.as_transform import adapted, register_adapter
from nflows_mixer.core.context import takes_context
from nflows_mixer.numerics.autoregressive import inverse_of


class CompositeTransform(nflows_transforms.CompositeTransform):
    r"""Transforms one after the other, in place of nflows' own ``CompositeTransform``.

    .. math:: f_n \circ \dots \circ f_1, \qquad \log|\det J| = \sum_i \log|\det J_{f_i}|

    Five things differ. The context reaches the parts that take one, and no others (see
    ``core.takes_context``). Inputs may be integers where the first part makes them real. What
    a part computes in half precision, under autocast, goes on in the precision of the inputs.
    An inverse runs in evaluation mode, whatever the mode is, and masked flows are inverted by
    ``numerics.inverse_of``.

    Args:
        transforms: the parts, from data to noise; flows of zuko and normflows are adapted.

    Shapes:
        those of the parts; context [B, F].

    Example:
        >>> from nflows.transforms import LULinear, MaskedAffineAutoregressiveTransform
        >>> conditional = MaskedAffineAutoregressiveTransform(4, 16, context_features=3)
        >>> plain = MaskedAffineAutoregressiveTransform(4, 16)
        >>> flow = CompositeTransform([conditional, LULinear(4), plain])
        >>> flow(torch.randn(5, 4), torch.randn(5, 3))[1].shape
        torch.Size([5])
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__(adapted(part, "CompositeTransform") for part in transforms)
        self._passes_context = [takes_context(part) for part in self._transforms]

    def chain(self) -> list[tuple[Transform, bool]]:
        """Its parts in their order, and whether each is given the context."""
        return list(zip(self._transforms, self._passes_context))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map through the parts in their order."""
        return run_chain(zip(self._transforms, self._passes_context), inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map back through the parts in reverse order, in evaluation mode."""
        parts = [inverse_of(part) for part in self._transforms]
        with nullcontext() if EVALUATING.get() else running_statistics(self):
            chain = zip(parts[::-1], self._passes_context[::-1])
            return run_chain(chain, widened(self, inputs), context)


def run_chain(
    chain: Iterable[tuple[Callable, bool]], inputs: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Evaluate functions one after the other; the log-det is [B], in float32 or wider.

    Args:
        chain: functions (inputs, context) -> (outputs, logabsdet), and whether each is given the
            context. What one computes in half precision goes on in the precision of its inputs.
        inputs: [B, ...].
        context: [B, F], or None.
    """
    outputs, total = inputs, None
    if context is not None and context.is_floating_point() and inputs.is_floating_point():
        context = context.to(inputs.dtype)
    for part, passes in chain:
        before = outputs.dtype
        outputs, logabsdet = part(outputs, context if passes else None)
        if outputs.dtype != before and before.is_floating_point and outputs.is_floating_point():
            outputs = outputs.to(torch.promote_types(before, outputs.dtype))
        if logabsdet.dtype.itemsize < 4:  # the sum over many layers would be lost
            logabsdet = logabsdet.to(torch.float32)
        total = logabsdet if total is None else total + logabsdet
    return outputs, no_volume_change(inputs) if total is None else total


class InverseTransform(nflows_transforms.InverseTransform):
    r"""A transform run the other way, in place of nflows' own ``InverseTransform``.

    .. math:: f^{-1}, \qquad \log|\det J| \text{ of } f^{-1}

    Masked flows are inverted by ``numerics.inverse_of``.

    Args:
        transform: what to turn round; a flow of zuko or normflows is adapted.

    Shapes:
        those of ``transform``.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> inverse_autoregressive = InverseTransform(MaskedAffineAutoregressiveTransform(4, 16))
        >>> inverse_autoregressive(torch.randn(5, 4))[1].shape
        torch.Size([5])
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__(adapted(transform, "InverseTransform"))
        self.rearranges = getattr(self._transform, "rearranges", False)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map back through the transform."""
        return inverse_of(self._transform)(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map through the transform, in evaluation mode."""
        with running_statistics(self):
            return self._transform(inputs, context)


def route_context(transform: Transform) -> Transform:
    """Return ``transform`` with every plain composite and inverse of nflows replaced by our own.

    Those within each other are replaced too. What a subclass of the user's own holds stays as it
    is, and so do all other parts, the mode, and the names in the state_dict.

    Args:
        transform: any nflows transform.

    Example:
        >>> from nflows.transforms import LULinear
        >>> type(route_context(nflows_transforms.CompositeTransform([LULinear(3)]))).__module__
        'nflows_mixer.core.composite'
    """
    replaced: Transform
    composites = (nflows_transforms.CompositeTransform, nflows_transforms.CompositeCDFTransform)
    if type(transform) in composites:
        replaced = CompositeTransform(transform._transforms)
    elif type(transform) is nflows_transforms.InverseTransform:
        replaced = InverseTransform(transform._transform)
    else:
        return transform
    replaced.training = transform.training
    return replaced


register_adapter(
    lambda flow: isinstance(flow, Transform), lambda flow, features: route_context(flow)
)


def no_volume_change(inputs: Tensor) -> Tensor:
    """Log-det of a permutation: zeros [B], of a floating dtype even for integer pixels.

    Args:
        inputs: [B, ...].

    Example:
        >>> no_volume_change(torch.zeros(2, 3, dtype=torch.uint8))
        tensor([0., 0.])
    """
    dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
    return torch.zeros(inputs.shape[0], dtype=dtype, device=inputs.device)


class Passage(NamedTuple):
    r"""What a wrapper does around its child, for one call.

    .. math:: y = \mathrm{leave}(f(\mathrm{enter}(x);\ \mathrm{context}(c)),\ x)

    Both rearrangements only move numbers, so that they serve outputs, inputs and gradients alike.
    A wrapper returns it from a method ``passage(inputs)``; who rebuilds activations backwards
    descends through it to the child.

    Args:
        child: the transform inside, f.
        enter: what the child gets, of the wrapper's inputs.
        leave: (result of the child, the wrapper's inputs) -> the wrapper's result.
        context: the child's context, of the wrapper's.
        rows: rows of the child for each input of the wrapper; log-dets are summed over these.

    Example:
        >>> from nflows.transforms import ReversePermutation
        >>> from nflows_mixer.transforms import ChannelMixingTransform
        >>> import torch
        >>> mixing = ChannelMixingTransform(ReversePermutation(3))
        >>> mixing.passage(torch.zeros(2, 5, 3)).enter(torch.zeros(2, 5, 3)).shape
        torch.Size([10, 3])
    """

    child: Transform
    enter: Callable[[Tensor], Tensor]
    leave: Callable[[Tensor, Tensor], Tensor]
    context: Callable[[Tensor | None], Tensor | None]
    rows: int = 1
