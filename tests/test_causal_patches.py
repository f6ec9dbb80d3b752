"""Causal transformers over patches, and the methods that invert autoregressive transforms."""

import copy

import pytest
import torch
import zuko
from nflows.transforms import (
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)

from nflows_mixer.adapters import from_zuko
from nflows_mixer.numerics import inverse_method, inverse_of
from nflows_mixer.transforms import AffineAutoregressive, CausalPatchTransform
from tests.helpers import moved

T, C = 6, 3
METHODS = {"sequential": None, "jacobi": None, "gauss-seidel": 4}


def causal(amount=0.1, **options):
    arguments = {"hidden_features": 16, "num_blocks": 2, "num_heads": 2}
    return moved(CausalPatchTransform(T, C, **arguments | options).double(), amount)


def jacobian(flow, patches):
    """[T, c, T, c]: of output (t, k) by input (t', k')."""
    return torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], patches)


@pytest.mark.parametrize("start_token", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_patch_depends_on_those_before_it_alone(start_token, positions):
    flow = causal(start_token=start_token, positions=positions)
    found = jacobian(flow, torch.randn(T, C, dtype=torch.float64))
    for row in range(T):
        for column in range(T):
            block = found[row, :, column]
            if column > row:
                assert (block == 0).all()
            elif column < row:
                assert (block.abs() > 1e-12).all()
            else:
                assert torch.equal(block, torch.diag(block.diagonal()))
                assert (block.diagonal() > 0).all()
    if not start_token:
        assert torch.equal(found[0, :, 0], torch.eye(C, dtype=torch.float64))


def test_reversed_order_is_that_of_patches_turned_around():
    flow = causal()
    backwards = copy.deepcopy(flow)
    backwards.reverse = True
    patches = torch.randn(4, T, C, dtype=torch.float64)
    outputs, logabsdet = backwards(patches)
    expected, expected_logabsdet = flow(patches.flip(1))
    assert torch.equal(outputs, expected.flip(1))
    assert torch.equal(logabsdet, expected_logabsdet)


def test_parameters_are_those_of_the_formula():
    d, w, blocks, classes = 16, 128, 4, 10
    flow = CausalPatchTransform(49, d, w, blocks, context_features=classes)
    block = 12 * w**2 + 13 * w
    expected = d * w + w + 49 * w + classes * w + blocks * block + 2 * d * w + 2 * d
    assert sum(p.numel() for p in flow.parameters()) == expected == 3_227_776 // 4
    assert flow.network.blocks[0].num_heads == 2


def test_network_is_the_formula():
    """By products of whole matrices, without the package's blocks."""
    flow = causal(context_features=2, soft_clip=4.0, scale="softplus")
    net, block = flow.network, flow.network.blocks[0]
    net.blocks = net.blocks[:1]
    x, y = torch.randn(T, C, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    h = x @ net.embed.weight.T + net.embed.bias + net.positions + net.condition.weight @ y

    def layer_norm(h, norm):
        centred = h - h.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * norm.weight + norm.bias

    q, k, v = (layer_norm(h, block.norm1) @ block.attend.weight.T + block.attend.bias).chunk(3, 1)
    mixed = []
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        scores = q[:, own] @ k[:, own].T / 8**0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1) > 0, -torch.inf)
        mixed.append(scores.softmax(1) @ v[:, own])
    h = h + torch.cat(mixed, 1) @ block.project.weight.T + block.project.bias
    hidden = layer_norm(h, block.norm2) @ block.expand.weight.T + block.expand.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    h = h + hidden @ block.contract.weight.T + block.contract.bias
    o = (h @ net.final.weight.T + net.final.bias)[:-1]
    u, b = (4 * torch.tanh(o / 4)).chunk(2, 1)
    scale = 0.1 + 0.9 * torch.log1p(u.exp()) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    expected = torch.cat([x[:1], (x[1:] - b) / scale])
    outputs, logabsdet = flow(x[None], y[None])
    assert torch.allclose(outputs[0], expected, atol=1e-12)
    assert torch.allclose(logabsdet[0], -scale.log().sum(), atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_token": True, "context_features": 2},
        {"positions": "rotary", "reverse": True, "scale": "tanh"},
        {"positions": "rotary", "start_token": True, "soft_clip": 4.0, "segment": None},
    ],
)
def test_all_methods_of_the_inverse_agree(options):
    flow = causal(**options)
    given = torch.randn(5, 2, dtype=torch.float64) if "context_features" in options else None
    patches = torch.randn(5, T, C, dtype=torch.float64)
    latents, forward = flow(patches, given)
    with_gradients = flow.inverse(latents.requires_grad_(), given)
    entries = T if "start_token" in options else T - 1
    for method, segment in METHODS.items():
        with torch.no_grad(), inverse_method(method, segment) as report:
            found, logabsdet = flow.inverse(latents, given)
        assert torch.allclose(found, patches, rtol=1e-10, atol=1e-10)
        assert torch.allclose(found, with_gradients[0], rtol=1e-10, atol=1e-10)
        assert torch.allclose(logabsdet, -forward, rtol=1e-10, atol=1e-10)
        (entry,) = report
        assert entry.transform == "CausalPatchTransform" and entry.method == method
        assert entry.length == T and entry.passes <= entries + (method != "sequential")
        assert method != "sequential" or entry.passes == entries


