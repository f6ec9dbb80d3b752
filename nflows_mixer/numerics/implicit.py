"""Inverses found by iteration: Newton's steps, Jacobians of rows, gradients of a solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nflows_mixer._checks import mismatch

# Rows that one backward pass carries. On a CPU more leave its cache (three times as slow at
# N = 4096, D = 48), fewer cost calls; elsewhere the limit is there for memory alone.
_ROWS_PER_PASS = {"cpu": 2**12}
_ROWS_PER_PASS_ELSEWHERE = 2**18


def row_jacobian(
    function: Callable[[Tensor], Tensor], inputs: Tensor, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Map rows, and give the exact Jacobian of every row.

    .. math:: y_n = f(x_n), \qquad J_{nij} = \partial y_{ni} / \partial x_{nj}

    One forward pass and D vector-Jacobian products, many of them in one backward pass. Memory is
    O(N D^2), and with ``create_graph`` O(N D (D + H)) for layers of width H. Works without
    gradients, in inference mode too.

    Args:
        function: f, maps each row by itself; it must not let rows of a batch mix, as batch
            normalization does in training mode. Its backward is run under ``vmap``.
        inputs: rows [N, D].
        create_graph: whether results carry gradients, the Jacobian's included; else they are
            detached. Needs grad mode.

    Returns:
        outputs [N, D] and Jacobians [N, D, D].

    Example:
        >>> outputs, jacobian = row_jacobian(lambda x: x * x.sum(1, keepdim=True), torch.ones(1, 2))
        >>> outputs.tolist(), jacobian.tolist()
        ([[2.0, 2.0]], [[[3.0, 1.0], [1.0, 3.0]]])
    """
    batch, features = inputs.shape
    with torch.inference_mode(False), torch.enable_grad():
        # A copy, because the function may hold something that depends on the inputs (a context),
        # which is no part of this Jacobian, and because inference tensors take no gradient.
        point = (inputs if create_graph else inputs.detach()).clone().requires_grad_()
        outputs = function(point)
        directions = torch.eye(features, dtype=outputs.dtype, device=outputs.device)
        at_once = _ROWS_PER_PASS.get(outputs.device.type, _ROWS_PER_PASS_ELSEWHERE) // max(batch, 1)
        rows = [
            torch.autograd.grad(
                outputs,
                point,
                some[:, None].expand(-1, batch, -1),
                is_grads_batched=True,
                retain_graph=True,
                create_graph=create_graph,
            )[0]
            for some in directions.split(max(at_once, 1))
        ]
        jacobian = torch.cat(rows).movedim(0, 1)
    return (outputs, jacobian) if create_graph else (outputs.detach(), jacobian.detach())


def with_implicit_gradient(
    function: Callable[[Tensor], Tensor], solution: Tensor, targets: Tensor
) -> Tensor:
    r"""Attach gradients to the solution of an equation that was solved without any.

    .. math:: f_\theta(x^*) = y \quad\Rightarrow\quad
              \mathrm{d}x^* = J^{-1} (\mathrm{d}y - \partial_\theta f\, \mathrm{d}\theta), \qquad
              J = \partial f / \partial x\,(x^*)

    By the implicit function theorem, so that memory does not grow with the iterations. Values
    stay those of the solver; gradients are of first order, with respect to y and to whatever f
    depends on. Without grad mode the solution comes back as it is.

    Args:
        function: f, maps each row by itself.
        solution: rows x* [N, D].
        targets: rows y [N, D].

    Returns:
        x* [N, D], with gradients.

    Example:
        >>> targets = torch.tensor([[8.0]], requires_grad=True)
        >>> root = with_implicit_gradient(lambda x: x**3, torch.tensor([[2.0]]), targets)
        >>> root.backward()
        >>> f"{root.item()} {targets.grad.item():.4f}"
        '2.0 0.0833'
    """
    solution = solution.detach()
    if not torch.is_grad_enabled():
        return solution
    residual = targets - function(solution)
    if not residual.requires_grad:
        return solution
    _, jacobian = row_jacobian(function, solution)
    # A step of Newton, whose gradient all comes through the residual.
    return first_order(solution, torch.linalg.solve(jacobian, residual[..., None])[..., 0])


