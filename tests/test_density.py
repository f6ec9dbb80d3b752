"""Densities with a known answer."""

import math
from functools import partial

import pytest
import torch
from torch import distributions

from nflows_mixer.distributions import BaseDistribution, DiagonalNormal, NormalMixture, StudentT
from nflows_mixer.evaluation import (
    gaussian_bits_per_dim,
    histogram_bits_per_dim,
)
from nflows_mixer.flows import ImageFlow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.transforms import (
    AffineCoupling,
    CompositeTransform,
    FlowLayer,
    LogitTransform,
    LULinear,
    PatchMixerTransform,
    PixelScaling,
)
from tests.helpers import moved
from tests.registry import narrow


class Logistic(BaseDistribution):
    """The distribution of the logit of a uniform variable."""

    def as_torch(self, temperature=1.0):
        uniform = distributions.Uniform(torch.zeros(self.shape), torch.ones(self.shape))
        logit = distributions.SigmoidTransform().inv
        return distributions.TransformedDistribution(uniform, [logit], validate_args=False)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_images_cost_exactly_the_bits_of_their_levels(levels):
    """PixelScaling and a logit onto a logistic base make every pixel uniform."""
    transform = CompositeTransform([PixelScaling(levels, 0.0, 1.0), LogitTransform(1e-9)])
    flow = ImageFlow(transform, (3, 4, 4), Logistic((3, 4, 4)), levels).double()
    images = torch.randint(levels, (5, 3, 4, 4), dtype=torch.uint8)
    bits = bits_per_dim(flow.log_prob(images), flow.image_shape)
    expected = torch.full_like(bits, math.log2(levels))
    torch.testing.assert_close(bits, expected, atol=1e-6, rtol=0)


def test_linear_mixer_has_the_density_of_its_normal_distribution():
    """With linear flows the model is a normal distribution, whose density torch knows."""
    shape = (2, 4, 4)
    transform = PatchMixerTransform(shape, 2, LULinear, LULinear)
    flow = moved(ImageFlow(transform, shape, levels=4).double().eval())
    images = torch.randint(4, (6, *shape), dtype=torch.uint8)
    noise = torch.rand(6, *shape, dtype=torch.float64)
    zero = torch.zeros(shape, dtype=torch.float64)

    def affine(pixels):
        return transform(pixels.reshape(1, *shape))[0].flatten()

    matrix = torch.autograd.functional.jacobian(affine, zero.flatten())
    base, inverse = flow._distribution, matrix.inverse()
    covariance = inverse @ base.log_scale.flatten().mul(2).exp().diag() @ inverse.T
    mean = inverse @ (base.location.flatten() - affine(zero))
    normal = distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(
        flow.log_prob(images, noise=noise), normal.log_prob((images + noise).flatten(1))
    )


def test_density_of_two_pixels_integrates_to_one():
    torch.manual_seed(1)  # other parameters may have mass beyond the grid
    shape = (1, 1, 2)
    coupling = partial(FlowLayer, flow=partial(AffineCoupling, conditioner=narrow))
    transform = PatchMixerTransform(shape, 1, LULinear, coupling)
    flow = ImageFlow(transform, shape, levels=4).double()
    flow.initialize(torch.randint(4, (200, *shape), dtype=torch.uint8))
    moved(flow).eval()
    axis = torch.linspace(-20, 24, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).reshape(-1, *shape)
    with torch.no_grad():
        density = torch.cat([flow.deterministic.log_prob(p).exp() for p in points.split(200_000)])
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-6)


BASES = {
    "normal": DiagonalNormal,
    "standard_normal": partial(DiagonalNormal, learnable=False),
    "student_t": StudentT,
    "cauchy": partial(StudentT, degrees_of_freedom=1.0),
    "mixture": partial(NormalMixture, scales=(0.2, 1.0, 3.0)),
}


@pytest.mark.parametrize("name", BASES)
def test_base_integrates_to_one_and_its_dimensions_multiply(name):
    base = moved(BASES[name]((1, 1, 2)).double(), 0.3)
    # tan maps a bounded grid to the real line, heavy tails and all.
    angles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * math.pi - math.pi / 2
    points, weights = angles.tan(), math.pi / 20_000 / angles.cos() ** 2
    pairs = torch.stack([points, torch.full_like(points, 0.7)], -1).reshape(-1, 1, 1, 2)
    swapped = pairs.flip(-1)
    at = torch.full((1, 1, 1, 2), 0.7, dtype=torch.float64)
    with torch.no_grad():
        first = (base.log_prob(pairs).exp() * weights).sum()
        second = (base.log_prob(swapped).exp() * weights).sum()
        torch.testing.assert_close(first * second, base.log_prob(at).exp()[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", BASES)
def test_base_samples_follow_its_density(name):
    """The mean of a bounded function of samples against its integral."""
    base = moved(BASES[name]((1,)).double(), 0.3)
    samples = base.sample(200_000)
    assert samples.shape == (200_000, 1) and samples.dtype == torch.float64
    angles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * math.pi - math.pi / 2
    density = base.log_prob(angles.tan()[:, None]).exp() * math.pi / 20_000 / angles.cos() ** 2
    for function in (torch.tanh, torch.cos, lambda x: torch.exp(-(x**2))):
        expected = (density * function(angles.tan())).sum()
        assert function(samples).mean().item() == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize("name", BASES)
def test_temperature_scales_samples_about_their_centre(name):
    base = BASES[name]((3,))
    widths = []
    for temperature in (1.0, 0.5, 0.0):
        torch.manual_seed(3)
        widths.append(base.sample(1000, temperature=temperature).abs().median())
    assert widths[1].item() == pytest.approx(0.5 * widths[0].item(), rel=1e-5)
    assert widths[2] < 1e-30


def test_bases_follow_the_shapes_of_nflows():
    base = DiagonalNormal((3, 4, 4))
    assert base.sample(5).shape == (5, 3, 4, 4)
    context = torch.zeros(2, 7)
    assert base.sample(5, context).shape == (2, 5, 3, 4, 4)
    samples, log_prob = base.sample_and_log_prob(5, context)
    assert samples.shape == (2, 5, 3, 4, 4) and log_prob.shape == (2, 5)


def test_bits_per_dim_keeps_nan():
    bits = bits_per_dim(torch.tensor([-12 * math.log(2), math.nan]), (3, 2, 2))
    assert bits[0].item() == pytest.approx(1) and bits[1].isnan()


def test_reference_models_by_hand():
    # Pixel 0 is always 1, pixel 1 is 0 or 1: counts + 1 over 4 images + 2 levels.
    train = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.uint8).reshape(4, 1, 1, 2)
    expected = -(math.log2(5 / 6) + math.log2(3 / 6)) / 2
    assert histogram_bits_per_dim(train, train, levels=2) == pytest.approx(expected)


@pytest.mark.parametrize("scale, variance", [(20.0, 400.0), (0.0, 1 / 12)])
def test_gaussian_reference_against_its_entropy(scale, variance):
    """Of dequantised pixels of a wide normal, and of a normal on the noise of constant pixels."""
    pixels = (128 + scale * torch.randn(20_000, 1, 1, 2)).floor().clamp(0, 255).to(torch.uint8)
    bits = gaussian_bits_per_dim(pixels[:10_000], pixels[10_000:])
    entropy = 0.5 * math.log2(2 * math.pi * math.e * variance)
    assert bits == pytest.approx(entropy, abs=0.02 if scale else 0.01)
