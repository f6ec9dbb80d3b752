"""Linear blocks of rows whose cost grows more slowly than the square of the row length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from einops import rearrange
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import ROWS_ADVICE, check_event, check_positive, mismatch


class _LUBlocks(nn.Module):
    """Blocks L U of one size, each packed as in ``LULinear``; they start at the identity."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.zeros(count, size, size))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return L and U, each [count, size, size]."""
        identity = torch.eye(
            self.packed.shape[-1], dtype=self.packed.dtype, device=self.packed.device
        )
        diagonals = torch.diag_embed(self._log_diagonals().exp())
        return self.packed.tril(-1) + identity, self.packed.triu(1) + diagonals

    def products(self) -> Tensor:
        """Return L U, [count, size, size]."""
        lower, upper = self.factors()
        return lower @ upper

    def solve(self, columns: Tensor) -> Tensor:
        """Undo the blocks on [count, size, N]."""
        lower, upper = self.factors()
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, columns, upper=True)

    def logabsdet(self) -> Tensor:
        """Return the log-determinant of all blocks together, a scalar."""
        return self._log_diagonals().sum()

    def _log_diagonals(self) -> Tensor:
        return self.packed.diagonal(dim1=-2, dim2=-1)


class ButterflyLinear(Transform):
    r"""Invertible linear map of rows, as stages of LU blocks with a stride between them.

    The row is an array of d1 x d2 = D entries, the last index the fastest. The first stage maps
    each column by a block of its own, the second each row:

    .. math:: z_{:,j} = L^{(1)}_j U^{(1)}_j\, x_{:,j}, \qquad
              y_{i,:} = L^{(2)}_i U^{(2)}_i\, z_{i,:} + b_{i,:}, \qquad
              \log|\det J| = \sum_j \sum_k d^{(1)}_{jk} + \sum_i \sum_k d^{(2)}_{ik}

    L, U and the log-diagonals d of each block are packed as in ``LULinear``. Each output depends
    on all inputs. D (d1 + d2) + D parameters, and O(D (d1 + d2)) per row both ways: of order
    D^1.5, where ``LULinear`` has D^2, with the factors d1 <= d2 as near to the square root of D as
    there are. A prime D has no two: it gets one stage of one dense block, and the cost of
    ``LULinear``; a D such as 2 x 499 comes out at half of that. Starts at the identity.

    Args:
        features: row length D.
        factors: sizes of the blocks of each stage, in their order, of product D, instead of the
            two: more of them cost less; one alone is a dense block. Factors that are axes of the
            row fit best: (p_h, p_w * C) or (p_h, p_w, C) of a patch, (n_h, n_w) of a column.
        bias: whether b is there.
        axes: sizes that a row was flattened from, (p_h, p_w, C) or (n_h, n_w), which ``mixerflow``
            gives; where there are no factors they are the first axis and all others.

    Shapes:
        inputs and outputs [N, D].

    Raises:
        ValueError: if the factors' product is not D, or inputs are no rows of this length.

    References:
        Dao et al., Monarch: Expressive structured matrices for efficient and accurate training,
        2022, Section 3; Meng et al., ButterflyFlow: Building invertible layers with butterfly
        matrices, 2022.

    Example:
        >>> linear = ButterflyLinear(192)
        >>> linear.factors, sum(p.numel() for p in linear.parameters())
        ((12, 16), 5568)
        >>> rows = torch.randn(7, 192)
        >>> torch.equal(linear(rows)[0], rows)
        True
    """

    def __init__(
        self,
        features: int,
        factors: Sequence[int] | None = None,
        bias: bool = True,
        *,
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        features = check_positive(owner, "features", features)
        if factors is None:
            factors = nearly_square(features) if axes is None else self._factors_of(axes)
        factors = tuple(check_positive(owner, "each factor", factor) for factor in factors)
        if not factors or math.prod(factors) != features:
            raise mismatch(
                owner,
                f"factors of {features}",
                list(factors),
                "their product has to be the row length; None takes two that are nearly equal",
            )
        self.features = features
        self.factors = factors
        self.stages = nn.ModuleList(
            _LUBlocks(self._num_blocks(factor), factor) for factor in factors
        )
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D]."""
        check_event(inputs, (self.features,), type(self).__name__, ROWS_ADVICE)
        with torch.autocast(inputs.device.type, enabled=False):
            columns = self._as_columns(inputs)
            for axis, stage in self._by_axis():
                blocks = torch.bmm(stage.products(), self._split(columns, axis))
                columns = self._join(blocks, axis)
            outputs = self._as_rows(columns)
            if self.bias is not None:
                outputs = outputs + self.bias
        return outputs, self._logabsdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back, by two triangular solves of each stage."""
        check_event(inputs, (self.features,), type(self).__name__, ROWS_ADVICE)
        columns = self._as_columns(inputs if self.bias is None else inputs - self.bias)
        for axis, stage in reversed(self._by_axis()):
            columns = self._join(stage.solve(self._split(columns, axis)), axis)
        return self._as_rows(columns), -self._logabsdet(inputs)

    def weight(self) -> Tensor:
        """The whole matrix, [D, D]."""
        unit = self._unit()
        outputs = self.forward(unit)[0]
        return (outputs if self.bias is None else outputs - self.bias).t()

    def weight_inverse(self) -> Tensor:
        """Its inverse, [D, D]."""
        unit = self._unit()
        return self.inverse(unit if self.bias is None else unit + self.bias)[0].t()

    def logabsdet(self) -> Tensor:
        """Logarithm of the absolute value of its determinant, a scalar."""
        # Each block acts on a row as often as its stage has fewer blocks than that has parts.
        logabsdets = [
            self.features // (self.factors[axis] * len(stage.packed)) * stage.logabsdet()
            for axis, stage in self._by_axis()
        ]
        return torch.stack(logabsdets).sum()

    def _unit(self) -> Tensor:
        like = next(self.parameters())
        return torch.eye(self.features, dtype=like.dtype, device=like.device)

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        return self.logabsdet() * inputs.new_ones(inputs.shape[0])

    def _by_axis(self) -> list[tuple[int, _LUBlocks]]:
        return list(enumerate(cast(Iterable[_LUBlocks], self.stages)))

    @staticmethod
    def _factors_of(axes: Sequence[int]) -> Sequence[int]:
        """Factors of a row that was flattened from these axes."""
        # Two stages; the colors stay with the axis before them.
        return axes[0], math.prod(axes[1:])

    def _num_blocks(self, factor: int) -> int:
        return self.features // factor

    # With the rows as the last axis the blocks of a stage are strided matrices that products take
    # as they are: of two stages nothing is copied but on the way in and out.
    def _as_columns(self, rows: Tensor) -> Tensor:
        sizes = self._sizes()
        columns = rearrange(rows, "n d -> d n").contiguous()
        return rearrange(columns, f"({' '.join(sizes)}) n -> {' '.join(sizes)} n", **sizes)

    def _as_rows(self, columns: Tensor) -> Tensor:
        names = " ".join(self._sizes())
        return rearrange(columns, f"{names} n -> n ({names})").contiguous()

    def _split(self, columns: Tensor, axis: int) -> Tensor:
        array, blocks = self._layouts(axis)
        return rearrange(columns, f"{array} -> {blocks}").mT

    def _join(self, blocks: Tensor, axis: int) -> Tensor:
        array, split = self._layouts(axis)
        return rearrange(blocks.mT, f"{split} -> {array}", **self._sizes())

    def _layouts(self, axis: int) -> tuple[str, str]:
        """Array of factors and rows; and as blocks, in the order of memory that solves take."""
        names = list(self._sizes())
        others = " ".join(name for name in names if name != names[axis])
        return f"{' '.join(names)} n", self._blocks.format(axis=names[axis], others=others)

    def _sizes(self) -> dict[str, int]:
        return {f"d{axis}": factor for axis, factor in enumerate(self.factors)}

    _blocks = "({others}) n {axis}"


