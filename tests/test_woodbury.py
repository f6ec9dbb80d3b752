"""Woodbury transformations against dense matrices, by hand, and their size."""

import pytest
import torch

from benchmarks.baselines.woodbury import LowRankUpdate, WoodburyTransform, woodbury
from tests.helpers import moved, size


def drawn(shape, rank):
    return moved(WoodburyTransform(shape, rank).double(), 0.3)


def dense(update):
    """I + U V, written out."""
    return torch.eye(len(update.left), dtype=torch.float64) + update.left @ update.right


@torch.no_grad()
def test_low_rank_update_by_hand():
    update = LowRankUpdate(2, 1).double()
    update.left.copy_(torch.tensor([[1.0], [2.0]]))
    update.right.copy_(torch.tensor([[3.0, 4.0]]))
    # I + U V = [[4, 4], [6, 9]], of determinant 12 = 1 + V U, and inverse [[9, -4], [-6, 4]] / 12.
    outputs = update(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    assert outputs.tolist() == [[8, 15]]
    assert update.logabsdet().exp().item() == pytest.approx(12)
    back = update.inverse(torch.tensor([[12.0, 24.0]], dtype=torch.float64))
    torch.testing.assert_close(back, torch.tensor([[1.0, 2.0]], dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("size, rank", [(1, 1), (7, 1), (7, 3), (3, 7), (16, 16)])
def test_inverse_and_determinant_are_those_of_the_dense_matrix(size, rank):
    update = drawn((size, 1, 1), rank).maps[0]
    rows = torch.randn(5, size, dtype=torch.float64)
    torch.testing.assert_close(update(rows), rows @ dense(update).T)
    torch.testing.assert_close(update.inverse(rows), rows @ torch.linalg.inv(dense(update)).T)
    torch.testing.assert_close(update.logabsdet(), torch.linalg.slogdet(dense(update)).logabsdet)


@torch.no_grad()
def test_is_a_product_of_matrices_from_both_sides():
    transform = drawn((3, 2, 4), 2)
    of_channels, positions = map(dense, transform.maps)
    images = torch.randn(5, 3, 2, 4, dtype=torch.float64)
    outputs, logabsdet = transform(images)
    expected = of_channels @ images.flatten(2) @ positions.T
    torch.testing.assert_close(outputs.flatten(2), expected)
    whole = torch.kron(of_channels, positions)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(whole).logabsdet.expand(5))


@torch.no_grad()
def test_without_map_of_positions_it_is_a_1x1_convolution():
    transform = drawn((3, 4, 5), 2)
    transform.maps[1].left.zero_()
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    outputs, logabsdet = transform(images)
    kernel = dense(transform.maps[0])
    expected = torch.nn.functional.conv2d(images, kernel[:, :, None, None])
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(logabsdet, 20 * torch.linalg.slogdet(kernel).logabsdet.expand(2))


def test_starts_near_the_identity_and_every_factor_gets_a_gradient():
    transform = WoodburyTransform((12, 16, 16))
    images = torch.randn(4, 12, 16, 16)
    outputs, logabsdet = transform(images)
    assert 0 < (outputs - images).norm() < 0.05 * images.norm()
    (outputs.square().sum() + logabsdet.sum()).backward()
    assert all(parameter.grad.norm() > 0 for parameter in transform.parameters())


def test_every_value_depends_on_every_other():
    transform = drawn((2, 3, 2), 1)
    image = torch.randn(1, 2, 3, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x)[0].flatten(), image)
    assert (jacobian != 0).all()


def test_default_has_the_published_number_of_parameters():
    assert size(woodbury((3, 32, 32))) == pytest.approx(11.02e6, rel=0.01)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank to be a positive integer"),
        ({"image_shape": (3, 4)}, "image_shape"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        WoodburyTransform(**{"image_shape": (3, 4, 4), **options})
