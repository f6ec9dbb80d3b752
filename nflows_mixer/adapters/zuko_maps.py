"""Running a transformation of zuko both ways, with log-dets and inverses that can be trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer.numerics.autoregressive import until_unchanged
from nflows_mixer.numerics.implicit import first_order, with_implicit_gradient
from nflows_mixer.numerics.newton import check_solution, invert_monotone


def run(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and log-det of a transformation that a lazy one has built.

    Args:
        built: a transformation of rows, or of elements.
        inputs: [N, D].

    Returns:
        outputs [N, D], and a log-det of each row [N], or of each element of an elementary part.

    Raises:
        ValueError: if a part that runs backwards has no solution.

    Example:
        >>> import zuko
        >>> run(zuko.flows.MAF(3).transform(), torch.zeros(2, 3))[1].shape
        torch.Size([2])
    """
    from torch.distributions.transforms import _InverseTransform
    from zuko import transforms

    if isinstance(built, transforms.ComposedTransform):
        total = inputs.new_zeros(inputs.shape[0])
        for part in built.transforms:
            inputs, ladj = run(part, inputs)
            total = total + row_sum(ladj, inputs)
        return inputs, total
    if isinstance(built, transforms.DependentTransform):
        outputs, ladj = run(built.base, inputs)
        return outputs, row_sum(ladj, inputs)
    if isinstance(built, transforms.AutoregressiveTransform):
        return run(built.meta(inputs), inputs)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(inputs)
        moved, ladj = run(built.meta(fixed), moved)
        return built.merge(fixed, moved, inputs.shape), ladj
    if isinstance(built, transforms.UnconstrainedMonotonicTransform):
        return _integrate(built, inputs)
    if isinstance(built, _InverseTransform):
        outputs = solve(built.inv, inputs)
        return outputs, -run(built.inv, outputs)[1]
    return built.call_and_ladj(inputs)


def _integrate(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of an integral by quadrature, and the logarithm of the quadrature's own slope.

    zuko reports the integrand, which is the slope of the integral: apart by 1e-5 and more.
    """
    from zuko.transforms import SOSPolynomialTransform
    from zuko.utils import GaussLegendre

    if isinstance(built, SOSPolynomialTransform):
        # Of a polynomial the quadrature is exact.
        return built.call_and_ladj(inputs)
    wants_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view, so that the slope is that at the inputs, and the graph goes on to them.
        upper = inputs.view_as(inputs) if inputs.requires_grad else inputs.clone().requires_grad_()
        outputs = GaussLegendre.quadrature(built.g, torch.zeros_like(upper), upper, built.n)
        (slope,) = torch.autograd.grad(outputs.sum(), upper, create_graph=wants_graph)
        # zuko before 1.5 keeps the constant here, later a transform of its own.
        outputs = outputs + getattr(built, "C", 0.0)
    return (outputs, slope.log()) if wants_graph else (outputs.detach(), slope.log())


def solve(built: Any, targets: Tensor) -> Tensor:
    """Solve ``built(x) = targets``; by zuko's own inverse wherever that is in closed form.

    Args:
        built: a transformation of rows, or of elements.
        targets: [N, D].

    Returns:
        x [N, D], with gradients of first order.

    Raises:
        ValueError: if there is no solution.

    Example:
        >>> import zuko
        >>> built = zuko.flows.MAF(3).transform()
        >>> rows = torch.randn(2, 3)
        >>> torch.allclose(solve(built, run(built, rows)[0]), rows, atol=1e-4)
        True
    """
    from torch.distributions.transforms import _InverseTransform
    from zuko import transforms

    if isinstance(built, _InverseTransform):
        return run(built.inv, targets)[0]
    if isinstance(built, transforms.ComposedTransform):
        for part in reversed(built.transforms):
            targets = solve(part, targets)
        return targets
    if isinstance(built, transforms.DependentTransform):
        return solve(built.base, targets)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(targets)
        return built.merge(fixed, solve(built.meta(fixed), moved), targets.shape)
    if isinstance(built, transforms.AutoregressiveTransform):
        with torch.no_grad():
            solution, _ = until_unchanged(
                lambda x: (_solve_elementwise(built.meta(x), targets, x), None),
                torch.zeros_like(targets),
            )
            _check_iterative(built.meta(solution), solution, targets)
        return with_implicit_gradient(lambda x: run(built, x)[0], solution, targets)
    if isinstance(built, transforms.MonotonicTransform):
        with torch.no_grad():
            solution = _solve_elementwise(built, targets, None)
            _check_iterative(built, solution, targets)
        if not torch.is_grad_enabled():
            return solution
        values, log_slope = run(built, solution)
        return first_order(solution, (targets - values) / log_slope.detach().exp())
    if isinstance(built, transforms.SoftclipTransform):
        if (targets.abs() >= built.bound).any():
            raise mismatch(
                "from_zuko(SoftclipTransform).inverse",
                f"values between {-built.bound} and {built.bound}, its range",
                f"{targets.abs().max().item():g} in size",
                "zuko puts it between the transforms of SOSPF, NAF and UNAF; use transforms=1, "
                "standardise the inputs (ActNorm before it), or lower the temperature of samples",
            )
    return built.inv(targets)


def _solve_elementwise(built: Any, targets: Tensor, start: Tensor | None) -> Tensor:
    """Solve an elementwise ``built(x) = targets``, from a first guess where it iterates."""
    from zuko import transforms

    if isinstance(built, transforms.DependentTransform):
        return _solve_elementwise(built.base, targets, start)
    if isinstance(built, transforms.ComposedTransform):
        # The parts before the last are the ones that may iterate, and the guess is for the first.
        *last, first = reversed(built.transforms)
        for part in last:
            targets = solve(part, targets)
        return _solve_elementwise(first, targets, start)
    if isinstance(built, transforms.MonotonicTransform):
        # For UNAF the integrand will do as the slope of a step of Newton.
        return invert_monotone(built.call_and_ladj, targets, start)
    return solve(built, targets)


def _check_iterative(built: Any, solution: Tensor, targets: Tensor) -> None:
    """Raise if an elementwise transformation that iterates has not found its solution.

    Of a masked flow that is asked at the end alone: before, the parameters are not yet its own.
    """
    from zuko import transforms

    parts = [built.base] if isinstance(built, transforms.DependentTransform) else [built]
    if isinstance(parts[0], transforms.ComposedTransform):
        parts = parts[0].transforms
    for part in parts:
        if isinstance(part, transforms.MonotonicTransform):
            owner = f"from_zuko({type(part).__name__}).inverse"
            check_solution(run(built, solution)[0], targets, owner)


def row_sum(ladj: Tensor, inputs: Tensor) -> Tensor:
    """Log-det of each row, of one that may be of each row, of each element, or one for all.

    Args:
        ladj: of shape [], [N] or [N, ...].
        inputs: [N, ...].

    Example:
        >>> row_sum(torch.ones(2, 3), torch.zeros(2, 3))
        tensor([3., 3.])
    """
    if ladj.dim() < 2:
        return ladj.expand(inputs.shape[0])
    return ladj.flatten(1).sum(1)
