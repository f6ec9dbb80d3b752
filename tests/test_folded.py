"""Folding changes nothing: the whole equals the chain of its parts."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows import transforms as nflows_transforms
from nflows_mixer.transforms.program import leaves, steps_of_chain
from nflows_mixer.transforms.steps import Cut, Mix, Region
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows import mixerflow
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ChannelMixingTransform,
    FlowLayer,
    FoldedCompositeTransform,
    InvertibleConv1x1,
    LULinear,
    PatchMixerTransform,
    RationalQuadraticCoupling,
    RLULinear,
    ShiftTransform,
    reversible,
)
from tests.registry import TRANSFORMS
from tests.test_properties import build

narrow = partial(ResidualMLP, hidden_features=12)
PARTS = {
    "norm": ActNorm,
    "lu": LULinear,
    "lu without bias": partial(LULinear, bias=False),
    "rlu": RLULinear,
    "permutation": nflows_transforms.ReversePermutation,
    "shuffle": nflows_transforms.RandomPermutation,
    "affine": partial(AffineCoupling, conditioner=narrow),
    "second": partial(AffineCoupling, conditioner=narrow, conditioning="second", scale="tanh"),
    "additive": partial(AdditiveCoupling, conditioner=narrow),
    "spline": partial(RationalQuadraticCoupling, conditioner=narrow, num_bins=4),
    "plain": partial(AffineCoupling, conditioner=partial(narrow, batch_norm=False)),
    "deep": partial(AffineCoupling, conditioner=partial(narrow, num_blocks=2)),
    "maf": partial(nflows_transforms.MaskedAffineAutoregressiveTransform, hidden_features=8),
}


def moved(transform, std=0.1):
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter += std * torch.randn_like(parameter)
    return transform


def chain_of(transform):
    """A copy whose composites call one part after the other."""
    plain = copy.deepcopy(transform)
    for part in plain.modules():
        if isinstance(part, FoldedCompositeTransform):
            part._folds = lambda: False
    return plain


def assert_same(folded, plain, inputs, context=None, grads=True):
    """Values, log-dets, gradients and running statistics, forward; then the inverse."""
    results = []
    for transform in (folded, plain):
        own = inputs.clone().requires_grad_()
        given = None if context is None else context.clone().requires_grad_()
        outputs, logabsdet = transform(own, given)
        weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype)
        loss = (weights * outputs.flatten()).sum() + (logabsdet * logabsdet).sum()
        wanted = [own, *transform.parameters()] + ([] if given is None else [given])
        found = torch.autograd.grad(loss, wanted, allow_unused=True) if grads else []
        buffers = [b.clone() for b in transform.buffers()]
        back = transform.inverse(outputs.detach(), context)
        results.append((outputs, logabsdet, found, buffers, *back))
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n.startswith(("MixerFlow", "Patch"))])
def test_whole_is_the_chain_of_its_parts(name, mode):
    case = TRANSFORMS[name]
    transform = build(case).train(mode == "training")
    inputs, context = case.draw(7)
    assert_same(transform, chain_of(transform), inputs, context, grads="residual" not in name)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=8),
    features=st.integers(2, 7),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_chain_of_parts(names, features, training, seed):
    torch.manual_seed(seed)
    folded = FoldedCompositeTransform([PARTS[name](features) for name in names]).double()
    rows = torch.randn(40, features, dtype=torch.float64)
    folded(rows)
    moved(folded).train(training)
    plain = chain_of(folded)
    assert_same(folded, plain, rows[:9], grads=True)


def test_affine_neighbours_are_one_step():
    parts = [ActNorm(5), LULinear(5), nflows_transforms.ReversePermutation(5), RLULinear(5)]
    folded = FoldedCompositeTransform([*parts, AffineCoupling(5, narrow), ActNorm(5)])
    folded(torch.randn(30, 5))
    assert len(steps_of_chain(folded)) == 2


def test_cuts_between_layers_are_left_out_and_shifts_gather():
    flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, num_layers=6, hidden_features=8)
    flow.initialize(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8))
    steps = steps_of_chain(flow._transform)
    kinds = [type(step) for step in steps]
    assert kinds.count(Cut) == 2 and kinds.count(Region) == 2
    # A mixing layer is ActNorm and four flow layers, of which the ActNorms are folded.
    mix = next(step for step in steps if isinstance(step, Mix))
    assert len(list(leaves([mix]))) == 5


def test_images_of_channels():
    conv = lambda i, o: nn.Conv2d(i, o, 3, padding=1)  # noqa: E731
    parts = [ActNorm(3), InvertibleConv1x1(3), AffineCoupling(3, conv), InvertibleConv1x1(3)]
    folded = FoldedCompositeTransform(parts).double()
    images = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    folded(images)
    moved(folded)
    assert len(steps_of_chain(folded)) == 3
    assert_same(folded, chain_of(folded), images)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f._transforms[1].conditioner.final.register_forward_hook(
            lambda module, args, output: output + 1
        ),
        lambda f: setattr(f._transforms[1].conditioner.blocks[0].branch, "1", nn.ReLU()),
        lambda f: setattr(f._transforms[0], "forward", lambda x, c=None: (2 * x, x.sum(1))),
        lambda f: f._transforms[1].conditioner.blocks[0].branch[0].eval(),
        lambda f: nn.utils.parametrizations.weight_norm(f._transforms[1].conditioner.initial),
    ],
    ids=["hook", "other activation", "replaced method", "one norm frozen", "parametrised"],
)
def test_what_was_changed_is_called(change):
    folded = FoldedCompositeTransform([LULinear(5), AffineCoupling(5, narrow)])
    moved(folded)
    change(folded)
    rows = torch.randn(9, 5)
    expected = CompositeTransform.forward(copy.deepcopy(folded), rows)
    torch.testing.assert_close(folded(rows), expected)


def test_subclass_with_a_method_of_its_own_is_called():
    class Twice(LULinear):
        def forward(self, inputs, context=None):
            outputs, logabsdet = super().forward(inputs)
            return super().forward(outputs)[0], 2 * logabsdet

    folded = FoldedCompositeTransform([Twice(4), ActNorm(4)])
    moved(folded)
    rows = torch.randn(9, 4)
    folded(rows)
    torch.testing.assert_close(folded(rows), chain_of(folded)(rows))


@pytest.mark.parametrize("own", ["inverse", "_chain"])
def test_composite_with_methods_of_its_own_is_called(own):
    class Own(CompositeTransform):
        pass

    def inverse(self, inputs, context=None):
        return 7 * inputs, 7 + inputs.new_zeros(len(inputs))

    chain = staticmethod(lambda parts, passes, inputs, context: inverse(None, inputs))
    setattr(Own, own, inverse if own == "inverse" else chain)
    folded = FoldedCompositeTransform([Own([LULinear(4)])])
    rows = torch.randn(9, 4)
    torch.testing.assert_close(folded.inverse(rows), inverse(None, rows))


@pytest.mark.parametrize("of", ["class", "instance"])
def test_linear_block_with_other_factors_is_called(of):
    class Doubled(LULinear):
        def factors(self):
            lower, upper = super().factors()
            return lower, 2 * upper

    linear = Doubled(4) if of == "class" else LULinear(4)
    if of == "instance":
        eye = torch.eye(4)
        linear.factors = lambda: (eye, 3 * eye)
    folded = FoldedCompositeTransform([linear, ActNorm(4)])
    rows = torch.randn(9, 4)
    folded(rows)
    torch.testing.assert_close(folded(rows), chain_of(folded)(rows))


def test_parametrised_linear_block_is_folded():
    class Doubled(nn.Module):
        def forward(self, values):
            return 2 * values

    linear = moved(LULinear(4))
    nn.utils.parametrize.register_parametrization(linear, "packed", Doubled())
    folded = FoldedCompositeTransform([linear, ActNorm(4)])
    rows = torch.randn(9, 4)
    folded(rows)
    assert len(steps_of_chain(folded)) == 1
    torch.testing.assert_close(folded(rows), CompositeTransform.forward(folded, rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logabsdet_of_half_precision_is_wide(dtype):
    flow = moved(FoldedCompositeTransform([LULinear(4), LULinear(4)])).to(dtype)
    rows = torch.randn(9, 4).to(dtype)
    outputs, logabsdet = flow(rows)
    assert outputs.dtype == dtype and logabsdet.dtype == torch.float32


def test_rows_are_rows():
    flow = FoldedCompositeTransform([LULinear(6), LULinear(6)])
    with pytest.raises(ValueError, match="expected inputs of shape .B, 6."):
        flow(torch.randn(2, 6, 4))


def test_shared_coupling_updates_its_statistics_twice():
    coupling = AffineCoupling(4, narrow)
    folded = FoldedCompositeTransform([coupling, LULinear(4), coupling])
    moved(folded)
    plain = chain_of(folded)
    rows = torch.randn(9, 4)
    folded(rows), plain(rows)
    torch.testing.assert_close(dict(folded.state_dict()), dict(plain.state_dict()))


def change_by_step(flow):
    loss = flow(torch.randn(8, 5))[0].square().sum()
    loss.backward()
    torch.optim.Adam(flow.parameters(), 0.1).step()


def change_by_state(flow):
    flow.load_state_dict({n: 1.1 * v if v.dtype.is_floating_point else v
                          for n, v in flow.state_dict().items()})  # fmt: skip


def change_by_data(flow):
    for parameter in flow.parameters():
        parameter.data.add_(0.1)


@pytest.mark.parametrize(
    "change",
    [
        change_by_step,
        change_by_state,
        change_by_data,
        lambda flow: flow.double().float(),
        lambda flow: flow.train().eval(),
        lambda flow: flow.double(),
    ],
    ids=["step", "state_dict", "data", "there and back", "mode", "dtype"],
)
def test_kept_inverses_follow_the_parameters(change):
    torch.manual_seed(0)
    flow = moved(FoldedCompositeTransform([LULinear(5), AffineCoupling(5, narrow), LULinear(5)]))
    flow.eval()
    rows = torch.randn(9, 5)
    with torch.no_grad():
        flow.inverse(rows)
        kept = flow._inverses
        assert kept
    change(flow)
    flow.eval()
    rows = rows.to(next(flow.parameters()).dtype)
    with torch.no_grad():
        inverse, _ = flow.inverse(rows)
        torch.testing.assert_close(flow(inverse)[0], rows, atol=1e-5, rtol=1e-5)
    fresh = copy.deepcopy(flow)
    assert not fresh._inverses
    torch.testing.assert_close(fresh.inverse(rows)[0], inverse)


def test_kept_inverses_do_not_stop_gradients():
    flow = moved(FoldedCompositeTransform([LULinear(5), AffineCoupling(5, narrow)])).eval()
    flow._transforms[0].packed.requires_grad_(False)
    rows = torch.randn(9, 5)
    with torch.no_grad():
        flow.inverse(rows)
    for _ in range(2):
        flow.inverse(rows)[0].sum().backward()
    assert flow._transforms[0].bias.grad.norm() > 0


def test_kept_inverses_and_inference_mode():
    flow = moved(FoldedCompositeTransform([LULinear(5)])).eval().requires_grad_(False)
    rows = torch.randn(9, 5)
    with torch.inference_mode():
        expected, _ = flow.inverse(rows)
    with torch.no_grad():
        torch.testing.assert_close(flow.inverse(rows)[0], expected.clone())
    own = rows.clone().requires_grad_()
    flow.inverse(own)[0].sum().backward()
    assert own.grad.norm() > 0


def test_kept_inverses_of_another_type_are_dropped():
    flow = moved(FoldedCompositeTransform([LULinear(5)])).eval()
    with torch.no_grad():
        flow.inverse(torch.randn(2, 5))
        flow.double().inverse(torch.randn(2, 5, dtype=torch.float64))
    assert len(flow._inverses) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_kept_inverses_and_functional_derivatives():
    flow = moved(FoldedCompositeTransform([LULinear(3)])).eval()
    rows = torch.randn(4, 3)
    values = {name: value.detach() for name, value in flow.named_parameters()}
    tangents = {name: torch.randn_like(value) for name, value in values.items()}

    def of(transform):
        def inverse(parameters):
            # An instance is called by its forward.
            transform.__dict__["forward"] = transform.inverse
            try:
                return torch.func.functional_call(transform, parameters, (rows,))[0]
            finally:
                del transform.__dict__["forward"]

        return torch.func.jvp(inverse, (values,), (tangents,))[1]

    with torch.no_grad():
        flow.inverse(rows)
        torch.testing.assert_close(of(flow), of(CompositeTransform(list(flow._transforms))))


def test_kept_inverses_are_used():
    flow = moved(FoldedCompositeTransform([LULinear(5)])).eval()
    rows = torch.randn(9, 5)
    with torch.no_grad():
        flow.inverse(rows)
        (key,) = flow._inverses
        source, inverse = flow._inverses[key]
        flow._inverses[key] = source, type(inverse)(0 * inverse.weight, *inverse.tensors[1:])
        assert torch.allclose(*torch.broadcast_tensors(flow.inverse(rows)[0], inverse.bias))


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


@pytest.mark.parametrize("memory", ["full", "checkpoint", "constant"])
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


def test_the_counter_of_syncs_counts():
    with Syncs() as syncs:
        torch.ones(1).item()
    assert len(syncs.found) == 1


def test_inverses_wait_for_nothing_with_gradients():
    flow = moved(FoldedCompositeTransform([LULinear(5), AffineCoupling(5, narrow)]))
    with Syncs() as syncs:
        flow.inverse(torch.randn(9, 5))[0].sum().backward()
    assert syncs.found == []


def test_shift_without_patches_inside_is_called():
    shift = ShiftTransform((1, 4, 4), 2, 1, lambda shape: ActNorm(shape))
    folded = FoldedCompositeTransform([shift])
    images = torch.randn(9, 1, 4, 4)
    folded(images)
    torch.testing.assert_close(folded(images), shift(images))


def test_shift_with_another_transform_put_into_it():
    shift = ShiftTransform((1, 4, 8), 2, 1, lambda s: PatchMixerTransform(s, 2, LULinear, LULinear))
    folded = moved(FoldedCompositeTransform([shift]))
    shift.transform = moved(PatchMixerTransform((1, 2, 6), 2, LULinear, LULinear, "dilated"))
    images = torch.randn(9, 1, 4, 8)
    torch.testing.assert_close(folded(images), chain_of(folded)(images))


def test_mixing_of_ready_layers():
    """Folded layers inside a mixing layer that is used by itself."""
    mixing = ChannelMixingTransform(FlowLayer(4, flow=partial(AffineCoupling, conditioner=narrow)))
    mixer = PatchMixerTransform((1, 4, 4), 2, LULinear, LULinear)
    rows, images = torch.randn(9, 3, 4), torch.randn(9, 1, 4, 4)
    mixing(rows)
    moved(mixing), moved(mixer)
    torch.testing.assert_close(mixing(rows), chain_of(mixing)(rows))
    torch.testing.assert_close(mixer(images), chain_of(mixer)(images))
