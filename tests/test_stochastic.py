"""Transforms that draw noise: what is drawn, what a block reads and keeps, and what is refused.

The properties that all of them share are in test_properties.py.
"""

from __future__ import annotations

import math
import weakref
from functools import partial

import pytest
import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, distributions, nn

from nflows_mixer.core.as_transform import deterministic_transform
from nflows_mixer.transforms import (
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    InvertibleConv1x1,
    MultiScaleTransform,
    ReversibleCompositeTransform,
    SqueezeAndSplit,
    UniformDequantization,
    VariationalDequantization,
)
from tests.helpers import expect, moved
from tests.registry import LEVELS, TRANSFORMS, blocks, step
from tests.test_noise import NORMAL, UNIFORM, gap_to
from tests.test_properties import build

# The distribution of what is drawn.


@torch.no_grad()
def test_white_noise_is_standard_normal_with_its_density():
    coupling = CrossUnitCoupling(1, 5).double()
    inputs = torch.zeros(5000, 1, 2, 2, dtype=torch.float64)
    outputs, logabsdet = coupling(inputs)
    noise = outputs[:, 1:]
    assert gap_to(NORMAL, noise) < 1.95
    correlations = torch.corrcoef(noise.flatten(1).T) - torch.eye(20)
    assert correlations.abs().max() < 5 / 5000**0.5
    torch.testing.assert_close(logabsdet, -NORMAL.log_prob(noise).flatten(1).sum(1))


@torch.no_grad()
@pytest.mark.parametrize("scale", ["tanh", "exp"])
def test_preconditioned_noise_has_the_mean_and_the_scale_of_its_network(scale):
    coupling = CrossUnitCoupling(1, 2, 3, scale=scale).double()
    moved(coupling, 0.3)
    earlier = torch.randn(1, 3, 1, 2, dtype=torch.float64)
    u, shift = coupling.network(earlier)[0].chunk(2)
    spread = {"tanh": lambda u: (2 * (u / 2).tanh()).exp(), "exp": torch.exp}[scale](u)
    inputs = torch.zeros(20_000, 1, 1, 2, dtype=torch.float64)
    outputs, logabsdet = coupling(inputs, earlier.expand(20_000, -1, -1, -1))
    made = distributions.Normal(shift, spread)
    assert gap_to(NORMAL, (outputs[:, 1:] - shift) / spread) < 1.95
    # What the flow is charged for the noise is -log q of what was made of it.
    torch.testing.assert_close(logabsdet, -made.log_prob(outputs[:, 1:]).flatten(1).sum(1))


@torch.no_grad()
def test_learned_noise_of_dequantisation_is_nearly_uniform_at_the_start():
    """Its entropy is that of the sigmoid of normal noise of scale 1.7: -0.0101 nats a pixel."""
    case = TRANSFORMS["VariationalDequantization"]
    pixels, *_ = case.draw(4000)
    values, logabsdet = case.make().double()(pixels)
    logits = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    made = distributions.Normal(0.0, 1.7).log_prob(logits)
    slope = -nn.functional.softplus(logits) - nn.functional.softplus(-logits)
    entropy = torch.trapezoid(made.exp() * (slope - made), logits)
    assert entropy.item() == pytest.approx(-0.0101, abs=1e-4)
    standard_error = logabsdet.std().item() / 4000**0.5
    assert logabsdet.mean().item() == pytest.approx(16 * entropy.item(), abs=5 * standard_error)
    assert gap_to(UNIFORM, values - pixels) / (16 * 4000) ** 0.5 < 0.05


# Dequantization.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_learned_dequantisation_keeps_every_pixel_at_extreme_noise(dtype):
    case = TRANSFORMS["VariationalDequantization"]
    dequantize = build(case, dtype)
    pixels = torch.full((5, *case.shape), LEVELS - 1, dtype=torch.uint8)
    noise = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype)
    noise = noise.reshape(5, 1, 1, 1).expand(5, *case.noise)
    values, logabsdet = dequantize(pixels, noise=noise)
    assert (values < LEVELS).all() and logabsdet.isfinite().all()
    assert torch.equal(dequantize.inverse(values)[0], pixels)


