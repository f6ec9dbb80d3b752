"""A flow has one density: what holds in evaluation mode holds in training mode too.

Of flows with a BatchNorm, which has to be asked for, that is not so, and sampling them says it.
"""

import math
import threading
import warnings
from functools import partial

import normflows as nf
import pytest
import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import BatchNorm, MaskedAffineAutoregressiveTransform
from torch import nn

from nflows_mixer.adapters import from_normflows, from_zuko, to_normflows, to_zuko
from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.transforms import (
    AffineCoupling,
    CompositeTransform,
    FlowLayer,
    PatchMixerTransform,
    PixelScaling,
    ReshapeTransform,
    initialize,
    initialize_identity,
)
from tests.registry import TRANSFORMS

IMAGE = {"image_shape": (1, 4, 4), "patch_size": 2, "num_layers": 2, "shift": None}


def has_batch_norm(module):
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def in_training_mode(case):
    """A transform in float64, moved from its start, and inputs; skip those that need the batch."""
    torch.manual_seed(0)
    transform = case.make().double().train()
    if has_batch_norm(transform) or "BatchNorm" in repr(transform):
        pytest.skip("has a BatchNorm, which was asked for")
    with torch.no_grad():
        transform(*case.draw(32))
        for parameter in transform.parameters():
            parameter += case.std * torch.randn_like(parameter)
    return transform, case.draw(5)


# Those that draw noise are no bijections of their inputs.
CASES = {name: case for name, case in TRANSFORMS.items() if case.noise is None}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_forward_and_inverse_undo_each_other_in_training_mode(case):
    transform, (inputs, context) = in_training_mode(case)
    state = {name: value.clone() for name, value in transform.state_dict().items()}
    outputs, logabsdet = transform(inputs, context)
    back, logabsdet_back = transform.inverse(outputs, context)
    torch.testing.assert_close(back, inputs, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(logabsdet_back, -logabsdet, atol=1e-8, rtol=1e-8)
    assert transform.training
    for name, value in transform.state_dict().items():
        assert torch.equal(value, state[name]), name
    transform.eval()
    torch.testing.assert_close(transform(inputs, context)[0], outputs, atol=1e-12, rtol=1e-12)


def gaussian(*shape, location=0.0, scale=1.0):
    """A correlated normal distribution of this shape, and its log-density of [N, *shape]."""
    features = math.prod(shape)
    generator = torch.Generator().manual_seed(1)
    factor = torch.eye(features) + 0.3 * torch.randn(features, features, generator=generator)
    factor = scale * factor.tril()
    target = torch.distributions.MultivariateNormal(
        torch.full((features,), location), scale_tril=factor
    )
    return lambda values: target.log_prob(values.flatten(1))


def independent(*shape, location, scale):
    target = torch.distributions.Normal(location, scale)
    return lambda values: target.log_prob(values).flatten(1).sum(1)


def layer():
    return initialize_identity(FlowLayer(6))


def images():
    flow = mixerflow(**IMAGE, hidden_features=8, num_flow_layers=1)
    return initialize_identity(flow)._transform


def by_zuko(transform, shape):
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(shape), torch.ones(shape), ndims=len(shape)
    )
    flow = zuko.lazy.Flow(to_zuko(transform), base)
    return flow, lambda count: flow().rsample_and_log_prob((count,))


def by_normflows(transform, shape):
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(shape), [to_normflows(transform)])
    return flow, flow.sample


