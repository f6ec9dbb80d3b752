"""Jet: couplings by vision transformers, their builder, and what an image flow of it does."""

import pytest
import torch

from nflows_mixer import jet, load_weights, mixerflow
from nflows_mixer.flows import JET_PRESETS, Pixels, save_weights
from nflows_mixer.nn import VisionTransformer
from nflows_mixer.transforms import JetCoupling, jet_coupling
from tests.helpers import log_prob_by_autograd, moved, pixels, size
from tests.training import assert_same

SHAPE = (1, 8, 8)
SMALL = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "hidden_features": 8}
SMALL |= {"num_couplings": 7, "channel_couplings": 2, "num_blocks": 1, "num_heads": 2}


def small(amount=0.1, **options):
    return moved(jet(**SMALL | options), amount)


def test_parameters_of_the_preset_are_those_of_the_formula():
    with torch.device("meta"):
        flow = jet("jet-imagenet64")
    w, tokens, d, blocks = 512, 16 * 16, 48, 2
    # 27 couplings over half of 48 numbers of all tokens, 5 over all numbers of half of the tokens.
    transformer = blocks * (12 * w**2 + 13 * w) + 2 * w
    channels = (d // 2) * w + w + tokens * w + transformer + w * d + d
    patches = d * w + w + tokens // 2 * w + transformer + w * 2 * d + 2 * d
    spatial = 32 // 5
    assert size(flow) == (32 - spatial) * channels + spatial * patches
    assert set(JET_PRESETS) == {"jet-imagenet64"}


def test_kinds_of_couplings_come_in_turn():
    flow = jet(**SMALL | {"num_couplings": 12})
    couplings = [part for part in flow.modules() if isinstance(part, JetCoupling)]
    over_channels = [part.features == 4 for part in couplings]
    assert over_channels == [True, True, False] * 4
    assert [part.conditioning for part in couplings[2::3]] == ["first", "second", "first", "first"]
    # The draws differ from each other, and are the same for each flow.
    orders = [part.order.tolist() for part in couplings if part.features == 4]
    assert len({*map(tuple, orders)}) > 2
    again = [part for part in jet(**SMALL).modules() if isinstance(part, JetCoupling)]
    assert [part.order.tolist() for part in again if part.features == 4] == orders[:5]


@pytest.mark.parametrize(
    "kind, moves",
    [
        ("checkerboard", lambda i, j: (i + j) % 2),
        ("columns", lambda i, j: j % 2),
        ("rows", lambda i, j: i % 2),
    ],
)
def test_spatial_couplings_move_whole_patches(kind, moves):
    flow = moved(jet_coupling(SHAPE, kind, 2, 8, 1, 2), 0.1)
    image = torch.randn(1, *SHAPE)
    changed = (flow(image)[0] != image)[0, 0]
    expected = [[bool(moves(i // 2, j // 2)) for j in range(8)] for i in range(8)]
    assert changed.tolist() == expected


def test_channel_couplings_move_the_same_half_of_each_patch():
    flow = moved(jet_coupling(SHAPE, "channels", 4, 8, 1, 2, index=3), 0.1)
    image = torch.randn(1, *SHAPE)
    changed = (flow(image)[0] != image)[0, 0]
    assert changed[:4, :4].sum() == 8
    for i, j in ((0, 4), (4, 0), (4, 4)):
        assert torch.equal(changed[i : i + 4, j : j + 4], changed[:4, :4])


def test_scale_and_shift_are_the_formula():
    moved_part, parameters = torch.randn(5, 3), torch.randn(5, 6)
    outputs, logabsdet = JetCoupling.elementwise(moved_part, parameters)
    shift, raw = parameters[:, :3], parameters[:, 3:]
    scale = 2 / (1 + (-raw).exp())
    assert torch.allclose(outputs, (moved_part + shift) * scale, atol=1e-6)
    assert torch.allclose(logabsdet, scale.log().sum(1), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 3, "actnorm": True},
        {"context_features": 2},
        {"pixels": Pixels(logit=1e-3, squeeze=2)},
    ],
)
def test_log_prob_is_that_of_autograd(options):
    flow = small(**options).double()
    images, noise = pixels(3, SHAPE), torch.rand(3, *SHAPE, dtype=torch.float64)
    given = None
    if "num_classes" in options:
        given = torch.tensor([0, 2, 1])
    elif "context_features" in options:
        given = torch.randn(3, 2, dtype=torch.float64)
    flow.initialize(images, given, noise).eval()
    expected = log_prob_by_autograd(flow, images, given, noise)
    torch.testing.assert_close(flow.log_prob(images, given, noise), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("memory", ["constant", "checkpoint"])
def test_gradients_are_the_same_in_less_memory(memory):
    images, noise = pixels(5, SHAPE), torch.rand(5, *SHAPE, dtype=torch.float64)
    gradients = []
    for way in ("full", memory):
        torch.manual_seed(1)
        flow = small(memory=way, actnorm=True).double().initialize(images, noise=noise)
        flow.log_prob(images, noise=noise).sum().backward()
        assert not flow._transform.inexact
        gradients.append([parameter.grad for parameter in flow.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*gradients))


def test_weights_are_read_back(tmp_path):
    flow = small(num_classes=3).eval()
    save_weights(flow, tmp_path / "weights.safetensors")
    again = load_weights(tmp_path / "weights.safetensors")
    assert_same(flow, again)
    assert again.architecture == flow.architecture


def test_its_couplings_stand_between_mixer_layers():
    def local(shape, index, context_features):
        kind = ("channels", "checkerboard")[index % 2]
        options = {"actnorm": True, "index": index, "context_features": context_features}
        return jet_coupling(shape, kind, 2, 8, 1, 2, **options)

    sizes = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 2}
    flow = mixerflow(**sizes, num_classes=3, local_flow=local, memory="constant")
    images, labels = pixels(20, SHAPE), torch.arange(20) % 3
    flow.initialize(images, labels)
    flow.log_prob(images, labels).mean().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory": "some"}, "memory to be one of 'full', 'checkpoint', 'constant', got 'some'"),
        ({"num_couplings": 0}, "num_couplings to be a positive integer, got 0"),
        ({"num_heads": 3}, "heads that divide the width 8, got 3"),
        ({"patch_size": 3}, "H and W multiples of 3, got .1, 8, 8."),
        ({"base": 3}, "expected a base, got 3"),
        ({"pixels": 3}, "pixels as Pixels"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jet(**SMALL | options)


def test_shapes_and_kinds_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="kind to be one of 'channels', 'checkerboard'"):
        jet_coupling(SHAPE, "stripes")
    with pytest.raises(ValueError, match="patches of one height and width, got .2, 4."):
        jet_coupling(SHAPE, patch_size=(2, 4))
    with pytest.raises(ValueError, match="VisionTransformer: expected tokens .4, 3., got .5, 3."):
        VisionTransformer(4, 3, 6, 8)(torch.zeros(2, 5, 3))
