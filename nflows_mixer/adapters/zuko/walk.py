"""Walk through what zuko's lazy transforms build: outputs, exact log-dets and inverses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import _InverseTransform
from zuko import transforms
from zuko.utils import GaussLegendre

from nflows_mixer._checks import mismatch
from nflows_mixer.numerics.fixed_point import report_inversion, until_unchanged
from nflows_mixer.numerics.implicit import (
    check_solution,
    first_order,
    invert_monotone,
    with_implicit_gradient,
)


def run(built: Any, values: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Outputs and log-det of a transformation that a lazy one has built, or of its inverse.

    That is zuko's own wherever it is in closed form. Masked flows are inverted by as many passes as
    change something, and monotone ones by Newton's steps; such outputs have gradients of first
    order.

    Args:
        built: a transformation of rows, or of elements.
        values: [N, D]; for the inverse, what the outputs are to be mapped to.
        inverse: which way.

    Returns:
        outputs [N, D], and a log-det of each row [N], or of each element of an elementary part.

    Raises:
        ValueError: if a part that runs backwards has no solution.

    Example:
        >>> import zuko
        >>> built = zuko.flows.MAF(3).transform()
        >>> rows = torch.randn(2, 3)
        >>> torch.allclose(run(built, run(built, rows)[0], inverse=True)[0], rows, atol=1e-4)
        True
    """
    if isinstance(built, _InverseTransform):
        return run(built.inv, values, not inverse)
    if isinstance(built, transforms.ComposedTransform):
        total = values.new_zeros(values.shape[0])
        for part in built.transforms[::-1] if inverse else built.transforms:
            values, ladj = run(part, values, inverse)
            total = total + row_sum(ladj, values)
        return values, total
    if isinstance(built, transforms.DependentTransform):
        outputs, ladj = run(built.base, values, inverse)
        return outputs, row_sum(ladj, outputs)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(values)
        moved, ladj = run(built.meta(fixed), moved, inverse)
        return built.merge(fixed, moved, values.shape), ladj
    if inverse:
        if isinstance(built, (transforms.AutoregressiveTransform, transforms.MonotonicTransform)):
            return _invert_by_iteration(built, values)
        if isinstance(built, transforms.SoftclipTransform) and (values.abs() >= built.bound).any():
            raise mismatch(
                "from_zuko(SoftclipTransform).inverse",
                f"values between {-built.bound} and {built.bound}, its range",
                f"{values.abs().max().item():g} in size",
                "zuko puts it between the transforms of SOSPF, NAF and UNAF; use transforms=1, "
                "standardize the inputs (ActNorm before it), or lower the temperature of samples",
            )
        outputs = built.inv(values)
        return outputs, -run(built, outputs)[1]
    if isinstance(built, transforms.AutoregressiveTransform):
        return run(built.meta(values), values)
    quadrature = isinstance(built, transforms.UnconstrainedMonotonicTransform)
    # Of a polynomial the quadrature is exact.
    if quadrature and not isinstance(built, transforms.SOSPolynomialTransform):
        return _integrate(built, values)
    return built.call_and_ladj(values)


def iterates(built: Any, rows: Tensor) -> bool:
    """Whether a transformation has a part without inverse in closed form: monotone, or an ODE.

    Args:
        built: a transformation of rows, or of elements.
        rows: a few inputs [N, D], to build the elementwise transformations with.

    Example:
        >>> import zuko
        >>> iterates(zuko.flows.NAF(3).transform(), torch.zeros(2, 3))
        True
    """
    if isinstance(built, _InverseTransform):
        return iterates(built.inv, rows)
    if isinstance(built, transforms.ComposedTransform):
        return any(iterates(part, rows) for part in built.transforms)
    if isinstance(built, transforms.DependentTransform):
        return iterates(built.base, rows)
    if isinstance(built, transforms.AutoregressiveTransform):
        return iterates(built.meta(rows), rows)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(rows)
        return iterates(built.meta(fixed), moved)
    endless = (transforms.MonotonicTransform, transforms.FreeFormJacobianTransform)
    return isinstance(built, endless)


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


def _integrate(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of an integral by quadrature, and the logarithm of the quadrature's own slope.

    zuko reports the integrand, which is the slope of the integral: apart by 1e-5 and more.
    """
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view, so that the slope is that at the inputs, and the graph goes on to them.
        upper = inputs.view_as(inputs) if inputs.requires_grad else inputs.clone().requires_grad_()
        outputs = GaussLegendre.quadrature(built.g, torch.zeros_like(upper), upper, built.n)
        (slope,) = torch.autograd.grad(outputs.sum(), upper, create_graph=with_graph)
        # zuko before 1.5 keeps the constant here, later a transform of its own.
        outputs = outputs + getattr(built, "C", 0.0)
    return (outputs, slope.log()) if with_graph else (outputs.detach(), slope.log())


def _invert_by_iteration(built: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    masked = isinstance(built, transforms.AutoregressiveTransform)

    def one_pass(x: Tensor) -> tuple[Tensor, None]:
        return _invert_elementwise(built.meta(x), targets, x), None

    with torch.no_grad():
        if masked:
            solution, _, passes = until_unchanged(one_pass, torch.zeros_like(targets))
            report_inversion(built, "jacobi", targets.shape[1], passes)
        else:
            solution = _invert_elementwise(built, targets, None)
    last = built.meta(solution) if masked else built
    values, ladj = run(last, solution)
    # Of a masked flow the parameters of a pass are not yet its own, so that the end alone counts.
    if iterates(last, solution):
        check_solution(values.detach(), targets, f"from_zuko({type(built).__name__}).inverse")
    if not torch.is_grad_enabled():
        return solution, -ladj
    if masked:
        solution = with_implicit_gradient(lambda x: run(built, x)[0], solution, targets)
    else:
        solution = first_order(solution, (targets - values) / ladj.detach().exp())
    return solution, -run(built, solution)[1]


def _invert_elementwise(built: Any, targets: Tensor, start: Tensor | None) -> Tensor:
    """Solve an elementwise ``built(x) = targets``, from a first guess where it iterates."""
    if isinstance(built, transforms.DependentTransform):
        return _invert_elementwise(built.base, targets, start)
    if isinstance(built, transforms.ComposedTransform):
        # The first part is the one that may iterate, and the guess is for it.
        *last, first = reversed(built.transforms)
        for part in last:
            targets = run(part, targets, inverse=True)[0]
        return _invert_elementwise(first, targets, start)
    if isinstance(built, transforms.MonotonicTransform):
        # For UNAF the integrand will do as the slope of a step of Newton.
        return invert_monotone(built.call_and_ladj, targets, start)
    return run(built, targets, inverse=True)[0]