@torch.no_grad()
def test_learned_dequantisation_by_hand():
    """One step of a flow that is a known scale: u = sigmoid(2 e + c), unsqueezed."""

    class Scale(ConditionalNoise):
        def forward(self, inputs, context=None):
            outputs = 2 * inputs + context
            return outputs, 4 * math.log(2) * inputs.new_ones(len(inputs))

    class Brightness(nn.Module):
        def forward(self, images):
            return images.mean((1, 2, 3), keepdim=True)

    dequantize = VariationalDequantization(
        (1, 2, 2), 5, lambda *_: Scale(4, 1, 1), lambda *_: Brightness()
    ).double()
    pixels = torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.uint8)
    noise = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).reshape(1, 4, 1, 1)
    values, logabsdet = dequantize(pixels, noise=noise)
    # The network sees pixels in [-1, 1]: -1, -1/2, 0, 1/2, of mean -1/4.
    u = (2 * noise.flatten() - 0.25).sigmoid()
    torch.testing.assert_close(values.flatten(), torch.arange(4) + u)
    # A uniform variable's density is 1, so that log q(u) is that of its logit less the slope.
    normal = distributions.Normal(torch.tensor(-0.25, dtype=torch.float64), 2.0)
    density = normal.log_prob((u / (1 - u)).log()) - (u * (1 - u)).log()
    torch.testing.assert_close(logabsdet, -density.sum()[None])


# What a block reads, and what it keeps.


