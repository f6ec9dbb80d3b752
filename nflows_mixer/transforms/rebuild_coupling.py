"""Backward through a coupling whose inputs were not kept: its conditioner is evaluated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nflows_mixer._modes import without_autocast
from nflows_mixer.nn.collapsed import collapsed_mlp
from nflows_mixer.transforms.affine import apply_affine
from nflows_mixer.transforms.coupling import Elementwise, _Coupling
from nflows_mixer.transforms.flow_step import FlowStep, parts_of_rows, with_context
from nflows_mixer.transforms.gradients import Gradients, local_gradients, tensors_of
from nflows_mixer.transforms.steps import Part


def _rebuild_moved(
    elementwise: Elementwise,
    parameters: Tensor,
    moved: Tensor,
    grads: tuple[Tensor, Tensor],
    wanted: Sequence[Tensor | None],
    gradients: Gradients,
) -> tuple[Tensor, Tensor, Tensor]:
    """The moved part before a coupling, its gradient, and that of the part that conditions.

    ``wanted`` are the tensors that ``parameters`` were computed from, the conditioning part first.
    """
    function, inverse, constants = elementwise
    before = inverse(moved, parameters.detach(), *constants)[0].detach().requires_grad_()
    given = parameters.detach().requires_grad_()
    with torch.enable_grad():
        mapped = function(before, given, *constants)
    grad_before, grad_parameters = local_gradients(mapped, [before, given], grads)
    assert grad_before is not None and grad_parameters is not None
    grad_conditioning, *others = local_gradients([parameters], wanted, [grad_parameters])
    gradients.add(wanted[1:], others)
    if grad_conditioning is None:  # a conditioner that does not look at it
        grad_conditioning = torch.zeros_like(wanted[0])  # type: ignore[arg-type]
    return before.detach(), grad_before, grad_conditioning


def rebuild_coupling(
    step: Part,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """``rebuild`` of a coupling with any conditioner.

    What conditions is there as it was, so that one evaluation serves the inverse and the gradient.

    Args:
        step: evaluated before.
        outputs: its outputs.
        grad_outputs: gradient of its outputs.
        grad_logabsdet: gradient of its log-dets.
        context: of each of its inputs.
        gradients: what is found is added here.

    Returns:
        The inputs, and their gradient.
    """
    assert step.record is not None
    coupling = cast(_Coupling, step.transform)
    fixed, moved = coupling._split(outputs)
    grad_fixed, grad_moved = coupling._split(grad_outputs)
    given = context if coupling._passes_context and step.passes_context else None
    with step.record.again():
        with torch.enable_grad():
            fixed = fixed.detach().requires_grad_()
            passed = (fixed, given) if coupling._passes_context else (fixed,)
            parameters = coupling.conditioner(*passed).to(outputs.dtype)
        before, grad_before, grad_conditioning = _rebuild_moved(
            coupling.elementwise,
            parameters,
            moved,
            (grad_moved, grad_logabsdet),
            [fixed, given, *tensors_of([step])],
            gradients,
        )
    inputs = coupling._join(fixed.detach(), before)
    return inputs, coupling._join(grad_fixed + grad_conditioning, grad_before)


def rebuild_flow_step(
    step: FlowStep,
    outputs: Tensor,
    grad_outputs: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """``rebuild`` of a flow step, with folded weights; arguments as for ``rebuild_coupling``."""
    assert step.weights is not None and step.used is not None
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
        before, grad_before, grad_conditioning = _rebuild_moved(
            step.coupling.elementwise,
            parameters,
            moved,
            (grad_moved, grad_logabsdet),
            [fixed, context, *tensors],
            gradients,
        )
        pair: list[Any] = [fixed.detach(), before]
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
