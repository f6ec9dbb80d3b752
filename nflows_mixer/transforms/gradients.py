"""Gradients by hand: of the tensors that steps read, and sums of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nflows_mixer.transforms.flow_step import FlowStep
from nflows_mixer.transforms.program import leaves
from nflows_mixer.transforms.steps import Affine, Mix, Part, Region, Step


class Gradients:
    """Sums of gradients by tensor, of the context among them.

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


def tensors_of(steps: Sequence[Step]) -> list[Tensor]:
    """What steps read and has gradients: folded weights, parameters, learned positions.

    Example:
        >>> from nflows_mixer.transforms import LogitTransform
        >>> tensors_of([Part(LogitTransform(), False)])
        []
    """
    found: list[Tensor] = []
    for step in steps:
        if isinstance(step, (Affine, FlowStep)) and step.maps is not None:
            found += step.maps
        if isinstance(step, FlowStep):
            assert step.weights is not None
            found += step.weights.tensors()
        elif isinstance(step, Part):
            found += step.parameters()
        elif isinstance(step, Mix):
            if isinstance(step.mixing.positions, nn.Parameter):
                found.append(step.mixing.positions)
            found += tensors_of(step.steps)
        elif isinstance(step, Region):
            found += tensors_of(step.steps)
    return [tensor for tensor in found if tensor.requires_grad]


def detach_weights(steps: Sequence[Step]) -> None:
    """Let steps read folded weights that are leaves, so that gradients stop there.

    Otherwise they would go on through the folding to parameters that a step reads, too.

    Args:
        steps: folded.
    """
    for step in leaves(steps):
        if isinstance(step, (Affine, FlowStep)) and step.maps is not None:
            weight, bias, logabsdet = (
                tensor.detach().requires_grad_(tensor.requires_grad) for tensor in step.maps
            )
            step.maps = weight, bias, logabsdet
        if isinstance(step, FlowStep):
            assert step.weights is not None
            step.weights = step.weights.detached()


def local_gradients(
    outputs: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of outputs with respect to inputs; None for what is None or not reached.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> local_gradients([3 * x, None], [x, None], [torch.ones(2), torch.ones(2)])
        [tensor([3., 3.]), None]
    """
    reached = [
        (out, grad)
        for out, grad in zip(outputs, grad_outputs)
        if out is not None and out.requires_grad
    ]
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    if not reached or not wanted:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [out for out, _ in reached], wanted, [grad for _, grad in reached], allow_unused=True
        )
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]
