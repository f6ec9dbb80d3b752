"""The log-determinant that a transform should report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian_logabsdet(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Tensor, context: Tensor | None = None
) -> Tensor:
    """log|det| of autograd's Jacobian, for each input.

    Each input is repeated once per dimension, one after another, so that one backward pass gives
    all rows of all Jacobians; that the rows of a batch do not mix is a property with a test of its
    own.
    """
    count, size = len(inputs), inputs[0].numel()
    copies = inputs.detach().repeat_interleave(size, 0).requires_grad_()
    given = None if context is None else context.repeat_interleave(size, 0)
    outputs, _ = function(copies, given)
    diagonals = outputs.reshape(count, size, size).diagonal(dim1=1, dim2=2)
    (rows,) = torch.autograd.grad(diagonals.sum(), copies)
    return torch.linalg.slogdet(rows.reshape(count, size, size)).logabsdet
