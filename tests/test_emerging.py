"""Emerging convolutions against plain convolutions, dense matrices and numbers by hand."""

import math

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from benchmarks.baselines.emerging import AutoregressiveConvolution, EmergingConvolution, emerging
from nflows_mixer.nn import ConvConditioner
from tests.helpers import size
from tests.jacobian import jacobian_logabsdet


def moved(transform, std=0.3):
    """The transform in float64, all of its parameters drawn anew."""
    transform = transform.double()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(std * torch.randn_like(parameter))
    return transform


def dense(transform, shape):
    """Its Jacobian at a point, [C, H, W, C, H, W]."""
    point = torch.randn(1, *shape, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: transform(x)[0], point)[0, :, :, :, 0]


def full_kernel(convolution):
    """The masked kernel at its whole size, zeros and all, as conv2d takes it."""
    reach = convolution.reach
    return F.pad(convolution.kernel(), (0, reach, 0, reach))


def test_autoregressive_convolution_by_hand():
    convolution = AutoregressiveConvolution(1).double()
    kernel = [[2.0, 3.0, 9.0], [5.0, math.log(7.0), 9.0], [9.0, 9.0, 9.0]]  # the nines are not read
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(kernel))
    image = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]], dtype=torch.float64)
    outputs, logabsdet = convolution(image)
    expected = [[7.0, 70.0 + 5.0], [700.0 + 3.0, 7000.0 + 500.0 + 30.0 + 2.0]]
    torch.testing.assert_close(outputs[0, 0], torch.tensor(expected, dtype=torch.float64))
    assert logabsdet.item() == pytest.approx(4 * math.log(7))


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_emerging_is_two_masked_convolutions(kernel_size):
    emerging_convolution = moved(EmergingConvolution(3, kernel_size))
    images = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    first = full_kernel(emerging_convolution.first)
    second = full_kernel(emerging_convolution.second).flip(0, 1, 2, 3)
    padding = kernel_size // 2
    expected = F.conv2d(F.conv2d(images, first, padding=padding), second, padding=padding)
    torch.testing.assert_close(emerging_convolution(images)[0], expected)


def test_jacobians_are_triangular_in_opposite_orders():
    emerging_convolution = moved(EmergingConvolution(3))
    shape = (3, 4, 3)
    size = math.prod(shape)
    first = dense(emerging_convolution.first, shape).permute(1, 2, 0, 4, 5, 3).reshape(size, size)
    assert torch.equal(first, first.tril()) and first.tril(-1).abs().sum() > 0
    whole = dense(emerging_convolution, shape).permute(1, 2, 0, 4, 5, 3).reshape(size, size)
    second = torch.linalg.solve(first.mT, whole.mT).mT  # whole = second @ first
    torch.testing.assert_close(second, second.triu())
    assert second.triu(1).abs().sum() > 1


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_receptive_field_is_that_of_a_standard_convolution(kernel_size):
    size, reach = 6, kernel_size // 2
    jacobian = dense(moved(EmergingConvolution(2, kernel_size)), (2, size, size))
    depends = jacobian.abs().amax((0, 3)) > 0
    index = torch.arange(size)
    near = (index[:, None] - index).abs() <= reach
    assert torch.equal(depends, near[:, None, :, None] & near[None, :, None, :])


def test_all_channels_of_a_pixel_reach_all():
    jacobian = dense(moved(EmergingConvolution(4)), (4, 3, 3))
    assert (jacobian[:, 1, 1, :, 1, 1] != 0).all()


def test_kernel_of_one_pixel_is_a_triangular_product_on_the_channels():
    convolution = moved(EmergingConvolution(4, kernel_size=1))
    lower = convolution.first.kernel()[:, :, 0, 0]
    upper = convolution.second.kernel()[:, :, 0, 0].flip(0, 1)
    assert torch.equal(lower, lower.tril()) and torch.equal(upper, upper.triu())
    images = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    outputs, logabsdet = convolution(images)
    torch.testing.assert_close(outputs, torch.einsum("kc,bchw->bkhw", upper @ lower, images))
    expected = 15 * torch.linalg.slogdet(upper @ lower).logabsdet
    torch.testing.assert_close(logabsdet, expected.expand(2))


def test_weights_outside_the_quadrant_are_not_read():
    convolution = moved(AutoregressiveConvolution(3))
    outputs, logabsdet = convolution(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    (outputs.square().sum() + logabsdet.sum()).backward()
    read = torch.zeros(3, 3, 3, 3, dtype=torch.bool)
    read[:, :, :2, :2] = True
    read[:, :, 1, 1] = torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(convolution.weight.grad != 0, read)


@torch.no_grad()
def test_starts_near_the_identity_and_comes_back_at_the_size_of_a_real_layer():
    torch.manual_seed(1)
    convolution = EmergingConvolution(12)
    images = torch.randn(4, 12, 16, 16)
    outputs, logabsdet = convolution(images)
    assert (outputs - images).std() < 0.3 and logabsdet.abs().max() < 0.1 * images[0].numel()
    torch.testing.assert_close(convolution.inverse(outputs)[0], images, atol=1e-4, rtol=1e-4)
    # At zero it is the identity.
    for parameter in convolution.parameters():
        parameter.zero_()
    assert torch.equal(convolution(images)[0], images)


def test_logabsdet_of_a_negative_centre():
    """The diagonal is that of e^w, so that no weight makes it singular."""
    convolution = moved(EmergingConvolution(2))
    with torch.no_grad():
        convolution.first.weight[:, :, 1, 1] = torch.tensor([[-3.0, 0.4], [0.5, -1.0]])
    images = torch.randn(1, 2, 2, 3, dtype=torch.float64)
    expected = jacobian_logabsdet(convolution.forward, images)
    torch.testing.assert_close(convolution(images)[1], expected)


def test_each_half_of_the_channels_conditions_the_other_in_turn():
    transform = emerging((1, 8, 8), 8, scales=1, steps=2)._transform.double()
    transform.train()(255 * torch.rand(8, 1, 8, 8, dtype=torch.float64))
    with torch.no_grad():
        for module in transform.modules():
            if isinstance(module, EmergingConvolution):
                for parameter in module.parameters():
                    parameter.zero_()
            if isinstance(module, ConvConditioner):
                module.final.weight.normal_(std=0.1)
    images = 255 * torch.rand(1, 1, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: transform.eval()(x)[0], images)
    # Latents are in the order of the four channels after squeezing, as before both reversals.
    channels = rearrange(
        jacobian[0, :, 0, 0], "(k p) (h a) (w b) -> k (a b) (p h w)", k=4, a=2, b=2
    )
    depends = channels.abs().amax(2) > 0
    expected = [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert depends.int().tolist() == expected


def test_published_number_of_parameters():
    assert size(emerging((3, 32, 32))) == pytest.approx(11.43e6, rel=0.01)


def test_kernel_without_a_centre_is_an_error():
    with pytest.raises(ValueError, match="expected an odd kernel_size, got 4;"):
        EmergingConvolution(3, 4)
