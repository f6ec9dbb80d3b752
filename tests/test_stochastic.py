"""What holds for every transform that draws noise, at parameters away from their start."""

from __future__ import annotations

import copy
import io
import math
import pickle
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, distributions, nn

from nflows_mixer import transforms
from nflows_mixer.core.as_transform import deterministic_transform
from nflows_mixer.core.context import takes_context
from nflows_mixer.distributions import standard_normal_log_prob
from nflows_mixer.nn import CrossUnitNetwork, DenseEncoder
from nflows_mixer.transforms import (
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    InvertibleConv1x1,
    LearnedAugmentation,
    MultiScaleTransform,
    ReversibleCompositeTransform,
    SqueezeAndSplit,
    StochasticTransform,
    UniformDequantization,
    VariationalDequantization,
)
from tests.stochastic_registry import (
    LEVELS,
    STOCHASTIC_TRANSFORMS,
    StochasticCase,
    blocks,
    step,
)
from tests.test_errors import expect
from tests.test_noise import NORMAL, UNIFORM, gap_to

BATCH = 3
DRAW_NOISE = (
    CrossUnitCoupling,
    LearnedAugmentation,
    UniformDequantization,
    VariationalDequantization,
)


def build(case: StochasticCase, dtype=torch.float64) -> StochasticTransform:
    """Return the transform in evaluation mode, initialised from data, all parameters moved."""
    torch.manual_seed(1)
    transform = case.make().to(dtype).train()
    with torch.no_grad():
        transform(*case.draw(64, dtype))
        for parameter in transform.parameters():
            parameter += case.std * torch.randn_like(parameter)
    return transform.eval()


def over(select):
    """Run a test over the cases that it is about."""
    chosen = {name: case for name, case in STOCHASTIC_TRANSFORMS.items() if select(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


everything = over(lambda case: True)
learnable = over(lambda case: list(case.make().parameters()))


def log_density(transform: StochasticTransform, noise: Tensor) -> Tensor:
    """log q(e) [B], by torch's own distributions."""
    kind = {"normal": NORMAL, "uniform": UNIFORM}[transform.noise_kind]
    return kind.log_prob(noise).flatten(1).sum(1)


@everything
@torch.no_grad()
def test_shapes(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    assert transform.stochastic_forward and transform.noise_shape(case.shape) == case.noise
    for given in (noise, None):
        outputs, logabsdet = transform(inputs, context, given)
        assert outputs.shape == (BATCH, *case.out_shape) and logabsdet.shape == (BATCH,)
        assert outputs.dtype == logabsdet.dtype == torch.float64


@everything
@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 5e-4)])
def test_inverse_drops_the_noise_whatever_it_was(case, dtype, tolerance):
    transform = build(case, dtype)
    inputs, context, noise = case.draw(BATCH, dtype)
    for given in (noise, None):
        outputs, _ = transform(inputs, context, given)
        back, logabsdet = transform.inverse(outputs, context)
        assert back.dtype == inputs.dtype and logabsdet.shape == (BATCH,)
        torch.testing.assert_close(back, inputs, atol=tolerance, rtol=tolerance)


@everything
def test_logabsdet_is_that_of_the_joint_jacobian_less_the_density_of_the_noise(case):
    """Of outputs as a function of inputs and noise; of noise alone where inputs are integers."""
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    _, logabsdet = transform(inputs, context, noise)
    free = math.prod(case.noise)
    expected = []
    for i in range(BATCH):
        row = (
            noise[i].flatten()
            if case.pixels
            else torch.cat((inputs[i].flatten(), noise[i].flatten()))
        )
        # One copy for each dimension: one backward pass gives all rows of the Jacobian.
        copies = row.expand(len(row), -1).clone().requires_grad_()
        values, drawn = copies.split([len(row) - free, free], dim=1)
        rows = inputs[i].expand(len(row), *case.shape)
        rows = rows if case.pixels else values.reshape(-1, *case.shape)
        given = None if context is None else context[i].expand(len(row), *case.context)
        outputs, _ = transform(rows, given, drawn.reshape(-1, *case.noise))
        (jacobian,) = torch.autograd.grad(outputs.flatten(1).diagonal().sum(), copies)
        expected.append(torch.linalg.slogdet(jacobian).logabsdet)
    expected = torch.stack(expected) - log_density(transform, noise)
    torch.testing.assert_close(logabsdet, expected, atol=1e-8, rtol=1e-8)


