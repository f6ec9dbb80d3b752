"""``torch.func``, ``torch.export`` and whole graphs take the deterministic part of a flow."""

from functools import partial

import pytest
import torch
from torch import nn

from nflows_mixer.flows import ImageFlow, denseflow, mixerflow
from nflows_mixer.nn import ConvConditioner, DenseAttentionConditioner
from nflows_mixer.transforms import (
    ActNorm,
    CompositeTransform,
    FlowLayer,
    GlowStep,
    PixelScaling,
    SqueezeTransform,
)

SHAPE = (1, 8, 8)
NO_SHIFT = {"shift": None, "hidden_features": 8}


def mixer():
    return mixerflow(image_shape=SHAPE, patch_size=4, num_layers=1, num_flow_layers=1, **NO_SHIFT)


def glow():
    conv = partial(ConvConditioner, hidden_channels=8)
    return ImageFlow(
        CompositeTransform([PixelScaling(256), SqueezeTransform(2), GlowStep(4, conv)]),
        SHAPE,
        base=torch.distributions.Normal(torch.zeros(4, 4, 4), torch.ones(4, 4, 4)),
    )


def dense():
    network = partial(DenseAttentionConditioner, hidden_channels=8, num_layers=1, growth=4)
    sizes = {"units": (1,), "modules": (1,), "growth": 0, "conditioner": network}
    return denseflow(image_shape=SHAPE, dequantization="uniform", **sizes)


@pytest.fixture(params=[mixer, glow, dense])
def density(request):
    torch.manual_seed(0)
    flow = request.param().double()
    images = torch.randint(256, (32, *SHAPE), dtype=torch.uint8)
    flow.initialize(images)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    flow.validate_args = False
    return flow.eval().deterministic


def pixels():
    return 256 * torch.rand(3, *SHAPE, dtype=torch.float64)


class LogProb(nn.Module):
    def __init__(self, density):
        super().__init__()
        self.density = density

    def forward(self, images):
        return self.density.log_prob(images)


class Inverse(LogProb):
    def forward(self, latents):
        return self.density._transform.inverse(latents)[0]


def test_vmap_of_grad_gives_the_score_of_each_image(density):
    images = pixels().requires_grad_()
    (expected,) = torch.autograd.grad(density.log_prob(images).sum(), images)
    score = torch.func.grad(lambda image: density.log_prob(image[None])[0])
    found = torch.func.vmap(score)(images.detach())
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_log_prob_can_be_exported(density):
    program = torch.export.export(LogProb(density), (pixels(),))
    images = pixels()
    torch.testing.assert_close(
        program.module()(images), density.log_prob(images), atol=1e-6, rtol=1e-6
    )


def test_the_inverse_of_sampling_can_be_exported(density):
    latents = density.transform_to_noise(pixels()).detach()
    program = torch.export.export(Inverse(density), (latents,))
    other = density.transform_to_noise(pixels()).detach()
    torch.testing.assert_close(
        program.module()(other), Inverse(density)(other), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("make", [FlowLayer, ActNorm, GlowStep])
def test_what_is_to_be_initialized_says_so_under_vmap(make):
    transform, rows = make(4).train(), torch.randn(5, *(4, 2, 2)[: 3 if make is GlowStep else 1])
    with pytest.raises(RuntimeError, match=r"initialized before.*within torch.func.*initialize\("):
        torch.func.vmap(lambda row: transform(row[None])[0])(rows)


@pytest.mark.slow
def test_log_prob_compiles_whole(density):
    compiled = torch.compile(density.log_prob, backend="aot_eager", fullgraph=True)
    images = pixels()
    torch.testing.assert_close(compiled(images), density.log_prob(images), atol=1e-8, rtol=1e-8)


def test_checks_of_values_say_what_is_wrong_and_can_be_switched_off(density):
    broken = pixels()
    broken[0, 0, 0, 0] = torch.nan
    assert density.log_prob(broken)[0].isnan()
    density.validate_args = True
    with pytest.raises(ValueError, match="finite pixels"):
        density.log_prob(broken)


def test_checks_switched_off_on_a_flow_are_off_in_its_deterministic_part():
    flow = mixer().initialize(torch.randint(256, (32, *SHAPE), dtype=torch.uint8)).eval()
    flow.validate_args = False
    score = torch.func.grad(lambda image: flow.deterministic.log_prob(image[None])[0])
    assert torch.func.vmap(score)(pixels().float()).isfinite().all()