class KroneckerLinear(ButterflyLinear):
    r"""Invertible linear map of rows, as a Kronecker product of LU blocks.

    A ``ButterflyLinear`` whose blocks of one stage are all the same. The row is an array X of
    d1 x d2 = D entries, the last index the fastest:

    .. math:: Y = A X B^\top + b, \quad A = L^{(1)} U^{(1)}, \quad B = L^{(2)} U^{(2)}, \qquad
              \log|\det J| = d_2 \sum_k d^{(1)}_k + d_1 \sum_k d^{(2)}_k

    That is the matrix :math:`A \otimes B`, of d1^2 + d2^2 parameters, and D in b. Costs
    O(D (d1 + d2)) per row, as the butterfly does, in fewer and larger products. A prime D gets one
    dense block. Starts at the identity.

    Args, shapes, errors: as ``ButterflyLinear``; the factors of ``axes`` are all of them.

    References:
        Van Loan, The ubiquitous Kronecker product, 2000.

    Example:
        >>> linear = KroneckerLinear(192)
        >>> linear.factors, sum(p.numel() for p in linear.parameters())
        ((12, 16), 592)
    """

    _blocks = "() (n {others}) {axis}"

    @staticmethod
    def _factors_of(axes: Sequence[int]) -> Sequence[int]:
        return axes

    def _num_blocks(self, factor: int) -> int:
        return 1

    # The one block of an axis acts on rows in their own order, where the last axis needs no copy.
    def _as_columns(self, rows: Tensor) -> Tensor:
        names = " ".join(self._sizes())
        return rearrange(rows, f"n ({names}) -> {names} n", **self._sizes())


def nearly_square(features: int) -> tuple[int, ...]:
    """Return two factors of ``features`` as near to its square root as there are, smaller first.

    Args:
        features: 1 or more; 1 and primes have one factor only.

    Example:
        >>> nearly_square(192), nearly_square(49), nearly_square(13)
        ((12, 16), (7, 7), (13,))
    """
    smaller = next(d for d in range(math.isqrt(features), 0, -1) if features % d == 0)
    return (features,) if smaller == 1 else (smaller, features // smaller)
