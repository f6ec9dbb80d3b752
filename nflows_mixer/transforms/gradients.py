"""Gradients by hand: what a backward pass that rebuilds its inputs adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor
from torch.utils import _pytree

from nflows_mixer.numerics.autoregressive import inverse_of

Pair = tuple[Tensor, Tensor]
"""Outputs and log-dets, or the gradients of both."""


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


@torch.no_grad()
def inputs_of(part: Transform, outputs: Tensor, context: Tensor | None) -> Tensor:
    """Inputs of any transform, from its outputs: by its inverse, in the mode that it is in."""
    return inverse_of(part)(outputs, context)[0].to(outputs.dtype)


def recompute(
    part: Transform,
    inputs: Tensor,
    grads: Pair,
    context: Tensor | None,
    tensors: Sequence[Tensor],
    gradients: Gradients,
) -> Pair:
    """Gradient of the inputs of any transform, and its outputs, by evaluating it again.

    Args:
        part: the transform; its buffers are those that its forward pass may write to again.
        inputs: of its forward.
        grads: gradients of outputs and log-dets.
        context: as it was given.
        tensors: what it reads, parameters among them.
        gradients: those of ``tensors`` and of the context are added.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        outputs = part(inputs, context)
    given = [gradient.to(output.dtype) for gradient, output in zip(grads, outputs)]
    gradient = gradients.backward(outputs, given, inputs, [context, *tensors])
    return gradient, outputs[0].detach()


def tensors_in(weights: object) -> list[Tensor]:
    """The tensors in nested tuples, in their order.

    Example:
        >>> len(tensors_in((torch.ones(1), (None, torch.ones(2)))))
        2
    """
    return [leaf for leaf in _pytree.tree_flatten(weights)[0] if isinstance(leaf, Tensor)]


def as_leaves(weights: Any) -> Any:
    """Nested tuples with the same values, each the leaf of a graph of its own.

    Example:
        >>> as_leaves((torch.ones(1, requires_grad=True) * 2, None))[0].is_leaf
        True
    """
    return _pytree.tree_map_only(
        Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), weights
    )
