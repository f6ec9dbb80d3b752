"""Networks of DenseFlow against formulas written out: dense blocks, Nystrom attention, and both."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nflows_mixer.core.context import takes_context
from nflows_mixer.nn import (
    MLP,
    ConvConditioner,
    CrossUnitNetwork,
    DenseAttentionConditioner,
    DenseBlock,
    DenseConditioner,
    DenseEncoder,
    NystromAttention,
    ResidualMLP,
    nystrom,
)
from nflows_mixer.nn.nystrom import pseudo_inverse
from tests.helpers import expect, settled, size

small = {"hidden_channels": 8, "num_layers": 2, "growth": 4, "attention_channels": 4}


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def convolved(conv: nn.Conv2d, features: Tensor) -> Tensor:
    """A convolution of stride 1 as a sum over shifted images."""
    size = conv.kernel_size[0]
    _, _, height, width = features.shape
    padded = F.pad(features, (size // 2,) * 4)
    total = conv.bias[:, None, None]
    for i in range(size):
        for j in range(size):
            shifted = padded[:, :, i : i + height, j : j + width]
            total = total + torch.einsum("kc,bchw->bkhw", conv.weight[:, :, i, j], shifted)
    return total


# Attention.


def softmax(scores: Tensor) -> Tensor:
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def inverse_by_hand(matrix: Tensor, iterations: int) -> Tensor:
    """The iteration of Razavi et al., one factor at a time; its limit, where that is far."""
    if iterations >= 40:
        return torch.linalg.pinv(matrix)
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    norms = [torch.linalg.matrix_norm(matrix, p, keepdim=True) for p in (1, math.inf)]
    z = matrix.mT / (norms[0] * norms[1])
    for _ in range(iterations):
        az = matrix @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    return z


def by_hand(net: NystromAttention, tokens: Tensor, landmarks: int | None) -> Tensor:
    """Attention of [B, N, C], head by head; exact where there are no landmarks."""
    d = net.head_channels
    query, key, value = (tokens @ net.queries_keys_values.weight.T).chunk(3, dim=2)
    heads = []
    for head in range(net.heads):
        q, k, v = (part[:, :, d * head : d * (head + 1)] for part in (query, key, value))
        q = q / math.sqrt(d)
        if landmarks is None:
            heads.append(softmax(q @ k.mT) @ v)
            continue
        of_q, of_k = segment_means(q, landmarks), segment_means(k, landmarks)
        inverse = inverse_by_hand(softmax(of_q @ of_k.mT), net.iterations)
        heads.append(softmax(q @ of_k.mT) @ inverse @ softmax(of_q @ k.mT) @ v)
    return torch.cat(heads, dim=2) @ net.outputs.weight.T


def segment_means(rows: Tensor, count: int) -> Tensor:
    """Means over equal segments; where they cannot be equal, each begins before it would end."""
    total = rows.shape[1]
    bounds = [(i * total // count, -(-(i + 1) * total // count)) for i in range(count)]
    return torch.stack([rows[:, first:last].mean(1) for first, last in bounds], dim=1)


def as_tokens(features: Tensor) -> Tensor:
    return features.flatten(2).mT


@torch.no_grad()
@pytest.mark.parametrize("heads, shape", [(1, (2, 2)), (1, (4, 4)), (2, (4, 4)), (2, (1, 3))])
def test_attention_with_a_landmark_for_each_position_is_exact(heads, shape):
    features = 2 * maps(5, 8, *shape)
    for landmarks in (math.prod(shape), 20):
        net = NystromAttention(8, heads, 4, landmarks).double()
        exact = by_hand(net, as_tokens(features), None)
        torch.testing.assert_close(as_tokens(net(features)), exact)


@torch.no_grad()
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_nystrom_is_exact_attention_in_the_limit(spread):
    """A A^+ A = A, where landmarks are the positions; six iterations leave small ones of A^+."""
    q, k = spread * maps(5, 16, 4), spread * maps(5, 16, 4)
    weights = softmax(q @ k.mT / 2)
    for iterations, tolerance in [(6, 0.1), (10, 0.01), (40, 1e-8)]:
        found = weights @ pseudo_inverse(weights, iterations) @ weights
        assert (found - weights).abs().max() < tolerance * weights.max()


@torch.no_grad()
@pytest.mark.parametrize("shape, landmarks", [((4, 4), 4), ((3, 5), 4), ((4, 6), 5), ((1, 3), 2)])
@pytest.mark.parametrize("iterations", [6, 40])
def test_attention_by_hand(shape, landmarks, iterations):
    features = 3 * maps(2, 6, *shape)
    net = NystromAttention(6, 2, 5, landmarks, iterations).double()
    net.queries_keys_values.weight *= 4
    expected = by_hand(net, as_tokens(features), landmarks)
    torch.testing.assert_close(as_tokens(net(features)), expected, atol=1e-8, rtol=1e-6)


@torch.no_grad()
def test_reshaped_tokens_are_memory_cut_into_rows():
    """The memory of [C, H, W], read as [H W, C]: parameters are the same, and outputs are not."""
    features = maps(2, 6, 4, 4)
    net = NystromAttention(6, landmarks=4, tokens="reshaped").double()
    pixels = NystromAttention(6, landmarks=4).double()
    pixels.load_state_dict(net.state_dict())
    cut = features.reshape(2, 16, 6).mT.reshape(2, 6, 4, 4)
    expected = pixels(cut).flatten(2).mT.reshape(2, 6, 4, 4)
    torch.testing.assert_close(net(features), expected)
    assert not torch.allclose(net(features), pixels(features))


def multiply_adds(net: nn.Module, *shape: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("tokens", ["positions", "reshaped"])
def test_cost_is_linear_in_the_number_of_positions(tokens):
    net = NystromAttention(24, landmarks=4, tokens=tokens)
    few, some, many = (multiply_adds(net, 1, 24, side, side) for side in (8, 16, 32))
    assert many - some == 4 * (some - few)
    # For each position a product with 4 x 24 x 24 weights, and with 4 landmarks four times over.
    assert (some - few) == (256 - 64) * (4 * 24 * 24 + 4 * 4 * 24)
    # Where all positions are landmarks, each attends to all.
    for side in (8, 16):
        exact = NystromAttention(24, landmarks=side**2, tokens=tokens)
        cost = side**2 * 4 * 24 * 24 + 2 * side**4 * 24
        assert multiply_adds(exact, 1, 24, side, side) == cost


def test_pseudo_inverse_of_a_singular_matrix():
    matrix = maps(3, 4, 4).softmax(-1)
    matrix[0, 1], matrix[1] = matrix[0, 0].clone(), 0.25
    expected = torch.linalg.pinv(matrix, rtol=1e-8)
    torch.testing.assert_close(pseudo_inverse(matrix, 15), expected, rtol=1e-6, atol=1e-6)


# Dense blocks.


@torch.no_grad()
def test_dense_block_by_hand():
    net = settled(DenseBlock(3, 5, num_layers=3, growth=4), 0.3)
    features = inputs = maps(2, 3, 4, 6)
    for mix, grow in zip(net.mixes, net.grows):
        hidden = convolved(mix, features).clamp(min=0)
        features = torch.cat((features, convolved(grow, hidden).clamp(min=0)), dim=1)
    a, b, c = convolved(net.gate, features).split(5, dim=1)
    torch.testing.assert_close(net(inputs), a + b / (1 + (-c).exp()))


@pytest.mark.parametrize(
    "width, growth, layers, out", [(48, 64, 7, 48), (64, 64, 4, 64), (3, 16, 4, 64)]
)
def test_sizes_of_dense_blocks(width, growth, layers, out):
    """Each layer w x w + w, and 9 x w x growth + growth, at w = width + i growth."""
    expected = 0
    for w in range(width, width + growth * layers, growth):
        expected += w * w + w + 9 * w * growth + growth
    expected += (width + growth * layers + 1) * 3 * out
    assert size(DenseBlock(width, out, layers, growth)) == expected


@torch.no_grad()
def test_dense_conditioner_and_encoder_by_hand():
    net = settled(DenseConditioner(3, 6, 4, 1, 2, context_features=2))
    images, context = maps(2, 3, 4, 4), maps(2, 2, 4, 4)
    hidden = net.block(convolved(net.initial, torch.cat((images, context), dim=1)))
    torch.testing.assert_close(net(images, context), convolved(net.final, hidden))
    net = settled(DenseEncoder(3, 5, hidden_channels=4, num_layers=1, growth=2))
    first = net.first(images)
    # A kernel of the size of its stride: a matrix for each 2 x 2 square.
    squares = F.pixel_unshuffle(first, 2)
    between = torch.einsum("kc,bchw->bkhw", net.between.weight.flatten(1), squares)
    expected = net.second(between + net.between.bias[:, None, None])
    torch.testing.assert_close(net(images), expected)
    assert DenseEncoder(3, 5, stride=1)(torch.zeros(1, 3, 3, 5)).shape == (1, 5, 3, 5)


@torch.no_grad()
def test_convolutional_networks_by_hand():
    images, context = maps(2, 3, 4, 4), maps(2, 2)
    net = settled(ConvConditioner(3, 6, 5, context_features=2))
    spread = context[:, :, None, None].expand(2, 2, 4, 4)
    hidden = convolved(net.initial, torch.cat((images, spread), dim=1)).clamp(min=0)
    hidden = convolved(net.middle, hidden).clamp(min=0)
    torch.testing.assert_close(net(images, context), convolved(net.final, hidden))
    net = settled(CrossUnitNetwork(3, 4))
    hidden = convolved(net[0], images).clamp(min=0)
    assert hidden.shape[1] == 12
    torch.testing.assert_close(net(images), convolved(net[2], hidden))
    assert CrossUnitNetwork(3, 4).double()(images).abs().max() == 0


# The network of both.


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "batch", None])
def test_dense_attention_conditioner_by_hand(norm):
    net = settled(DenseAttentionConditioner(3, 6, **small, context_features=2, norm=norm))
    images, context = maps(2, 3, 4, 4), maps(2, 2, 4, 4)
    hidden = convolved(net.initial, torch.cat((images, context), dim=1))
    dense, (narrow, attention, widen) = net.branches
    other = convolved(widen, attention(convolved(narrow, hidden)))
    normal = torch.cat((dense(hidden), other), dim=1)
    aligned = (1, -1, 1, 1)
    if norm == "batch":
        spread = (net.norm.running_var + net.norm.eps).sqrt().reshape(aligned)
        normal = (normal - net.norm.running_mean.reshape(aligned)) / spread
    elif norm == "layer":
        variance, mean = torch.var_mean(normal, dim=1, correction=0, keepdim=True)
        normal = (normal - mean) / (variance + net.norm.eps).sqrt()
    if norm is not None:
        normal = normal * net.norm.weight.reshape(aligned) + net.norm.bias.reshape(aligned)
    expected = convolved(net.final, convolved(net.blend, normal.clamp(min=0)))
    torch.testing.assert_close(net(images, context), expected)


@pytest.mark.parametrize("norm, depends", [("layer", False), (None, False), ("batch", True)])
def test_batch_norm_alone_depends_on_the_batch(norm, depends):
    for make, shape in [
        (partial(DenseAttentionConditioner, **small), (4, 3, 4, 4)),
        (partial(MLP, hidden_features=8), (4, 3)),
        (partial(ResidualMLP, hidden_features=8), (4, 3)),
    ]:
        net = settled(make(3, 6, norm=norm)).train()
        inputs = maps(*shape)
        assert torch.allclose(net(inputs)[:2], net(inputs[:2])) != depends
        sizes = {size(make(3, 6, norm=kind)) for kind in ("layer", "batch")}
        assert len(sizes) == 1
        with expect(ValueError, "norm to be one of 'layer', 'batch', None, got 'group'"):
            make(3, 6, norm="group")


def test_sizes_of_dense_attention_conditioners():
    """The module of the reference: C^2 + 75 C + 1,568,840, of which C^2 + 2 C are no network's."""
    for channels in (12, 62, 308):
        with torch.device("meta"):
            count = size(DenseAttentionConditioner(channels // 2, channels))
        assert count + channels**2 + 2 * channels == channels**2 + 75 * channels + 1_568_840
    with torch.device("meta"):
        whole = size(DenseAttentionConditioner(6, 12))
        no_attention = size(DenseAttentionConditioner(6, 12, attention=False))
        no_dense = size(DenseAttentionConditioner(6, 12, dense=False))
        dense = size(DenseBlock(48, 48))
    # Attention: 48 -> 24, four times 24 x 24, 24 -> 48; and 48 channels less to normalize and join.
    joining = 2 * 48 + 48 * 48
    assert whole - no_attention == 24 * 49 + 4 * 24 * 24 + 48 * 25 + joining
    assert whole - no_dense == dense + joining


def reach(net: nn.Module) -> Tensor:
    """Positions of the output that change with the pixel in the corner."""
    images = maps(1, 3, 8, 8)
    other = images.clone()
    other[0, :, 0, 0] += 1
    with torch.no_grad():
        return (net(images) - net(other)).abs().amax(1)[0] > 1e-9


def test_dense_block_sees_neighbors_and_attention_all_positions():
    seen = reach(settled(DenseAttentionConditioner(3, 6, **small, attention=False)))
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[:3, :3] = True  # two layers of 3 x 3
    assert torch.equal(seen, corner)
    assert reach(settled(DenseAttentionConditioner(3, 6, **small))).all()
    assert reach(settled(DenseAttentionConditioner(3, 6, **small, dense=False))).all()


CONDITIONERS = {
    "dense attention": partial(DenseAttentionConditioner, **small),
    "dense": partial(DenseConditioner, hidden_channels=8, num_layers=1, growth=4),
    "conv": partial(ConvConditioner, hidden_channels=8),
}


@pytest.mark.parametrize("kind", CONDITIONERS)
@torch.no_grad()
def test_conditioners_start_at_zero_and_read_their_context(kind):
    make = CONDITIONERS[kind]
    images, context = maps(2, 3, 4, 4), maps(2, 5)
    net = make(3, 6, context_features=5).double()
    assert takes_context(net) and not takes_context(make(3, 6))
    assert torch.equal(net(images, context), torch.zeros(2, 6, 4, 4))
    settled(net)
    outputs = net(images, context)
    spread = context[:, :, None, None].expand(2, 5, 4, 4)
    torch.testing.assert_close(net(images, spread), outputs)
    for i in range(5):
        other = context.clone()
        other[:, i] += 1
        assert not torch.allclose(net(images, other), outputs)
    for wrong, got in [(None, "None"), (context[:, :4], r"\[2, 4\]"), (context[:1], r"\[1, 5\]")]:
        with expect(ValueError, rf"context \[2, 5\] or \[2, 5, 4, 4\], got {got}"):
            net(images, wrong)


@torch.no_grad()
@pytest.mark.parametrize("kind", CONDITIONERS)
def test_half_precision_is_close(kind):
    net = settled(CONDITIONERS[kind](3, 6)).float()
    images = torch.randn(4, 3, 8, 8)
    exact = net(images)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(images)
    assert outputs.dtype == torch.bfloat16
    error = (outputs - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.02


@torch.no_grad()
def test_inverse_is_found_in_single_precision(monkeypatch):
    """Half precision would not converge: of it there are the products around the inverse alone."""
    found = []

    def spied(matrix, iterations):
        found.append((matrix, pseudo_inverse(matrix, iterations)))
        return found[-1][1]

    monkeypatch.setattr(nystrom, "pseudo_inverse", spied)
    with torch.autocast("cpu", torch.bfloat16):
        assert NystromAttention(8)(torch.randn(2, 8, 4, 4)).dtype == torch.bfloat16
    ((matrix, inverse),) = found
    assert matrix.dtype == torch.float32
    assert torch.equal(pseudo_inverse(matrix, 6), inverse)


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: DenseBlock(0, 2), "in_channels to be a positive integer, got 0"),
        (lambda: DenseBlock(2, 2, growth=0), "growth to be a positive integer, got 0"),
        (lambda: NystromAttention(2, landmarks=0), "landmarks to be a positive integer, got 0"),
        (lambda: NystromAttention(2, iterations=0), "iterations to be a positive integer, got 0"),
        (lambda: NystromAttention(2, tokens="rows"), "tokens to be one of 'positions', 'reshaped'"),
        (
            lambda: NystromAttention(2)(torch.zeros(1, 3, 4, 4)),
            r"\[B, 2, H, W\], got \[1, 3, 4, 4\]",
        ),
        (lambda: DenseAttentionConditioner(2, 2, dense=False, attention=False), "got neither"),
        (
            lambda: DenseAttentionConditioner(2, 2, heads=5),
            "attention_channels that 5 heads divide, got 24",
        ),
    ],
)
def test_errors(make, pattern):
    with expect(ValueError, pattern):
        make()
