"""Gradients by hand: what a backward pass that rebuilds its inputs adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer.nn.batch_norm import scratch_buffers
from nflows_mixer.numerics.autoregressive import inverse_of


class Gradients:
    """Sums of gradients by tensor.

    Example:
        >>> weight = torch.ones(2)
        >>> gradients = Gradients()
        >>> gradients.add([weight, None], [torch.ones(2), None])
        >>> gradients.add([weight], [torch.ones(2)])
        >>> gradients.of(weight).tolist()
        [2.0, 2.0]
    """

    def __init__(self) -> None:
        # With the tensor itself: the identity of one that is gone may be another's.
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
        """Add what is there."""
        for tensor, gradient in zip(tensors, gradients):
            if tensor is not None and gradient is not None:
                before = self.of(tensor)
                total = gradient if before is None else before + gradient
                self._sums[id(tensor)] = tensor, total

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """The sum, or None."""
        return None if tensor is None else self._sums.get(id(tensor), (tensor, None))[1]

    def backward(
        self,
        outputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        inputs: Tensor | None,
        tensors: Sequence[Tensor | None],
    ) -> Any:
        """Go back from outputs: return the gradient of ``inputs``, and add those of ``tensors``.

        Args:
            outputs: computed from ``inputs`` and ``tensors`` in grad mode.
            grad_outputs: their gradients.
            inputs: zeros are their gradient where no output depends on them; None has none.
            tensors: None, and what needs no gradient, are passed over.
        """
        pairs = [(out, grad) for out, grad in zip(outputs, grad_outputs) if out.requires_grad]
        reached = [t for t in (inputs, *tensors) if t is not None and t.requires_grad]
        found: Sequence[Tensor | None] = ()
        if pairs and reached:
            outs, grads = zip(*pairs)
            found = torch.autograd.grad(outs, reached, grads, allow_unused=True)
        of_inputs = None
        if inputs is not None and found and reached[0] is inputs:
            of_inputs, reached, found = found[0], reached[1:], found[1:]
        self.add(reached, found)
        return torch.zeros_like(inputs) if of_inputs is None and inputs is not None else of_inputs


def rebuild_by_inverse(
    part: Transform,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """Inputs of any transform and their gradient, from its outputs: by its inverse.

    Args:
        part: its buffers do not change.
        outputs: of its forward.
        grad_outputs: their gradient.
        grad_logabsdet: that of the log-dets.
        context: as it was given.
        gradients: those of parameters and context are added.
    """
    with torch.no_grad(), scratch_buffers(part):
        inputs = inverse_of(part)(outputs, context)[0].to(outputs.dtype)
    tensors = list(part.parameters())
    grads = grad_outputs, grad_logabsdet
    return inputs, recompute(part, inputs, *grads, context, tensors, gradients)[0]


def recompute(
    part: Transform,
    inputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    tensors: Sequence[Tensor],
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """Gradient of the inputs of any transform, and its outputs, by evaluating it again.

    Arguments as for ``rebuild_by_inverse``, with the inputs in place of the outputs, and
    the ``tensors`` that it reads.
    """
    with torch.enable_grad(), scratch_buffers(part):
        inputs = inputs.detach().requires_grad_()
        outputs, logabsdet = part(inputs, context)
    grads = [grad_outputs.to(outputs.dtype), grad_logabsdet.to(logabsdet.dtype)]
    return gradients.backward(
        [outputs, logabsdet], grads, inputs, [context, *tensors]
    ), outputs.detach()


def tensors_in(weights: object) -> list[Tensor]:
    """The tensors in nested tuples, in their order.

    Example:
        >>> len(tensors_in((torch.ones(1), (None, torch.ones(2)))))
        2
    """
    if isinstance(weights, Tensor):
        return [weights]
    return [t for part in weights for t in tensors_in(part)] if isinstance(weights, tuple) else []


def as_leaves(weights):
    """Nested tuples with the same values, each the leaf of a graph of its own.

    Example:
        >>> as_leaves((torch.ones(1, requires_grad=True) * 2, None))[0].is_leaf
        True
    """
    if isinstance(weights, Tensor):
        return weights.detach().requires_grad_(weights.requires_grad)
    if not isinstance(weights, tuple):
        return weights
    leaves = [as_leaves(part) for part in weights]
    return type(weights)(*leaves) if hasattr(weights, "_fields") else tuple(leaves)