PROBLEMS = {
    "a flow layer": (layer, (6,), gaussian(6)),
    "an image flow": (images, (1, 4, 4), independent(1, 4, 4, location=100.0, scale=30.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("library", [by_zuko, by_normflows])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_reverse_kl_in_training_mode_goes_to_zero_and_not_below(library, problem):
    make, shape, target = problem
    torch.manual_seed(0)
    flow, draw = library(make(), shape)
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    for _ in range(250):
        values, log_prob = draw(64)
        loss = (log_prob - target(values)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert flow.training
    with torch.no_grad():
        values, log_prob = draw(10_000)
        differences = log_prob - target(values)
    kl, error = differences.mean().item(), differences.std().item() / 100
    assert -3 * error <= kl < 0.1


@pytest.mark.parametrize(
    "make",
    [
        layer,
        lambda: initialize_identity(PatchMixerTransform((1, 4, 4), 2, FlowLayer, FlowLayer)),
        images,
    ],
    ids=["flow layer", "mixer layer", "image flow"],
)
def test_a_zuko_flow_in_training_mode_is_consistent(make):
    """Shapes, samples with their densities, gradients of both, and one forward of two calls."""
    torch.manual_seed(0)
    made = make().double()
    lazy = to_zuko(made)
    shape = lazy.event_shape
    flow, draw = by_zuko(made, shape)
    flow.double().train()
    values = torch.rand(5, *shape, dtype=torch.float64)
    assert flow().log_prob(values).shape == (5,)
    samples, log_prob = draw(7)
    assert samples.shape == (7, *shape) and samples.requires_grad
    torch.testing.assert_close(flow().log_prob(samples), log_prob, atol=1e-8, rtol=1e-8)
    built = lazy()
    outputs, ladj = built.call_and_ladj(values)
    torch.testing.assert_close(built.inv(outputs), values, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(
        built.log_abs_det_jacobian(values, outputs), ladj, atol=1e-12, rtol=1e-12
    )
    jacobian = torch.autograd.functional.jacobian(lambda v: built(v).flatten(), values[0])
    expected = torch.linalg.slogdet(jacobian.reshape(values[0].numel(), -1))
    torch.testing.assert_close(ladj[0], expected.logabsdet, atol=1e-8, rtol=1e-8)
    flow().log_prob(values).sum().backward()
    assert all(parameter.grad is not None for parameter in lazy.parameters())


def batch_norm_layer():
    return initialize_identity(FlowLayer(4, flow=partial(AffineCoupling, norm="batch")))


def batch_norm_image_flow():
    flow = mixerflow(**IMAGE, norm="batch")
    return flow.initialize(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8))


def image_flow_of_nflows_batch_norm():
    rows = CompositeTransform([ReshapeTransform((1, 4, 4), (16,)), BatchNorm(16)])
    transform = CompositeTransform([rows, ReshapeTransform((16,), (1, 4, 4))])
    return ImageFlow(transform, (1, 4, 4), levels=None)


WAYS_TO_INVERT = {
    "the layer": (batch_norm_layer, lambda layer: layer.inverse(torch.randn(2, 4))),
    "the coupling": (batch_norm_layer, lambda layer: layer.flow.inverse(torch.randn(2, 4))),
    "nflows": (batch_norm_layer, lambda layer: Flow(layer, StandardNormal([4])).sample(2)),
    "zuko": (batch_norm_layer, lambda layer: by_zuko(layer, (4,))[1](2)),
    "normflows": (batch_norm_layer, lambda layer: by_normflows(layer, (4,))[1](2)),
    "an image flow": (batch_norm_image_flow, lambda flow: flow.sample(2)),
    "an image flow through zuko": (
        batch_norm_image_flow,
        lambda flow: to_zuko(flow)().sample((2,)),
    ),
    "samples with densities": (
        batch_norm_image_flow,
        lambda flow: flow.deterministic.sample_and_log_prob(2),
    ),
    "nflows' BatchNorm": (image_flow_of_nflows_batch_norm, lambda flow: flow.sample(2)),
}


@pytest.mark.parametrize("make, invert", WAYS_TO_INVERT.values(), ids=WAYS_TO_INVERT.keys())
def test_a_batch_norm_in_training_mode_says_once_that_it_is_inverted(make, invert):
    torch.manual_seed(0)
    flow = make().train()
    with pytest.warns(UserWarning, match=r"BatchNorm.*eval\(\)") as caught:
        invert(flow)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invert(flow)
        invert(make().eval())


@pytest.mark.parametrize("memory", ["full", "constant", "checkpoint"])
def test_training_a_batch_norm_by_its_likelihood_says_nothing(memory):
    torch.manual_seed(0)
    pixels = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    flow = mixerflow(**IMAGE, norm="batch", memory=memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.train().log_prob(pixels).mean().backward()
        mixerflow(**IMAGE).initialize(pixels).sample(2)


def test_initialize_sets_every_actnorm_of_a_plain_flow_and_changes_nothing_else():
    torch.manual_seed(0)
    coupling = AffineCoupling(4, norm="batch")
    flow = Flow(FlowLayer(4, flow=coupling), StandardNormal([4])).eval()
    with pytest.raises(RuntimeError, match=r"initialize\(flow, batch\).*initialize_identity"):
        flow.log_prob(torch.randn(5, 4))
    before = {name: value.clone() for name, value in coupling.state_dict().items()}
    rows = 3 * torch.randn(1000, 4) + 5
    assert initialize(flow, rows) is flow and not flow.training
    normed, _ = flow._transform.actnorm(rows)
    torch.testing.assert_close(normed.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.std(0), torch.ones(4), atol=1e-2, rtol=0)
    for name, value in coupling.state_dict().items():
        assert torch.equal(value, before[name]), name
    scale = flow._transform.actnorm.log_scale.clone()
    initialize(flow, 100 * rows)
    initialize_identity(flow)
    assert torch.equal(flow._transform.actnorm.log_scale, scale)  # what is initialized stays


def test_initialize_refuses_what_is_no_flow():
    with pytest.raises(TypeError, match="expected an nflows Flow or Transform, got Linear"):
        initialize(nn.Linear(2, 2), torch.randn(3, 2))


class Waits:
    """A thread that samples a flow, and waits in evaluation mode until it is told to go on."""

    def __init__(self, flow):
        self.began, self.goes_on = threading.Event(), threading.Event()
        self.flow, draw = flow, flow._distribution.sample

        def sample(*args, **kwargs):
            if threading.current_thread() is self.thread:
                self.began.set()
                assert self.goes_on.wait(60)
            return draw(*args, **kwargs)

        flow._distribution.sample = sample
        self.thread = threading.Thread(target=self.flow.sample, args=(2,))
        self.thread.start()
        assert self.began.wait(60)

    def end(self):
        self.goes_on.set()
        self.thread.join()


def of_zuko(features):
    return from_zuko(zuko.flows.NAF(features, transforms=1, hidden_features=(8,)))


def of_normflows(features):
    return from_normflows(nf.flows.AutoregressiveRationalQuadraticSpline(features, 1, 8))


def of_nflows(features):
    return MaskedAffineAutoregressiveTransform(features, 8)


@pytest.mark.parametrize("kind", [AffineCoupling, of_nflows, of_zuko, of_normflows])
def test_sampling_in_one_thread_leaves_the_training_of_another(kind):
    torch.manual_seed(0)
    pixels = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    layer = partial(FlowLayer, flow=kind)
    mixer = PatchMixerTransform((1, 4, 4), 2, layer, layer)
    flow = ImageFlow(CompositeTransform([PixelScaling(256), mixer]), (1, 4, 4))
    flow.initialize(pixels).train()
    noise = flow.draw_noise(0, 0, torch.arange(9))

    def gradients():
        loss = flow.log_prob(pixels, noise=noise).sum()
        return torch.autograd.grad(loss, list(flow.parameters()))

    expected = gradients()
    sampler = Waits(flow)
    # Some have a Dropout, of probability 0.
    assert all(part.training for part in flow.modules() if not isinstance(part, nn.Dropout))
    for found, right in zip(gradients(), expected):
        assert torch.equal(found, right)
    sampler.end()


@pytest.mark.filterwarnings("ignore:.*BatchNorm")
def test_two_that_sample_a_batch_norm_keep_it_in_evaluation_mode_until_the_last_is_done():
    torch.manual_seed(0)
    pixels = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    flow = mixerflow(**IMAGE, norm="batch").initialize(pixels).train()
    norms = [part for part in flow.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    first, second = Waits(flow), Waits(flow)
    assert norms and not any(norm.training for norm in norms)
    first.end()
    assert not any(norm.training for norm in norms)
    second.end()
    assert all(part.training for part in flow.modules())
