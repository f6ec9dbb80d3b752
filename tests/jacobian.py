"""The log-determinant that a transform should report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian_logabsdet(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Tensor, context: Tensor | None = None
) -> Tensor:
    """log|det| of autograd's Jacobian, one input at a time.

    Each input is repeated once per dimension, so that one backward pass gives all rows of its
    Jacobian; that the rows of a batch do not mix is a property with a test of its own.
    """
    results = []
    for index in range(len(inputs)):
        size = inputs[index].numel()
        copies = inputs[index : index + 1].expand(size, *inputs.shape[1:]).clone().requires_grad_()
        given = None if context is None else context[index : index + 1]
        given = None if given is None else given.expand(size, *given.shape[1:])
        outputs, _ = function(copies, given)
        (rows,) = torch.autograd.grad(outputs.flatten(1).diagonal().sum(), copies)
        results.append(torch.linalg.slogdet(rows.flatten(1)).logabsdet)
    return torch.stack(results)
