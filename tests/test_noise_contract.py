"""Noise reaches those who draw it, and flows that could not give it say so."""

from functools import partial

import pytest
import torch
from nflows import transforms as nflows_transforms
from nflows.distributions import StandardNormal
from nflows.flows import Flow

from nflows_mixer.distributions import DiagonalNormal, ProductDistribution
from nflows_mixer.flows import DequantizedFlow, ImageFlow, Pixels, denseflow, mixerflow
from nflows_mixer.likelihood import importance_weighted_log_prob
from nflows_mixer.nn import ConvConditioner, DenseAttentionConditioner
from nflows_mixer.transforms import (
    CompositeTransform,
    CrossUnitCoupling,
    DenseFlowBlock,
    GlowStep,
    InvertibleConv1x1,
    MultiScaleTransform,
    SqueezeAndSplit,
    SqueezeTransform,
    VariationalDequantization,
)

SHAPE = (1, 4, 4)
step = partial(GlowStep, conditioner=partial(ConvConditioner, hidden_channels=4))


def noisy() -> MultiScaleTransform:
    block = DenseFlowBlock(4, 2, InvertibleConv1x1, growth=3)
    return MultiScaleTransform([SqueezeTransform(2), block], SHAPE)


def images(count=5):
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8)


def test_a_density_is_not_promised_of_what_draws_noise():
    for transform in (noisy(), CompositeTransform([CrossUnitCoupling(1, 2)])):
        with pytest.raises(ValueError, match="expected a deterministic transform, got .*ImageFlow"):
            DequantizedFlow(transform, SHAPE)
    with pytest.raises(ValueError, match="CrossUnitCoupling at '_transforms.0'.*MultiScale"):
        ImageFlow(CompositeTransform([CrossUnitCoupling(1, 2)]), SHAPE)
    flow = ImageFlow(noisy(), SHAPE, ProductDistribution({"final": DiagonalNormal(28)}))
    with pytest.raises(RuntimeError, match="expected a deterministic transform.*log_prob"):
        flow.deterministic  # noqa: B018


def test_a_plain_flow_gets_pixels_and_dequantization():
    base = ProductDistribution({"final": DiagonalNormal(28)})
    learned = VariationalDequantization(SHAPE)
    for flow in (
        ImageFlow.from_flow(Flow(noisy(), base), SHAPE),
        ImageFlow.from_flow(Flow(noisy(), base), SHAPE, dequantization=learned),
    ):
        flow = flow.double().eval()
        index = torch.arange(5)
        noise = flow.draw_noise(0, 1, index, torch.float64)
        assert noise.shape == (5, 16 + 12)
        given = images()
        assert torch.equal(flow.log_prob(given, noise=noise), flow.log_prob(given, noise=noise))
        assert importance_weighted_log_prob(flow, given, 3).shape == (5,)
        back = flow._transform.inverse(flow.transform_to_noise(given))[0]
        torch.testing.assert_close(back, flow.dequantize_mid(given))
    plain = ImageFlow.from_flow(
        Flow(nflows_transforms.CompositeTransform([]), StandardNormal(SHAPE)), SHAPE
    )
    assert isinstance(plain.deterministic, DequantizedFlow)


def test_a_bound_needs_a_flow_whose_noise_can_be_given():
    flow = Flow(noisy(), ProductDistribution({"final": DiagonalNormal(28)}))
    with pytest.raises(ValueError, match="a flow with draw_noise, got a Flow.*from_flow"):
        importance_weighted_log_prob(flow, images(), 3)
    with pytest.raises(TypeError, match="got 'variational'; build one"):
        ImageFlow(noisy(), SHAPE, dequantization="variational")
    with pytest.raises(ValueError, match="a dequanti[sz]ation of 17 levels, got 256"):
        ImageFlow(noisy(), SHAPE, levels=17, dequantization=VariationalDequantization(SHAPE))


