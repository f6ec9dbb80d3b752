"""A flow layer does what its parts say, whatever somebody has made of them."""

import copy
import pickle
from functools import partial

import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from torch import nn
from torch.nn.utils import parametrizations

from nflows_mixer.flows import denseflow, mixerflow
from nflows_mixer.nn import Conditioner, ConvConditioner, ResidualMLP
from nflows_mixer.transforms import (
    AdditiveCoupling,
    AffineCoupling,
    CompositeTransform,
    FlowLayer,
    GlowStep,
    InverseTransform,
    LULinear,
    RationalQuadraticCoupling,
    ResidualTransform,
    ReversibleCompositeTransform,
    initialize,
)
from tests.helpers import moved


def in_turn(layer, rows, context=None):
    """What the parts of a flow layer give, called one after the other."""
    total = 0
    for part, passes in layer.chain():
        rows, logabsdet = part(rows, context if passes else None)
        total = total + logabsdet
    return rows, total


def back_in_turn(layer, rows):
    total = 0
    for part, _ in reversed(layer.chain()):
        rows, logabsdet = part.inverse(rows)
        total = total + logabsdet
    return rows, total


def close(first, second):
    torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-9)


class Doubled(AffineCoupling):
    def forward(self, inputs, context=None):
        outputs, logabsdet = super().forward(inputs, context)
        return 2 * outputs, logabsdet + 6 * torch.tensor(2.0, dtype=inputs.dtype).log()

    def inverse(self, inputs, context=None):
        outputs, logabsdet = super().inverse(inputs / 2, context)
        return outputs, logabsdet - 6 * torch.tensor(2.0, dtype=inputs.dtype).log()


class DoubledWithItsOwnMap(Doubled):
    elementwise = staticmethod(AffineCoupling.elementwise)

    def forward(self, inputs, context=None):
        return super().forward(inputs, context)


class Shifted(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) + 1


def exchanged_linear(layer):
    layer.flow.conditioner.blocks[0].linear1.__class__ = Shifted


def inserted_module(layer):
    layer.flow.conditioner.blocks.insert(0, nn.Tanh())


def removed_norm(layer):
    layer.flow.conditioner.blocks[0].norm1 = nn.Identity()


def parametrized(layer):
    parametrizations.spectral_norm(layer.flow.conditioner.blocks[0].linear1)
    layer.eval()  # in training mode each call changes its estimate


def frozen_norm(layer):
    layer.flow.conditioner.blocks[0].norm2.eval()


LAYERS = {
    "a coupling with its own directions": lambda: FlowLayer(6, flow=Doubled),
    "one with its own map too": lambda: FlowLayer(6, flow=DoubledWithItsOwnMap),
}
CHANGES = [exchanged_linear, inserted_module, removed_norm, parametrized]


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_directions_that_a_subclass_has_overridden_are_called(make):
    torch.manual_seed(0)
    layer = initialize(make().double(), torch.randn(50, 6, dtype=torch.float64))
    rows = torch.randn(5, 6, dtype=torch.float64)
    moved(layer, 0.1)
    close(layer(rows), in_turn(layer, rows))
    close(layer.inverse(rows), back_in_turn(layer, rows))
    layer.flow.inverse = lambda inputs, context=None: (inputs + 1, inputs.new_zeros(len(inputs)))
    close(layer.inverse(rows), back_in_turn(layer, rows))


@pytest.mark.parametrize("change", CHANGES)
def test_networks_whose_parts_were_exchanged_are_called_as_they_are(change):
    torch.manual_seed(0)
    layer = initialize(FlowLayer(6).double(), torch.randn(50, 6, dtype=torch.float64))
    moved(layer, 0.1)
    change(layer)
    rows = torch.randn(5, 6, dtype=torch.float64)
    close(layer(rows), in_turn(layer, rows))
    close(layer.inverse(rows), back_in_turn(layer, rows))


def test_batch_norms_in_different_modes_keep_to_theirs():
    torch.manual_seed(0)
    coupling = AffineCoupling(6, norm="batch")
    layer = initialize(FlowLayer(6, flow=coupling).double(), torch.randn(50, 6).double())
    moved(layer, 0.1)
    frozen_norm(layer)
    other, rows = copy.deepcopy(layer), torch.randn(9, 6, dtype=torch.float64)
    close(layer(rows), in_turn(other, rows))
    block = layer.flow.conditioner.blocks[0]
    assert (block.norm1.num_batches_tracked, block.norm2.num_batches_tracked) == (1, 0)


def test_a_network_with_too_few_outputs_is_refused_inside_a_flow_layer_too():
    class Short(Conditioner):
        def __init__(self, in_features, out_features):
            super().__init__()
            self.linear = nn.Linear(in_features, 2)

        @staticmethod
        def evaluate(inputs, weights, options):
            return nn.functional.linear(inputs, *weights), ()

    layer = FlowLayer(6, None, None, lambda features: AffineCoupling(features, Short))
    for called in (layer, layer.flow):
        with pytest.raises(ValueError, match=r"expected parameters of shape \[5, 6\]"):
            called(torch.randn(5, 6))


def test_parametrized_weights_of_an_own_network_are_refused():
    class Own(Conditioner):
        def __init__(self, in_features, out_features):
            super().__init__()
            self.linear = parametrizations.spectral_norm(nn.Linear(in_features, out_features))

        @staticmethod
        def evaluate(inputs, weights, options):
            return nn.functional.linear(inputs, *weights), ()

    with pytest.raises(ValueError, match=r"Own\.prepare: .*define prepare"):
        AffineCoupling(6, Own)(torch.randn(5, 6))


