"""Bases of other libraries, and the precision of latents and contexts."""

import copy
import pickle

import normflows as nf
import pytest
import torch
import zuko
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.distributions.base import NoMeanException
from nflows.distributions.uniform import BoxUniform
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform
from torch import distributions, nn

from nflows_mixer.adapters import to_normflows, to_zuko
from nflows_mixer.distributions import DiagonalNormal, TorchBase, as_base
from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.transforms import (
    AffineAutoregressive,
    AffineCoupling,
    FlowLayer,
    LULinear,
    PixelScaling,
    ResidualTransform,
    initialize_identity,
)

SHAPE = (1, 4, 4)
SMALL = {"image_shape": SHAPE, "patch_size": 2, "num_layers": 1, "shift": None}
zeros, ones = torch.zeros(SHAPE), torch.ones(SHAPE)


def independent():
    return distributions.Independent(distributions.Normal(zeros, ones), 3)


def lazy():
    return zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, zeros, ones, ndims=3)


STANDARD_NORMALS = {
    "nflows": lambda: StandardNormal(SHAPE),
    "torch": lambda: distributions.Normal(zeros, ones),
    "torch Independent": independent,
    "zuko": lambda: zuko.distributions.DiagNormal(zeros, ones, ndims=3),
    "zuko lazy": lazy,
    "normflows": lambda: nf.distributions.DiagGaussian(SHAPE),
    "ours": lambda: DiagonalNormal(SHAPE),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", STANDARD_NORMALS.values(), ids=STANDARD_NORMALS.keys())
def test_the_standard_normal_of_every_library_gives_the_same_density(make, dtype):
    torch.manual_seed(0)
    images = torch.randint(256, (9, *SHAPE), dtype=torch.uint8)
    noise = torch.rand(images.shape, dtype=dtype)
    reference = mixerflow(**SMALL).to(dtype).initialize(images, noise=noise).eval()
    flow = mixerflow(**SMALL, base=make()).to(dtype)
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("_distribution")}
    flow.load_state_dict(state, strict=False)
    for each in (flow.eval(), copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        log_prob = each.log_prob(images, noise=noise)
        torch.testing.assert_close(log_prob, reference.log_prob(images, noise=noise))
    assert flow.sample(2).shape == (2, *SHAPE)
    assert flow.deterministic.sample(2).dtype == dtype


def test_a_uniform_base_has_no_density_outside_and_is_no_error():
    base = as_base(BoxUniform(zeros, ones), SHAPE, "here")
    inside, outside = torch.full((2, *SHAPE), 0.5), torch.full((2, *SHAPE), 1.5)
    assert base.log_prob(inside).tolist() == [0.0, 0.0]
    assert base.log_prob(outside).tolist() == [-torch.inf, -torch.inf]
    assert (base.sample(3) - 0.5).abs().max() <= 0.5


def test_parameters_of_a_torch_base_are_trained_and_follow_the_dtype():
    location = nn.Parameter(torch.zeros(3))
    base = TorchBase(distributions.Normal(location, torch.ones(3))).double()
    assert [name for name, _ in base.named_parameters()] == ["loc"]
    assert base.sample(2).dtype == torch.float64
    base.log_prob(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
    assert base.loc.grad.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="expected a base whose scales are known"):
        base.sample(2, temperature=0.5)


@pytest.mark.parametrize(
    "base, error, words",
    [
        (StandardNormal([16]), ValueError, r"base of shape \(1, 4, 4\), got \(16,\)"),
        (distributions.Normal(zeros[0], ones[0]), ValueError, r"got \(4, 4\) of Normal"),
        (nf.distributions.DiagGaussian((16,)), ValueError, "expected a base"),
        (nf.distributions.DiagGaussian((16,)), ValueError, "got DiagGaussian, which raises"),
        (distributions.Poisson(ones), ValueError, "real latents, got Poisson, a discrete one"),
        (distributions.Independent(distributions.Bernoulli(ones / 2), 3), ValueError, "discrete"),
        (
            ConditionalDiagonalNormal(SHAPE, nn.Linear(3, 32)),
            ValueError,
            "got ConditionalDiagonalNormal, which takes context; .*context_features",
        ),
        (nn.Linear(2, 2), TypeError, "expected a base of nflows, torch, zuko or normflows"),
        (lambda shape: 3, TypeError, "got int"),
    ],
)
def test_what_is_no_base_for_these_latents_is_refused_when_the_flow_is_built(base, error, words):
    with pytest.raises(error, match=words):
        mixerflow(**SMALL, base=base)


def test_an_image_flow_takes_a_base_of_torch():
    flow = ImageFlow(PixelScaling(256), SHAPE, independent())
    assert flow.log_prob(torch.zeros(2, *SHAPE, dtype=torch.uint8)).shape == (2,)
    with pytest.raises(TypeError, match="expected a base"):
        ImageFlow(PixelScaling(256), SHAPE, nn.Linear(2, 2))


def test_a_conditional_base_of_nflows_stays_as_it_is():
    network = nn.Sequential(nn.Linear(3, 8))
    base = ConditionalDiagonalNormal([4], network)
    assert as_base(base, [4], "here") is base


@pytest.mark.parametrize("flow_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_context_of_another_precision_is_taken_in_that_of_the_flow(flow_dtype, dtype):
    torch.manual_seed(0)
    images = torch.randint(256, (9, *SHAPE), dtype=torch.uint8)
    context = torch.randn(9, 3, dtype=dtype)
    flow = mixerflow(**SMALL, context_features=3).to(flow_dtype)
    flow.initialize(images, context).eval()
    log_prob = flow.log_prob(images, context, torch.full(images.shape, 0.5))
    assert log_prob.dtype == flow_dtype
    same = flow.log_prob(images, context.to(flow_dtype), torch.full(images.shape, 0.5))
    torch.testing.assert_close(log_prob, same)
    assert flow.sample(2, context).shape == (9, 2, *SHAPE)
    density = flow.deterministic
    pixels = images.to(flow_dtype) + 0.5
    assert density.log_prob(pixels, context).dtype == flow_dtype
    assert density.transform_to_noise(pixels, context).dtype == flow_dtype
    assert density.sample_and_log_prob(2, context)[1].dtype == flow_dtype


CONDITIONAL = {
    "flow layer": lambda: FlowLayer(4, context_features=2),
    "coupling": lambda: AffineCoupling(4, context_features=2),
    "autoregressive": lambda: AffineAutoregressive(4, 8, context_features=2),
    "nflows' MAF": lambda: FlowLayer(
        4, flow=lambda d: MaskedAffineAutoregressiveTransform(d, 8, context_features=2)
    ),
    "residual": lambda: ResidualTransform(4, context_features=2),
}


@pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_and_contexts_follow_the_precision_of_a_plain_flow(make, dtype):
    torch.manual_seed(0)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    transform = initialize_identity(make()).to(dtype).eval()
    flow = Flow(transform, StandardNormal([4])).to(dtype)
    rows, context = torch.randn(3, 4, dtype=dtype), torch.randn(3, 2)
    expected = flow.log_prob(rows, context.to(dtype))
    context = context.to(other)
    assert flow.sample(2, context).dtype == dtype
    assert transform.inverse(rows, context)[0].dtype == dtype
    torch.testing.assert_close(flow.log_prob(rows, context), expected, atol=1e-5, rtol=1e-5)
    through_zuko, through_normflows = to_zuko(flow)(context), to_normflows(flow)
    torch.testing.assert_close(through_zuko.log_prob(rows), expected, atol=1e-5, rtol=1e-5)
    assert through_zuko.sample((2,)).dtype == dtype
    log_prob = through_normflows.log_prob(rows, context)
    torch.testing.assert_close(log_prob, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("linear", [LULinear, None])
def test_a_flow_in_double_precision_samples_from_a_base_that_does_not_know_it(linear):
    flow = Flow(FlowLayer(4, actnorm=None, linear=linear), StandardNormal([4])).double()
    assert flow.sample(2).dtype == torch.float64
    assert to_normflows(flow).sample(2)[0].dtype == torch.float64


def test_pixels_of_another_precision_are_taken_in_that_of_the_flow():
    torch.manual_seed(0)
    flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
    flow.initialize(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)).eval()
    pixels = 256 * torch.rand(2, 1, 4, 4)
    expected = flow.deterministic.log_prob(pixels)
    torch.testing.assert_close(flow.deterministic.log_prob(pixels.double()), expected)
    assert flow.deterministic.transform_to_noise(pixels.double()).dtype == torch.float32


def test_a_base_of_another_library_gives_its_mean_or_says_that_it_has_none():
    assert torch.equal(as_base(lazy(), SHAPE, "here").mean(), zeros)
    base = as_base(nf.distributions.DiagGaussian(SHAPE), SHAPE, "here")
    with pytest.raises(NoMeanException, match="expected a base that knows its mean, got DiagGau"):
        base.mean()
