"""Butterfly layers against dense matrices; which permutations they represent; their start."""

import itertools
import math

import pytest
import torch

from benchmarks.baselines.butterfly import ButterflyTransform, butterfly
from tests.helpers import moved


def drawn(shape):
    return moved(ButterflyTransform(shape).double(), 0.3)


def dense(transform):
    """The product of the stages, each written out entry by entry."""
    factors = transform.factors
    size = math.prod(factors)
    places = list(itertools.product(*map(range, factors)))
    axes = [*range(len(factors)), *range(len(factors) - 2, -1, -1)]
    product = torch.eye(size, dtype=torch.float64)
    for axis, blocks in zip(axes, transform.stages):
        after = list(itertools.product(*map(range, factors[axis + 1 :])))
        before = list(itertools.product(*map(range, factors[:axis])))
        matrix = torch.zeros(size, size, dtype=torch.float64)
        for row, i in enumerate(places):
            for column, j in enumerate(places):
                if i[:axis] == j[:axis] and i[axis + 1 :] == j[axis + 1 :]:
                    block = blocks[before.index(i[:axis]), :, :, after.index(i[axis + 1 :])]
                    matrix[row, column] = block[i[axis], j[axis]]
        product = matrix @ product
    return product


@torch.no_grad()
def test_by_hand():
    """Four values: two pairs at distance 2, two neighbours, two pairs at distance 2 again."""
    transform = ButterflyTransform((1, 2, 2)).double()
    far, near, last = (blocks.permute(0, 3, 1, 2) for blocks in transform.stages)
    far[0, 0] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # exchange values 0 and 2
    far[0, 1] = torch.tensor([[1.0, 1.0], [0.0, 1.0]])  # add value 3 to value 1
    near[0, 0] = torch.tensor([[2.0, 0.0], [1.0, 1.0]])  # double value 0, after adding it to 1
    near[1, 0] = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # change the sign of value 3
    last[0, 1] = torch.tensor([[1.0, 0.0], [0.0, 5.0]])  # take value 3 five times
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    # [1, 2, 3, 4] -> [3, 6, 1, 4] -> [6, 9, 1, -4] -> [6, 9, 1, -20]
    outputs, logabsdet = transform(image)
    assert outputs.flatten().tolist() == [6, 9, 1, -20]
    assert logabsdet.item() == pytest.approx(math.log(2 * 5))
    assert transform.inverse(outputs)[0].flatten().tolist() == [1, 2, 3, 4]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (4, 2, 2), (3, 2, 2), (2, 5, 1)])
def test_is_the_dense_product_of_its_stages(shape):
    transform = drawn(shape)
    matrix = dense(transform)
    images = torch.randn(5, *shape, dtype=torch.float64)
    outputs, logabsdet = transform(images)
    torch.testing.assert_close(outputs.flatten(1), images.flatten(1) @ matrix.T)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(matrix).logabsdet.expand(5))
    back, _ = transform.inverse(images)
    torch.testing.assert_close(back.flatten(1), images.flatten(1) @ torch.linalg.inv(matrix).T)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 2, 3)])
def test_represents_every_permutation_of_an_image(shape):
    """By all choices of a permutation for every block; there alone is not enough for four."""
    transform = ButterflyTransform(shape)
    lines = [blocks[i, :, :, n] for blocks in transform.stages for i, n in both_ends(blocks)]
    choices = [list(torch.eye(len(line))[list(p)] for p in orders(len(line))) for line in lines]
    image = torch.arange(math.prod(shape), dtype=torch.float32).reshape(1, *shape)
    reached, there_alone = set(), set()
    for chosen in itertools.product(*choices):
        for line, block in zip(lines, chosen):
            line.copy_(block)
        outcome = tuple(transform(image)[0].flatten().tolist())
        reached.add(outcome)
        if all(torch.equal(block, torch.eye(2)) for block in chosen[-(math.prod(shape) // 2) :]):
            there_alone.add(outcome)
    assert len(reached) == math.factorial(math.prod(shape))
    assert len(there_alone) < len(reached)


def both_ends(blocks):
    return itertools.product(range(blocks.shape[0]), range(blocks.shape[3]))


def orders(size):
    return itertools.permutations(range(size))


@torch.no_grad()
def test_starts_as_an_orthogonal_1x1_convolution():
    transform = ButterflyTransform((12, 4, 6))
    images = torch.randn(5, 12, 4, 6)
    outputs, logabsdet = transform(images)
    units = torch.zeros(12, 12, 4, 6)
    units[:, :, 0, 0] = torch.eye(12)
    kernel = transform(units)[0][:, :, 0, 0].T
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(12))
    assert (kernel - torch.eye(12)).norm() > 1
    expected = torch.nn.functional.conv2d(images, kernel[:, :, None, None])
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(logabsdet, torch.zeros(5), atol=1e-3, rtol=0)


def test_every_value_depends_on_every_other():
    transform = drawn((4, 2, 3))
    image = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x)[0].flatten(), image)
    assert (jacobian != 0).all()


def test_a_stage_has_one_block_for_each_line():
    transform = ButterflyTransform((12, 8, 8))
    there = [768 * factor for factor in (2, 2, 3, 2, 2, 2, 2, 2, 2)]
    expected = there + there[-2::-1]
    assert [blocks.numel() for blocks in transform.stages] == expected


def test_the_layers_of_butterfly_flow_replace_the_convolutions():
    flow = butterfly((3, 8, 8), hidden_channels=8, scales=2, steps=2)
    layers = [part for part in flow.modules() if isinstance(part, ButterflyTransform)]
    assert [layer.image_shape for layer in layers] == [(12, 4, 4)] * 2 + [(24, 2, 2)] * 2


def test_wrong_shape():
    with pytest.raises(ValueError, match="image_shape"):
        ButterflyTransform((3, 4))
