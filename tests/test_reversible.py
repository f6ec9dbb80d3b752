"""Gradients from rebuilt activations are the ordinary ones, and what cannot be rebuilt is named."""

from __future__ import annotations

import copy
import gc
import warnings
from functools import partial

import pytest
import torch
import zuko
from nflows import transforms as nflows_transforms
from nflows.nn.nets import ResidualNet
from nflows.transforms import Transform
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows import mixerflow
from nflows_mixer.nn import MLP, ResidualMLP
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    ChannelMixingTransform,
    LULinear,
    ReversibleCompositeTransform,
    UniformDequantization,
    reversible,
)
from tests.helpers import moved
from tests.registry import DETERMINISTIC, LEARNABLE
from tests.test_properties import build

MEMORIES = ("constant", "checkpoint")
narrow = partial(ResidualMLP, hidden_features=12)


def relative(found, expected):
    """Norm over all parameters of the difference, over that of the expected."""
    pairs = [(f, e) for f, e in zip(found, expected) if e is not None]
    assert all(f is not None for f, _ in pairs)
    difference = sum((f - e).square().sum() for f, e in pairs).sqrt()
    return (difference / sum(e.square().sum() for _, e in pairs).sqrt()).item()


def gradients(transform, inputs, context=None, autocast=None):
    """Gradients with respect to parameters, inputs and context, and the buffers after it."""
    inputs = inputs.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    torch.manual_seed(5)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        outputs, logabsdet = transform(inputs, context)
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype)
    loss = (weights * outputs.flatten()).sum() + logabsdet.square().sum()
    wanted = [inputs, *transform.parameters()] + ([] if context is None else [context])
    # The loss changes the random state, as a training step would.
    torch.rand(3)
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return found, [b.clone() for b in transform.buffers()], (outputs, logabsdet)


def assert_same_gradients(parts, inputs, context=None, tolerance=1e-9, autocast=None, **options):
    plain = CompositeTransform(parts)
    expected, buffers, values = gradients(copy.deepcopy(plain), inputs, context, autocast)
    own = ReversibleCompositeTransform(copy.deepcopy(list(plain._transforms)), **options)
    found, own_buffers, own_values = gradients(own, inputs, context, autocast)
    torch.testing.assert_close(own_values, values)
    assert relative(found, expected) < tolerance
    for one, other in zip(own_buffers, buffers):
        torch.testing.assert_close(one, other)
    return own


INVERTIBLE = [
    name
    for name in DETERMINISTIC
    if name in LEARNABLE and not name.startswith(("Residual", "MixerFlow-residual"))
]


@pytest.mark.filterwarnings("ignore:ReversibleCompositeTransform")
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", INVERTIBLE)
def test_every_transform(name, memory):
    case = DETERMINISTIC[name]
    transform = build(case).train()
    inputs, context = case.draw(9)
    own = assert_same_gradients([transform], inputs, context, memory=memory)
    # An inverse that is made a forward runs in evaluation mode, as all inverses do.
    assert not own.inexact or "Inverse" in name or name == "Composite-mixed-context"


def user_parts(features=6):
    """Of every library, with random numbers, batch statistics and context."""
    return [
        nflows_transforms.AffineCouplingTransform(
            torch.arange(features) % 2,
            lambda i, o: ResidualNet(
                i, o, 8, context_features=3, use_batch_norm=True, dropout_probability=0.0
            ),
        ),
        ActNorm(features),
        zuko.flows.NICE(features, 3, transforms=1, hidden_features=(8,)),
        nflows_transforms.MaskedAffineAutoregressiveTransform(features, 8, use_batch_norm=True),
        AffineCoupling(features, partial(MLP, hidden_features=8, context_features=3)),
        LULinear(features),
    ]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("training", [True, False])
def test_parts_of_all_libraries_with_batch_statistics_and_context(memory, training):
    torch.manual_seed(0)
    whole = CompositeTransform(user_parts()).double()
    rows = torch.randn(30, 6, dtype=torch.float64)
    context = torch.randn(30, 3, dtype=torch.float64)
    whole(rows, context)
    moved(whole, 0.05).train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_same_gradients(whole._transforms, rows, context, memory=memory)


