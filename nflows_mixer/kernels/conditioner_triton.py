"""The conditioner of a coupling on a GPU.

In training one kernel per linear layer, since batch statistics need all rows: each applies
normalisation and GELU to what it reads, and leaves the sums for the next normalisation. With given
statistics one kernel in all, whose hidden rows never reach memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nflows_mixer.kernels.batch_norm_triton import (
    TILE_ROWS,
    gelu_of_normalised,
    merge_statistics,
    packed,
    store_tile_statistics,
    tile_buffers,
)

# Rows of a tile where all is one kernel. With it and few stages a tile fits into 64 KiB of shared
# memory for all sizes that are allowed, which is what older GPUs have.
ROWS = 32
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _load_tile(start, row, column, rows, columns):
    """Elements of a matrix [rows, columns], 0 outside it."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    return tl.load(start + row[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def _dot(x, weights, total, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Add x @ weights.T to the total."""
    weights = tl.trans(weights.to(TYPE))
    return tl.dot(x.to(TYPE), weights, total, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def _linear(
    x,
    weights,
    bias,
    mean,
    variance,
    scale,
    shift,
    skipped,
    skip,
    outputs,
    means,
    squares,
    rows,
    inner,
    skip_inner,
    columns,
    eps,
    NORMALISED: tl.constexpr,
    STATISTICS: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """x W^T + b, or GELU(BN(x)) W^T + skipped U^T + b, and the statistics of the tile if asked."""
    tile = tl.program_id(0)
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        values = _load_tile(x, row, k, rows, inner).to(tl.float32)
        if NORMALISED:
            values = gelu_of_normalised(values, mean, variance, scale, shift, eps, k, inner)
        total = _dot(values, _load_tile(weights, column, k, columns, inner), total, TYPE, PRECISION)
    for start in range(0, skip_inner, INNER):
        k = start + tl.arange(0, INNER)
        values = _load_tile(skipped, row, k, rows, skip_inner)
        part = _load_tile(skip, column, k, columns, skip_inner)
        total = _dot(values, part, total, TYPE, PRECISION)
    total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    kept = total.to(outputs.dtype.element_ty)
    tl.store(outputs + row[:, None] * columns + column[None, :], kept, mask=inside)
    if STATISTICS:
        # Of the numbers as they are kept, which is what will be normalised.
        count = tl.minimum(ROWS, rows - tile * ROWS).to(tl.float32)
        store_tile_statistics(
            kept.to(tl.float32), inside, tile, count, means, squares, column, columns
        )


@triton.jit
def _of_statistics(
    x,
    initial,
    initial_bias,
    scale1,
    shift1,
    hidden,
    hidden_bias,
    scale2,
    shift2,
    output,
    skip,
    output_bias,
    mean1,
    variance1,
    mean2,
    variance2,
    outputs,
    rows,
    inner,
    width,
    columns,
    eps1,
    eps2,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    every = tl.arange(0, WIDTH)
    column = tl.arange(0, COLUMNS)
    first = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        values = _load_tile(x, row, k, rows, inner)
        first = _dot(values, _load_tile(initial, every, k, width, inner), first, TYPE, PRECISION)
        total = _dot(values, _load_tile(skip, column, k, columns, inner), total, TYPE, PRECISION)
    first += tl.load(initial_bias + every, mask=every < width, other=0.0).to(tl.float32)[None, :]
    first = gelu_of_normalised(first, mean1, variance1, scale1, shift1, eps1, every, width)
    # The second hidden layer comes in pieces, each used up at once.
    for start in range(0, width, INNER):
        k = start + tl.arange(0, INNER)
        second = tl.zeros([ROWS, INNER], tl.float32)
        second = _dot(first, _load_tile(hidden, k, every, width, width), second, TYPE, PRECISION)
        second += tl.load(hidden_bias + k, mask=k < width, other=0.0).to(tl.float32)[None, :]
        second = gelu_of_normalised(second, mean2, variance2, scale2, shift2, eps2, k, width)
        total = _dot(second, _load_tile(output, column, k, columns, width), total, TYPE, PRECISION)
    total += tl.load(output_bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    place = row[:, None] * columns + column[None, :]
    tl.store(outputs + place, total.to(outputs.dtype.element_ty), mask=inside)


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
    eps1: float,
    eps2: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Return outputs, both hidden layers before normalisation, and their means and variances."""
    # The kernels read tensors as if there were no gaps in them.
    inputs, initial, initial_bias, scale1, shift1 = packed(
        inputs, initial, initial_bias, scale1, shift1
    )
    hidden, hidden_bias, scale2, shift2 = packed(hidden, hidden_bias, scale2, shift2)
    output, skip, output_bias = packed(output, skip, output_bias)
    rows = inputs.shape[0]
    first, part = _layer(inputs, initial, initial_bias, dtype)
    norm1 = merge_statistics(*part, rows)
    given = (*norm1, scale1, shift1, eps1)
    second, part = _layer(first, hidden, hidden_bias, dtype, given)
    norm2 = merge_statistics(*part, rows)
    given = (*norm2, scale2, shift2, eps2)
    outputs, _ = _layer(second, output, output_bias, dtype, given, (inputs, skip))
    return outputs, first, second, *norm1, *norm2


def conditioner_of_statistics(
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
    eps1: float,
    eps2: float,
    dtype: torch.dtype,
    *statistics: Tensor,
) -> Tensor:
    """Return the outputs for given means and variances of the two normalisations."""
    (rows, inner), width, columns = inputs.shape, len(initial), len(output)
    outputs = inputs.new_empty(rows, columns)
    layers = (initial, initial_bias, scale1, shift1, hidden, hidden_bias, scale2, shift2)
    # The kernel reads tensors as if there were no gaps in them.
    tensors = packed(inputs, *layers, output, skip, output_bias, *statistics)
    with torch.cuda.device_of(inputs):
        _of_statistics[(triton.cdiv(rows, ROWS),)](
            *tensors,
            outputs,
            rows,
            inner,
            width,
            columns,
            eps1,
            eps2,
            **_products(dtype),
            ROWS=ROWS,
            INNER=32 if max(width, columns) <= 128 else 16,
            WIDTH=_padded(width),
            COLUMNS=_padded(columns),
            num_stages=1,
        )
    return outputs


def _layer(
    inputs: Tensor,
    weights: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    normalisation: tuple[Tensor, Tensor, Tensor, Tensor, float] | None = None,
    skip: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return a linear layer's outputs, and the statistics of their tiles unless it is the last."""
    rows, columns = len(inputs), len(weights)
    part = tile_buffers(inputs, columns if skip is None else 0)
    outputs = inputs.new_empty(rows, columns, dtype=dtype if skip is None else skip[0].dtype)
    # What a kernel is told not to read may be any tensor.
    *norm, eps = normalisation or (bias, bias, bias, bias, 0.0)
    block = min(_padded(columns), 128)
    with torch.cuda.device_of(inputs):
        _linear[(triton.cdiv(rows, TILE_ROWS), triton.cdiv(columns, block))](
            inputs,
            weights,
            bias,
            *norm,
            *(skip or (inputs, weights)),
            outputs,
            *part,
            rows,
            inputs.shape[1],
            0 if skip is None else skip[0].shape[1],
            columns,
            eps,
            NORMALISED=normalisation is not None,
            STATISTICS=skip is None,
            **_products(dtype),
            ROWS=TILE_ROWS,
            INNER=32,
            COLUMNS=block,
            num_stages=2,
        )
    return outputs, part


def _products(dtype: torch.dtype) -> dict[str, object]:
    return {"TYPE": TYPES[dtype], "PRECISION": "tf32" if _allows_tf32() else "ieee"}


def _allows_tf32() -> bool:
    products = torch.backends.cuda.matmul
    # Where the newer setting is there and was used, to ask for the older one is an error.
    if hasattr(products, "fp32_precision"):
        return products.fp32_precision == "tf32"
    return products.allow_tf32


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
