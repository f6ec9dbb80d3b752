"""Backward through a step whose inputs were not kept: they are rebuilt by its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from nflows_mixer._modes import without_autocast
from nflows_mixer.bridges import inverse_of
from nflows_mixer.nn.collapsed import collapsed_mlp
from nflows_mixer.transforms.affine import apply_affine
from nflows_mixer.transforms.flow_step import FlowStep, parts_of_rows, with_context
from nflows_mixer.transforms.program import leaves
from nflows_mixer.transforms.steps import Affine, Cut, Mix, Part, Region, Step


class NotInvertible(RuntimeError):
    """The inverse of a transform raised an error."""


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


def recompute(
    step: Step,
    inputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """Backward through a step whose inputs are there: evaluate it again.

    Args:
        step: evaluated before, so that it knows how.
        inputs: its inputs.
        grad_outputs: gradient of its outputs.
        grad_logabsdet: gradient of its log-dets, one for each of its inputs.
        context: of each of its inputs; its gradient is added under the tensor itself.
        gradients: what is found is added here.

    Returns:
        The gradient of the inputs, and the outputs.
    """
    tensors = tensors_of([step])
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        outputs, logabsdet = step.forward(inputs, context)
    wanted = [inputs, context, *tensors]
    grad_inputs, *others = local_gradients(
        [outputs, logabsdet], wanted, [grad_outputs, grad_logabsdet]
    )
    gradients.add(wanted[1:], others)
    grad_inputs = torch.zeros_like(inputs) if grad_inputs is None else grad_inputs
    return grad_inputs, outputs.detach()


def invert(step: Step, outputs: Tensor, context: Tensor | None) -> Tensor:
    """Rebuild the inputs of a step that was evaluated, without gradients.

    Args:
        step: evaluated before, its inverse maps set.
        outputs: its outputs.
        context: as before.
    """
    zeros = outputs.new_zeros(len(outputs))
    return rebuild(step, outputs, torch.zeros_like(outputs), zeros, context, Gradients())[0]


def rebuild(
    step: Step,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """Backward through a step, and its inputs, rebuilt from its outputs.

    Arguments as for ``recompute``, with outputs in the place of inputs.

    Returns:
        The inputs, and their gradient.

    Raises:
        NotInvertible: if the inverse of a transform does.
    """
    if isinstance(step, Cut):
        return step.inverse(outputs, None)[0], step.inverse(grad_outputs, None)[0]
    if isinstance(step, Affine):
        return _rebuild_affine(step, outputs, grad_outputs, grad_logabsdet, gradients)
    if isinstance(step, FlowStep):
        return _rebuild_flow_step(step, outputs, grad_outputs, grad_logabsdet, context, gradients)
    if isinstance(step, Mix):
        return _rebuild_rows(step, outputs, grad_outputs, grad_logabsdet, context, gradients)
    if isinstance(step, Region):
        inner, grad_inner = rebuild_through(
            step.steps,
            step.gather(outputs),
            step.gather(grad_outputs),
            grad_logabsdet,
            context,
            gradients,
        )
        return step.scatter(outputs, inner), step.scatter(grad_outputs, grad_inner)
    assert step.record is not None
    try:
        with step.record.inverted():
            inputs, _ = step.call(inverse_of(step.transform), outputs, context)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever kind a transform of others raises
        raise NotInvertible(f"{type(step.transform).__name__}.inverse: {error}") from error
    grad_inputs, _ = recompute(step, inputs, grad_outputs, grad_logabsdet, context, gradients)
    return inputs, grad_inputs


def rebuild_through(
    steps: Sequence[Step],
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """``rebuild`` of steps from the last to the first."""
    for step in reversed(steps):
        outputs, grad_outputs = rebuild(
            step, outputs, grad_outputs, grad_logabsdet, context, gradients
        )
    return outputs, grad_outputs


def _rebuild_rows(
    step: Mix,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    mixing, (batch, count) = step.mixing, (len(outputs), outputs.shape[step.mixing._row_axis])
    with torch.enable_grad():
        given = mixing._row_context(context, batch, count)
    rows_context = None if given is None else given.detach().requires_grad_()
    rows, grad_rows = rebuild_through(
        step.steps,
        mixing._to_rows(outputs),
        mixing._to_rows(grad_outputs),
        repeat(grad_logabsdet, "b -> (b rows)", rows=count),
        rows_context,
        gradients,
    )
    of_rows = gradients.of(rows_context)
    if of_rows is not None:
        wanted = [context, mixing.positions]
        gradients.add(wanted, local_gradients([given], wanted, [of_rows]))
    return mixing._to_matrix(rows, outputs), mixing._to_matrix(grad_rows, outputs)


def _rebuild_affine(
    step: Affine,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    assert step.maps is not None and step.inverse_maps is not None
    weight, bias, logabsdet = step.maps
    inputs = apply_affine(outputs, *step.inverse_maps[:2])
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        mapped = apply_affine(inputs, weight, bias)
    wanted = [inputs, weight, bias]
    grad_inputs, *others = local_gradients([mapped], wanted, [grad_outputs])
    assert grad_inputs is not None
    positions = outputs.shape[2:].numel()
    gradients.add([weight, bias, logabsdet], [*others, positions * grad_logabsdet.sum()])
    return inputs.detach(), grad_inputs


def _rebuild_flow_step(
    step: FlowStep,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """The conditioner is evaluated once, for the inverse and for its gradient."""
    assert step.weights is not None and step.used is not None
    function, inverse, constants = step.coupling.elementwise
    context = step.given_context(outputs, context)
    fixed, moved = parts_of_rows(outputs, step.split)
    grad_fixed, grad_moved = parts_of_rows(grad_outputs, step.split)
    tensors = step.weights.tensors()
    with without_autocast(outputs):
        with torch.enable_grad():
            fixed = fixed.detach().requires_grad_()
            parameters, _ = step.call(
                collapsed_mlp, with_context(fixed, context), step.weights, *step.used
            )
            given = parameters.detach().requires_grad_()
        before = inverse(moved, parameters.detach(), *constants)[0].detach().requires_grad_()
        with torch.enable_grad():
            mapped, logabsdet = function(before, given, *constants)
        grad_before, grad_parameters = local_gradients(
            [mapped, logabsdet], [before, given], [grad_moved, grad_logabsdet]
        )
        assert grad_before is not None and grad_parameters is not None
        wanted = [fixed, context, *tensors]
        grad_conditioning, *others = local_gradients([parameters], wanted, [grad_parameters])
        gradients.add(wanted[1:], others)
        assert grad_conditioning is not None
        pair: list[Any] = [fixed.detach(), before.detach()]
        grads = [grad_fixed + grad_conditioning, grad_before]
        if not step.split[1]:
            pair.reverse()
            grads.reverse()
        rows, grad_rows = torch.cat(pair, 1), torch.cat(grads, 1)
        if step.maps is None:
            return rows, grad_rows
        assert step.inverse_maps is not None
        weight, bias, of_map = step.maps
        inputs = apply_affine(rows, *step.inverse_maps[:2])
        if weight.dim() == 2:
            grad_inputs, grad_weight = grad_rows @ weight, grad_rows.t() @ inputs
        else:
            grad_inputs, grad_weight = grad_rows * weight, (grad_rows * inputs).sum(0)
        gradients.add([weight, bias, of_map], [grad_weight, grad_rows.sum(0), grad_logabsdet.sum()])
        return inputs, grad_inputs
