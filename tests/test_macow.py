"""Masked convolutional flows: what they read, from which side, and their formula by hand."""

import math

import pytest
import torch

from benchmarks.baselines.glow import glow
from benchmarks.baselines.macow import SIDES, MaskedConvolutionalFlow, macow
from nflows_mixer.transforms import ActNorm, InvertibleConv1x1
from tests.helpers import moved, size


def drawn(side="above", kernel_size=(2, 3), channels=2, std=0.5):
    """A flow in float64, with noise on its start."""
    return moved(MaskedConvolutionalFlow(channels, side, kernel_size, 6).double(), std)


def test_affine_map_by_hand():
    flow = MaskedConvolutionalFlow(1, "above", (1, 1), 1).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
        flow.network[0].weight.fill_(1.0)
        flow.network[2].weight.copy_(torch.tensor([math.log(3.0), 5.0]).view(2, 1, 1, 1))
    image = torch.tensor([[[[1.0], [2.0]]]], dtype=torch.float64)
    outputs, logabsdet = flow(image)
    # The first row has nothing above it. The second: u = log 3, sigma(u) = 3 / 4, t = 5.
    scale = 0.1 + 1.8 * 0.75
    expected = torch.tensor([1.0, 2 * scale + 5], dtype=torch.float64)
    torch.testing.assert_close(outputs.flatten(), expected)
    assert logabsdet.item() == pytest.approx(math.log(scale))


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 3), (1, 5), (3, 3)])
@pytest.mark.parametrize("side", SIDES)
def test_a_pixel_depends_on_itself_and_on_a_window_at_one_side(side, rows, columns):
    height, width = 5, 6
    point = torch.randn(1, 2, height, width, dtype=torch.float64)
    flow = drawn(side, (rows, columns))
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0], point)[0, :, :, :, 0]
    i, j = torch.arange(height), torch.arange(width)
    down, across = i[:, None] - i, j[:, None] - j  # from the pixel read to the one written
    reach = columns // 2
    if side in ("above", "below"):
        ahead = down if side == "above" else -down
        rows_read = (ahead >= 1) & (ahead <= rows)
        window = rows_read[:, None, :, None] & (across.abs() <= reach)[None, :, None, :]
    else:
        ahead = across if side == "left" else -across
        columns_read = (ahead >= 1) & (ahead <= rows)
        window = columns_read[None, :, None, :] & (down.abs() <= reach)[:, None, :, None]
    itself = (down == 0)[:, None, :, None] & (across == 0)[None, :, None, :]
    assert torch.equal(jacobian.abs().amax((0, 3)) > 0, window | itself)
    own = torch.einsum("khwchw->kchw", jacobian)
    assert torch.equal(own[0, 1], torch.zeros(height, width).double())
    assert torch.equal(own[1, 0], torch.zeros(height, width).double())


@pytest.mark.parametrize(
    "side, turn",
    [
        ("below", lambda x: x.flip(2)),
        ("left", lambda x: x.transpose(2, 3)),
        ("right", lambda x: x.flip(3).transpose(2, 3)),
    ],
)
def test_sides_are_the_first_one_on_a_turned_image(side, turn):
    flow, above = drawn(side), drawn()
    above.load_state_dict(flow.state_dict())
    images = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    for mine, reference in ((flow.forward, above.forward), (flow.inverse, above.inverse)):
        outputs, logabsdet = mine(images)
        expected, logabsdet_expected = reference(turn(images))
        torch.testing.assert_close(turn(outputs), expected)
        torch.testing.assert_close(logabsdet, logabsdet_expected)


@torch.no_grad()
@pytest.mark.parametrize("side, steps", [("above", 5), ("below", 5), ("left", 4), ("right", 4)])
def test_inverse_takes_a_step_for_each_row_or_column(side, steps):
    flow = drawn(side)
    calls = []
    flow.network.register_forward_hook(lambda *_: calls.append(None))
    images = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    outputs, _ = flow(images)
    assert len(calls) == 1
    torch.testing.assert_close(flow.inverse(outputs)[0], images)
    assert len(calls) == 1 + steps


@pytest.mark.parametrize("side", SIDES)
def test_starts_at_the_identity(side):
    images = torch.randn(2, 3, 4, 5)
    outputs, logabsdet = MaskedConvolutionalFlow(3, side)(images)
    torch.testing.assert_close(outputs, images)
    torch.testing.assert_close(logabsdet, torch.zeros(2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_unit_reads_all_sides_and_mixes_channels():
    """Of one step at the first scale, without the coupling, which starts at the identity."""
    transform = macow((1, 16, 16), 8, scales=1, steps=1, masked_channels=4)._transform.double()
    batch = 255 * torch.rand(8, 1, 16, 16, dtype=torch.float64)
    transform.train()(batch)
    kinds = {kind: 0 for kind in (*SIDES, ActNorm)}
    for module in transform.modules():
        if isinstance(module, MaskedConvolutionalFlow):
            kinds[module.side] += 1
            moved(module, 0.3)
        kinds[ActNorm] += isinstance(module, ActNorm)
    assert kinds == {**dict.fromkeys(SIDES, 1), ActNorm: 2}
    outputs, _ = transform.eval()(batch[:1])
    changed = batch[:1].clone()
    changed[:, :, 8, 8] += 10  # the squeezed pixel (4, 4), one channel of four
    moved_latents = (transform(changed)[0] - outputs).abs().reshape(4, 8, 8).amax(0) > 1e-9
    # In each direction a chain of windows leaves the pixel to both sides.
    assert moved_latents[4, 4] and moved_latents[6, 4] and moved_latents[2, 4]
    assert moved_latents[4, 6] and moved_latents[4, 2]


@torch.no_grad()
def test_without_its_masked_flows_a_step_is_that_of_glow():
    torch.manual_seed(3)
    transform = macow((1, 8, 8), 8, scales=1, steps=1)._transform.double()
    reference = glow((1, 8, 8), 8, scales=1, steps=1)._transform.double()
    (mine,) = (m for m in transform.modules() if isinstance(m, InvertibleConv1x1))
    (its,) = (m for m in reference.modules() if isinstance(m, InvertibleConv1x1))
    its.load_state_dict(mine.state_dict())
    images = 255 * torch.rand(16, 1, 8, 8, dtype=torch.float64)
    # Masked flows start at the identity, and the second ActNorm has nothing left to scale.
    expected = reference.train()(images)
    torch.testing.assert_close(transform.train()(images), expected, atol=1e-4, rtol=1e-4)


def test_published_number_of_parameters():
    assert size(macow((3, 32, 32))) == pytest.approx(11.43e6, rel=0.01)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"side": "top"}, "side to be one of 'above', 'below', 'left', 'right', got 'top'"),
        ({"kernel_size": (2, 4)}, "an odd number of columns"),
        ({"kernel_size": (0, 3)}, "rows to be a positive integer, got 0"),
    ],
)
def test_bad_choices_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedConvolutionalFlow(3, **options)
