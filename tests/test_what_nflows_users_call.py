"""What users of nflows and numpy call, and pass."""

from functools import partial

import numpy as np
import pytest
import torch
import zuko
from nflows.transforms import Transform
from torch import nn

from nflows_mixer.adapters import to_zuko
from nflows_mixer.core import as_transform
from nflows_mixer.distributions import (
    DiagonalNormal,
    NormalMixture,
    ProductDistribution,
    StudentT,
)
from nflows_mixer.evaluation import evaluate
from nflows_mixer.flows import ImageFlow, Pixels, mixerflow
from nflows_mixer.flows.weights import load_weights, save_weights
from nflows_mixer.training import Recipe
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    ButterflyLinear,
    CompositeTransform,
    ConditionalNoise,
    FlowLayer,
    FullLinear,
    GlowStep,
    InvertibleConv1x1,
    KroneckerLinear,
    LULinear,
    PatchTransform,
    PermutePixels,
    PixelScaling,
    RationalQuadraticCoupling,
    ResidualTransform,
    RLULinear,
    initialize_identity,
)
from tests.helpers import moved

SMALL = {"image_shape": (1, 4, 4), "patch_size": 2, "num_layers": 1, "shift": None}
LINEAR = [LULinear, RLULinear, FullLinear, ButterflyLinear, KroneckerLinear]


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_blocks_have_their_matrix_its_inverse_and_its_determinant(kind):
    torch.manual_seed(0)
    linear = moved(kind(6).double(), 0.1)
    rows = torch.randn(4, 6, dtype=torch.float64)
    bias = linear(torch.zeros(1, 6, dtype=torch.float64))[0]
    weight = linear.weight()
    torch.testing.assert_close(linear(rows)[0], rows @ weight.t() + bias)
    torch.testing.assert_close(linear.weight_inverse(), torch.linalg.inv(weight))
    torch.testing.assert_close(linear.logabsdet(), torch.linalg.slogdet(weight).logabsdet)


@pytest.mark.parametrize("matrix", ["lu", "full"])
def test_the_1x1_convolution_has_them_too(matrix):
    torch.manual_seed(0)
    convolution = moved(InvertibleConv1x1(3, matrix).double(), 0.1)
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.einsum("ij,bjhw->bihw", convolution.weight(), images)
    outputs, logabsdet = convolution(images)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(logabsdet, 20 * convolution.logabsdet().expand(2))
    product = convolution.weight() @ convolution.weight_inverse()
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64))


def test_bases_have_a_mean():
    location = torch.arange(3.0)
    base = DiagonalNormal(3)
    base.location.data.copy_(location)
    assert base.mean().tolist() == location.tolist()
    assert base.mean(torch.zeros(2, 5)).shape == (2, 3)
    assert NormalMixture((2, 2)).mean().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    product = ProductDistribution({"first": base, "last": DiagonalNormal((1, 2))})
    assert product.mean().tolist() == [0.0, 1.0, 2.0, 0.0, 0.0]


class Fork(nn.Module):
    """As a fork's: its own base class, nflows' contract."""

    def __init__(self, features):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((features,), 0.5))

    def forward(self, inputs, context=None):
        return inputs * self.log_scale.exp(), self.log_scale.sum().expand(len(inputs))

    def inverse(self, inputs, context=None):
        return inputs * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(inputs))


class WrongFork(Fork):
    def inverse(self, inputs, context=None):
        return inputs, -self.log_scale.sum().expand(len(inputs))


def test_a_transform_of_a_fork_is_taken_and_tried_out():
    transform = as_transform(Fork, 4)
    assert isinstance(transform, Transform)
    outputs, logabsdet = transform(torch.ones(2, 4))
    assert logabsdet.tolist() == [2.0, 2.0]
    torch.testing.assert_close(transform.inverse(outputs)[0], torch.ones(2, 4))
    images = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    flow = mixerflow(**SMALL, channel_flow=Fork).initialize(images)
    assert flow.log_prob(images).isfinite().all()
    assert CompositeTransform([Fork(4), LULinear(4)])(torch.ones(2, 4))[1].shape == (2,)
    with pytest.raises(ValueError, match="not undone by its inverse"):
        as_transform(WrongFork, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlowLayer(6, flow=lambda d: AffineCoupling(d), context_features=3),
        lambda: FlowLayer(6, flow=None, context_features=3),
        lambda: FlowLayer(6, flow=AffineCoupling(6), context_features=3),
        lambda: FlowLayer(6, flow=partial(zuko.flows.MAF, transforms=1), context_features=3),
        lambda: AffineCoupling(6, nn.Linear, context_features=3),
        lambda: AffineCoupling(6, nn.Linear(3, 6), context_features=3),
        lambda: ResidualTransform(6, lambda d: nn.Linear(d, d), context_features=3),
    ],
)
def test_a_context_that_nothing_would_read_is_refused(make):
    with pytest.raises(ValueError, match="a part that takes context of 3 features, got none"):
        make()


