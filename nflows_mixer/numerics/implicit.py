"""Jacobians of maps of rows, and gradients through inverses that were found by iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
