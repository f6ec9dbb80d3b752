"""Flow layers compiled once for all layers of a size, by a backend that needs no compiler."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch

from nflows_mixer.flows import mixerflow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.transforms import (
    AdditiveCoupling,
    AffineCoupling,
    GlowSteps,
    RationalQuadraticCoupling,
)
from nflows_mixer.transforms.reversible import COMPILES
from tests.helpers import moved, pixels

SMALL = {"image_shape": (1, 8, 8), "patch_size": 2, "hidden_features": 8}
"""Rows of 4 channels, of 16 patches, and of 9 inside a shift."""


def flows(memory="full", **options):
    """One that compiles and one that does not, of the same weights, and images."""
    torch.manual_seed(0)
    options = {**SMALL, "num_layers": 5, **options}
    images = pixels(20, options["image_shape"], 256)
    plain = moved(mixerflow(**options).double().initialize(images), 0.02)
    compiled = mixerflow(**options, memory=memory, compile=True).double()
    compiled.load_state_dict(plain.state_dict())
    compiled._transform.compiled.backend = "aot_eager"
    return compiled, plain, images


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


ONE_SIZE = {"image_shape": (1, 4, 4), "shift": None}
"""Rows of 4 channels, and of 4 patches."""
LOCAL = {"local_flow": partial(GlowSteps, num_steps=2, hidden_channels=4)}
"""Rows of 4 channels of a squeezed pixel, whose network sees its neighbors."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory, flow, sizes",
    [
        ("full", AffineCoupling, {}),
        ("checkpoint", AffineCoupling, ONE_SIZE),
        ("constant", AffineCoupling, ONE_SIZE),
        ("full", AdditiveCoupling, ONE_SIZE),
        ("full", RationalQuadraticCoupling, ONE_SIZE),
        ("full", AffineCoupling, ONE_SIZE | LOCAL),
    ],
)
def test_the_same_numbers_and_gradients(memory, flow, sizes):
    if memory != "full" and not COMPILES:
        pytest.skip("compiling with it takes torch 2.11")
    compiled, plain, images = flows(memory, channel_flow=flow, num_layers=2, **sizes)
    noise = torch.rand(images.shape, dtype=torch.float64)
    results = []
    for each in (compiled, plain):
        loss = each.log_prob(images, noise=noise)
        loss.mean().backward()
        gradients = [parameter.grad for parameter in each.parameters()]
        each.eval()
        with torch.no_grad():
            evaluated = each.log_prob(images, noise=noise)
        torch.manual_seed(1)
        results.append((loss, gradients, evaluated, each.sample(5), dict(each.state_dict())))
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_layers_of_one_size_share_their_code():
    counts = []
    for depth in (2, 9):
        compiled, _, images = flows(num_layers=depth)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compiled.log_prob(images).mean().backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # Rows of 4, 16 and 9.
    assert counts == [3, 3]


def test_many_batch_sizes_do_not_make_it_give_up():
    compiled, plain, images = flows(num_layers=1, **ONE_SIZE)
    compiled.eval(), plain.eval()
    with torch.no_grad():
        for size in range(2, 15):
            noise = torch.rand(images[:size].shape, dtype=torch.float64)
            torch.testing.assert_close(
                compiled.log_prob(images[:size], noise=noise),
                plain.log_prob(images[:size], noise=noise),
            )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_copies_and_pickles():
    compiled, plain, images = flows(num_layers=1, **ONE_SIZE)
    noise = torch.rand(images.shape, dtype=torch.float64)
    compiled.eval(), plain.eval()
    expected = compiled.log_prob(images, noise=noise)
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        other._transform.compiled.backend = "aot_eager"
        torch.testing.assert_close(other.log_prob(images, noise=noise), expected)


def test_bf16_conditioners():
    """Bits/dim within 0.005 of float32 on the same weights, forward and compiled."""
    compiled, plain, images = flows(num_layers=2, **ONE_SIZE)
    compiled.float().eval(), plain.float().eval()
    noise = torch.rand(images.shape)
    exact = bits_per_dim(plain.log_prob(images, noise=noise), plain.image_shape).mean()
    for flow in (compiled, plain):
        with torch.autocast("cpu", torch.bfloat16):
            bits = bits_per_dim(flow.log_prob(images, noise=noise), flow.image_shape).mean()
        assert 0 < abs(bits - exact) < 0.005
