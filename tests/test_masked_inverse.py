"""Masked affine flows whose inverse computes every hidden unit once: ours, and nflows' own."""

import copy
import pickle
from functools import partial

import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF
from torch import nn
from torch.nn import functional as F

from nflows_mixer.core.context import takes_context
from nflows_mixer.nn import MaskedMLP, MaskedResidualMLP
from nflows_mixer.numerics.autoregressive import inverse_of, why_not_foldable
from nflows_mixer.transforms import AffineAutoregressive
from tests.helpers import central_difference, moved


@torch.no_grad()
def settled(flow, context=None):
    """Parameters and running statistics away from their start; float64, evaluation mode."""
    torch.manual_seed(0)
    moved(flow.double())
    given = context and torch.randn(200, context).double()
    flow.train()(1 + 2 * torch.randn(200, flow.features).double(), given)
    return flow.eval()


def drawn(features, context=None, count=5, grad=False):
    rows = torch.randn(count, features, dtype=torch.float64, requires_grad=grad)
    given = context and torch.randn(count, context, dtype=torch.float64, requires_grad=grad)
    return rows, given


# More steps than a panel has, fewer and more hidden units than features, one feature.
SIZES = [(11, 4), (3, 16), (1, 8), (17, 16), (2, 1)]
KINDS = {
    "residual": {},
    "one block": {"num_blocks": 1, "use_batch_norm": True},
    "batch norm": {"num_blocks": 3, "use_batch_norm": True},
    "feed-forward": {"use_residual_blocks": False, "use_batch_norm": True},
    "feed-forward without batch norm": {"use_residual_blocks": False, "num_blocks": 1},
    "random masks": {"use_residual_blocks": False, "random_mask": True, "use_batch_norm": True},
    "gelu": {"activation": F.gelu, "use_batch_norm": True},
    "module": {"activation": nn.PReLU()},
    "own activation": {"activation": lambda x: x * torch.sigmoid(x)},
    "dropout": {"dropout_probability": 0.5},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
contexts = pytest.mark.parametrize("context", [None, 3], ids=["", "context"])


def maf(features, hidden, context=None, **options):
    return settled(MAF(features, hidden, context_features=context, **options), context)


@every_kind
@contexts
def test_inverse_of_nflows_is_that_of_its_d_passes(context, kind):
    check_passes((11, 32), context, kind)


@pytest.mark.parametrize("kind", ["one block", "random masks"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_inverse_of_nflows_of_any_size_is_that_of_its_d_passes(sizes, kind):
    check_passes(sizes, 3, KINDS[kind])


def check_passes(sizes, context, kind):
    flow = maf(*sizes, context, **kind)
    assert why_not_foldable(flow) is None
    latents, given = drawn(sizes[0], context)
    expected = flow.inverse(latents, given)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            got = inverse_of(flow)(latents, given)
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
        assert got[0].is_contiguous()


@contexts
def test_no_step_calls_the_network(context, monkeypatch):
    flow = maf(6, 16, context, use_batch_norm=True)
    latents, given = drawn(6, context)
    expected = flow.inverse(latents, given)

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(type(flow.autoregressive_net), "forward", fail)
    torch.testing.assert_close(inverse_of(flow)(latents, given), expected)


@every_kind
def test_a_context_that_is_left_out_is_left_out(kind):
    """nflows' conditional networks run without their context too."""
    flow = maf(5, 16, 3, **kind)
    latents, _ = drawn(5)
    torch.testing.assert_close(inverse_of(flow)(latents), flow.inverse(latents))


def test_one_row_of_context_for_all():
    flow = maf(5, 16, 3)
    latents, context = drawn(5)[0], torch.randn(1, 3).double()
    torch.testing.assert_close(inverse_of(flow)(latents, context), flow.inverse(latents, context))


def ours(features, hidden=16, context=None, **options):
    flow = AffineAutoregressive(features, hidden, context_features=context, **options)
    return settled(flow, context)


OURS = {
    "exp": {},
    "tanh": {"scale": "tanh"},
    "sigmoid": {"scale": "sigmoid"},
    "softplus": {"scale": "softplus"},
    "nflows": {"scale": "nflows"},
    "blocks": {"num_blocks": 3},
    "batch norm": {"num_blocks": 2, "norm": "batch"},
}
every_flow = pytest.mark.parametrize("options", OURS.values(), ids=OURS.keys())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_inverse_of_any_size_undoes_forward(sizes, grad):
    flow = ours(*sizes, 3)
    latents, given = drawn(sizes[0], 3)
    with torch.set_grad_enabled(grad):
        outputs, logabsdet = flow.inverse(latents, given)
        there, forward = flow(outputs, given)
    torch.testing.assert_close(there, latents, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(logabsdet, -forward, atol=1e-10, rtol=1e-10)


@every_flow
@contexts
def test_jacobian_is_triangular_and_gives_the_log_det(context, options):
    flow = ours(11, 32, context, **options)
    rows, given = drawn(11, context, count=1)
    for function in (flow.forward, flow.inverse):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, f=function: f(x[None], given)[0][0], rows[0]
        )
        assert torch.equal(jacobian, jacobian.tril()) and jacobian.tril(-1).abs().sum() > 0
        expected = torch.linalg.slogdet(jacobian).logabsdet[None]
        torch.testing.assert_close(function(rows, given)[1], expected)


@pytest.mark.parametrize("make", [ours, maf], ids=["ours", "nflows"])
@contexts
def test_gradient_of_the_inverse(make, context):
    flow = make(10, 16, context)
    latents, given = drawn(10, context, grad=True)
    weights = torch.randn(5, 10).double()

    def loss():
        outputs, logabsdet = inverse_of(flow)(latents, given)
        return (weights * outputs).sum() + logabsdet.square().sum()

    loss().backward()
    for tensor in [latents, *flow.parameters(), *([given] if context else [])]:
        direction = torch.randn_like(tensor)
        slope = (tensor.grad * direction).sum()
        expected = central_difference(loss, tensor, direction)
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


def test_second_derivative_of_the_inverse():
    flow = ours(9, 8)
    latents, _ = drawn(9, count=2, grad=True)
    assert torch.autograd.gradgradcheck(lambda y: flow.inverse(y)[0], latents)


@every_kind
@contexts
@pytest.mark.parametrize("sizes", [(11, 32), (1, 8)], ids=str)
def test_taken_over_both_ways(sizes, context, kind):
    theirs = maf(*sizes, context, **{**kind, "dropout_probability": 0.0})
    before = copy.deepcopy(theirs.state_dict())
    flow = AffineAutoregressive.from_nflows(theirs)
    rows, given = drawn(sizes[0], context)
    expected = theirs(rows, given), theirs.inverse(rows, given)
    got = flow(rows, given), flow.inverse(rows, given)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    assert takes_context(flow) == bool(context)
    # In training mode too, where the two share neither parameters nor statistics.
    expected = theirs.train()(rows, given)
    torch.testing.assert_close(flow.train()(rows, given), expected, atol=1e-12, rtol=1e-12)
    theirs.load_state_dict(before)
    statistics = [n for n, value in before.items() if n.endswith(("running_mean", "running_var"))]
    for name in statistics:
        assert not torch.equal(flow.network.get_buffer(name.split(".", 1)[1]), before[name])
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    torch.testing.assert_close(theirs.state_dict(), before)


def test_taken_over_again_through_its_state():
    theirs = [maf(5, 8, use_residual_blocks=False, random_mask=True) for _ in range(2)]
    first = AffineAutoregressive.from_nflows(theirs[0])
    again = AffineAutoregressive.from_nflows(theirs[0])
    with torch.no_grad():
        again.network.initial_layer.weight.zero_()
    again.load_state_dict(first.state_dict())
    rows, _ = drawn(5)
    assert torch.equal(again(rows)[0], first(rows)[0])
    state = {**first.state_dict()}
    state["network.final_layer.mask"] = 1 - state["network.final_layer.mask"]
    with pytest.raises(RuntimeError, match="expected that of the degrees"):
        again.load_state_dict(state)


class Own(MAF):
    pass


def put(path, value, **options):
    """A flow of nflows with something else in one place."""
    flow = MAF(5, 16, **options)
    parent, _, name = path.rpartition(".")
    setattr(flow.get_submodule(parent), name, value)
    return flow


def hooked():
    flow = MAF(5, 16)
    flow.autoregressive_net.blocks[0].register_forward_hook(lambda *_: None)
    return flow


def with_method():
    flow = MAF(5, 16)
    flow.autoregressive_net.forward = flow.autoregressive_net.forward
    return flow


NET = "autoregressive_net"
STRANGE = {
    "subclass": (lambda: Own(5, 16), "Own"),
    "scale": (lambda: put("_epsilon", 1e-2), "0.01"),
    "part": (lambda: put(f"{NET}.final_layer", nn.Linear(16, 10)), "without masks"),
    "network": (lambda: put(NET, MaskedResidualMLP(5)), "MaskedResidualMLP in it"),
    "mask": (lambda: put(f"{NET}.final_layer.mask", torch.eye(10, 16)), "masks"),
    "hook": (hooked, "hooks"),
    "method": (with_method, "a forward of its own"),
    "activation of a block": (
        lambda: put(f"{NET}.blocks.0.activation", torch.tanh),
        "activations of their own",
    ),
    "softmax": (lambda: MAF(5, 16, activation=lambda x: x.softmax(-1)), "not elementwise"),
    "slopes": (lambda: MAF(5, 16, activation=nn.PReLU(16)), "not elementwise"),
    "statistics": (
        lambda: put(
            f"{NET}.blocks.0.batch_norm_layers.0",
            nn.BatchNorm1d(16, track_running_stats=False),
            use_batch_norm=True,
        ),
        "statistics",
    ),
}


@pytest.mark.parametrize("make, reason", STRANGE.values(), ids=STRANGE.keys())
def test_what_its_weights_do_not_tell_keeps_its_passes(make, reason):
    flow = make().double().eval()
    assert reason in why_not_foldable(flow)
    with pytest.raises(ValueError, match=f"expected a plain .*got .*{reason}.*; use"):
        AffineAutoregressive.from_nflows(flow)
    latents, _ = drawn(5)
    with torch.no_grad():
        torch.testing.assert_close(inverse_of(flow)(latents), flow.inverse(latents))


def test_dropout_is_not_taken_over():
    with pytest.raises(ValueError, match="without dropout, got dropout_probability=0.5"):
        AffineAutoregressive.from_nflows(MAF(5, 16, dropout_probability=0.5))


@contexts
def test_starts_at_the_identity(context):
    rows, given = torch.randn(20, 7), context and torch.randn(20, context)
    for scale in ("exp", "tanh", "sigmoid", "softplus", "nflows"):
        flow = AffineAutoregressive(7, context_features=context, scale=scale)
        outputs, logabsdet = flow(rows, given)
        torch.testing.assert_close(outputs, rows)
        torch.testing.assert_close(logabsdet, torch.zeros(20), atol=1e-5, rtol=0)


@contexts
def test_wrong_inputs_are_errors(context):
    flow = AffineAutoregressive(5, context_features=context)
    rows, given = torch.randn(4, 5), context and torch.randn(4, context)
    wrong = torch.randn(4, 2) if context is None else None
    for function in (flow, flow.inverse):
        for inputs in ((rows[:, :4], given), (rows, wrong), (rows, torch.randn(3, context or 1))):
            with pytest.raises(ValueError, match="expected .*, got"):
                function(*inputs)


def test_wrong_sizes_are_errors():
    for options in ({"hidden_features": 0}, {"num_blocks": 0}, {"context_features": 0}):
        with pytest.raises(ValueError, match="to be a positive integer, got 0"):
            AffineAutoregressive(5, **options)
    with pytest.raises(ValueError, match="features to be a positive integer, got 0"):
        MaskedMLP(0, [[1]])
    with pytest.raises(ValueError, match="scale to be one of"):
        AffineAutoregressive(5, scale="sinh")
    for degrees in ([], [[]], [1, 2], [[4, 1]], [[1, -1]], [[1.0, 2.0]], 3):
        with pytest.raises(
            ValueError, match="MaskedMLP: expected degrees as .* from 0 to 3, .*got"
        ):
            MaskedMLP(3, degrees)


def test_weights_are_loaded_onto_the_meta_device_and_off_it():
    first = MaskedMLP(4, [[1, 2, 3], [3, 2, 1]]).eval()
    with torch.device("meta"):
        second = MaskedMLP(4, [[1, 2, 3], [3, 2, 1]]).eval()
    second.load_state_dict(first.state_dict(), assign=True)
    rows, _ = drawn(4)
    assert torch.equal(second.double()(rows), first.double()(rows))


def test_autocast_leaves_the_inverse_exact():
    for flow in (ours(6).float(), maf(6, 16).float()):
        latents = torch.randn(5, 6)
        with torch.no_grad():
            expected = inverse_of(flow)(latents)
            with torch.autocast("cpu", torch.bfloat16):
                got = inverse_of(flow)(latents)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize(
    "make",
    [
        partial(MaskedResidualMLP, 4, 3, num_blocks=2),
        partial(MaskedMLP, 4, [[1, 2, 3], [3, 2, 1]], 3),
    ],
)
def test_outputs_of_a_feature_see_the_features_before_it_alone(make, norm, training):
    """Of all rows, which batch normalization mixes in training."""
    network = make(norm=norm).double().train(training)
    nn.init.normal_(network.final_layer.weight)
    rows = torch.randn(5, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, rows)
    sees = jacobian.unflatten(1, (4, 3)).abs().sum((0, 2, 3)) > 0
    assert torch.equal(sees, torch.ones(4, 4).tril(-1).bool())


@pytest.mark.parametrize("make", [MaskedResidualMLP, partial(MaskedMLP, degrees=[[1, 2], [2, 1]])])
def test_layer_norm_would_break_the_masks_and_is_refused(make):
    with pytest.raises(ValueError, match="expected .*'batch' or None, got 'layer'; .*mask hides"):
        make(4, norm="layer")
    # What it would do: parameters of the second feature see more than the first.
    network = make(4, norm="batch").double()
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.BatchNorm1d):
            network.set_submodule(name, nn.LayerNorm(part.num_features).double())
    nn.init.normal_(network.final_layer.weight)
    row = torch.randn(1, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, row)[0, :, 0]
    assert jacobian[2:4, 1:].any()


def test_pickle_of_what_was_taken_over():
    theirs = maf(5, 8, 3, use_residual_blocks=False, random_mask=True, activation=nn.PReLU())
    flow = AffineAutoregressive.from_nflows(theirs)
    rows, given = drawn(5, 3)
    again = pickle.loads(pickle.dumps(flow))
    torch.testing.assert_close(again.inverse(rows, given), flow.inverse(rows, given))
