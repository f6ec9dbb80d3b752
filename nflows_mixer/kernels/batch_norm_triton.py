"""GELU after batch normalisation on a GPU.

Sums over rows are taken per tile of rows, then over the tiles in their order: no atomic addition,
so that a result repeats. All arithmetic is in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nflows_mixer.kernels.ops import Three

TILE_ROWS = 64
TILE_COLUMNS = 64
MERGED_TILES = 32


@triton.jit
def gelu_and_slope(z):
    """GELU of z, and its derivative."""
    cdf = 0.5 * (1 + tl.math.erf(z * 0.7071067811865476))
    return z * cdf, cdf + z * tl.exp(-0.5 * z * z) * 0.3989422804014327


@triton.jit
def load_normalisation(mean, variance, weight, bias, eps, column, inside):
    """Mean, 1 / standard deviation, weight and bias of some columns, each [1, columns]."""
    centre = tl.load(mean + column, mask=inside, other=0.0)
    inverse = tl.rsqrt(tl.load(variance + column, mask=inside, other=1.0) + eps)
    gamma = tl.load(weight + column, mask=inside, other=0.0)
    beta = tl.load(bias + column, mask=inside, other=0.0)
    return centre[None, :], inverse[None, :], gamma[None, :], beta[None, :]


@triton.jit
def gelu_of_normalised(x, mean, variance, weight, bias, eps, column, columns):
    """GELU of x [rows, columns of the tile], normalised by the given statistics."""
    centre, inverse, gamma, beta = load_normalisation(
        mean, variance, weight, bias, eps, column, column < columns
    )
    gelu, _ = gelu_and_slope((x - centre) * inverse * gamma + beta)
    return gelu


@triton.jit
def store_tile_statistics(x, inside, tile, count, means, squares, column, columns):
    """Store the mean of a tile, and the sum of squares of distances to it."""
    mean = tl.sum(tl.where(inside, x, 0.0), 0) / count
    distance = tl.where(inside, x - mean[None, :], 0.0)
    tl.store(means + tile * columns + column, mean, mask=column < columns)
    square = tl.sum(distance * distance, 0)
    tl.store(squares + tile * columns + column, square, mask=column < columns)


@triton.jit
def _tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    # 64 bits: the number of elements may pass 2^31.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    return row[:, None] * columns + column[None, :], column, inside


@triton.jit
def _tile_statistics(x, means, squares, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place, column, inside = _tile(rows, columns, ROWS, COLUMNS)
    tile = tl.program_id(0)
    count = tl.minimum(ROWS, rows - tile * ROWS).to(tl.float32)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    store_tile_statistics(values, inside, tile, count, means, squares, column, columns)


@triton.jit
def _merge_statistics(
    means,
    squares,
    mean,
    variance,
    rows,
    columns,
    tiles,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        inside = (tile[:, None] < tiles) & (column[None, :] < columns)
        part = tl.load(means + tile[:, None] * columns + column[None, :], mask=inside, other=0.0)
        count = tl.minimum(ROWS, rows - tile * ROWS).to(tl.float32)
        total += tl.sum(part * count[:, None], 0)
    centre = total / rows
    spread = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        inside = (tile[:, None] < tiles) & (column[None, :] < columns)
        place = tile[:, None] * columns + column[None, :]
        distance = tl.load(means + place, mask=inside, other=0.0) - centre[None, :]
        count = tl.minimum(ROWS, rows - tile * ROWS).to(tl.float32)
        between = tl.where(inside, distance * distance * count[:, None], 0.0)
        spread += tl.sum(tl.load(squares + place, mask=inside, other=0.0) + between, 0)
    tl.store(mean + column, centre, mask=column < columns)
    tl.store(variance + column, spread / rows, mask=column < columns)


@triton.jit
def _gelu_normalised(
    x,
    mean,
    variance,
    weight,
    bias,
    outputs,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    place, column, inside = _tile(rows, columns, ROWS, COLUMNS)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    gelu = gelu_of_normalised(values, mean, variance, weight, bias, eps, column, columns)
    tl.store(outputs + place, gelu.to(outputs.dtype.element_ty), mask=inside)


@triton.jit
def _backward_sums(
    gradient,
    x,
    mean,
    variance,
    weight,
    bias,
    sums,
    products,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Per tile, the sums of the gradient of z and of its product with the normalised input."""
    place, column, inside = _tile(rows, columns, ROWS, COLUMNS)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    centre, inverse, gamma, beta = load_normalisation(
        mean, variance, weight, bias, eps, column, column < columns
    )
    normalised = (values - centre) * inverse
    _, slope = gelu_and_slope(normalised * gamma + beta)
    # It is 0 outside, so that nothing from there enters the sums.
    d_z = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * slope
    part = tl.program_id(0) * columns + column
    tl.store(sums + part, tl.sum(d_z, 0), mask=column < columns)
    tl.store(products + part, tl.sum(d_z * normalised, 0), mask=column < columns)


