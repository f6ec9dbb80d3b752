"""Backward through a step whose inputs were not kept: they are rebuilt by its inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor

from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.affine import apply_affine
from nflows_mixer.transforms.coupling import is_plain_coupling
from nflows_mixer.transforms.flow_step import FlowStep
from nflows_mixer.transforms.gradients import Gradients, local_gradients, tensors_of
from nflows_mixer.transforms.rebuild_coupling import rebuild_coupling, rebuild_flow_step
from nflows_mixer.transforms.steps import Affine, Cut, Mix, Region, Step


class NotInvertible(RuntimeError):
    """The inverse of a transform raised an error."""


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
        return rebuild_flow_step(step, outputs, grad_outputs, grad_logabsdet, context, gradients)
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
    if is_plain_coupling(step.transform):
        return rebuild_coupling(step, outputs, grad_outputs, grad_logabsdet, context, gradients)
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
