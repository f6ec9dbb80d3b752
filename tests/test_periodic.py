"""Periodic convolutions against circular ones, dense matrices and numbers by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.baselines.periodic import PeriodicConvolution, periodic
from nflows_mixer.transforms import InvertibleConv1x1
from tests.helpers import size

SIZES = [(4, 4), (5, 3), (4, 5), (3, 6)]


def moved(channels, kernel_size=3, std=0.3):
    """A convolution in float64, with noise on its start."""
    convolution = PeriodicConvolution(channels, kernel_size).double()
    with torch.no_grad():
        convolution.weight += std * torch.randn_like(convolution.weight)
    return convolution


def test_circulant_matrix_by_hand():
    convolution = PeriodicConvolution(1).double()
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 1, 1:] = torch.tensor([2.0, 1.0])
    image = torch.tensor([[[[1.0, 10.0, 100.0]]]], dtype=torch.float64)
    outputs, logabsdet = convolution(image)
    # [[2, 1, 0], [0, 2, 1], [1, 0, 2]], of determinant 2^3 + 1.
    expected = torch.tensor([12.0, 120.0, 201.0], dtype=torch.float64)
    torch.testing.assert_close(outputs[0, 0, 0], expected)
    assert logabsdet.item() == pytest.approx(math.log(9))


@pytest.mark.parametrize("height, width", SIZES)
def test_equals_a_convolution_with_circular_padding(height, width):
    convolution = moved(3)
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    expected = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="circular"), convolution.weight)
    torch.testing.assert_close(convolution(images)[0], expected)


def test_receptive_field_wraps_around():
    point = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    convolution = moved(2)
    jacobian = torch.autograd.functional.jacobian(lambda x: convolution(x)[0], point)
    depends = jacobian[0, :, 0, 0, 0].abs().amax((0, 1)) > 1e-12
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[[-1, -1, -1, 0, 0, 0, 1, 1, 1], [-1, 0, 1, -1, 0, 1, -1, 0, 1]] = True
    assert torch.equal(depends, expected)


def test_image_smaller_than_the_kernel_adds_up_what_falls_together():
    convolution = moved(3, kernel_size=5)
    images = torch.randn(2, 3, 1, 2, dtype=torch.float64)
    outputs, logabsdet = convolution(images)
    columns = convolution.weight.sum(2)
    same, other = columns[:, :, [0, 2, 4]].sum(2), columns[:, :, [1, 3]].sum(2)
    left, right = images[:, :, 0, 0], images[:, :, 0, 1]
    expected = torch.stack((left @ same.mT + right @ other.mT, right @ same.mT + left @ other.mT))
    torch.testing.assert_close(outputs[:, :, 0], expected.permute(1, 2, 0))
    both = torch.linalg.slogdet(torch.stack((same + other, same - other))).logabsdet.sum()
    torch.testing.assert_close(logabsdet, both.expand(2))


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_centre_alone_is_a_1x1_convolution(kernel_size):
    convolution = PeriodicConvolution(4, kernel_size).double()
    reference = InvertibleConv1x1(4, "full").double()
    centre = convolution.weight[:, :, kernel_size // 2, kernel_size // 2]
    images = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(centre @ centre.mT, eye, atol=1e-6, rtol=0)
    with torch.no_grad():
        centre *= 1.5
        reference.linear.matrix.copy_(centre)
    torch.testing.assert_close(convolution(images), reference(images))


@torch.no_grad()
def test_float32_comes_back_at_the_size_of_a_real_layer():
    torch.manual_seed(1)
    convolution = PeriodicConvolution(12)
    convolution.weight += 0.02 * torch.randn_like(convolution.weight)
    images = torch.randn(4, 12, 16, 16)
    outputs, logabsdet = convolution(images)
    assert outputs.dtype == logabsdet.dtype == torch.float32
    torch.testing.assert_close(convolution.inverse(outputs)[0], images, atol=1e-4, rtol=1e-4)
    exact = convolution.double()(images.double())
    torch.testing.assert_close(outputs.double(), exact[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logabsdet.double(), exact[1], atol=1e-2, rtol=1e-5)


def test_published_number_of_parameters():
    assert size(periodic((3, 32, 32))) == pytest.approx(11.21e6, rel=0.01)


def test_kernel_without_a_centre_is_an_error():
    with pytest.raises(ValueError, match="expected an odd kernel_size, got 2;"):
        PeriodicConvolution(3, 2)