def nested():
    return [FlowLayer(6, flow=FlowLayer), FlowLayer(6)]


def nested_composite():
    return [
        FlowLayer(
            6, flow=lambda features: CompositeTransform([FlowLayer(features), AffineCoupling(6)])
        )
    ]


def inverted():
    return [InverseTransform(FlowLayer(6, actnorm=None)), LULinear(6)]


def reversible():
    return [ReversibleCompositeTransform([FlowLayer(6), FlowLayer(6)], memory="full")]


@pytest.mark.parametrize("make", [nested, nested_composite, inverted, reversible])
def test_gradients_of_nested_and_inverted_layers_are_those_of_full_memory(make):
    torch.manual_seed(0)
    rows = torch.randn(9, 6, dtype=torch.float64)
    whole = ReversibleCompositeTransform(make(), memory="full").double()
    initialize(whole, torch.randn(50, 6, dtype=torch.float64))
    moved(whole, 0.1)
    found = {}
    for memory in ("full", "checkpoint", "constant"):
        flow = copy.deepcopy(whole)
        flow.memory = memory
        outputs, logabsdet = flow(rows)
        (outputs.square().sum() - logabsdet.sum()).backward()
        found[memory] = {name: p.grad for name, p in flow.named_parameters()}
        assert all(grad is not None for grad in found[memory].values())
    close(found["checkpoint"], found["full"])
    close(found["constant"], found["full"])


def test_a_factory_keeps_its_own_defaults():
    seen = []

    def network(in_features, out_features, hidden_features=24, norm=None, context_features=None):
        seen.append((hidden_features, norm, context_features))
        return ResidualMLP(in_features, out_features, hidden_features, norm=norm)

    AffineCoupling(6, network)
    mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None, conditioner=network)
    assert set(seen) == {(24, None, None)}
    AffineCoupling(6, network, norm="batch", hidden_features=8)
    assert seen[-1] == (8, "batch", None)


def bare(in_features, out_features):
    return nn.Linear(in_features, out_features)


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: AffineCoupling(6, bare, norm="batch"), "takes norm, .* got bare; leave norm out"),
        (lambda: AdditiveCoupling(6, bare, norm=None, hidden_features=8), "takes norm"),
        (lambda: AffineCoupling(6, bare(3, 6), hidden_features=8), "got a ready Linear"),
        (
            lambda: RationalQuadraticCoupling(
                6, partial(ResidualMLP, hidden_features=8), hidden_features=16
            ),
            "RationalQuadraticCoupling: .* takes hidden_features",
        ),
        (lambda: ResidualTransform(6, nn.Linear, hidden_features=8), "hidden_features.*got Linear"),
        (lambda: GlowStep(4, ConvConditioner, norm="batch"), "norm.*got ConvConditioner"),
    ],
)
def test_options_that_no_network_reads_are_refused_where_they_are_given(make, pattern):
    with pytest.raises(ValueError, match=f"(?s){pattern}"):
        make()


def test_one_flow_may_read_what_the_other_does_not():
    sizes = {"image_shape": (1, 4, 4), "patch_size": 2, "num_layers": 1, "shift": None}
    flow = mixerflow(**sizes, patch_flow=partial(AffineCoupling, conditioner=bare), norm="batch")
    norms = [type(part).__name__ for part in flow.modules() if "Norm" in type(part).__name__]
    assert any("Batch" in name for name in norms)
    small = {"image_shape": (1, 4, 4), "units": (1,), "modules": (1,), "growth": 0}
    denseflow("table4-none", **{**small, "conditioner": thin})  # a preset's norm is no one's word


def thin(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 1)


def test_denseflow_says_that_its_networks_take_no_context():
    small = {"image_shape": (1, 4, 4), "units": (2,), "modules": (1,), "growth": 2}
    with pytest.warns(UserWarning, match="2 of 2 GlowSteps take no context .*context_features"):
        denseflow(**small, conditioner=thin, context_features=3)
    with pytest.raises(ValueError, match="a part that takes context of 3 features, got none"):
        denseflow(**{**small, "growth": 0}, conditioner=thin, context_features=3)


def test_a_part_that_is_taken_out_does_not_move_the_context():
    torch.manual_seed(0)
    layer = FlowLayer(
        4, flow=lambda d: MaskedAffineAutoregressiveTransform(d, 8, context_features=3)
    )
    layer.actnorm = None
    rows, context = torch.randn(5, 4), torch.randn(5, 3)
    assert (layer(rows, context)[0] - layer(rows, 5 * context)[0]).abs().max() > 1e-4


def test_a_layer_that_is_never_reached_does_not_keep_others_from_training():
    class WithASpare(FlowLayer):
        def __init__(self, features):
            super().__init__(features, flow=None)
            self.spare = FlowLayer(features)

    flow = ReversibleCompositeTransform([WithASpare(6)], memory="full")
    outputs, _ = flow(torch.randn(50, 6))
    assert flow._transforms[0].actnorm.initialized and outputs.isfinite().all()


def test_a_compiled_composite_is_copied_and_pickled():
    flow = ReversibleCompositeTransform([LULinear(6)])
    flow.compile(backend="eager")
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert other(torch.randn(5, 6))[1].shape == (5,)


def test_torch_func_over_constant_memory_says_what_to_do():
    flow = ReversibleCompositeTransform([LULinear(6)], memory="constant")
    with pytest.raises(ValueError, match="memory='full'"):
        torch.func.grad(lambda rows: flow(rows)[0].sum())(torch.randn(5, 6))