def test_units_draw_no_noise():
    def cuts_off(channels):
        return CompositeTransform([CrossUnitCoupling(channels, 2), SqueezeTransform(1)])

    with pytest.raises(ValueError, match="parts that are given their noise"):
        DenseFlowBlock(4, 2, cuts_off, growth=2)
    with pytest.raises(ValueError, match="deterministic units, got CrossUnitCoupling"):
        DenseFlowBlock(4, 2, lambda channels: CrossUnitCoupling(channels, 2), growth=2)
    with pytest.raises(ValueError, match="a factory of units, got InvertibleConv1x1"):
        DenseFlowBlock(4, 2, InvertibleConv1x1(4), growth=2)
    with pytest.raises(ValueError, match="no context for white noise"):
        DenseFlowBlock(4, 2, step, growth=2, preconditioning=None, context_features=3)


def test_shapes_are_read_off_other_libraries_and_composites():
    squeezes = [nflows_transforms.SqueezeTransform(2), CompositeTransform([SqueezeTransform(2)])]
    for squeeze in squeezes:
        transform = MultiScaleTransform([squeeze, SqueezeAndSplit(1)], SHAPE)
        assert transform.latent_shapes == {"split_1": (2, 2, 2), "final": (2, 2, 2)}
        assert transform(torch.randn(3, *SHAPE))[0].shape == (3, 16)
    nested = MultiScaleTransform([CompositeTransform([noisy().eval()._transforms[0]])], SHAPE)
    assert nested.output_shape(SHAPE) == (16,)
    with pytest.raises(ValueError, match=r"H and W multiples of 2, got \[1, 5, 4\]"):
        MultiScaleTransform([SqueezeTransform(2)], (1, 5, 4))


@torch.no_grad()
def test_representations_follow_any_squeeze_and_end_with_the_last_reader():
    first = DenseFlowBlock(4, 2, InvertibleConv1x1, growth=1, preconditioning="all")
    second = DenseFlowBlock(
        20, 2, InvertibleConv1x1, growth=1, preconditioning="all", earlier_channels=4 * (4 + 4)
    )
    last = DenseFlowBlock(21, 1, InvertibleConv1x1, growth=0, preconditioning="all")
    parts = [SqueezeTransform(2), first, SqueezeTransform(2), second, last]
    transform = MultiScaleTransform(parts, (1, 8, 8))
    read = []
    run = DenseFlowBlock.run
    for block in (first, second, last):

        def spy(inputs, context, noise, earlier, block=block):
            read.append(None if earlier is None else sum(part.shape[1] for part in earlier))
            return run(block, inputs, context, noise, earlier)

        block.__dict__["run"] = spy
    assert transform(torch.randn(2, 1, 8, 8))[0].shape == (2, 21 * 4)
    assert read == [0, 32, None]


@pytest.mark.parametrize("build", [denseflow, partial(mixerflow, patch_size=2, num_layers=1)])
def test_a_learned_dequantisation_is_computed_again_where_memory_is_short(build):
    sizes = {"image_shape": (1, 8, 8), "pixels": Pixels("variational", noise_channels=8)}
    if build is denseflow:
        network = partial(DenseAttentionConditioner, hidden_channels=4, num_layers=1, growth=4)
        sizes = {"image_shape": (1, 8, 8), "units": (1,), "modules": (1,), "growth": 0}
        sizes |= {"conditioner": network, "noise_channels": 8}
    kept, gradients = {}, {}
    given = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    for memory in ("full", "checkpoint"):
        torch.manual_seed(0)
        flow = build(**sizes, memory=memory).double()
        noise = flow.draw_noise(0, 0, torch.arange(4), torch.float64)
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            values, logabsdet = flow.dequantization(given, noise=flow._split_noise(noise, 4)[0])
        (values.square().sum() + logabsdet.sum()).backward()
        kept[memory] = count
        parameters = list(flow.dequantization.parameters())
        gradients[memory] = torch.cat([p.grad.flatten() for p in parameters])
    assert kept["checkpoint"] < 0.2 * kept["full"]
    torch.testing.assert_close(gradients["checkpoint"], gradients["full"])


def test_names_and_family_of_a_product():
    for name in ("keys", "a.b", ""):
        with pytest.raises(ValueError, match="named parts, got"):
            ProductDistribution({name: DiagonalNormal(3)})
    with pytest.raises(TypeError, match="expected one family of distributions, got none"):
        ProductDistribution({"final": DiagonalNormal(3)}).as_torch()
