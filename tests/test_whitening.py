"""Linear blocks that start where they whiten the first batch."""

import math
from functools import partial

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.data import load_images
from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.training import FlowModule, Recipe
from nflows_mixer.transforms import (
    ActNorm,
    FlowLayer,
    FullLinear,
    GlowSteps,
    InvertibleConv1x1,
    LULinear,
    ReshapeTransform,
    ReversibleCompositeTransform,
    RLULinear,
    initialize,
)
from tests.helpers import expect, pixels
from tests.training import SHAPE, Recording, noise_data, run, tiny

BLOCKS = {
    "lu": LULinear,
    "no bias": partial(LULinear, bias=False),
    "reversed": RLULinear,
    "full": FullLinear,
}


def correlated(rows, features):
    torch.manual_seed(3)
    mix = torch.eye(features, dtype=torch.float64) + 0.3 * torch.randn(features, features).double()
    return torch.randn(rows, features, dtype=torch.float64) @ mix.mT + 5


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("composite", [CompositeTransform, ReversibleCompositeTransform])
def test_weight_is_the_symmetric_one_that_whitens(composite, name):
    """Also in a composite that makes a pass for its ActNorms alone."""
    rows = correlated(500, 5)
    block = BLOCKS[name](5).double()
    start = block.weight().detach().clone()
    initialize(composite([block, FlowLayer(5).double()]), rows, whiten=True)
    whitening = start.inverse() @ block.weight()
    torch.testing.assert_close(whitening, whitening.mT, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(whitening).min() > 0
    covariance = torch.cov(block(rows)[0].mT, correction=0)
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(covariance, identity, rtol=0, atol=1e-6)
    if block.bias is not None:
        mean = block(rows)[0].mean(0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)


def test_direction_that_the_batch_says_nothing_about_is_scaled_as_the_others():
    """Of two rows there is one direction with a variance: 2, and none across it."""
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    block = LULinear(2).double()
    initialize(CompositeTransform([block, ActNorm(2).double()]), rows, whiten=True)
    along = block.weight().detach() @ torch.tensor([1.0, 1.0], dtype=torch.float64)
    across = block.weight().detach() @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert along.tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-9)
    assert across.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-9)


@pytest.mark.parametrize("depth", [1, 8])
def test_blocks_behind_each_other_do_not_stretch_a_direction_again_and_again(depth):
    rows = correlated(2000, 4)
    rows[:, 3] = rows[:, 2]
    layers = CompositeTransform([FlowLayer(4) for _ in range(depth)]).double()
    initialize(layers, rows, whiten=True)
    other = rows[:1] + torch.tensor([0, 0, 0.01, -0.01], dtype=torch.float64)
    moved_by = (layers(other)[0] - layers(rows[:1])[0]).norm().item()
    assert moved_by < 0.05


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_fewer_rows_than_features_are_whitened_once(count):
    """What two blocks behind each other do is what the first does."""
    rows = correlated(count, 6)
    blocks = CompositeTransform([LULinear(6), LULinear(6)]).double()
    initialize(blocks, rows, whiten=True)
    first, second = (block.weight().detach() for block in blocks._transforms)
    assert first.isfinite().all()
    torch.testing.assert_close(second, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)


def test_few_images_leave_a_density_of_others():
    """Of many blocks behind each other, with most pixels a background of zeros."""
    torch.manual_seed(0)
    images = load_images("digits").train.images(slice(60))
    nats = {}
    for whiten in (False, True):
        flow = mixerflow("digits-local").initialize(images[:4], whiten=whiten)
        nats[whiten] = -flow.log_prob(images[4:]).mean().item()
    assert nats[True] < 1.5 * nats[False]


@pytest.mark.parametrize("matrix", ["lu", "full"])
def test_convolution_whitens_the_channels_of_all_pixels(matrix):
    torch.manual_seed(0)
    images = torch.einsum("cd,bdhw->bchw", torch.randn(3, 3), torch.randn(400, 3, 5, 5)) + 2
    convolution = InvertibleConv1x1(3, matrix)
    initialize(CompositeTransform([convolution, ActNorm(3)]), images, whiten=True)
    rows = convolution(images)[0].movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(torch.cov(rows.mT), torch.eye(3), rtol=0, atol=2e-2)