class Dropped(Transform):
    """Additive coupling with dropout, whose inverse draws the same if it is told to."""

    def __init__(self, features=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features // 2, features // 2), nn.Dropout(0.5))

    def forward(self, inputs, context=None):
        a, b = inputs.chunk(2, 1)
        return torch.cat([a, b + self.net(a)], 1), inputs.new_zeros(len(inputs))

    def inverse(self, inputs, context=None):
        a, b = inputs.chunk(2, 1)
        return torch.cat([a, b - self.net(a)], 1), inputs.new_zeros(len(inputs))


@pytest.mark.parametrize("memory", MEMORIES)
def test_random_numbers_are_drawn_again(memory):
    torch.manual_seed(0)
    rows = torch.randn(50, 4, dtype=torch.float64)
    parts = nn.ModuleList([Dropped(), LULinear(4), Dropped()]).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_same_gradients(moved(parts), rows, memory=memory)


@pytest.mark.parametrize("memory", MEMORIES)
def test_random_state_afterwards_is_that_of_an_ordinary_pass(memory):
    flow = ReversibleCompositeTransform([Dropped(), Dropped()], memory=memory)
    rows = torch.randn(5, 4)
    states = []
    for transform in (flow, CompositeTransform(list(flow._transforms))):
        torch.manual_seed(3)
        transform(rows)[0].sum().backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("memory", MEMORIES)
def test_autocast_is_that_of_the_forward_pass(memory):
    torch.manual_seed(0)
    parts = nn.ModuleList([LULinear(6), AffineCoupling(6, narrow), *user_parts()[4:]])
    rows, context = torch.randn(40, 6), torch.randn(40, 3)
    moved(parts)
    own = assert_same_gradients(
        parts, rows, context, 1e-6, torch.bfloat16, memory=memory, check_every=1
    )
    assert not own.inexact
    exact = assert_same_gradients(parts, rows, context, 1e-4, memory=memory)
    assert not exact.inexact


def preset(num_layers, memory, hidden_features=16):
    return mixerflow(
        "cifar10", num_layers=num_layers, hidden_features=hidden_features, memory=memory
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("memory", MEMORIES)
def test_gradients_of_thirty_layers(memory, dtype, tolerance):
    torch.manual_seed(0)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    noise = torch.rand(images.shape, dtype=dtype)
    flow = preset(30, "full").to(dtype)
    flow.initialize(images, noise=noise)
    moved(flow, 0.01)
    other = preset(30, memory).to(dtype)
    other.load_state_dict(flow.state_dict())
    found = []
    for each in (other, flow):
        each.log_prob(images, noise=noise).mean().backward()
        found.append([parameter.grad for parameter in each.parameters()])
    assert relative(*found) < tolerance
    for one, two in zip(other.buffers(), flow.buffers()):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("memory", MEMORIES)
def test_first_batch_initializes(memory):
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    noise = torch.rand(images.shape)
    torch.manual_seed(0)
    plain = preset(2, "full")
    other = preset(2, memory)
    other.load_state_dict(plain.state_dict())
    for flow in (plain, other):
        flow.log_prob(images, noise=noise).mean().backward()
    torch.testing.assert_close(dict(other.state_dict()), dict(plain.state_dict()))
    assert (
        relative([p.grad for p in other.parameters()], [p.grad for p in plain.parameters()]) < 1e-4
    )


def test_a_stretch_behind_a_kept_step_is_measured():
    torch.manual_seed(0)
    parts = [LULinear(4), Exploding(1e-6), LULinear(4), LULinear(4), Exploding(0.5)]
    flow = ReversibleCompositeTransform(moved(nn.ModuleList(parts)), anchors=1)
    rows = torch.randn(20, 4)
    with pytest.warns(RuntimeWarning, match=r"'_transforms\.1'"):
        gradients(flow, rows)
    parts[4].scale = 1e-7
    with pytest.warns(RuntimeWarning, match=r"'_transforms\.4'"):
        found, *_ = gradients(flow, rows)
    expected, *_ = gradients(CompositeTransform(parts), rows)
    assert relative(found, expected) < 1e-5


def test_the_part_inside_a_shift_is_named():
    torch.manual_seed(0)
    images = torch.randint(256, (9, 1, 6, 6), dtype=torch.uint8)
    options = {"image_shape": (1, 6, 6), "patch_size": 2, "num_layers": 1, "num_flow_layers": 1}
    flow = mixerflow(**options, channel_flow=lambda d: Exploding(0.5), memory="constant")
    flow.initialize(images)
    for part in flow.modules():
        if isinstance(part, Exploding):
            part.scale = 1e-6
    with pytest.warns(RuntimeWarning, match="least exact inverses at '_transforms.2' "):
        flow.log_prob(images).mean().backward()


def test_measured_anew_after_a_change_of_type(monkeypatch):
    monkeypatch.setattr(reversible, "_is_read_freely", lambda device: False)
    flow = moved(ReversibleCompositeTransform([LULinear(4), LULinear(4)], check_every=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        gradients(flow, torch.randn(20, 4))
        gradients(flow, torch.randn(20, 4))
        flow.double()
        gradients(flow, torch.randn(20, 4, dtype=torch.float64))
    assert not flow.inexact


def test_the_reason_of_an_inverse_that_raises_is_said():
    flow = ReversibleCompositeTransform([LULinear(4), Irreversible(0.5)])
    with pytest.warns(RuntimeWarning, match="Irreversible.inverse: there is none"):
        gradients(flow, torch.randn(20, 4))


@pytest.mark.parametrize("memory", MEMORIES)
def test_parameters_of_one_call(memory):
    """torch.func.functional_call takes its parameters away before the backward pass."""
    torch.manual_seed(0)
    net = partial(nn.Linear, bias=False)
    flow = ReversibleCompositeTransform(
        [LULinear(4), AffineCoupling(4, net), AffineCoupling(4, narrow)], memory=memory
    )
    plain = CompositeTransform(list(flow._transforms))
    values = {n: 0.1 * torch.randn_like(p) for n, p in flow.named_parameters()}
    rows = torch.randn(20, 4)
    results = []
    for transform in (flow, plain):
        own = {name: value.clone().requires_grad_() for name, value in values.items()}
        outputs, _ = torch.func.functional_call(transform, own, (rows,))
        results.append(torch.autograd.grad(outputs.square().sum(), list(own.values())))
    assert relative(*results) < 1e-5


@pytest.mark.parametrize("memory", MEMORIES)
def test_flow_layers_inside_a_part_are_rebuilt(memory):
    class Wrapped(CompositeTransform):
        def forward(self, inputs, context=None):
            return super().forward(inputs, context)

    torch.manual_seed(0)
    wrapped = Wrapped([LULinear(4), AffineCoupling(4, narrow)])
    nested = ReversibleCompositeTransform([AffineCoupling(4, narrow), LULinear(4)])
    parts = moved(nn.ModuleList([wrapped, nested, nflows_transforms.BatchNorm(4)])).double()
    rows = torch.randn(20, 4, dtype=torch.float64)
    own = assert_same_gradients(parts, rows, memory=memory)
    assert not own.inexact


@pytest.mark.parametrize("memory", MEMORIES)
def test_integers_at_the_beginning(memory):
    class Scaled(Transform):
        def forward(self, inputs, context=None):
            return inputs / 8, torch.zeros(len(inputs))

    parts = [Scaled(), AffineCoupling(4, narrow)]
    flow = moved(ReversibleCompositeTransform(parts, memory=memory))
    rows = torch.randint(8, (20, 4))
    flow(rows)[0].square().sum().backward()
    found = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    CompositeTransform(parts)(rows)[0].square().sum().backward()
    assert relative(found, [p.grad for p in flow.parameters()]) < 1e-5


def test_backward_twice_with_retained_graph():
    flow = moved(ReversibleCompositeTransform([LULinear(4), AffineCoupling(4, narrow)]))
    loss = flow(torch.randn(20, 4))[0].square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in flow.parameters()]
    loss.backward()
    assert relative([p.grad for p in flow.parameters()], [2 * g for g in once]) < 1e-6


class Exploding(Transform):
    """Scales by so little that float32 cannot go back."""

    def __init__(self, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.scale = scale

    def forward(self, inputs, context=None):
        total = inputs.shape[1] * torch.log(self.scale * self.weight)
        return inputs * self.scale * self.weight + 1, total.expand(len(inputs))

    def inverse(self, inputs, context=None):
        total = inputs.shape[1] * torch.log(self.scale * self.weight)
        return (inputs - 1) / (self.scale * self.weight), -total.expand(len(inputs))


class Irreversible(Exploding):
    def inverse(self, inputs, context=None):
        raise nflows_transforms.InverseNotAvailable("there is none")


@pytest.mark.parametrize("kind", [partial(Exploding, 1e-6), partial(Irreversible, 0.5)])
def test_inverses_that_are_not_exact_are_named_and_their_inputs_kept(kind):
    parts = [LULinear(4), kind(), LULinear(4), AffineCoupling(4, narrow)]
    torch.manual_seed(0)
    plain = moved(CompositeTransform(parts))
    flow = ReversibleCompositeTransform(parts)
    rows = torch.randn(20, 4)
    expected, *_ = gradients(plain, rows)
    with pytest.warns(RuntimeWarning, match=r"'_transforms\.1'"):
        found, *_ = gradients(flow, rows)
    assert relative(found, expected) < 1e-5
    assert flow.inexact == {"_transforms.1"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        flow._passes = 0  # look again
        found, *_ = gradients(flow, rows)
    assert relative(found, expected) < 1e-5


@pytest.mark.slow
def test_a_randomly_scaled_flow_is_caught():
    """Random scales everywhere: the inverse of thirty layers explodes in float32."""
    torch.manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    noise = torch.rand(images.shape)
    flow, plain = preset(30, "constant"), preset(30, "full")
    flow.initialize(images, noise=noise)
    with torch.no_grad():
        for part in flow.modules():
            if isinstance(part, ActNorm):
                part.log_scale += 0.1 * torch.randn_like(part.log_scale)
            if isinstance(part, LULinear):
                part.packed += 0.05 * torch.randn_like(part.packed)
    plain.load_state_dict(flow.state_dict())
    loss = plain.log_prob(images, noise=noise).mean()
    assert torch.isfinite(loss)
    loss.backward()
    with pytest.warns(RuntimeWarning, match="least exact inverses at '_transforms"):
        flow.log_prob(images, noise=noise).mean().backward()
    found = [p.grad for p in flow.parameters()]
    assert all(torch.isfinite(grad).all() for grad in found)
    assert relative(found, [p.grad for p in plain.parameters()]) < 1e-3


def test_the_error_is_read_every_so_often(monkeypatch):
    """On a GPU, where reading waits."""
    monkeypatch.setattr(reversible, "_is_read_freely", lambda device: False)
    part = Exploding(0.5)
    flow = ReversibleCompositeTransform([part, LULinear(4)], check_every=3)
    rows = torch.randn(20, 4)
    gradients(flow, rows)
    part.scale = 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        gradients(flow, rows)
        gradients(flow, rows)
    with pytest.warns(RuntimeWarning, match="_transforms.0"):
        gradients(flow, rows)


def test_shared_parameters_have_the_sum():
    shared = AffineCoupling(4, partial(MLP, hidden_features=8))
    again = AffineCoupling(4, narrow)
    parts = nn.ModuleList([shared, LULinear(4), again, shared, again]).double()
    assert_same_gradients(moved(parts), torch.randn(20, 4, dtype=torch.float64))


def test_frozen_parameters_and_inputs_without_gradient():
    flow = ReversibleCompositeTransform([LULinear(4), AffineCoupling(4, narrow)])
    moved(flow)
    flow._transforms[0].requires_grad_(False)
    flow(torch.randn(9, 4))[0].square().sum().backward()
    assert flow._transforms[0].packed.grad is None
    assert flow._transforms[1].conditioner.final.weight.grad is not None
    flow.requires_grad_(False)
    assert not flow(torch.randn(9, 4))[0].requires_grad


class Alive(TorchDispatchMode):
    """Storages made while it is on, of which some are still there."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = storage._weak_ref(), storage.nbytes()
        return outputs

    def bytes(self):
        """Of those that are."""
        expired = torch.UntypedStorage._expired
        return sum(size for ref, size in self.storages.values() if not expired(ref))


def saved_numbers(flow, images, noise):
    """Bytes that live between the forward and the backward pass, however they are held."""
    with Alive() as alive:
        loss = flow.log_prob(images, noise=noise).sum()
    gc.collect()
    total = alive.bytes()
    del loss
    return total


@pytest.mark.slow
def test_memory_does_not_grow_with_depth():
    """Numbers kept per image, as a slope over two batch sizes."""
    kept = {}
    for memory in ("full", "constant"):
        for depth in (4, 8):
            flow = preset(depth, memory)
            images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
            noise = torch.rand(images.shape)
            flow.initialize(images, noise=noise)
            sizes = [saved_numbers(flow, images[:n], noise[:n]) for n in (2, 4)]
            kept[memory, depth] = (sizes[1] - sizes[0]) / 2
    assert kept["full", 8] > 1.8 * kept["full", 4]
    assert kept["constant", 8] <= 1.01 * kept["constant", 4]
    assert kept["constant", 8] < 0.1 * kept["full", 4]


def test_bad_arguments():
    with pytest.raises(ValueError, match="memory to be one of"):
        ReversibleCompositeTransform([LULinear(3)], memory="none")
    with pytest.raises(ValueError, match="memory to be one of"):
        mixerflow("cifar10", memory="none")
    with pytest.raises(ValueError, match="deterministic transforms"):
        ReversibleCompositeTransform([UniformDequantization(256)])
    with pytest.raises(ValueError, match="anchors"):
        ReversibleCompositeTransform([LULinear(3)], anchors=0)


def test_inside_a_mixing_layer():
    row_flow = ReversibleCompositeTransform([LULinear(4), AffineCoupling(4, narrow)])
    mixing = moved(ChannelMixingTransform(row_flow)).double()
    plain = ChannelMixingTransform(CompositeTransform(copy.deepcopy(list(row_flow._transforms))))
    matrix = torch.randn(5, 3, 4, dtype=torch.float64)
    found, *_ = gradients(mixing, matrix)
    expected, *_ = gradients(plain, matrix)
    assert relative(found, expected) < 1e-9
