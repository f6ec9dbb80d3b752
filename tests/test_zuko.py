"""zuko's flows as ours, and ours inside zuko: what the generic properties do not say."""

import copy
from functools import partial

import pytest
import torch
import zuko
from nflows import transforms as nflows_transforms
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow as nflows_Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF
from torch import nn, zeros

from nflows_mixer.adapters import from_zuko, to_zuko
from nflows_mixer.distributions import DiagonalNormal, NormalMixture
from nflows_mixer.flows import mixerflow
from nflows_mixer.nn import ConvConditioner, LipschitzMLP, ResidualMLP
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    ChannelMixingTransform,
    CompositeTransform,
    FlowLayer,
    GlowStep,
    GlowSteps,
    InverseTransform,
    InvertibleConv1x1,
    PatchMixerTransform,
    PixelScaling,
    ReshapeTransform,
    ResidualTransform,
    SqueezeTransform,
    UniformDequantization,
    initialize_identity,
)
from tests.helpers import central_difference, expect, moved
from tests.jacobian import jacobian_logabsdet

small = {"hidden_features": (16,)}


def exact(flow, std=0.05):
    """In float64, with every parameter off its start."""
    return moved(flow, std).double()


# zuko's flows as nflows transforms.


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, step",
    [
        (partial(zuko.flows.NAF, transforms=2, **small), 1e-6),
        (partial(zuko.flows.UNAF, transforms=1, **small), 1e-5),
        (partial(zuko.flows.CNF, atol=1e-8, rtol=1e-8, **small), 1e-2),
        (partial(zuko.flows.SOSPF, transforms=2, **small), 1e-5),
        (partial(zuko.flows.GF, transforms=1), 1e-5),
    ],
    ids=["NAF", "UNAF", "CNF", "SOSPF", "GF"],
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_in_evaluation_mode(make, step, direction):
    """Where zuko's own are wrong (UNAF) or missing (CNF); against central differences."""
    torch.manual_seed(0)
    transform = exact(from_zuko(make(3))).eval()
    inputs = 0.5 * torch.randn(4, 3, dtype=torch.float64)
    weights = torch.randn(4, 3, dtype=torch.float64)

    def loss():
        outputs, logabsdet = getattr(transform, direction)(inputs)
        return (weights * outputs).sum() + logabsdet.sum()

    loss().backward()
    assert not any(module.training for module in transform.modules())
    for parameter in transform.parameters():
        direction_of_step = torch.randn_like(parameter)
        slope = (parameter.grad * direction_of_step).sum()
        numeric = central_difference(loss, parameter, direction_of_step, step)
        torch.testing.assert_close(slope, numeric, rtol=2e-2 if step == 1e-2 else 1e-3, atol=1e-5)


def test_masked_inverse_is_that_of_all_passes_bit_for_bit_and_takes_fewer():
    flow = zuko.flows.MAF(48, transforms=1, hidden_features=(64,))
    transform, passes = from_zuko(flow), []
    flow.transform.transforms[0].hyper.register_forward_hook(lambda *_: passes.append(1))
    latents = torch.randn(7, 48)
    with torch.no_grad():
        outputs, _ = transform.inverse(latents)
        taken = len(passes)
        expected = flow.transform().inv(latents)
    assert len(passes) - taken == 48
    assert torch.equal(outputs, expected)
    assert taken <= 24


@pytest.mark.parametrize(
    "kind, options", [("SOSPF", {"transforms": 1}), ("NAF", {"transforms": 1}), ("BPF", {})]
)
def test_inverse_beyond_the_bounds_of_zukos_bisection(kind, options):
    torch.manual_seed(0)
    flow = getattr(zuko.flows, kind)(4, **options, **small).double()
    inputs = torch.linspace(-40, 40, 36, dtype=torch.float64).reshape(-1, 4)
    transform = from_zuko(flow)
    with torch.no_grad():
        outputs, _ = transform(inputs)
        back, _ = transform.inverse(outputs)
        of_zuko = flow.transform().inv(outputs)
    torch.testing.assert_close(back, inputs, atol=1e-8, rtol=1e-8)
    if kind != "BPF":
        assert (of_zuko - inputs).abs().max() > 1


