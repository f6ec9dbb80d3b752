"""The conditioner of a coupling, in three kernels or one where there are kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nflows_mixer._checks import mismatch
from nflows_mixer.kernels.batch_norm import check_rows, gelu_batch_norm
from nflows_mixer.kernels.ops import GPU_DTYPES, has_kernel, statistics_dtype

Four = tuple[Tensor, Tensor, Tensor, Tensor]

# Rows of the hidden layers and of the outputs lie in registers as a whole.
LARGEST_WIDTH = 256


def conditioner(
    inputs: Tensor,
    initial: Tensor,
    initial_bias: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    hidden: Tensor,
    hidden_bias: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    output: Tensor,
    skip: Tensor,
    output_bias: Tensor,
    eps: float | tuple[float, float] = 1e-5,
    statistics: Four | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Four]:
    r"""Evaluate a residual MLP of one block whose linear tail is multiplied out.

    .. math:: V r_1 + U a + c, \qquad r_1 = g(\mathrm{BN}_2(W_1 r_0 + b_1)), \qquad
              r_0 = g(\mathrm{BN}_1(W_0 a + b_0)), \qquad g = \mathrm{GELU}

    On a GPU, after :func:`load_gpu_kernels`, each linear layer is one kernel, with
    normalisation and GELU of what it reads, and keeps what it normalises for the backward pass and
    nothing more; with given statistics and no gradient all is one kernel. Elsewhere, and for rows
    of more than 256 numbers, it is plain torch with :func:`gelu_batch_norm`. The batch is that of
    this process.

    Args:
        inputs: a, [N, D].
        initial, initial_bias: :math:`W_0` [H, D] and :math:`b_0` [H].
        scale1, shift1: weight and bias of :math:`\mathrm{BN}_1`, [H].
        hidden, hidden_bias: :math:`W_1` [H, H] and :math:`b_1` [H].
        scale2, shift2: weight and bias of :math:`\mathrm{BN}_2`, [H].
        output, skip, output_bias: V [K, H], U [K, D] and c [K].
        eps: of both batch normalisations, or of one and the other.
        statistics: their means and variances (mean, variance, mean, variance), as in evaluation;
            None takes those of the batch.
        dtype: half precision for the products and for what is kept; they are summed in float32,
            and so are statistics. None takes the type of the inputs.

    Returns:
        Outputs [N, K] in the type of the inputs, and the statistics, biased, through which no
        gradient flows.

    Raises:
        ValueError: if a shape does not fit, or statistics of less than two rows are asked for.

    References:
        MixerFlow, Section 4, "Flow layer"; Ioffe and Szegedy, Batch normalization, 2015.

    Example:
        >>> shapes = [(8, 3), (8,), (8,), (8,), (8, 8), (8,), (8,), (8,), (4, 8), (4, 3), (4,)]
        >>> weights = [torch.randn(shape) for shape in shapes]
        >>> rows = torch.randn(5, 3)
        >>> outputs, statistics = conditioner(rows, *weights)
        >>> again, _ = conditioner(rows, *weights, statistics=statistics)
        >>> torch.allclose(outputs, again, atol=1e-4)
        True
    """
    dtype = inputs.dtype if dtype is None else dtype
    wide = statistics_dtype(inputs)
    first = (initial, initial_bias, scale1.to(wide), shift1.to(wide))
    second = (hidden, hidden_bias, scale2.to(wide), shift2.to(wide))
    weights = (*first, *second, output, skip, output_bias)
    _check_shapes(inputs, weights)
    eps = (eps, eps) if isinstance(eps, (int, float)) else eps
    kernel = has_kernel("conditioner", inputs) and dtype in GPU_DTYPES
    if max(inputs.shape[1], len(hidden), len(output)) > LARGEST_WIDTH:
        kernel = False
    if statistics is None:
        check_rows("conditioner", inputs)
        if kernel:
            outputs, *found = _Fused.apply(inputs, *weights, *eps, dtype)
            return outputs, tuple(found)
        return conditioner_torch(inputs, weights, eps, statistics, dtype)
    _check_statistics(statistics, len(hidden))
    if kernel and not _needs_gradient(inputs, *weights):
        evaluate = torch.ops.nflows_mixer.conditioner_of_statistics
        return evaluate(inputs, *weights, *eps, dtype, *statistics), statistics
    return conditioner_torch(inputs, weights, eps, statistics, dtype)


def conditioner_torch(
    inputs: Tensor,
    weights: tuple[Tensor, ...],
    eps: tuple[float, float],
    statistics: Four | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Four]:
    """Compute :func:`conditioner` by torch's own operators; the measure of its kernels."""
    *layers, output, skip, output_bias = weights
    rows = active = inputs.to(dtype)
    found: list[Tensor] = []
    for i in range(2):
        weight, bias, scale, shift = layers[4 * i : 4 * i + 4]
        active = F.linear(active, weight.to(dtype), bias.to(dtype))
        if statistics is None:
            active, mean, variance = gelu_batch_norm(active, scale, shift, eps[i])
        else:
            mean, variance = statistics[2 * i : 2 * i + 2]
            normalised = F.batch_norm(active, mean, variance, scale, shift, eps=eps[i])
            active = F.gelu(normalised)
        found += [mean, variance]
    skipped = F.linear(rows, skip.to(dtype), output_bias.to(dtype))
    outputs = torch.addmm(skipped, active, output.to(dtype).t())
    return outputs.to(inputs.dtype), (found[0], found[1], found[2], found[3])


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_shapes(inputs: Tensor, weights: tuple[Tensor, ...]) -> None:
    rows, width, columns = list(inputs.shape), len(weights[0]), len(weights[-1])
    if len(rows) != 2:
        raise mismatch("conditioner", "inputs of shape [N, D]", rows, "give one row per sample")
    vectors = [(width,)] * 3
    expected = [(width, rows[1]), *vectors, (width, width), *vectors]
    expected += [(columns, width), (columns, rows[1]), (columns,)]
    shapes = [tuple(weight.shape) for weight in weights]
    if shapes != expected:
        advice = "give weights and biases in the order of the arguments"
        raise mismatch("conditioner", f"weights of shapes {expected}", shapes, advice)