def test_passes_in_float32_end_where_little_changes():
    flow = moved(CausalPatchTransform(30, C, 16, num_blocks=1, num_heads=2), 0.05)
    patches = torch.randn(5, 30, C)
    with torch.no_grad(), inverse_method("jacobi") as report:
        found, _ = flow.inverse(flow(patches)[0])
    assert report[0].passes < 20
    assert torch.allclose(found, patches, atol=1e-4)


def test_first_pass_that_overflows_spoils_nothing():
    """The second patch of the guess is far off, and the scale of the third is e to that."""
    flow = moved(CausalPatchTransform(3, 1, 16, num_blocks=2, num_heads=2).double(), 0.01)
    with torch.no_grad():
        flow.network.embed.weight[0] = flow.network.final.weight[0, 0] = 1.0
    latents = torch.tensor([-9.0, 8000.0, 1.0], dtype=torch.float64).reshape(1, 3, 1)
    finite = []

    def look(module, inputs, answers):
        finite.append(bool(torch.isfinite(answers[..., 0].exp()).all()))

    flow.network.final.register_forward_hook(look)
    results = {}
    with torch.no_grad():
        for method, segment in METHODS.items():
            with inverse_method(method, segment):
                results[method] = flow.inverse(latents)
            assert all(finite) == (method == "sequential")
            finite.clear()
    expected, expected_logabsdet = results["sequential"]
    assert expected.isfinite().all()
    for found, logabsdet in results.values():
        assert torch.allclose(found, expected, rtol=1e-10, atol=0)
        assert torch.allclose(logabsdet, expected_logabsdet, rtol=1e-10, atol=0)


def test_solution_that_overflows_is_nan_for_all_of_its_image_and_no_other():
    flow = causal()
    latents = torch.randn(3, T, C, dtype=torch.float64)
    latents[1, 2] = torch.inf
    for method, segment in METHODS.items():
        with torch.no_grad(), inverse_method(method, segment):
            found, _ = flow.inverse(latents)
        assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


def masked_flows():
    torch.manual_seed(0)
    return {
        "nflows affine": moved(MaskedAffineAutoregressiveTransform(8, 16), 0.3),
        "nflows spline": moved(
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform(8, 16, tails="linear"), 0.3
        ),
        "ours": moved(AffineAutoregressive(8, 16), 0.3),
        "zuko": moved(from_zuko(zuko.flows.MaskedAutoregressiveTransform(8, 0)), 0.3),
    }


@pytest.mark.parametrize("name", masked_flows())
def test_methods_agree_on_masked_flows(name):
    flow = masked_flows()[name].double().eval()
    rows = torch.randn(5, 8, dtype=torch.float64)
    with torch.no_grad():
        latents, forward = flow(rows)
        for method, segment in METHODS.items():
            with inverse_method(method, segment) as report:
                found, logabsdet = inverse_of(flow)(latents, None)
            assert torch.allclose(found, rows, rtol=1e-10, atol=1e-9)
            assert torch.allclose(logabsdet, -forward, rtol=1e-10, atol=1e-9)
            assert len(report) == 1 and report[0].length == 8 and 1 <= report[0].passes <= 9
            if name in ("nflows affine", "ours"):
                assert report[0].method == ("sequential" if method == "sequential" else "jacobi")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("newton",), "one of 'auto', 'sequential', 'jacobi', 'gauss-seidel', got 'newton'"),
        (("gauss-seidel",), "expected a segment with gauss-seidel.*segment=None"),
        (("jacobi", 3), "expected a segment with gauss-seidel"),
        (("gauss-seidel", 0), "segment to be a positive integer, got 0"),
    ],
)
def test_methods_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        with inverse_method(*arguments):
            pass


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_patches": 1}, "two tokens or more, got 1"),
        ({"scale": "cube"}, "scale to be one of"),
        ({"soft_clip": 0.0}, "soft_clip above 0, got 0.0"),
        ({"positions": "sine"}, "positions to be one of 'learned', 'rotary', got 'sine'"),
        ({"segment": 0}, "segment to be a positive integer, got 0"),
        ({"num_heads": 3}, "heads that divide the width 16, got 3"),
        ({"num_heads": 16, "positions": "rotary"}, "an even width of each head, got 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    arguments = {"num_patches": T, "channels": C, "hidden_features": 16, "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        CausalPatchTransform(**arguments | options)