def first_order(solution: Tensor, step: Tensor) -> Tensor:
    r"""Give ``solution`` the gradient of ``step``, and leave its value as it is.

    .. math:: x^*, \qquad \mathrm{d}x^* := \mathrm{d}s

    That gradient is of first order: a second one through it would be wrong, and raises.

    Args:
        solution: values, of any shape.
        step: what a solver would still add, of the same shape; about zero, and only its gradient
            is used.

    Example:
        >>> target = torch.tensor(9.0, requires_grad=True)
        >>> root = first_order(torch.tensor(3.0), (target - 3.0**2) / (2 * 3.0))
        >>> root.backward()
        >>> f"{root.item()} {target.grad.item():.4f}"
        '3.0 0.1667'
    """
    return _FirstOrder.apply(solution, step)


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solution: Tensor, step: Tensor) -> Tensor:
        return solution.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


_STEPS = 100
_WIDEST = 2.0**20


@torch.no_grad()
def invert_monotone(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    targets: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    r"""Solve f(x) = y for an increasing f, element by element: Newton's steps inside a bracket.

    .. math:: x \leftarrow x + (y - f(x)) / f'(x)
        \quad\text{if that lies in } (a, b), \text{ else } (a + b) / 2

    The bracket starts at [-10, 10] and is doubled until it holds the solution; every evaluation
    narrows it. Iteration ends with a step of Newton below the square root of the precision.

    Args:
        function: x -> (f(x), log f'(x)), element by element.
        targets: y, of any shape.
        start: a first guess of the solution; the middle of the bracket where None.

    Returns:
        x, of the shape of ``targets``, without gradient. Where there is no solution it is an end
        of the bracket: ``check_solution`` tells.

    Example:
        >>> cube = lambda x: (x**3 + x, torch.log(3 * x**2 + 1))
        >>> invert_monotone(cube, torch.tensor([-2.0, 0.0, 1e6]))
        tensor([-1.0000,  0.0000, 99.9967])
    """
    low, high = torch.full_like(targets, -10.0), torch.full_like(targets, 10.0)
    while (too_high := function(low)[0] > targets).any() and low.min() > -_WIDEST:
        low = torch.where(too_high, 2 * low, low)
    while (too_low := function(high)[0] < targets).any() and high.max() < _WIDEST:
        high = torch.where(too_low, 2 * high, high)
    middle = (low + high) / 2
    x = middle if start is None else torch.where((start > low) & (start < high), start, middle)
    eps = torch.finfo(x.dtype).eps
    for _ in range(_STEPS):
        value, log_slope = function(x)
        low = torch.where(value < targets, x, low)
        high = torch.where(value > targets, x, high)
        newton = x + (targets - value) * (-log_slope).exp()
        # A NaN fails both comparisons.
        inside = (newton >= low) & (newton <= high)
        moved = torch.where(inside, newton, (low + high) / 2)
        step = (moved - x).abs() / x.abs().clamp(min=1.0)
        # One that stands still is kept to the bit, so that a solution is its own solution.
        still = step <= 16 * eps
        x = torch.where(still, x, moved)
        # What Newton's step leaves over is of the order of its square: below the precision.
        if (still | (inside & (step <= eps**0.5))).all():
            break
    return x


def check_solution(values: Tensor, targets: Tensor, owner: str) -> None:
    """Raise unless the values of a function at its solution are the targets.

    Args:
        values: f(x), of any shape.
        targets: y, of the same shape.
        owner: whose inverse x is, for the error.

    Raises:
        ValueError: if they are apart by more than 1e-3 (1e-6 in float64), relative to
            ``max(1, |y|)``: there is no such x, or f is too flat there for the precision.

    Example:
        >>> check_solution(torch.tensor([1.0]), torch.tensor([1.0]), "example")
    """
    error = (values - targets).abs() / targets.abs().clamp(min=1.0)
    tolerance = 1e-6 if targets.dtype == torch.float64 else 1e-3
    # Written so that a NaN counts as apart.
    if (apart := ~(error <= tolerance)).any():
        raise mismatch(
            owner,
            f"an x with f(x) within {tolerance} of y",
            f"none for {apart.sum().item()} of {apart.numel()} values, such as "
            f"y = {targets[apart][0].item():g}",
            "y lies outside the flow's range, or f is too flat there: standardize its inputs "
            "(ActNorm before it), lower the temperature of samples, or run it in float64",
        )
