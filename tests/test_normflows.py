"""normflows' flows as ours, and ours inside normflows."""

import normflows as nf
import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF

from nflows_mixer.adapters import from_normflows, to_normflows
from nflows_mixer.flows import mixerflow
from nflows_mixer.transforms import InverseTransform, LULinear, UniformDequantization
from nflows_mixer.transforms.residual import ResidualTransform
from tests.helpers import expect


def spline(features):
    return nf.flows.AutoregressiveRationalQuadraticSpline(features, 1, 16)


def test_a_whole_model_runs_from_data_to_noise():
    torch.manual_seed(0)
    base = nf.distributions.DiagGaussian(6)
    layers = [nf.flows.LULinearPermute(6), spline(6), nf.flows.Permute(6), spline(6)]
    model = nf.NormalizingFlow(base, layers).double()
    rows = torch.randn(5, 6, dtype=torch.float64)
    transform = from_normflows(model)
    outputs, logabsdet = transform(rows)
    torch.testing.assert_close(base.log_prob(outputs) + logabsdet, model.log_prob(rows))
    torch.testing.assert_close(transform.inverse(outputs)[0], rows)


def test_residual_flow_has_an_exact_log_det_and_no_estimate():
    torch.manual_seed(0)
    block = nf.flows.Residual(nf.nets.LipschitzMLP([4, 16, 4], init_zeros=False))
    transform = from_normflows(block, 4)
    assert isinstance(transform, ResidualTransform)
    rows = torch.randn(5, 4)
    assert torch.equal(transform(rows)[1], transform(rows)[1])
    backwards = nf.flows.Residual(block.iresblock.nnet, reverse=False)
    assert isinstance(from_normflows(backwards, 4), InverseTransform)


def test_masked_flow_takes_fewer_passes_than_features():
    torch.manual_seed(0)
    flow = nf.flows.MaskedAffineAutoregressive(24, 32, num_blocks=1)
    rows, passes = torch.randn(4, 24), []
    with torch.no_grad():
        expected = flow.inverse(rows)
        flow.autoregressive_net.register_forward_hook(lambda *_: passes.append(1))
        got = from_normflows(flow)(rows)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert len(passes) < 24


def test_mixerflow_inside_normflows():
    torch.manual_seed(0)
    flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, levels=4, num_layers=2, shift=None)
    flow.initialize(torch.randint(4, (50, 1, 4, 4), dtype=torch.uint8)).double().eval()
    torch.nn.init.normal_(flow._distribution.log_scale, std=0.1)  # the base comes along
    model = to_normflows(flow)
    pixels = 4 * torch.rand(6, 1, 4, 4, dtype=torch.float64)
    expected = flow.deterministic.log_prob(pixels)
    torch.testing.assert_close(model.log_prob(pixels), expected, atol=1e-10, rtol=1e-10)
    samples, log_prob = model.sample(3)
    assert samples.shape == (3, 1, 4, 4)
    torch.testing.assert_close(log_prob, model.log_prob(samples))
    model.forward_kld(pixels).backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize(
    "call, kind, pattern",
    [
        (lambda: from_normflows(torch.nn.Linear(2, 2)), TypeError, "got Linear"),
        (lambda: from_normflows(nf.flows.Permute(2), 4), ValueError, "length 2, .* got 4"),
        (lambda: to_normflows(UniformDequantization()), ValueError, "UniformDequantization"),
        (lambda: to_normflows(torch.nn.Linear(2, 2)), TypeError, "got Linear"),
        (
            lambda: from_normflows(nf.flows.Residual(nf.nets.LipschitzMLP([4, 4]))),
            ValueError,
            "pass features",
        ),
        (lambda: from_normflows(spline(4), 4)(torch.zeros(2, 5)), ValueError, r"\[B, 4\], got"),
    ],
)
def test_errors(call, kind, pattern):
    with expect(kind, pattern):
        call()


def test_context_reaches_those_who_take_it():
    torch.manual_seed(0)
    base = nf.distributions.DiagGaussian(4)
    conditional = MAF(4, 8, context_features=2)
    flows = [to_normflows(MAF(4, 8)), to_normflows(conditional)]
    model = nf.ConditionalNormalizingFlow(base, flows)
    rows, context = torch.randn(5, 4), torch.randn(5, 2)
    first = model.log_prob(rows, context)
    assert not torch.allclose(first, model.log_prob(rows, context + 1))
    with torch.autocast("cpu", torch.bfloat16):
        spline = nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, 2)
        assert from_normflows(spline)(rows, context.bfloat16())[0].dtype == torch.float32


def test_class_conditional_models_are_taken_apart():
    base = nf.distributions.ClassCondDiagGaussian(4, 3)
    model = nf.ClassCondFlow(base, [nf.flows.LULinearPermute(4)])
    assert from_normflows(model)(torch.randn(2, 4))[1].shape == (2,)


def test_the_other_way_round():
    linear = LULinear(4)
    rows = torch.randn(3, 4)
    flow = to_normflows(linear)
    assert torch.equal(flow.inverse(rows)[0], linear(rows)[0])
    torch.testing.assert_close(flow(flow.inverse(rows)[0])[0], rows)