def test_flow_starts_as_the_normal_distribution_of_its_data():
    """Mean of -log p over the batch is the entropy of a normal with its covariance."""
    rows = correlated(20_000, 4)
    flow = Flow(FlowLayer(4), StandardNormal([4])).double()
    initialize(flow, rows, whiten=True)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * torch.cov(rows.mT))
    assert -flow.log_prob(rows).mean().item() == pytest.approx(entropy.item(), abs=1e-3)
    plain = initialize(Flow(FlowLayer(4), StandardNormal([4])).double(), rows)
    assert -plain.log_prob(rows).mean() > entropy + 0.1


def test_whole_mixerflow_starts_better_and_layers_behind_have_little_to_do():
    torch.manual_seed(0)
    local = partial(GlowSteps, num_steps=2, hidden_channels=8)
    flow = tiny(num_layers=2, num_flow_layers=2, local_flow=local).double()
    images = (pixels(400, (1, 4, 4), 9) + pixels(400, (1, 1, 1), 9)).to(torch.uint8)
    noise = torch.rand(400, 1, 4, 4, dtype=torch.float64)
    flow.initialize(images, noise=noise, whiten=True)
    start = -flow.log_prob(images, noise=noise).mean()
    plain = tiny(num_layers=2, num_flow_layers=2, local_flow=local).double()
    plain.initialize(images, noise=noise)
    assert start < -plain.log_prob(images, noise=noise).mean() - 1
    blocks = [part for part in flow.modules() if isinstance(part, LULinear)]
    distances = [(b.weight() - torch.eye(b.features).double()).norm().item() for b in blocks]
    assert max(distances[-4:]) < 0.2 < max(distances[:2])


def test_flow_that_was_initialized_stays():
    """Also where a layer is added that was not."""
    rows = correlated(30, 4)
    layer = initialize(FlowLayer(4).double(), rows)
    grown = CompositeTransform([layer, FlowLayer(4).double()])
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for trained in (layer, grown):
        initialize(trained, rows * torch.arange(1, 5), whiten=True)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("value", [3.0, 0.1])
def test_rows_that_do_not_vary_leave_the_identity(value):
    block = LULinear(4).double()
    initialize(block, torch.full((7, 4), value, dtype=torch.float64), whiten=True)
    assert torch.equal(block.weight(), torch.eye(4).double())


def test_block_that_was_trained_is_refused_where_no_actnorm_tells():
    block = LULinear(3)
    initialize(block, torch.randn(99, 3), whiten=True)
    with expect(ValueError, "a block at the identity"):
        initialize(block, torch.randn(99, 3), whiten=True)


def test_nothing_to_whiten_is_refused():
    with expect(ValueError, "linear blocks that whiten"):
        initialize(ActNorm(3), torch.randn(9, 3), whiten=True)


def test_rows_that_are_not_finite_are_refused():
    transform = CompositeTransform([LULinear(3), ActNorm(3)])
    with expect(ValueError, "finite covariance"):
        initialize(transform, torch.tensor([[1.0, torch.inf, 2.0]]), whiten=True)


def test_no_hook_is_left_and_gradients_reach_what_was_set():
    rows = correlated(30, 4)
    flow = initialize(Flow(FlowLayer(4), StandardNormal([4])).double(), rows, whiten=True)
    assert not any(part._forward_pre_hooks for part in flow.modules())
    (-flow.log_prob(rows).mean()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


# In training.


def test_first_step_of_training_starts_there(tmp_path):
    torch.manual_seed(0)
    module = Recording(tiny(), Recipe(learning_rate=1e-12, steps=1, batch_size=20, whiten=True))
    torch.manual_seed(0)
    flow = tiny()
    run(module, noise_data(), tmp_path)
    images, noise = module.seen[0]
    flow.initialize(images, noise=noise, whiten=True)
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(module.flow.state_dict()[name], value)
    assert any(p.packed.abs().max() > 1e-2 for p in flow.modules() if isinstance(p, LULinear))


def test_flow_without_actnorm_is_refused():
    flow = ImageFlow.from_flow(
        Flow(ReshapeTransform((1, 4, 4), (16,)), StandardNormal([16])), SHAPE
    )
    with expect(ValueError, "an ActNorm"):
        FlowModule(flow, Recipe(whiten=True))
