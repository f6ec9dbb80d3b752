"""Structured linear blocks: against dense matrices built from their blocks, and autograd."""

import math

import pytest
import torch

from nflows_mixer.transforms import LULinear
from nflows_mixer.transforms.structured import ButterflyLinear, KroneckerLinear, nearly_square
from tests.helpers import moved

KINDS = [ButterflyLinear, KroneckerLinear]
SIZES = [(1, None), (7, None), (12, None), (12, (4, 3)), (12, (12,)), (24, (2, 3, 4))]
every_case = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize("features, factors", SIZES)


def drawn(kind, features, factors=None, **options):
    return moved(kind(features, factors, **options).double(), 0.3)


def block(packed):
    """L U of one packed block, entry by entry."""
    size = len(packed)
    lower, upper = torch.eye(size).double(), torch.zeros(size, size).double()
    for i in range(size):
        for j in range(size):
            if i > j:
                lower[i, j] = packed[i, j]
            else:
                upper[i, j] = packed[i, j].exp() if i == j else packed[i, j]
    return lower @ upper


def dense(linear):
    """The product of the stages, each written out as a D x D matrix."""
    features, factors = linear.features, linear.factors
    places = list(torch.cartesian_prod(*map(torch.arange, factors)).reshape(features, -1).tolist())
    product = torch.eye(features).double()
    for axis, stage in enumerate(linear.stages):
        others = [(*place[:axis], *place[axis + 1 :]) for place in places]
        numbers = {other: number for number, other in enumerate(sorted(set(others)))}
        matrix = torch.zeros(features, features).double()
        for i in range(features):
            for j in range(features):
                if others[i] == others[j]:
                    number = numbers[others[i]] if len(stage.packed) > 1 else 0
                    entries = block(stage.packed[number])
                    matrix[i, j] = entries[places[i][axis], places[j][axis]]
        product = matrix @ product
    return product


@every_case
@every_size
@torch.no_grad()
def test_is_the_dense_product_of_its_stages(kind, features, factors):
    linear = drawn(kind, features, factors)
    rows = torch.randn(5, features).double()
    matrix = dense(linear)
    outputs, logabsdet = linear(rows)
    torch.testing.assert_close(outputs, rows @ matrix.T + linear.bias)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(matrix).logabsdet.expand(5))
    torch.testing.assert_close(
        linear.inverse(rows)[0], (rows - linear.bias) @ torch.linalg.inv(matrix).T
    )


@torch.no_grad()
def test_butterfly_by_hand():
    """A 2 x 2 array: both columns are mapped by a block of their own, then both rows."""
    linear = ButterflyLinear(4).double()
    columns, rows = linear.stages
    columns.packed.copy_(torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]]))
    rows.packed.copy_(torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]], [[0.0, 0.0], [5.0, 0.0]]]))
    linear.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 100.0]))
    # [[1, 2], [3, 4]]: column (1, 3) -> (1, 1 + 3), column (2, 4) -> (2 + 2 * 4, 4);
    # row (1, 10) -> (3 * 1, 10), row (4, 4) -> (4, 5 * 4 + 4), and 100 more.
    outputs, logabsdet = linear(torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double())
    torch.testing.assert_close(outputs, torch.tensor([[3.0, 10.0, 4.0, 124.0]]).double())
    assert logabsdet.item() == pytest.approx(math.log(3))


@torch.no_grad()
def test_kronecker_product_is_torchs():
    linear = drawn(KroneckerLinear, 12, (3, 4), bias=False)
    first, second = (block(stage.packed[0]) for stage in linear.stages)
    rows = torch.eye(12).double()
    torch.testing.assert_close(linear(rows)[0].T, torch.kron(first, second))


@every_case
@torch.no_grad()
def test_one_factor_is_the_dense_block(kind):
    linear, dense_block = drawn(kind, 6, (6,)), LULinear(6).double()
    dense_block.packed.copy_(linear.stages[0].packed[0])
    dense_block.bias.copy_(linear.bias)
    rows = torch.randn(5, 6).double()
    torch.testing.assert_close(linear(rows), dense_block(rows))


@every_case
@pytest.mark.parametrize("features, factors", [*SIZES, (192, None)])
def test_starts_at_the_identity(kind, features, factors):
    rows = torch.randn(3, features)
    for outputs, logabsdet in (
        kind(features, factors)(rows),
        kind(features, factors).inverse(rows),
    ):
        assert torch.equal(outputs, rows) and not logabsdet.any()


@pytest.mark.slow
@every_case
@every_size
def test_gradients_both_ways(kind, features, factors):
    linear = drawn(kind, features, factors)
    rows = torch.randn(3, features).double().requires_grad_()
    for call in (linear.forward, linear.inverse):
        given = (rows, *linear.parameters())  # gradcheck moves them where they are
        assert torch.autograd.gradcheck(lambda rows, *_, call=call: call(rows), given)


@every_case
@torch.no_grad()
def test_strided_rows(kind):
    linear, rows = drawn(kind, 12), torch.randn(12, 5).double().T
    torch.testing.assert_close(linear(rows), linear(rows.contiguous()))


@every_case
@pytest.mark.parametrize("features", [4, 7, 12, 49])
def test_every_input_reaches_every_output(kind, features):
    linear = drawn(kind, features, bias=False)
    # Of two stages no entry is a sum, so that none is zero by chance.
    assert linear(torch.eye(features).double())[0].abs().min() > 1e-9


@pytest.mark.parametrize(
    "features, factors",
    [(1, (1,)), (2, (2,)), (13, (13,)), (49, (7, 7)), (192, (12, 16)), (998, (2, 499))],
)
def test_factors_are_as_near_to_the_root_as_there_are(features, factors):
    assert nearly_square(features) == factors
    for kind in KINDS:
        assert kind(features).factors == factors


@pytest.mark.parametrize("features, factors", [(192, (12, 16)), (24, (2, 3, 4))])
def test_number_of_parameters(features, factors):
    def count(kind):
        return sum(parameter.numel() for parameter in kind(features, factors).parameters())

    assert count(ButterflyLinear) == features * sum(factors) + features
    assert count(KroneckerLinear) == sum(factor**2 for factor in factors) + features


@every_case
@torch.no_grad()
def test_rows_are_contiguous(kind):
    """What comes after reads them row by row."""
    linear, rows = kind(12), torch.randn(5, 12)
    assert linear(rows)[0].is_contiguous()


@every_case
@torch.no_grad()
def test_autocast_does_not_reach_it(kind):
    linear = drawn(kind, 12).float()
    rows = torch.randn(5, 12)
    expected = linear(rows), linear.inverse(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same = torch.testing.assert_close
        assert_same((linear(rows), linear.inverse(rows)), expected, atol=0, rtol=0)


@every_case
@pytest.mark.parametrize("factors", [(3, 5), (12, 2), (), (-3, -4), (2.0, 6), (True, 12)])
def test_factors_of_another_number_are_refused(kind, factors):
    with pytest.raises(ValueError, match="expected .*factor.*got .*;"):
        kind(12, factors)


@every_case
@pytest.mark.parametrize("features", [0, -4, 2.5])
def test_row_lengths_that_are_none_are_refused(kind, features):
    with pytest.raises(ValueError, match=f"{kind.__name__}: expected features"):
        kind(features)


@every_case
@pytest.mark.parametrize("shape", [(3, 11), (3, 12, 1), (12,)])
def test_other_shapes_are_refused(kind, shape):
    for direction in ("forward", "inverse"):
        with pytest.raises(ValueError, match="expected inputs of shape .*got .*;"):
            getattr(kind(12), direction)(torch.zeros(shape))
