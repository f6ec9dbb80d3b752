"""Masked flows in the mixer: inverses that stop early, identity start, statistics, gradients.

A hook on the network of a masked affine flow, to count its passes, makes it one of those that stop
early; test_masked_inverse.py has the inverse of those without.
"""

import pytest
import torch
import zuko
from nflows import transforms as nflows_transforms
from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF

from nflows_mixer.adapters.zuko import from_zuko
from nflows_mixer.flows import mixerflow
from nflows_mixer.numerics.autoregressive import inverse_of, until_unchanged
from nflows_mixer.transforms import (
    ChannelMixingTransform,
    CompositeTransform,
    InverseTransform,
    PatchMixingTransform,
    RLULinear,
    identity_maf,
)
from tests.helpers import moved


def count_passes(*networks):
    counts = [0] * len(networks)
    for index, network in enumerate(networks):

        def hook(*_, index=index):
            counts[index] += 1

        network.register_forward_hook(hook)
    return counts


SPLINE = {"num_bins": 8, "tails": "linear", "tail_bound": 3.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda: MAF(48, 64),
        lambda: MAF(48, 64, random_mask=True, use_residual_blocks=False),
        lambda: nflows_transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features=48, hidden_features=64, num_blocks=1, **SPLINE
        ),
    ],
    ids=["maf", "random masks", "spline"],
)
def test_early_stop_is_bit_identical_to_all_passes(make, dtype):
    flow = make()
    torch.manual_seed(0)  # how many passes it takes depends on its parameters
    flow = moved(flow).to(dtype).eval()
    latents = torch.randn(20, 48, dtype=dtype)
    with torch.no_grad():
        expected = flow.inverse(latents)
        counts = count_passes(flow.autoregressive_net)
        got = inverse_of(flow)(latents, None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert counts[0] <= 24


def test_as_many_passes_as_features_when_each_depends_on_the_one_before():
    """A map that only D passes can invert: x_d needs x_(d-1) to the last bit."""

    def one_pass(x):
        passes.append(1)
        return 1 + torch.nn.functional.pad(x[:, :-1], (1, 0)) * 3, None

    passes = []
    solution, _, _ = until_unchanged(one_pass, torch.zeros(2, 7))
    assert len(passes) == 7 and torch.equal(one_pass(solution)[0], solution)


@pytest.mark.parametrize("wrap", ["composite", "channel", "patch", "inverse"])
def test_wherever_a_masked_flow_is_inverted(wrap):
    flow = moved(MAF(16, 32)).eval()
    counts = count_passes(flow.autoregressive_net)
    wrapped, inputs, direction = {
        "composite": (CompositeTransform([flow]), torch.randn(5, 16), "inverse"),
        "channel": (ChannelMixingTransform(flow), torch.randn(2, 3, 16), "inverse"),
        "patch": (PatchMixingTransform(flow), torch.randn(2, 16, 3), "inverse"),
        "inverse": (InverseTransform(flow), torch.randn(5, 16), "forward"),
    }[wrap]
    with torch.no_grad():
        getattr(wrapped, direction)(inputs)
    assert 0 < counts[0] < 16


@pytest.mark.parametrize("hooks", [False, True], ids=["incremental", "early stop"])
@pytest.mark.parametrize("context", [None, 3])
def test_gradients_through_the_inverse_are_those_of_all_passes(context, hooks):
    flow = moved(MAF(6, 16, context_features=context)).double().eval()
    if hooks:
        count_passes(flow.autoregressive_net)
    latents = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    given = context and torch.randn(5, context, dtype=torch.float64, requires_grad=True)
    wanted = [latents, *flow.parameters(), *([given] if context else [])]
    weights = torch.randn(5, 6, dtype=torch.float64)

    def gradients(inverse):
        outputs, logabsdet = inverse(latents, given)
        return torch.autograd.grad((weights * outputs).sum() + logabsdet.sum(), wanted)

    for got, expected in zip(gradients(inverse_of(flow)), gradients(flow.inverse)):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_a_second_derivative_through_an_inverse_that_iterates_is_an_error():
    flow = moved(MAF(4, 8)).double().eval()
    count_passes(flow.autoregressive_net)
    latents = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    outputs, _ = inverse_of(flow)(latents, None)
    (slope,) = torch.autograd.grad(outputs.square().sum(), latents, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def zuko_maf(features):
    flow = zuko.flows.MAF(features, transforms=1, hidden_features=(16,))
    return from_zuko(flow, identity_start=True)


@pytest.mark.parametrize("kind", [identity_maf, zuko_maf], ids=["nflows", "zuko"])
def test_maf_mixerflow(kind):
    """Identity start, and sampling in at most max(P, c) passes a flow, not C * H * W."""
    torch.manual_seed(0)
    flow = mixerflow(
        image_shape=(1, 12, 12),
        patch_size=3,
        num_layers=2,
        num_flow_layers=2,
        channel_flow=kind,
        patch_flow=kind,
        linear=RLULinear,
        shift=None,
        hidden_features=16 if kind is identity_maf else None,
    )
    images = torch.randint(256, (100, 1, 12, 12), dtype=torch.uint8)
    flow.initialize(images).eval()
    # At the start there are ActNorm and reversals alone: each layer permutes pixels.
    pixels = images[:3].double() + 0.5
    flow.double()
    _, logabsdet = flow._transform(pixels)
    torch.testing.assert_close(logabsdet, logabsdet[:1].expand(3), atol=1e-4, rtol=0)
    networks = [m.autoregressive_net for m in flow.modules() if isinstance(m, MAF)]
    networks += [m.hyper for m in flow.modules() if hasattr(m, "hyper")]
    assert len(networks) == 2 * 2 * 2
    moved(flow, 0.02)
    counts = count_passes(*networks)
    flow.sample(2)
    # P = 16 and c = 9; zuko takes one more pass for the log-det.
    assert max(counts) <= 16 + (kind == zuko_maf) < 144
