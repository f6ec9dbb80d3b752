"""A flow layer with prepared weights equals its parts, called one after the other."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows import transforms as nflows_transforms
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows import mixerflow
from nflows_mixer.nn import Conditioner, ResidualMLP
from nflows_mixer.nn.conditioner import zero_linear
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    FlowLayer,
    GlowStep,
    InvertibleConv1x1,
    KroneckerLinear,
    LinearBlock,
    LULinear,
    RationalQuadraticCoupling,
    ReversibleCompositeTransform,
    RLULinear,
    reversible,
)
from tests.helpers import moved

narrow = partial(ResidualMLP, hidden_features=12)
batch = partial(narrow, norm="batch")
LINEAR = [LULinear, partial(LULinear, bias=False), RLULinear, KroneckerLinear, None]
LINEAR += [nflows_transforms.ReversePermutation, partial(LULinear, bias=False)]
FLOWS = [
    partial(AffineCoupling, conditioner=narrow),
    partial(AffineCoupling, conditioner=batch, conditioning="second", scale="tanh"),
    partial(AdditiveCoupling, conditioner=partial(narrow, norm=None)),
    partial(RationalQuadraticCoupling, conditioner=batch, num_bins=4),
    partial(AffineCoupling, conditioner=partial(batch, num_blocks=2)),
    partial(AffineCoupling, conditioner=nn.Linear),
    partial(nflows_transforms.MaskedAffineAutoregressiveTransform, hidden_features=8),
    None,
]


def results_of(transform, inputs, inverse=True):
    """Outputs, log-dets, gradients and buffers, forward; then outputs and gradients back."""
    parameters = list(transform.parameters())
    outputs, logabsdet = transform(inputs)
    loss = outputs.square().sum() + logabsdet.square().sum()
    found = [outputs, logabsdet, *torch.autograd.grad(loss, parameters)]
    found += [b.clone() for b in transform.buffers()]
    if inverse:
        inputs, logabsdet = transform.inverse(outputs.detach())
        loss = inputs.square().sum() + logabsdet.square().sum()
        found += [inputs, logabsdet, *torch.autograd.grad(loss, parameters, allow_unused=True)]
    return found


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(LINEAR),
    st.sampled_from(FLOWS),
    st.sampled_from([ActNorm, None]),
    st.integers(2, 7),
    st.booleans(),
    st.integers(0, 99),
)
def test_layers_equal_their_parts_one_by_one_and_all_at_once(
    linear, flow, actnorm, features, training, seed
):
    if linear is None and flow is None and actnorm is None:
        return
    torch.manual_seed(seed)
    rows = torch.randn(9, features, dtype=torch.float64)
    layers = [FlowLayer(features, actnorm, linear, flow) for _ in range(2)]
    chain = CompositeTransform(layers).double()
    chain(rows)  # initializes
    moved(chain).train(training)
    parts = [part for layer in copy.deepcopy(layers) for part, _ in layer.chain()]
    expected = results_of(CompositeTransform(parts), rows)
    at_once = ReversibleCompositeTransform(copy.deepcopy(layers), memory="full")
    torch.testing.assert_close(results_of(chain, rows), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(results_of(at_once, rows), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["layer", "batch", None])
@pytest.mark.parametrize("sizes", [(4, 6), (30, 40)], ids=["narrow", "wide"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_prepared_networks_equal_their_layers(sizes, blocks, norm, training):
    torch.manual_seed(0)
    net = moved(ResidualMLP(*sizes, 8, blocks, norm=norm)).double()
    rows = torch.randn(9, sizes[0], dtype=torch.float64)
    net(rows), net.train(training)
    outputs, statistics = net.evaluate(rows, *net.prepare([net]), net.options(rows))
    norms = net.batch_norms()
    before = [norm.running_mean.clone() for norm in norms]
    torch.testing.assert_close(outputs, net(rows), atol=1e-12, rtol=1e-10)
    assert len(statistics) == (2 * len(norms) if training else 0)
    if training:
        for norm_, old, mean in zip(norms, before, statistics[::2]):
            torch.testing.assert_close(norm_.running_mean, old + 0.1 * (mean - old))


def test_a_shared_coupling_tracks_both_of_its_batches():
    coupling = moved(AffineCoupling(4, batch))
    layers = [FlowLayer(4, None, None, coupling), FlowLayer(4, None, LULinear, coupling)]
    rows = torch.randn(20, 4)
    chain = CompositeTransform([coupling, LULinear(4), copy.deepcopy(coupling)])
    expected = copy.deepcopy(chain)
    expected._transforms[2] = expected._transforms[0]
    expected(rows)
    ReversibleCompositeTransform(layers, memory="full")(rows)
    for one, other in zip(coupling.buffers(), expected._transforms[0].buffers()):
        torch.testing.assert_close(one, other)


def listen(layer, name):
    calls = []
    layer.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    return calls


@pytest.mark.parametrize("name", ["actnorm", "linear", "flow", "flow.conditioner.final"])
def test_hooks_on_parts_fire(name):
    layer = FlowLayer(4, flow=partial(AffineCoupling, conditioner=narrow))
    rows = torch.randn(9, 4)
    flow = ReversibleCompositeTransform([layer], memory="full")
    expected = flow(rows)
    calls = listen(layer, name)
    torch.testing.assert_close(flow(rows), expected)
    assert calls == [name]


@pytest.mark.parametrize("memory", ["full", "constant"])
def test_hooks_on_all_modules_see_the_parts(memory):
    torch.manual_seed(0)
    layers = [FlowLayer(4, flow=partial(AffineCoupling, conditioner=narrow)) for _ in range(2)]
    flow, rows = ReversibleCompositeTransform(layers, memory=memory).double(), torch.randn(9, 4)
    rows = rows.double()
    flow(rows)

    def found():
        outputs, logabsdet = flow(rows)
        total = outputs.square().sum() - logabsdet.sum()
        return [outputs, *torch.autograd.grad(total, list(flow.parameters()))]

    expected, seen = found(), []
    set_hook = torch.nn.modules.module.register_module_forward_hook
    with set_hook(lambda module, *_: seen.append(module)):
        torch.testing.assert_close(found(), expected)
    inner = {
        layer.get_submodule(name) for layer in layers for name in ("linear", "flow", "actnorm")
    }
    assert inner <= set(seen)
    with FlopCounterMode(display=False) as counter:
        flow(rows)
    assert any("final" in name for name in counter.flop_counts)


class Doubled(AffineCoupling):
    def forward(self, inputs, context=None):
        outputs, logabsdet = super().forward(inputs, context)
        return 2 * outputs, logabsdet + inputs.shape[1] * torch.log(torch.tensor(2.0))

    def inverse(self, inputs, context=None):
        outputs, logabsdet = super().inverse(inputs / 2, context)
        return outputs, logabsdet - inputs.shape[1] * torch.log(torch.tensor(2.0))


class Negative(ResidualMLP):
    def forward(self, inputs, context=None):
        return -super().forward(inputs, context)


class Halved(nn.Module):
    def forward(self, packed):
        return packed / 2


@pytest.mark.parametrize("memory", reversible.MEMORY)
@pytest.mark.parametrize("kind", ["coupling", "conditioner", "linear"])
def test_what_a_subclass_or_a_parametrization_changes_holds(kind, memory):
    torch.manual_seed(0)
    flow = partial(Doubled if kind == "coupling" else AffineCoupling, conditioner=narrow)
    if kind == "conditioner":
        flow = partial(AffineCoupling, conditioner=partial(Negative, hidden_features=12))
    layer = moved(FlowLayer(4, None, flow=flow))
    if kind == "linear":
        nn.utils.parametrize.register_parametrization(layer.linear, "packed", Halved())
    layer.double()
    rows = torch.randn(9, 4, dtype=torch.float64)
    expected = results_of(CompositeTransform([layer.linear, layer.flow]), rows)
    whole = ReversibleCompositeTransform([layer], memory=memory)
    torch.testing.assert_close(results_of(whole, rows), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logabsdet_of_half_precision_is_wide(dtype):
    chain = ReversibleCompositeTransform([LULinear(4), LULinear(4)], memory="full")
    assert moved(chain).to(dtype)(torch.randn(3, 4, dtype=dtype))[1].dtype == torch.float32


def test_errors_name_the_layer():
    with pytest.raises(ValueError, match="FlowLayer: expected .*B, 4.*got .2, 3, 4"):
        FlowLayer(4)(torch.randn(2, 3, 4))
    with pytest.raises(RuntimeError, match="ActNorm.*initialize"):
        FlowLayer(4).eval()(torch.randn(2, 4))
    with pytest.raises(ValueError, match="context of None features, got 2"):
        layer = FlowLayer(4, None, flow=partial(AffineCoupling, conditioner=narrow))
        layer.flow._passes_context = True
        layer(torch.randn(2, 4), torch.randn(2, 2))


# Parts of a user's own: one class each.


class SinhArcsinh(Coupling):
    parameters_per_feature = 2

    @staticmethod
    def elementwise(moved, parameters):
        skew, tail = parameters.chunk(2, dim=1)
        bent = tail.exp() * moved.asinh() + skew
        log_cosh = torch.logaddexp(bent, -bent) - math.log(2)
        log_slope = tail + log_cosh - 0.5 * moved.square().log1p()
        return bent.sinh(), log_slope.flatten(1).sum(1)

    @staticmethod
    def elementwise_inverse(moved, parameters):
        skew, tail = parameters.chunk(2, dim=1)
        outputs = ((moved.asinh() - skew) * (-tail).exp()).sinh()
        return outputs, -SinhArcsinh.elementwise(outputs, parameters)[1]


class Tanh(Conditioner):
    def __init__(self, in_features, out_features, hidden_features=16, context_features=None):
        super().__init__(context_features)
        self.first = nn.Linear(in_features + (context_features or 0), hidden_features)
        self.last = zero_linear(hidden_features, out_features)

    @staticmethod
    def evaluate(inputs, weights, options):
        weight, bias, last, last_bias = weights
        return F.linear(torch.tanh(F.linear(inputs, weight, bias)), last, last_bias), ()


class Householder(LinearBlock):
    def __init__(self, features):
        super().__init__(features)
        self.normal = nn.Parameter(torch.randn(features))

    def weight(self):
        unit = self.normal / self.normal.norm()
        return torch.eye(self.features).to(unit) - 2 * torch.outer(unit, unit)

    def logabsdet(self):
        return 0 * self.normal.sum()


@pytest.mark.parametrize("memory", reversible.MEMORY)
@pytest.mark.parametrize(
    "own", [{"channel_flow": SinhArcsinh}, {"conditioner": Tanh}, {"linear": Householder}]
)
def test_parts_of_ones_own_are_taken_and_right_in_all_memory_modes(own, memory):
    options = {"image_shape": (1, 4, 4), "patch_size": 2, "num_layers": 2, "hidden_features": 8}
    torch.manual_seed(0)
    images = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    noise = torch.rand(images.shape, dtype=torch.float64)
    plain = mixerflow(**options, shift=None, **own).double().initialize(images, noise=noise)
    moved(plain, 0.05)
    other = mixerflow(**options, shift=None, memory=memory, **own).double()
    other.load_state_dict(plain.state_dict())
    results = []
    for flow in (other, plain):
        log_prob = flow.log_prob(images, noise=noise)
        log_prob.sum().backward()
        results.append((log_prob, [parameter.grad for parameter in flow.parameters()]))
    torch.testing.assert_close(*results, atol=1e-8, rtol=1e-8)
    values = 256 * noise[:2]
    density = other.eval().deterministic
    jacobian = torch.autograd.functional.jacobian(
        lambda x: density._transform(x[None])[0].flatten(), values[0]
    )
    logabsdet = torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet
    torch.testing.assert_close(density._transform(values)[1][0], logabsdet, atol=1e-8, rtol=1e-8)
    latents, _ = density._transform(values)
    torch.testing.assert_close(density._transform.inverse(latents)[0], values)


# What waits for a device.


class Syncs(TorchDispatchMode):
    """Counts what waits for a device: numbers read from tensors, and shapes that depend on them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.masked_select,
        ):
            self.found.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory", reversible.MEMORY)
def test_a_training_step_waits_for_nothing(memory, monkeypatch):
    """With given noise, as in training: as on a GPU, where numbers are not read freely."""
    monkeypatch.setattr(reversible, "_is_read_freely", lambda device: False)
    flow = mixerflow(
        image_shape=(1, 8, 8), patch_size=2, num_layers=2, hidden_features=8, memory=memory
    )
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    flow.initialize(images)
    noise = torch.rand(images.shape)
    flow.validate_args = False

    def step():
        flow.log_prob(images, noise=noise).mean().backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)

    step()  # the first check of inverses, which reads its result
    with Syncs() as syncs:
        step()
    assert syncs.found == []
    with Syncs() as syncs:
        torch.ones(1).item()
    assert len(syncs.found) == 1


@pytest.mark.parametrize("make", [lambda: InvertibleConv1x1(4), lambda: GlowStep(4)])
def test_hooks_on_the_matrix_of_a_1x1_convolution_fire(make):
    calls, transform = [], make()
    (linear,) = [part.linear for part in transform.modules() if isinstance(part, InvertibleConv1x1)]
    linear.register_forward_hook(lambda *_: calls.append(1))
    transform(torch.randn(2, 4, 2, 2))
    assert calls == [1]
