"""Linear blocks against dense matrices; couplings against their formulas."""

import math

import pytest
import torch
from torch import nn

from nflows_mixer.nn import MLP, ResidualMLP, learned_positions, sinusoidal_positions
from nflows_mixer.transforms import (
    AdditiveCoupling,
    AffineCoupling,
    InvertibleConv1x1,
    LULinear,
    RLULinear,
)
from tests.helpers import Constant, settled


def test_lu_by_hand():
    linear = LULinear(2).double()
    with torch.no_grad():
        linear.packed.copy_(torch.tensor([[math.log(2.0), 5.0], [3.0, math.log(7.0)]]))
        linear.bias.copy_(torch.tensor([10.0, 20.0]))
    # L = [[1, 0], [3, 1]], U = [[2, 5], [0, 7]], LU = [[2, 5], [6, 22]].
    outputs, logabsdet = linear(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(outputs, torch.tensor([[17.0, 48.0]], dtype=torch.float64))
    assert logabsdet.item() == pytest.approx(math.log(14))


@pytest.mark.parametrize("features", [1, 2, 5, 48])
def test_linear_blocks_start_at_the_identity_and_the_reversal(features):
    rows = torch.randn(3, features)
    assert torch.equal(LULinear(features)(rows)[0], rows)
    assert torch.equal(RLULinear(features)(rows)[0], rows.flip(1))


def test_even_number_of_rlu_restores_the_order():
    rows = torch.randn(3, 7)
    outputs = rows
    for _ in range(4):
        outputs, _ = RLULinear(7)(outputs)
    assert torch.equal(outputs, rows)


@pytest.mark.parametrize("features", [48, 64, 49])
def test_lu_has_d_squared_plus_d_parameters(features):
    count = sum(p.numel() for p in LULinear(features).parameters())
    assert count == features**2 + features


def test_conv1x1_is_a_matrix_on_the_channels():
    conv = InvertibleConv1x1(3).double()
    with torch.no_grad():
        conv.linear.packed.copy_(0.3 * torch.randn(3, 3))
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    packed = conv.linear.packed.detach()
    weight = packed.tril(-1) + torch.eye(3).double()
    weight = weight @ (packed.triu(1) + packed.diagonal().exp().diag())
    expected = torch.einsum("kc,bchw->bkhw", weight, images)
    outputs, logabsdet = conv(images)
    torch.testing.assert_close(outputs, expected)
    full = 20 * torch.linalg.slogdet(weight).logabsdet
    torch.testing.assert_close(logabsdet, full.expand(2))


@pytest.mark.parametrize(
    "conditioning, expected", [("first", [1, 2, 3, 18, 35]), ("second", [12, 26, 3, 4, 5])]
)
def test_affine_coupling_by_hand(conditioning, expected):
    values = [math.log(2.0), math.log(3.0), 10.0, 20.0]
    coupling = AffineCoupling(5, Constant(values), conditioning=conditioning)
    outputs, logabsdet = coupling(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    torch.testing.assert_close(outputs, torch.tensor([expected], dtype=torch.float32))
    assert logabsdet.item() == pytest.approx(math.log(6))


def test_additive_coupling_by_hand():
    outputs, logabsdet = AdditiveCoupling(4, Constant([10.0, 20.0]))(torch.ones(1, 4))
    assert outputs.tolist() == [[1, 1, 11, 21]] and logabsdet.item() == 0


@pytest.mark.parametrize(
    "scale, low, high",
    [
        ("exp", math.exp(-30), math.exp(30)),
        ("tanh", math.exp(-2), math.exp(2)),
        ("sigmoid", 0.1, 1.9),
        ("softplus", 0.1, 0.1 + 0.9 * 30 / math.log(2)),
    ],
)
def test_scales_are_one_at_zero_and_keep_their_range(scale, low, high):
    for u, expected in [(-30.0, low), (0.0, 1.0), (30.0, high)]:
        coupling = AffineCoupling(2, Constant([u, 0.0]), scale)
        outputs, _ = coupling(torch.ones(1, 2))
        assert outputs[0, 1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [ResidualMLP, MLP])
def test_conditioner_starts_at_zero_and_its_coupling_at_the_identity(kind):
    coupling = AffineCoupling(9, kind)
    rows = torch.randn(20, 9)
    assert torch.equal(coupling(rows)[0], rows)


def test_conditioner_sees_the_larger_part():
    for features in (48, 49):
        coupling = AffineCoupling(features)
        assert coupling.conditioner.initial.in_features == math.ceil(features / 2)
        assert coupling.conditioner.final.out_features == 2 * (features // 2)


@pytest.mark.parametrize("features, count", [(48, 42_928), (64, 46_016), (49, 43_056)])
def test_conditioner_sizes_of_the_reference(features, count):
    assert sum(p.numel() for p in AffineCoupling(features).conditioner.parameters()) == count


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def normalized(norm, inputs):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (inputs - norm.running_mean) * scale + norm.bias


def test_residual_mlp_is_its_formula():
    net = settled(ResidualMLP(3, 4, 5, num_blocks=2, context_features=2, norm="batch"), 0.3)
    rows, context = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    hidden = torch.cat([rows, context], 1) @ net.initial.weight.T + net.initial.bias
    for block in net.blocks:
        inner = gelu(normalized(block.norm1, hidden)) @ block.linear1.weight.T + block.linear1.bias
        outer = gelu(normalized(block.norm2, inner)) @ block.linear2.weight.T
        hidden = hidden + outer + block.linear2.bias
    torch.testing.assert_close(net(rows, context), hidden @ net.final.weight.T + net.final.bias)


def test_mlp_is_its_formula():
    net = settled(MLP(3, 4, hidden_features=5, num_layers=2, norm="batch"), 0.3)
    hidden = rows = torch.randn(7, 3).double()
    linear1, norm1, _, linear2, norm2, _, final = net.layers
    for linear, norm in [(linear1, norm1), (linear2, norm2)]:
        hidden = gelu(normalized(norm, hidden @ linear.weight.T + linear.bias))
    torch.testing.assert_close(net(rows), hidden @ final.weight.T + final.bias)


def test_sinusoidal_positions_by_hand():
    expected = [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]
    torch.testing.assert_close(sinusoidal_positions(3, 4)[2], torch.tensor(expected))


def test_learned_positions_tell_rows_apart():
    table = learned_positions(5, 3)
    assert isinstance(table, nn.Parameter)
    assert torch.pdist(table).min() > 1e-3