@pytest.mark.parametrize(
    "flow",
    [
        AffineCoupling,
        partial(zuko.flows.MAF, context=3, transforms=1),
        lambda d: AffineCoupling(d, context_features=3),
        AffineCoupling(6, context_features=3),
    ],
)
def test_a_flow_layer_depends_on_its_context_whatever_its_flow(flow):
    torch.manual_seed(0)
    layer = initialize_identity(FlowLayer(6, flow=flow, context_features=3)).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    outputs, _ = layer(torch.ones(2, 6), torch.tensor([[0.0] * 3, [5.0] * 3]))
    assert not torch.allclose(outputs[0], outputs[1])


def test_context_features_need_no_nested_partials():
    rows, context = torch.randn(20, 6), torch.randn(20, 3)
    for flow in (FlowLayer(6, context_features=3), AffineCoupling(6, context_features=3)):
        assert flow(rows, context)[1].shape == (20,)
        with pytest.raises(ValueError, match="context of 3 features"):
            flow(rows)


def test_one_row_in_training_mode_of_a_batch_norm_says_what_to_do():
    coupling = AffineCoupling(6, norm="batch")
    layer = FlowLayer(6, actnorm=None, flow=coupling)
    with pytest.raises(ValueError, match=r"two rows or more in training mode.*eval\(\)"):
        layer(torch.randn(1, 6))


def test_numbers_of_numpy_become_those_of_python(tmp_path):
    sizes = {
        "image_shape": np.array([1, 4, 4]),
        "patch_size": np.int64(2),
        "levels": np.int64(17),
        "num_layers": np.int32(1),
        "hidden_features": np.int64(8),
        "num_classes": np.int16(3),
        "shift": None,
        "pixels": Pixels(logit=np.float32(0.25), squeeze=np.int64(1)),
    }
    flow = mixerflow(**sizes)
    images = torch.randint(17, (9, 1, 4, 4), dtype=torch.uint8)
    flow.initialize(images, torch.arange(9) % 3)
    arguments = flow.architecture.arguments
    assert all(type(arguments[name]) is int for name in ("levels", "num_layers", "patch_size"))
    save_weights(flow, tmp_path / "weights.safetensors")
    loaded = load_weights(tmp_path / "weights.safetensors")
    assert loaded.architecture == flow.architecture
    assert loaded.image_shape == (1, 4, 4)
    kernel = partial(LULinear, bias=np.bool_(True))
    assert mixerflow(**SMALL, linear=kernel).image_shape == (1, 4, 4)


FOUR = np.int64(4)
OF_ROWS = [ActNorm, AdditiveCoupling, AffineAutoregressive, AffineCoupling, ButterflyLinear]
OF_ROWS += [FlowLayer, FullLinear, KroneckerLinear, LULinear, RLULinear, RationalQuadraticCoupling]
OF_ROWS += [ResidualTransform]


@pytest.mark.parametrize("kind", OF_ROWS)
def test_sizes_of_numpy_build_every_transform_of_rows(kind):
    transform = kind(FOUR)
    assert type(transform.features) is int and to_zuko(transform).event_shape == (4,)
    assert transform(torch.randn(5, 4))[0].shape == (5, 4)


@pytest.mark.parametrize("kind", [ActNorm, ConditionalNoise, GlowStep, InvertibleConv1x1])
def test_sizes_of_numpy_build_every_transform_of_channels(kind):
    transform = kind(FOUR)
    context = torch.randn(2, 64, 4, 4) if kind is ConditionalNoise else None
    assert transform(torch.randn(2, 4, 4, 4), context)[0].shape == (2, 4, 4, 4)
    assert type(getattr(transform, "channels", 4)) is int


@pytest.mark.parametrize("kind", [DiagonalNormal, StudentT, NormalMixture])
@pytest.mark.parametrize("shape", [FOUR, np.array([4]), (FOUR,)])
def test_sizes_of_numpy_build_every_base(kind, shape):
    assert kind(shape).sample(np.int64(3)).shape == (3, 4)


def test_numbers_of_numpy_and_torch_become_those_of_python_elsewhere():
    assert NormalMixture(4, scales=np.array([0.1, 1.0])).sample(2).shape == (2, 4)
    assert PatchTransform((1, 4, 4), np.array([2, 2])).patch_size == (2, 2)
    local = PermutePixels((1, 4, 4), "local", np.array([2, 2]), np.int64(3))
    assert torch.equal(local.source, PermutePixels((1, 4, 4), "local", 2, 3).source)
    flow = ImageFlow(PixelScaling(np.int64(17)), np.array([1, 4, 4]), levels=np.int64(17))
    assert type(flow.dequantization.levels) is int
    assert type(flow._transform.scale) is float
    rate = Recipe(learning_rate=torch.tensor(0.5)).learning_rate
    assert rate == 0.5 and type(rate) is float
    for name in ("learning_rate", "decay"):
        with pytest.raises(ValueError, match="expected numbers, got True for"):
            Recipe(**{name: True})


def test_evaluation_takes_numbers_and_context_of_numpy():
    flow = mixerflow(**SMALL, context_features=3)
    images = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    context = torch.randn(9, 3)
    flow.initialize(images, context)
    expected = evaluate(flow, images, context, batch_size=3, draws=2)
    given = {"batch_size": np.int64(3), "draws": np.int64(2), "seed": np.int64(0)}
    found = evaluate(flow, images.numpy(), context.numpy(), **given)
    assert torch.equal(found, expected)