def test_inverse_without_a_solution_is_an_error():
    torch.manual_seed(0)
    gaussianization = from_zuko(zuko.flows.GF(3, transforms=1))
    with expect(ValueError, "GaussianizationTransform"):
        gaussianization.inverse(torch.tensor([[0.0, 0.1, 0.2], [0.0, 40.0, 0.0]]))
    clipped = from_zuko(zuko.flows.SOSPF(3, transforms=2))
    with expect(ValueError, "between -11.0 and 11.0"):
        clipped.inverse(torch.full((1, 3), 1e6))


@pytest.mark.slow
def test_free_form_flow_to_the_precision_it_is_asked_for():
    torch.manual_seed(0)
    make = partial(zuko.flows.CNF, atol=1e-9, rtol=1e-9, **small)
    layer = ChannelMixingTransform(exact(from_zuko(make(4)))).eval()
    matrix = torch.randn(2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        outputs, logabsdet = layer(matrix)
        back, _ = layer.inverse(outputs)
    torch.testing.assert_close(back, matrix, atol=1e-7, rtol=0)
    expected = jacobian_logabsdet(layer.forward, matrix)
    # zuko holds the log-det to a hundredth of the solver's precision.
    torch.testing.assert_close(logabsdet, expected, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_free_form_inverse_that_misses_is_an_error():
    torch.manual_seed(0)
    transform = from_zuko(zuko.flows.CNF(4, **small))
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter *= 8
    with expect(ValueError, "takes back to y"):
        transform.inverse(3 * torch.randn(20, 4))


def gaussianization(features, context=0):
    shapes = [(8,), (8,)]
    univariate = zuko.transforms.GaussianizationTransform
    return zuko.flows.ElementWiseTransform(features, context, univariate, shapes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gaussianization(4),
        lambda: zuko.flows.GF(4, transforms=2).transform,
        lambda: zuko.flows.MAF(4, transforms=2, **small).transform,
        lambda: zuko.flows.SOSPF(4, transforms=2, **small).transform,
        lambda: zuko.flows.NICE(4, **small).transform,
    ],
    ids=["elementwise", "GF", "MAF", "SOSPF", "NICE"],
)
def test_flows_turned_round_are_solved_by_the_same_solver(make):
    torch.manual_seed(0)
    lazy = make().double()
    there, back = from_zuko(lazy, 4), from_zuko(lazy.inv, 4)
    rows = torch.randn(7, 4, dtype=torch.float64)
    with torch.no_grad():
        outputs, logabsdet = there(rows)
        again, logabsdet_back = back(outputs)
        torch.testing.assert_close(again, rows, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(logabsdet_back, -logabsdet, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(back.inverse(rows)[0], outputs)
    expected = jacobian_logabsdet(back.forward, outputs)
    torch.testing.assert_close(back(outputs)[1], expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("kind", ["UNAF", "NAF", "SOSPF"])
def test_log_det_is_the_slope_of_what_is_computed(kind):
    """By differences: zuko's UNAF gives autograd the integrand for the slope of its quadrature."""
    torch.manual_seed(0)
    transform = exact(from_zuko(getattr(zuko.flows, kind)(2, transforms=1, **small)), 0.5)
    rows = torch.randn(50, 2, dtype=torch.float64)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(transform(rows)[0], transform.transform()(rows))
        columns = [
            (transform(rows + step[i])[0] - transform(rows - step[i])[0]) / 2e-5 for i in range(2)
        ]
        logabsdet = transform(rows)[1]
    expected = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    torch.testing.assert_close(logabsdet, expected, atol=1e-6, rtol=1e-6)


def test_a_flow_turned_round_has_no_solution_beyond_its_range():
    torch.manual_seed(0)
    with expect(ValueError, "GaussianizationTransform"):
        from_zuko(gaussianization(3).inv)(torch.full((1, 3), 8.0))


def unconditional(kind, *arguments, **keywords):
    return zuko.lazy.UnconditionalTransform(kind, *arguments, **keywords)


@pytest.mark.parametrize("kind", ["MAF", "NAF", "BPF", "GF", "CNF", "UNAF"])
def test_inference_mode(kind):
    torch.manual_seed(0)
    transform = from_zuko(getattr(zuko.flows, kind)(3)).eval()
    rows = 0.5 * torch.randn(4, 3)
    with torch.inference_mode():
        outputs, logabsdet = transform(rows + 0)
        back, _ = transform.inverse(outputs)
    torch.testing.assert_close(back, rows, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(transform(rows)[1].detach(), logabsdet, atol=1e-4, rtol=1e-4)


def test_trying_a_flow_out_leaves_its_state():
    norm, batch_norm = ActNorm(4), nflows_transforms.BatchNorm(4)
    own = zuko.flows.MaskedAutoregressiveTransform(4, **small)
    lazy = zuko.lazy.LazyComposedTransform(
        own, to_zuko(norm), to_zuko(batch_norm, event_shape=(4,))
    )
    before = copy.deepcopy(lazy.state_dict())
    transform = from_zuko(lazy, 4)
    assert not norm.initialized
    assert all(torch.equal(before[name], value) for name, value in lazy.state_dict().items())
    transform(torch.randn(100, 4))
    assert norm.initialized


def test_context_of_half_precision_and_one_that_is_not_taken():
    rows, context = torch.randn(3, 4), torch.randn(3, 2)
    conditional = from_zuko(zuko.flows.GF(4, 2))
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = conditional(rows, context.bfloat16())
    assert outputs.dtype == torch.float32
    plain = from_zuko(zuko.flows.NSF(4, **small))
    flow = nflows_transforms.CompositeTransform([plain, conditional])
    assert flow(rows, context)[0].shape == rows.shape


def test_identity_start_of_a_composition_with_a_rotation():
    rotation = unconditional(zuko.transforms.RotationTransform, torch.randn(4, 4))
    own = zuko.flows.MaskedAutoregressiveTransform(4, **small)
    with expect(ValueError, "rotation.*leave identity_start out"):
        from_zuko(zuko.lazy.LazyComposedTransform(own, rotation), identity_start=True)
    for other in (rotation, zuko.flows.NAF(4)):
        with expect(ValueError, "leave identity_start out"):
            from_zuko(other, 4, identity_start=True)


@pytest.mark.parametrize("kind", ["MAF", "NSF", "NICE", "CNF"])
def test_identity_start(kind):
    transform = from_zuko(getattr(zuko.flows, kind)(6, **small), identity_start=True)
    inputs = torch.randn(5, 6)
    with torch.no_grad():
        outputs, logabsdet = transform(inputs)
    torch.testing.assert_close(outputs, inputs, atol=1e-5, rtol=0)
    torch.testing.assert_close(logabsdet, torch.zeros(5), atol=1e-5, rtol=0)


def test_the_transform_is_not_a_snapshot():
    flow = zuko.flows.MAF(4, transforms=1, **small)
    transform, inputs = from_zuko(flow), torch.randn(3, 4)
    before = transform(inputs)[0].detach()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1
    assert not torch.allclose(transform(inputs)[0], before)


@pytest.mark.parametrize(
    "make, features, context",
    [
        (lambda: zuko.flows.MAF(5), 5, 0),
        (lambda: zuko.flows.NSF(5, 2), 5, 2),
        (lambda: zuko.flows.NICE(5, 3), 5, 3),
        (lambda: zuko.flows.GF(5, 4), 5, 4),
        (lambda: zuko.flows.GF(5), 5, 0),
        (lambda: zuko.flows.CNF(5, 2, **small), 5, 2),
        (lambda: zuko.flows.UNAF(5, 2, **small), 5, 2),
        (lambda: zuko.flows.MAF(5, 2).transform.transforms[0], 5, 2),
    ],
)
def test_sizes_are_read_from_the_flow(make, features, context):
    transform = from_zuko(make())
    assert (transform.features, transform.context_features) == (features, context)
    assert transform.takes_context == (context > 0)


class Shift(zuko.lazy.LazyTransform):
    """A lazy transform of the user's own, of which nothing is known."""

    def __init__(self, conditional):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.conditional = conditional

    def forward(self, c=None):
        shift = self.weight * c if self.conditional else self.weight
        return zuko.transforms.MonotonicAffineTransform(shift, torch.zeros(4))


CNF = zuko.flows.CNF
ROTATION = unconditional(zuko.transforms.RotationTransform, torch.eye(4))


def test_a_lazy_transform_of_ones_own_is_tried_for_context():
    assert not from_zuko(Shift(False), features=4).takes_context
    assert from_zuko(Shift(True), features=4).takes_context
    layer = ChannelMixingTransform(from_zuko(Shift(True), features=4))
    assert layer(torch.zeros(2, 3, 4), torch.ones(2, 4))[0].eq(1).all()


@pytest.mark.parametrize(
    "call, kind, pattern",
    [
        (lambda: from_zuko(Shift(False)), ValueError, "how long its rows are.*pass features"),
        (lambda: from_zuko(zuko.flows.MAF(4, 2), context_features=3), ValueError, "2 and 3"),
        (lambda: from_zuko(ROTATION, 5), ValueError, "rows of length 5"),
        (lambda: from_zuko(zuko.flows.GMM(4)), TypeError, "GMM; a distribution"),
        (lambda: from_zuko(nn.Linear(3, 3)), TypeError, "Flow or LazyTransform, got Linear"),
        (lambda: from_zuko(zuko.transforms.IdentityTransform()), TypeError, "Unconditional"),
        (lambda: from_zuko(CNF(3, exact=False)), ValueError, "no likelihood"),
        (lambda: from_zuko(zuko.flows.MAF(3))(zeros(2, 4)), ValueError, r"\[B, 3\], got \[2, 4"),
        (lambda: from_zuko(zuko.flows.MAF(3, 2))(zeros(2, 3)), ValueError, "2 features, got 0"),
        (lambda: from_zuko(CNF(3, atol=1e-8, rtol=1e-8))(zeros(2, 3)), ValueError, "atol"),
        (
            lambda: PatchMixerTransform((1, 4, 4), 2, zuko.flows.MAF(5), FlowLayer),
            ValueError,
            "rows of one length, got 4 and 5",
        ),
    ],
)
def test_errors_of_from_zuko(call, kind, pattern):
    with expect(kind, pattern):
        call()


# Ours inside zuko.


def normal(shape, dtype=torch.float32):
    return zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal,
        torch.zeros(shape, dtype=dtype),
        torch.ones(shape, dtype=dtype),
        buffer=True,
        ndims=len(shape),
    )


def conditional_layer(features, context):
    coupling = partial(AffineCoupling, conditioner=network(context))
    return FlowLayer(features, actnorm=None, flow=coupling)


def network(context):
    return partial(ResidualMLP, hidden_features=8, context_features=context)


def small_mixerflow(**options):
    torch.manual_seed(0)
    sizes = {"image_shape": (1, 4, 4), "patch_size": 2, "levels": 4, "num_layers": 2}
    rest = {"shift": None, "num_flow_layers": 2, "hidden_features": 8}
    flow = mixerflow(**{**sizes, **rest, **options})
    images = torch.randint(4, (64, 1, 4, 4), dtype=torch.uint8)
    context = options.get("context_features")
    flow.initialize(images, context and torch.randn(64, context))
    return exact(flow)


def test_log_prob_is_that_of_the_nflows_side():
    flow = small_mixerflow().eval()
    torch.nn.init.normal_(flow._distribution.log_scale, std=0.1)  # the base comes along
    inside = to_zuko(flow)
    pixels = 4 * torch.rand(9, 1, 4, 4, dtype=torch.float64)
    expected = flow.deterministic.log_prob(pixels)
    torch.testing.assert_close(inside().log_prob(pixels), expected, atol=1e-10, rtol=1e-10)
    samples, log_prob = inside().rsample_and_log_prob((5,))
    expected = flow.deterministic.log_prob(samples)
    torch.testing.assert_close(log_prob, expected, atol=1e-10, rtol=1e-10)


def test_a_conditional_mixerflow_agrees_and_broadcasts():
    flow = small_mixerflow(context_features=3).eval()
    inside = to_zuko(flow)
    pixels = 4 * torch.rand(5, 1, 4, 4, dtype=torch.float64)
    context = torch.randn(2, 1, 3, dtype=torch.float64)
    log_prob = inside(context).log_prob(pixels)
    assert log_prob.shape == (2, 5)
    torch.testing.assert_close(log_prob[1], inside(context[1, 0]).log_prob(pixels))
    assert inside(context).sample((7,)).shape == (7, 2, 1, 1, 4, 4)


def test_a_plain_flow_of_nflows():
    """Its composite gates the context, stops early, and leaves batch statistics alone."""
    torch.manual_seed(0)
    masked = MAF(8, 16, use_batch_norm=True)
    conditional = MAF(8, 16, context_features=2)
    composite = nflows_transforms.CompositeTransform([masked, conditional])
    flow = nflows_Flow(composite, StandardNormal([8]))
    inside = to_zuko(flow)
    context, passes = torch.randn(2), []
    inside(context).log_prob(torch.randn(50, 8))
    before = copy.deepcopy(flow.state_dict())
    latents = torch.randn(5, 8)
    expected = inside.eval()(context).transform.inv(latents)
    conditional.autoregressive_net.register_forward_hook(lambda *_: passes.append(1))
    torch.testing.assert_close(inside.train()(context).transform.inv(latents), expected)
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    with torch.no_grad():
        passes.clear()
        inside(context).sample((5,))
    assert 0 < len(passes) <= 8


def test_parts_in_another_mode_than_the_whole():
    """A bridge is a module of its own; what it shares may be set to train by its owner."""
    composite = nflows_transforms.CompositeTransform([nflows_transforms.BatchNorm(3)])
    lazy = to_zuko(composite, event_shape=(3,)).eval()
    composite.train()
    before = copy.deepcopy(composite.state_dict())
    lazy().inv(torch.randn(4, 3))
    assert all(
        torch.equal(before[name], value) for name, value in lazy.transform.state_dict().items()
    )


def test_shapes_that_change():
    squeeze = SqueezeTransform(2)
    lazy = to_zuko(squeeze, event_shape=(1, 4, 4), noise_shape=(4, 2, 2))
    images = torch.randn(3, 1, 4, 4)
    assert lazy()(images).shape == (3, 4, 2, 2)
    assert torch.equal(lazy().inv(lazy()(images)), images)
    plain = nflows_Flow(squeeze, StandardNormal([4, 2, 2]))
    assert to_zuko(plain, event_shape=(1, 4, 4)).transform().inverse_shape((4, 2, 2)) == (1, 4, 4)
    with expect(ValueError, "outputs of shape .*noise_shape"):
        to_zuko(squeeze, event_shape=(1, 4, 4), noise_shape=(1, 4, 4))()(images)


INSIDE = {
    "MixerFlow": lambda: (small_mixerflow(context_features=5), (1, 4, 4)),
    "FlowLayer": lambda: (exact(conditional_layer(6, 5)), (6,)),
    "residual": lambda: (
        exact(ResidualTransform(3, partial(LipschitzMLP, hidden_features=8, context_features=5))),
        (3,),
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_generic_checks_of_zuko(name, tmp_path):
    """What zuko asks of each of its own flows: shapes, gradients, inverse, Jacobians, saving."""
    torch.manual_seed(0)
    transform, shape = INSIDE[name]()
    lazy = to_zuko(getattr(transform, "_transform", transform).eval(), 5, shape)
    flow = zuko.lazy.Flow(lazy, normal(shape, torch.float64))
    x = torch.randn(32, *shape, dtype=torch.float64)
    c = torch.randn(5, dtype=torch.float64)

    log_prob = flow(c).log_prob(x)
    assert log_prob.shape == (32,) and log_prob.requires_grad
    (-log_prob.mean()).backward()
    shared = list(flow.transform.parameters())
    assert shared and all(p.grad is not None for p in shared)

    assert flow(c).sample((8,)).shape == (8, *shape)
    flow.zero_grad(set_to_none=True)
    sample = flow(c).rsample()
    assert sample.shape == shape
    sample.square().sum().sqrt().backward()
    assert all(p.grad is not None for p in shared)

    contexts = torch.randn(32, 5, dtype=torch.float64)
    built = flow(contexts).transform
    torch.testing.assert_close(built.inv(built(x)), x, atol=1e-8, rtol=1e-8)

    built, point = flow(c).transform, x[0]
    size = point.numel()
    image = built(point)
    jacobian = torch.autograd.functional.jacobian(built, point).reshape(size, size)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(built.log_abs_det_jacobian(point, image), expected)
    image = image.detach()
    jacobian = torch.autograd.functional.jacobian(built.inv, image).reshape(size, size)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(built.inv.log_abs_det_jacobian(image, point), expected)

    torch.save(flow, tmp_path / "flow.pt")
    loaded = torch.load(tmp_path / "flow.pt", weights_only=False)
    assert torch.equal(loaded(c).log_prob(x), flow(c).log_prob(x))
    copied = copy.deepcopy(flow)
    assert torch.equal(copied(c).log_prob(x), flow(c).log_prob(x))
    assert type(transform).__name__ in repr(flow) or name == "MixerFlow"
    assert "data to noise" in repr(flow(c)) and "noise to data" in repr(built.inv)
    assert built.inv.inv == built and built.inv != built


def test_among_the_transforms_of_zuko():
    torch.manual_seed(0)
    layer = exact(conditional_layer(4, 2)).eval()
    own = zuko.flows.MaskedAutoregressiveTransform(4, 2, **small).double()
    flow = zuko.lazy.Flow([own, to_zuko(layer, 2), own.inv], normal((4,), torch.float64))
    context = torch.randn(6, 2, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    transform = flow(context).transform
    torch.testing.assert_close(transform.inv(transform(x)), x)
    assert flow(context).log_prob(x).shape == (6,)
    # And back again: the whole as a channel flow.
    mixing = ChannelMixingTransform(from_zuko(flow, 4, 2)).double()
    matrix = torch.randn(2, 3, 4, dtype=torch.float64)
    outputs, logabsdet = mixing(matrix, context[:2])
    expected = jacobian_logabsdet(mixing.forward, matrix, context[:2])
    torch.testing.assert_close(logabsdet, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(mixing.inverse(outputs, context[:2])[0], matrix)


def conditional():
    return AffineCoupling(4, network(3))


@pytest.mark.parametrize(
    "call, kind, pattern",
    [
        (lambda: to_zuko(zuko.flows.MAF(3)), TypeError, "Transform or Flow, got MAF"),
        (lambda: to_zuko(UniformDequantization(), 0, (4,)), ValueError, "UniformDequantization"),
        (lambda: to_zuko(from_zuko(Shift(False), 4), 2), ValueError, "context_features.*got 2"),
        (lambda: to_zuko(conditional(), 0), ValueError, "context_features=3, got 0"),
        (lambda: to_zuko(conditional(), 3)(), ValueError, "3 features, got 0"),
        (lambda: to_zuko(conditional(), 3)(torch.arange(3)), ValueError, "got torch.int64"),
        (lambda: to_zuko(conditional(), 3)(zeros(3))(zeros(2, 5)), ValueError, r"4\], got \[2, 5"),
        (lambda: to_zuko(FlowLayer(4), event_shape=(5,)), ValueError, r"\(4,\), got \(5,\)"),
    ],
)
def test_errors_of_to_zuko(call, kind, pattern):
    with expect(kind, pattern):
        call()


def test_a_transform_that_does_not_say_its_shape():
    IdentityTransform = nflows_transforms.IdentityTransform
    with expect(ValueError, "event_shape"):
        to_zuko(IdentityTransform())
    composite = CompositeTransform([nflows_transforms.LULinear(4)])
    assert to_zuko(composite)()(torch.zeros(2, 4)).shape == (2, 4)
    assert to_zuko(IdentityTransform(), event_shape=(3,))()(torch.zeros(2, 3)).shape == (2, 3)


def test_images_are_the_event_of_a_chain_of_mixers_and_of_what_reads_them():
    mixers = [PatchMixerTransform((1, 4, 4), 2, FlowLayer, FlowLayer) for _ in range(2)]
    assert to_zuko(CompositeTransform(mixers)).event_shape == (1, 4, 4)
    assert to_zuko(CompositeTransform([PixelScaling(256), *mixers])).event_shape == (1, 4, 4)
    reshape = ReshapeTransform((16,), (1, 4, 4))
    lazy = to_zuko(CompositeTransform([reshape, *mixers]))
    assert (lazy.event_shape, lazy.noise_shape) == ((16,), (1, 4, 4))
    with expect(ValueError, "event_shape"):
        to_zuko(CompositeTransform([SqueezeTransform(2), mixers[0]]))


IMAGE_PARTS = {
    "a step of Glow": lambda: GlowStep(4),
    "convolutions": lambda: CompositeTransform([InvertibleConv1x1(4), InvertibleConv1x1(4)]),
    "nflows' convolution": lambda: CompositeTransform([nflows_transforms.OneByOneConvolution(4)]),
    "a squeeze before a step": lambda: CompositeTransform([SqueezeTransform(2), GlowStep(16)]),
    "nflows' squeeze": lambda: CompositeTransform(
        [nflows_transforms.SqueezeTransform(2), ActNorm(16)]
    ),
    "a coupling of convolutions": lambda: AffineCoupling(4, ConvConditioner),
    "the inverse of a step": lambda: InverseTransform(GlowStep(4)),
}


@pytest.mark.filterwarnings("ignore:torch.triangular_solve")  # in nflows
@pytest.mark.parametrize("make", IMAGE_PARTS.values(), ids=IMAGE_PARTS.keys())
def test_parts_of_images_are_no_flows_of_rows(make):
    torch.manual_seed(0)
    transform = initialize_identity(make())
    with expect(ValueError, "event_shape"):
        to_zuko(transform)
    lazy = to_zuko(transform, event_shape=(4, 6, 6))
    images = torch.randn(2, 4, 6, 6)
    latents, _ = lazy().call_and_ladj(images)
    assert latents.shape == (2, *lazy.noise_shape)
    torch.testing.assert_close(lazy().inv(latents), images, atol=1e-4, rtol=1e-4)
    named = CompositeTransform([transform, GlowSteps((4, 6, 6))])
    if lazy.noise_shape == (4, 6, 6):
        assert to_zuko(named).event_shape == (4, 6, 6)


@pytest.mark.parametrize(
    "base",
    [StandardNormal([4]), DiagonalNormal((4,)), NormalMixture((4,)), "conditional"],
    ids=["nflows", "learned", "mixture", "conditional"],
)
def test_the_base_of_a_flow_comes_along(base):
    torch.manual_seed(0)
    context = None
    if base == "conditional":
        base, context = ConditionalDiagonalNormal([4], torch.nn.Linear(3, 8)), torch.randn(2, 1, 3)
    flow = nflows_Flow(initialize_identity(FlowLayer(4)), base)
    inside = to_zuko(flow, None if context is None else 3)
    rows = torch.randn(2, 5, 4)
    log_prob = inside(context).log_prob(rows)
    given = None if context is None else context.expand(2, 5, 3).reshape(10, 3)
    expected = flow.log_prob(rows.reshape(10, 4), given).reshape(2, 5)
    torch.testing.assert_close(log_prob, expected)
    batch = () if context is None else (2, 1)
    samples = inside(context).sample((7,))
    assert samples.shape == (7, *batch, 4) and not samples.requires_grad
    if not isinstance(base, NormalMixture):  # which has no reparametrization
        inside(context).rsample((7,)).square().sum().backward()
        assert all(p.grad is not None for p in base.parameters())
