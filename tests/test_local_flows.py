"""Local flows beside mixer layers, and several scales, as the builder puts them together."""

import copy
from functools import partial

import pytest
import torch
from nflows.distributions import StandardNormal

from nflows_mixer import mixerflow
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import grow
from nflows_mixer.nn import ConvConditioner
from nflows_mixer.transforms import (
    FlowLayer,
    GlowSteps,
    MultiScaleTransform,
    PatchMixerTransform,
)
from tests.helpers import expect, moved

STEPS = partial(GlowSteps, num_steps=2, hidden_channels=8)
SIZES = {
    "image_shape": (1, 8, 8),
    "patch_size": 2,
    "levels": 16,
    "num_layers": 2,
    "num_flow_layers": 2,
    "hidden_features": 16,
    "mask": "checkerboard",
    "alternate": True,
}


def build(**changes):
    torch.manual_seed(0)
    flow = mixerflow(**{**SIZES, **changes}).double()
    features = changes.get("context_features")
    context = None if features is None else torch.randn(64, features)
    flow.initialize(images(64), context)
    return moved(flow, 0.01)


def images(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(16, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


def kinds(flow):
    parts = (GlowSteps, PatchMixerTransform)
    return [type(part).__name__ for part in flow.modules() if isinstance(part, parts)]


@pytest.mark.parametrize(
    "given, expected",
    [
        (STEPS, "GPGP"),
        ([STEPS, None], "GPP"),
        ([None, None, STEPS], "PPG"),
        ([STEPS, None, STEPS], "GPPG"),
    ],
)
def test_local_flows_stand_before_between_or_behind_mixer_layers(given, expected):
    assert "".join(name[0] for name in kinds(build(local_flow=given))) == expected


@pytest.mark.parametrize("options", [{"local_flow": STEPS}, {"num_layers": [1, 1], "shift": None}])
def test_constant_memory_has_the_gradients_of_full_memory(options):
    full = build(**options)
    constant = build(memory="constant", **options)
    constant.load_state_dict(full.state_dict())
    noise = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    for flow in (full, constant):
        flow.log_prob(images(), noise=noise).sum().backward()
    pairs = zip(full.named_parameters(), constant.parameters())
    for (name, expected), found in pairs:
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_the_norm_of_the_conditioners_is_none_of_the_local_flow_s():
    flow = build(local_flow=STEPS, norm="batch")
    assert any(isinstance(part, torch.nn.BatchNorm1d) for part in flow.modules())


def test_a_local_flow_sees_the_context():
    conditioner = partial(_conditional, hidden_channels=8)
    flow = build(
        local_flow=partial(GlowSteps, num_steps=2, conditioner=conditioner), context_features=3
    )
    context = torch.randn(6, 3, dtype=torch.float64)
    local = next(part for part in flow.modules() if isinstance(part, GlowSteps))
    inputs = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    first, second = local(inputs, context)[0], local(inputs, -context)[0]
    assert (first - second).abs().max() > 1e-4


def _conditional(inputs, outputs, hidden_channels, context_features=None):
    return ConvConditioner(inputs, outputs, hidden_channels, context_features)


def test_pixels_stay_at_their_places_through_glow_steps():
    """So that the patch grid behind a local flow is that of the image."""
    local = GlowSteps((3, 8, 8), 3, 8)
    inputs = torch.randn(50, 3, 8, 8)
    local.train()(inputs)
    outputs = local.eval()(inputs)[0]
    together = torch.stack([inputs.flatten(1), outputs.flatten(1)])
    correlation = torch.stack([row.corrcoef()[0, 1] for row in together.permute(2, 0, 1)])
    assert correlation.min() > 0.99


def test_latents_of_two_scales_are_half_the_image_each_and_are_inverted():
    flow = build(num_layers=[1, 1], shift=None)
    assert isinstance(flow._transform, MultiScaleTransform)
    assert flow._transform.latent_shapes == {"split_1": (2, 4, 4), "final": (2, 4, 4)}
    latents = flow.transform_to_noise(images())
    assert latents.shape == (6, 64)
    back, _ = flow.deterministic._transform.inverse(latents)
    assert torch.equal(flow.dequantization.inverse(back)[0], images())


def test_what_is_split_off_is_normal_given_the_rest():
    """The base alone is a density of its latents; the prior's mean depends on what was kept."""
    flow = moved(build(num_layers=[1, 1], shift=None), 0.1)
    chain, squeeze, mix, prior, split = list(flow._transform._transforms)[:5]
    inputs = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    mixed = mix(squeeze(chain(inputs)[0])[0])[0]
    kept, dropped = split.split(mixed)
    latents = split.split(prior(mixed)[0])[1]
    unconstrained, shift = prior.conditioner(kept).chunk(2, dim=1)
    scale = (2 * torch.tanh(unconstrained / 2)).exp()
    torch.testing.assert_close(latents, dropped * scale + shift)


def test_prior_of_what_is_split_off_sees_the_context():
    flow = moved(build(num_layers=[1, 1], shift=None, context_features=3), 0.1)
    prior = flow._transform._transforms[3]
    inputs = torch.rand(6, 4, 4, 4, dtype=torch.float64)
    context = torch.randn(6, 3, dtype=torch.float64)
    assert (prior(inputs, context)[0] - prior(inputs, -context)[0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"local_flow": GlowSteps((1, 8, 8), 1, 8)}, "local_flow as a factory, got GlowSteps"),
        ({"local_flow": 3}, "local_flow as a factory, got 3; pass a class or a function"),
        ({"local_flow": "glow"}, "local_flow as a factory"),
        ({"mask": 3}, "the name of a mask, or a list, got 3"),
        ({"alternate": "yes"}, "alternate of True or False"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_width_that_no_network_reads_is_refused():
    with pytest.raises(ValueError, match="networks of the usual kind beside hidden_channels=8"):
        GlowSteps((1, 8, 8), hidden_channels=8, conditioner=ConvConditioner)


def test_bases_of_several_scales_are_made_for_each_piece_or_for_the_whole_row():
    standard = partial(DiagonalNormal, learnable=False)
    pieces = build(num_layers=[1, 1], shift=None, base=standard)
    whole = build(num_layers=[1, 1], shift=None, base=StandardNormal((64,)))
    latents = torch.randn(5, 64, dtype=torch.float64)
    torch.testing.assert_close(
        pieces._distribution.log_prob(latents), whole._distribution.log_prob(latents)
    )
    learned = build(num_layers=[1, 1], shift=None)
    assert sum(isinstance(part, DiagonalNormal) for part in learned.modules()) == 2


def test_copies_are_equal():
    flow = build(local_flow=STEPS, num_layers=[1, 1], shift=None)
    noise = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    expected = flow.log_prob(images(), noise=noise)
    assert torch.equal(copy.deepcopy(flow).log_prob(images(), noise=noise), expected)


@pytest.mark.parametrize(
    "changes, pattern",
    [
        ({"local_flow": [STEPS]}, "a list of 2 or 3 entries, got 1"),
        ({"local_flow": partial(STEPS, squeeze=3)}, "multiples of 3"),
        ({"local_flow": partial(STEPS, squeeze=1)}, "2 channels or more, got 1"),
        ({"num_layers": [1, 0]}, "num_layers to be a positive integer, got 0"),
        ({"num_layers": []}, "num_layers.*at least one scale"),
        ({"num_layers": [1, 1], "image_shape": (1, 6, 10)}, "patch height that divides"),
        ({"local_flow": STEPS, "num_flow_layers": 0}, "num_flow_layers"),
    ],
)
def test_wrong_arguments_are_refused(changes, pattern):
    with expect(ValueError, pattern):
        mixerflow(**{**SIZES, **changes})


def test_channel_and_patch_flows_have_numbers_of_layers_of_their_own():
    flow = build(num_flow_layers=(1, 3))
    layers = [part for part in flow.modules() if isinstance(part, FlowLayer)]
    assert [layer.features for layer in layers] == [4, 9, 9, 9, 4, 16, 16, 16]
    starts = [layer.flow.split[1] for layer in layers]
    assert starts == [True, True, False, True, False, False, True, False]
    with expect(ValueError, "num_flow_layers"):
        build(num_flow_layers=(1, 2, 3))


def test_round_trip_under_autocast_is_that_of_float32():
    """Networks answer in half precision, and what they say is applied in float32."""
    torch.manual_seed(0)
    steps = moved(GlowSteps((3, 8, 8), 4, 16), 0.1)
    values = torch.rand(3, 3, 8, 8)
    steps(values)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, logabsdet = steps(values)
        again, back = steps.inverse(outputs)
    assert outputs.dtype == logabsdet.dtype == torch.float32
    torch.testing.assert_close(again, values, rtol=0, atol=1e-4)
    torch.testing.assert_close(back, -logabsdet, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "changes", [{"padding_mode": "circular"}, {"bias": False}, {"dilation": 2, "padding": 2}]
)
def test_network_whose_convolutions_were_exchanged_is_called_as_it_is(changes):
    torch.manual_seed(0)
    steps = GlowSteps((3, 8, 8), 2, 16)
    steps(torch.rand(3, 3, 8, 8))
    for layer in steps.transform._transforms:
        network = layer.flow.conditioner.network
        network.initial = torch.nn.Conv2d(6, 16, 3, **{"padding": 1, **changes})
    moved(steps, 0.1)
    values = torch.rand(3, 3, 8, 8)
    found = steps(values)[0]
    for layer in steps.transform._transforms:
        layer.flow.conditioner.network.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(found, steps(values)[0])


def test_flow_with_local_flows_grows():
    """Also where 1x1 convolutions start orthogonal: what is added starts at the identity."""
    full = partial(GlowSteps, num_steps=2, hidden_channels=8, matrix="full")
    flow = build(local_flow=full)
    deeper = grow(flow, num_layers=3)
    noise = torch.full((6, 1, 8, 8), 0.5, dtype=torch.float64)
    found = [each.log_prob(images(), noise=noise) for each in (flow, deeper)]
    torch.testing.assert_close(*found)
    with expect(ValueError, "one scale"):
        grow(build(num_layers=[1, 1]), num_layers=3)