def _check_statistics(statistics: Sequence[Tensor], width: int) -> None:
    shapes = [list(statistic.shape) for statistic in statistics]
    if shapes != [[width]] * 4:
        raise mismatch(
            "conditioner",
            f"four statistics of shape [{width}]",
            shapes,
            "give (mean, variance, mean, variance), one number per hidden unit",
        )


class _Fused(torch.autograd.Function):
    """The operator of :mod:`nflows_mixer.kernels.ops` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        outputs, first, second, *statistics = torch.ops.nflows_mixer.conditioner(*arguments)
        ctx.mark_non_differentiable(*statistics)
        ctx.save_for_backward(*arguments[:12], first, second, *statistics)
        ctx.eps = arguments[12:14]
        return outputs, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, initial, bias, scale1, shift1, hidden, _, scale2, shift2, output, skip, _ = saved[
            :12
        ]
        first, second, mean1, variance1, mean2, variance2 = saved[12:]
        norm1 = (mean1, variance1, scale1, shift1, ctx.eps[0])
        norm2 = (mean2, variance2, scale2, shift2, ctx.eps[1])
        operators = torch.ops.nflows_mixer
        rows, d_outputs = inputs.to(first.dtype), gradient.to(first.dtype)
        initial, hidden, output, skip = (
            weight.to(first.dtype) for weight in (initial, hidden, output, skip)
        )
        d_output = d_outputs.t() @ operators.gelu_normalised(second, *norm2)
        d_second, d_scale2, d_shift2 = operators.gelu_batch_norm_backward(
            d_outputs @ output, second, *norm2
        )
        d_hidden = d_second.t() @ operators.gelu_normalised(first, *norm1)
        d_first, d_scale1, d_shift1 = operators.gelu_batch_norm_backward(
            d_second @ hidden, first, *norm1
        )
        d_inputs = torch.addmm(d_outputs @ skip, d_first, initial)
        # Normalisation takes off what a bias before it adds.
        of_first = (d_first.t() @ rows, torch.zeros_like(bias), d_scale1, d_shift1)
        of_second = (d_hidden, torch.zeros_like(bias), d_scale2, d_shift2)
        of_last = (d_output, d_outputs.t() @ rows, gradient.sum(0))
        gradients = (d_inputs, *of_first, *of_second, *of_last)
        typed = (d.to(given.dtype) for d, given in zip(gradients, saved))
        return *typed, None, None, None