class Seen(nn.Module):
    """A network of a coupling that remembers what it was given, and shifts by a constant."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels

    def forward(self, earlier: Tensor) -> Tensor:
        assert earlier.shape[1] == self.in_channels
        self.earlier = earlier
        return torch.full((len(earlier), self.out_channels, *earlier.shape[2:]), 0.5).to(earlier)


full = partial(InvertibleConv1x1, matrix="full")


@torch.no_grad()
def test_couplings_read_what_their_name_says():
    """Representations before augmentation, with the context behind them."""
    context = torch.randn(2, 3, dtype=torch.float64)
    maps = context[:, :, None, None].expand(-1, -1, 4, 4)
    for preconditioning in ("block", "previous"):
        block = DenseFlowBlock(
            2, 4, full, 1, preconditioning, context_features=3, network=Seen
        ).double()
        z = [torch.randn(2, 2, 4, 4, dtype=torch.float64)]
        for unit in block.units:
            unit.register_forward_hook(lambda *call, z=z: z.append(call[2][0]))
        block(z[0], context)
        assert [len(part[0]) for part in z] == [2, 2, 3, 4, 5]
        for i, coupling in enumerate(block.couplings):
            read = z[: i + 1] if preconditioning == "block" else z[i : i + 1]
            assert torch.equal(coupling.network.earlier, torch.cat([*read, maps], dim=1))


@torch.no_grad()
def test_couplings_of_all_blocks_read_what_was_before_squeezed():
    first = DenseFlowBlock(2, 2, full, 1, "all", network=Seen)
    second = DenseFlowBlock(6, 3, full, 2, "all", None, 16, network=Seen)
    transform = MultiScaleTransform([first, SqueezeAndSplit(2), second], (2, 4, 4)).double()
    outputs = {}
    for name, block in (("first", first), ("second", second)):
        for i, unit in enumerate(block.units):
            place = (name, i + 1)
            unit.register_forward_hook(
                lambda *call, place=place: outputs.__setitem__(place, call[2][0])
            )
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    transform(images)
    squeezed = [nn.functional.pixel_unshuffle(z, 2) for z in (images, outputs["first", 1])]
    kept = nn.functional.pixel_unshuffle(outputs["first", 2], 2)[:, :6]
    expected = [*squeezed, kept]
    assert torch.equal(second.couplings[0].network.earlier, torch.cat(expected, dim=1))
    expected.append(outputs["second", 1])
    assert torch.equal(second.couplings[1].network.earlier, torch.cat(expected, dim=1))


@torch.no_grad()
def test_block_is_the_example_of_the_paper():
    """Equations 10 to 13: log-dets of both units and of sigma, less the density of the noise."""
    block = DenseFlowBlock(2, 2, InvertibleConv1x1, 2, network=Seen).double()
    moved(block, 0.3)
    z0 = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    e = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    one, two = (unit.linear.weight() for unit in block.units)
    z1 = torch.einsum("kc,bchw->bkhw", one, z0)
    sigma = math.exp(2 * math.tanh(0.25))
    augmented = torch.cat((z1, sigma * e + 0.5), dim=1)
    z2 = torch.einsum("kc,bchw->bkhw", two, augmented)
    units = 16 * (torch.linalg.slogdet(one).logabsdet + torch.linalg.slogdet(two).logabsdet)
    of_noise = 32 * math.log(sigma) - NORMAL.log_prob(e).flatten(1).sum(1)
    torch.testing.assert_close(block(z0, noise=e), (z2, units + of_noise))


class Watching(Transform):
    """A unit that says which outputs, and which inputs, of units before it are still alive."""

    def __init__(self, log: list) -> None:
        super().__init__()
        self.log = log

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = inputs + 1
        living = [[ref() is not None for ref in refs] for *refs, _ in self.log]
        self.log.append((weakref.ref(outputs), weakref.ref(inputs), living))
        return outputs, inputs.new_zeros(len(inputs))


@torch.no_grad()
@pytest.mark.parametrize(
    "preconditioning, alive",
    [
        # While unit i works, the outputs of units before that a coupling still reads.
        (None, [[], [0], [0, 0], [0, 0, 0]]),
        ("previous", [[], [1], [0, 1], [0, 0, 0]]),
        ("block", [[], [1], [1, 1], [0, 0, 0]]),
        ("all", [[], [1], [1, 1], [1, 1, 1]]),
    ],
)
def test_block_keeps_no_representation_that_nobody_reads(preconditioning, alive):
    log = []
    block = DenseFlowBlock(2, 4, lambda channels: Watching(log), 1, preconditioning)
    block(torch.zeros(1, 2, 4, 4))
    assert [[int(output) for output, _ in living] for *_, living in log] == alive
    # What the units were given is not kept, but for the input of the block, which is the caller's.
    assert not any(given for *_, living in log for _, given in living[1:])


def test_gradients_reach_earlier_units_through_the_noise():
    block = DenseFlowBlock(2, 2, InvertibleConv1x1, 1).double()
    moved(block.couplings, 0.3)
    inputs = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    outputs, _ = block(inputs, noise=torch.zeros(2, 1, 4, 4, dtype=torch.float64))
    (slope,) = torch.autograd.grad(outputs[:, 2].square().sum(), inputs)
    assert slope.abs().min() > 0


# Errors.


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: CrossUnitCoupling(0, 2), "channels to be a positive integer, got 0"),
        (lambda: CrossUnitCoupling(2, 0), "noise_channels to be a positive integer, got 0"),
        (lambda: CrossUnitCoupling(2, 2, -1), "context_features to be a positive integer, got -1"),
        (lambda: CrossUnitCoupling(2, 2, 2, scale="relu"), "scale to be one of 'exp'"),
        (lambda: DenseFlowBlock(2, 0, step, 1), "num_units to be a positive integer"),
        (lambda: DenseFlowBlock(2, 2, step, -1), "growth to be a positive integer"),
        (lambda: DenseFlowBlock(2, 2, step, 1, "earlier"), "preconditioning to be one of 'block'"),
        (lambda: DenseFlowBlock(2, 2, step, 1, earlier_channels=3), "preconditioning='all'"),
        (lambda: VariationalDequantization((1, 3, 4)), r"an even height and width, got \(3, 4\)"),
        (lambda: VariationalDequantization((1, 4, 4), 300), "2 to 256 levels, got 300"),
        (lambda: ConditionalNoise(4, num_steps=0), "num_steps to be a positive integer"),
        (
            lambda: ReversibleCompositeTransform([blocks(None)]),
            "deterministic transforms, got MultiScaleTransform at '_transforms.0'",
        ),
        (
            lambda: deterministic_transform(blocks(None), "to_zuko"),
            "a deterministic transform, got one with MultiScaleTransform in it",
        ),
    ],
)
def test_choices_that_are_refused(make, pattern):
    with expect(ValueError, pattern):
        make()


def test_wrong_calls():
    images = torch.zeros(2, 2, 4, 4)
    with expect(ValueError, r"shape \[B, 2, H, W\], got \[2, 3, 4, 4\]"):
        CrossUnitCoupling(2, 1)(torch.zeros(2, 3, 4, 4))
    with expect(ValueError, r"shape \[B, 3, H, W\], got \[2, 2, 4, 4\]"):
        CrossUnitCoupling(2, 1).inverse(images)
    with expect(ValueError, r"context \[2, 5\] or \[2, 5, 4, 4\], got \[2, 5, 2, 2\]"):
        CrossUnitCoupling(2, 1, 5)(images, torch.zeros(2, 5, 2, 2))
    narrow = CrossUnitCoupling(2, 3, 2, network=lambda i, o: nn.Conv2d(i, 1, 1))
    with expect(ValueError, r"parameters of shape \[2, 6, 4, 4\], got \[2, 1, 4, 4\]"):
        narrow(images, images)
    block = DenseFlowBlock(2, 2, InvertibleConv1x1, 1, "all", earlier_channels=3)
    with expect(ValueError, "3 channels of representations of blocks before"):
        block(images)
    plain = DenseFlowBlock(2, 2, InvertibleConv1x1, 0)
    assert not plain.stochastic_forward
    with expect(ValueError, r"no noise, got \[2, 0, 4, 4\]"):
        plain(images, noise=torch.zeros(2, 0, 4, 4))
    for dequantize in (UniformDequantization(17), VariationalDequantization((2, 4, 4), 17)):
        with expect(ValueError, "integer pixels, got torch.float32"):
            dequantize(images)
    with expect(ValueError, "parts with normal noise, got UniformDequantization with uniform"):
        MultiScaleTransform([UniformDequantization(17)], (2, 4, 4))
    with expect(ValueError, "parts that are given their noise, got CrossUnitCoupling at"):
        MultiScaleTransform([CompositeTransform([CrossUnitCoupling(2, 1)])], (2, 4, 4))