@triton.jit
def _merge_sums(
    sums, products, d_bias, d_weight, columns, tiles, TILES: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    product = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        inside = (tile[:, None] < tiles) & (column[None, :] < columns)
        place = tile[:, None] * columns + column[None, :]
        total += tl.sum(tl.load(sums + place, mask=inside, other=0.0), 0)
        product += tl.sum(tl.load(products + place, mask=inside, other=0.0), 0)
    tl.store(d_bias + column, total, mask=column < columns)
    tl.store(d_weight + column, product, mask=column < columns)


@triton.jit
def _backward_inputs(
    gradient,
    x,
    mean,
    variance,
    weight,
    bias,
    d_bias,
    d_weight,
    d_inputs,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of z less what the mean and the variance send back."""
    place, column, inside = _tile(rows, columns, ROWS, COLUMNS)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    centre, inverse, gamma, beta = load_normalisation(
        mean, variance, weight, bias, eps, column, column < columns
    )
    normalised = (values - centre) * inverse
    _, slope = gelu_and_slope(normalised * gamma + beta)
    d_z = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * slope
    of_mean = tl.load(d_bias + column, mask=column < columns, other=0.0)[None, :] / rows
    of_variance = tl.load(d_weight + column, mask=column < columns, other=0.0)[None, :] / rows
    d_x = (d_z - of_mean - normalised * of_variance) * inverse * gamma
    tl.store(d_inputs + place, d_x.to(d_inputs.dtype.element_ty), mask=inside)


def gelu_batch_norm(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Three:
    """See :func:`nflows_mixer.kernels.batch_norm.gelu_batch_norm`."""
    inputs = inputs.contiguous()
    rows, columns = inputs.shape
    means, squares = tile_buffers(inputs, columns)
    grid, tile = _grid(inputs)
    with torch.cuda.device_of(inputs):
        _tile_statistics[grid](inputs, means, squares, rows, columns, **tile)
    mean, variance = merge_statistics(means, squares, rows)
    return gelu_normalised(inputs, mean, variance, weight, bias, eps), mean, variance


def gelu_normalised(
    inputs: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Normalise by given statistics, then apply GELU."""
    given = packed(inputs, mean, variance, weight, bias)
    outputs = torch.empty_like(given[0])
    grid, tile = _grid(inputs)
    with torch.cuda.device_of(inputs):
        _gelu_normalised[grid](*given, outputs, *inputs.shape, eps, **tile)
    return outputs


def gelu_batch_norm_backward(
    gradient: Tensor,
    inputs: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Three:
    """Return the gradients of inputs, weight and bias."""
    given = packed(gradient, inputs, mean, variance, weight, bias)
    inputs, weight, bias = given[1], given[4], given[5]
    columns = inputs.shape[1]
    sums, products = tile_buffers(inputs, columns)
    d_inputs = torch.empty_like(inputs)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    grid, tile = _grid(inputs)
    with torch.cuda.device_of(inputs):
        _backward_sums[grid](*given, sums, products, *inputs.shape, eps, **tile)
        _merge_sums[(triton.cdiv(columns, 16),)](
            sums, products, d_bias, d_weight, columns, len(sums), TILES=MERGED_TILES, COLUMNS=16
        )
        _backward_inputs[grid](*given, d_bias, d_weight, d_inputs, *inputs.shape, eps, **tile)
    return d_inputs, d_weight, d_bias


def tile_buffers(inputs: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return room for two numbers per tile of rows and column."""
    shape = (2, triton.cdiv(inputs.shape[0], TILE_ROWS), columns)
    first, second = torch.empty(shape, dtype=torch.float32, device=inputs.device)
    return first, second


def merge_statistics(means: Tensor, squares: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of all rows from those of tiles of ``TILE_ROWS``."""
    tiles, columns = means.shape
    mean, variance = torch.empty_like(means[0]), torch.empty_like(means[0])
    with torch.cuda.device_of(means):
        _merge_statistics[(triton.cdiv(columns, 16),)](
            means,
            squares,
            mean,
            variance,
            rows,
            columns,
            tiles,
            ROWS=TILE_ROWS,
            TILES=MERGED_TILES,
            COLUMNS=16,
        )
    return mean, variance


def _grid(inputs: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    rows, columns = inputs.shape
    grid = triton.cdiv(rows, TILE_ROWS), triton.cdiv(columns, TILE_COLUMNS)
    return grid, {"ROWS": TILE_ROWS, "COLUMNS": TILE_COLUMNS}


def packed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors without gaps in memory."""
    return tuple(tensor.contiguous() for tensor in tensors)
