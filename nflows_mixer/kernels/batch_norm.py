"""GELU after batch normalisation, in one kernel where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nflows_mixer._checks import mismatch
from nflows_mixer.kernels.ops import Three, has_kernel, statistics_dtype


def gelu_batch_norm(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Three:
    r"""Normalise each column by its mean and variance over the batch, then apply GELU.

    .. math:: z = \frac{h - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta, \qquad
              r = z\, \Phi(z), \qquad
              \mu = \frac1N \sum_n h_n, \qquad \sigma^2 = \frac1N \sum_n (h_n - \mu)^2

    Three implementations of one function: Triton on a GPU after :func:`load_gpu_kernels`, C++ on
    the CPU after :func:`load_cpu_kernels`, plain torch elsewhere. Kernels keep the inputs and the
    statistics for the backward pass and nothing more; second derivatives and ``torch.func`` need
    plain torch. The batch is that of this process.

    Args:
        inputs: h, [N, H] with N of at least 2.
        weight: :math:`\gamma`, [H].
        bias: :math:`\beta`, [H].
        eps: :math:`\epsilon`.

    Returns:
        r [N, H], and :math:`\mu` [H] and :math:`\sigma^2` [H] for running statistics: in float32
        or wider, and no gradient flows through them.

    Raises:
        ValueError: if inputs are not rows, there are less than two of them, or weight and bias
            are of another length.

    References:
        Ioffe and Szegedy, Batch normalization, 2015, Section 3; Hendrycks and Gimpel, Gaussian
        error linear units, 2016.

    Example:
        >>> rows = torch.tensor([[-3.0], [5.0]])
        >>> outputs, mean, variance = gelu_batch_norm(rows, torch.ones(1), torch.zeros(1))
        >>> mean.item(), variance.item()
        (1.0, 16.0)
        >>> torch.allclose(outputs, torch.nn.functional.gelu((rows - 1) / 4))
        True
    """
    check_rows("gelu_batch_norm", inputs)
    for name, parameter in [("weight", weight), ("bias", bias)]:
        if parameter.shape != inputs.shape[1:]:
            raise mismatch(
                "gelu_batch_norm",
                f"{name} of shape [{inputs.shape[1]}]",
                list(parameter.shape),
                "give one number per column of the inputs",
            )
    dtype = statistics_dtype(inputs)
    function = _Fused.apply if has_kernel("gelu_batch_norm", inputs) else gelu_batch_norm_torch
    return function(inputs, weight.to(dtype), bias.to(dtype), eps)


def gelu_batch_norm_torch(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Three:
    """Compute :func:`gelu_batch_norm` by torch's own operators; the measure of its kernels."""
    # With momentum 1 the layer's running statistics are those of this batch. That is much faster
    # than to compute them apart.
    mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
    normalised = F.batch_norm(inputs, mean, variance, weight, bias, True, 1.0, eps)
    rows = inputs.shape[0]
    return F.gelu(normalised), mean, variance * ((rows - 1) / rows)


def check_rows(owner: str, inputs: Tensor) -> None:
    """Raise unless ``inputs`` are two or more rows, of which a variance can be taken."""
    if inputs.dim() != 2 or inputs.shape[0] < 2:
        raise mismatch(
            owner,
            "inputs of shape [N, H] with N of at least 2",
            list(inputs.shape),
            "batch statistics need two rows; use running statistics for one",
        )


class _Fused(torch.autograd.Function):
    """The operator of :mod:`nflows_mixer.kernels.ops` with its gradient."""

    # A separate setup_context, which torch.func asks for, would triple the cost of a call.
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Three:
        outputs, mean, variance = torch.ops.nflows_mixer.gelu_batch_norm(inputs, weight, bias, eps)
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(inputs, mean, variance, weight, bias)
        ctx.eps = eps
        return outputs, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        backward = torch.ops.nflows_mixer.gelu_batch_norm_backward
        return *backward(gradient, *ctx.saved_tensors, ctx.eps), None