@everything
@torch.no_grad()
def test_logabsdet_of_the_inverse_is_that_of_the_deterministic_parts(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    of_noise = []
    for module in transform.modules():
        if isinstance(module, DRAW_NOISE):
            module.register_forward_hook(lambda *call: of_noise.append(call[2][1]))
    outputs, logabsdet = transform(inputs, context, noise)
    _, there = transform.inverse(outputs, context)
    torch.testing.assert_close(there, sum(of_noise) - logabsdet, atol=1e-8, rtol=1e-8)


@everything
@torch.no_grad()
def test_drawn_noise_does_what_given_noise_does(case, monkeypatch):
    transform = build(case)
    inputs, context, _ = case.draw(BATCH)
    drawn = []
    for name in ("randn", "rand"):
        monkeypatch.setattr(torch, name, recorded(getattr(torch, name), drawn))
    outputs, logabsdet = transform(inputs, context)
    noise = torch.cat([part.flatten(1) for part in drawn], dim=1).reshape(BATCH, *case.noise)
    for _ in range(2):
        again, logabsdet_again = transform(inputs, context, noise)
        assert torch.equal(again, outputs) and torch.equal(logabsdet_again, logabsdet)
    other, _ = transform(inputs, context)
    assert not torch.equal(other, outputs)


def recorded(function: Callable[..., Tensor], results: list[Tensor]) -> Callable[..., Tensor]:
    def call(*arguments, **options):
        results.append(function(*arguments, **options))
        return results[-1]

    return call


@everything
@torch.no_grad()
def test_every_number_of_the_noise_is_used(case):
    transform = build(case)
    inputs, context, noise = (None if t is None else t[:1] for t in case.draw(BATCH))
    size = math.prod(case.noise)
    moved = noise + 1e-3 * torch.eye(size, dtype=noise.dtype).reshape(size, *case.noise)
    rows = inputs.expand(size, *case.shape)
    given = None if context is None else context.expand(size, *case.context)
    outputs, _ = transform(rows, given, moved)
    before, _ = transform(inputs, context, noise)
    assert ((outputs - before).flatten(1).abs().amax(1) > 1e-6).all()


@everything
def test_noise_of_another_shape_is_an_error(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    for wrong in (noise[:, :-1], noise[:2], noise.flatten(), torch.cat((noise, noise), 1)):
        with expect(ValueError, r"noise of shape \[3, "):
            transform(inputs, context, wrong)


# Uniform dequantisation takes pixels of any shape.
@over(lambda case: not isinstance(case.make(), UniformDequantization))
def test_inputs_of_another_shape_are_an_error(case):
    transform = build(case)
    inputs, context, _ = case.draw(BATCH)
    with expect(ValueError, "shape"):
        transform(torch.cat((inputs, inputs), dim=1), context)


@learnable
def test_gradient_of_each_parameter(case):
    """Along a random direction for each parameter, against central differences."""
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    weights = torch.randn(BATCH, *case.out_shape, dtype=torch.float64)

    def loss() -> Tensor:
        outputs, logabsdet = transform(inputs, context, noise)
        return (weights * outputs).sum() + logabsdet.sum()

    loss().backward()
    for name, parameter in transform.named_parameters():
        direction = torch.randn_like(parameter)
        slope = (parameter.grad * direction).sum()
        length = 1e-7  # so short that no rectifier changes its side
        with torch.no_grad():
            parameter += length * direction
            above = loss()
            parameter -= 2 * length * direction
            below = loss()
            parameter += length * direction
        numeric = (above - below) / (2 * length)
        assert torch.isclose(slope, numeric, rtol=1e-4, atol=1e-5), (name, slope, numeric)
        assert parameter.grad.norm() > 0, name


@over(lambda case: case.context)
@torch.no_grad()
def test_context_matters_where_it_is_taken(case):
    transform = build(case)
    assert takes_context(transform)
    inputs, context, noise = case.draw(BATCH)
    outputs, _ = transform(inputs, context, noise)
    other = context.clone()
    other[0] += 1
    changed, _ = transform(inputs, other, noise)
    assert not torch.allclose(outputs[0], changed[0])
    torch.testing.assert_close(outputs[1:], changed[1:])
    with pytest.raises(ValueError, match="expected .*context.*, got None"):
        transform(inputs, None, noise)


@over(lambda case: not case.context)
def test_no_context_is_taken_where_there_is_no_use_for_it(case):
    assert not takes_context(case.make())


@everything
@torch.no_grad()
def test_batch_is_its_rows(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    outputs, logabsdet = transform(inputs, context, noise)
    for i in range(BATCH):
        given = None if context is None else context[i : i + 1]
        output, single = transform(inputs[i : i + 1], given, noise[i : i + 1])
        torch.testing.assert_close(output[0], outputs[i])
        torch.testing.assert_close(single[0], logabsdet[i])
    given = None if context is None else context[:0]
    for of_none in (noise[:0], None):
        empty, logabsdet = transform(inputs[:0], given, of_none)
        assert empty.shape == (0, *case.out_shape) and logabsdet.shape == (0,)
        assert transform.inverse(empty, given)[0].shape == (0, *case.shape)


@everything
@torch.no_grad()
def test_state_dict_pickle_deepcopy(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    outputs, logabsdet = transform(inputs, context, noise)
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    loaded = case.make().double().eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (loaded, copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        again, logabsdet_again = other(inputs, context, noise)
        assert torch.equal(again, outputs) and torch.equal(logabsdet_again, logabsdet)
        assert torch.equal(
            other.inverse(outputs, context)[0], transform.inverse(outputs, context)[0]
        )


@everything
@torch.no_grad()
def test_autocast_stays_inside_networks(case):
    transform = build(case, torch.float32)
    inputs, context, noise = case.draw(BATCH, torch.float32)
    exact, logabsdet_exact = transform(inputs, context, noise)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, logabsdet = transform(inputs, context, noise)
    assert outputs.dtype == logabsdet.dtype == torch.float32
    torch.testing.assert_close(outputs, exact, atol=0.1, rtol=0.05)
    torch.testing.assert_close(logabsdet, logabsdet_exact, atol=0.5, rtol=0.01)


@learnable
@torch.no_grad()
def test_inverse_in_training_mode_is_that_of_evaluation_and_leaves_statistics(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    outputs, _ = transform(inputs, context, noise)
    expected = transform.inverse(outputs, context)
    before = copy.deepcopy(transform.state_dict())
    torch.testing.assert_close(transform.train().inverse(outputs, context), expected)
    assert all(module.training for module in transform.modules())
    for name, value in transform.state_dict().items():
        assert torch.equal(value, before[name]), name


@everything
@torch.no_grad()
def test_inverse_evaluates_no_network_of_the_noise(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    outputs, _ = transform(inputs, context, noise)

    def fail(*arguments, **options):
        raise AssertionError("evaluated")

    of_noise = (CrossUnitNetwork, DenseEncoder, ConditionalNoise)
    found = [module for module in transform.modules() if isinstance(module, of_noise)]
    for module in found:
        module.forward = fail
    torch.testing.assert_close(transform.inverse(outputs, context)[0], inputs)
    if found:
        with pytest.raises(AssertionError, match="evaluated"):
            transform(inputs, context, noise)


def test_no_stochastic_transform_is_forgotten():
    cases = STOCHASTIC_TRANSFORMS.values()
    used = {type(m).__name__ for case in cases for m in case.make().modules()}
    kinds = [getattr(transforms, name) for name in transforms.__all__]
    noisy = {kind.__name__ for kind in kinds if issubclass(kind, StochasticTransform)}
    assert noisy - used == {"StochasticTransform"}


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
def test_white_noise_of_a_block_is_recovered_from_its_outputs():
    case = STOCHASTIC_TRANSFORMS["DenseFlowBlock-white"]
    block = build(case)
    inputs = torch.randn(1000, *case.shape, dtype=torch.float64)
    outputs, logabsdet = block(inputs)
    of_units, noise = torch.zeros(1000, dtype=torch.float64), []
    for unit in reversed(block.units):
        outputs, of_unit = unit.inverse(outputs)
        of_units -= of_unit
        noise.append(outputs[:, -2:])
        outputs = outputs[:, :-2]
    noise = torch.cat(noise[:-1][::-1], dim=1)
    assert gap_to(NORMAL, noise) < 1.95
    torch.testing.assert_close(block.noise_shape(case.shape), noise.shape[1:])
    torch.testing.assert_close(logabsdet, of_units - NORMAL.log_prob(noise).flatten(1).sum(1))


@torch.no_grad()
@pytest.mark.parametrize("scale", ["tanh", "exp"])
def test_preconditioned_noise_has_the_mean_and_the_scale_of_its_network(scale):
    coupling = CrossUnitCoupling(1, 2, 3, scale=scale).double()
    for parameter in coupling.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
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
    case = STOCHASTIC_TRANSFORMS["VariationalDequantization"]
    pixels, _, _ = case.draw(4000)
    values, logabsdet = case.make().double()(pixels)
    logits = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    made = distributions.Normal(0.0, 1.7).log_prob(logits)
    slope = -nn.functional.softplus(logits) - nn.functional.softplus(-logits)
    entropy = torch.trapezoid(made.exp() * (slope - made), logits)
    assert entropy.item() == pytest.approx(-0.0101, abs=1e-4)
    standard_error = logabsdet.std().item() / 4000**0.5
    assert logabsdet.mean().item() == pytest.approx(16 * entropy.item(), abs=5 * standard_error)
    assert gap_to(UNIFORM, values - pixels) / (16 * 4000) ** 0.5 < 0.05


# Dequantisation.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_learned_dequantisation_keeps_every_pixel_at_extreme_noise(dtype):
    case = STOCHASTIC_TRANSFORMS["VariationalDequantization"]
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
    for parameter in block.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    z0 = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    e = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    one, two = (unit.linear.affine_maps([unit.linear]).weight[0] for unit in block.units)
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
    with torch.no_grad():
        for parameter in block.couplings.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
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


def test_density_of_standard_normal_noise():
    noise = torch.randn(4, 2, 3, dtype=torch.float64)
    expected = NORMAL.log_prob(noise).flatten(1).sum(1)
    torch.testing.assert_close(standard_normal_log_prob(noise), expected)
    assert standard_normal_log_prob(noise[:, :0]).tolist() == [0] * 4
