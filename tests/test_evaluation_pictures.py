"""Samples, interpolation, reconstruction, and the pictures made of them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.distributions import DiagonalNormal, NormalMixture
from nflows_mixer.evaluation import (
    draw_samples,
    interpolation,
    reconstruction,
    save_grids,
    save_neighbours,
    save_rows,
    temperature_grid,
)
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import PixelScaling
from tests.helpers import pixels
from tests.test_evaluation import small_flow


def test_chunks_of_samples_differ_and_follow_the_seed():
    flow = small_flow()
    samples = draw_samples(flow, 11, seed=4, batch_size=3)
    assert samples.shape == (11, 1, 6, 6) and samples.dtype == torch.uint8
    assert len(samples.unique(dim=0)) == 11
    assert torch.equal(draw_samples(flow, 6, seed=4, batch_size=3), samples[:6])
    assert not torch.equal(draw_samples(flow, 11, seed=5, batch_size=3), samples)


def test_drawing_leaves_the_random_state_and_the_modes():
    flow = small_flow().train()
    state = torch.get_rng_state()
    first = draw_samples(flow, 4, seed=2**64 - 1)
    assert torch.equal(torch.get_rng_state(), state) and flow.training
    torch.manual_seed(99)
    assert torch.equal(draw_samples(flow, 4, seed=2**64 - 1), first)


def test_samples_follow_their_context():
    flow = small_flow(num_classes=3)
    with torch.no_grad():  # a class darker than the next
        flow._embedding_net.weight.copy_(torch.tensor([[-3.0], [0.0], [3.0]]).expand(-1, 16))
    labels = torch.tensor([0, 1, 2, 0, 1])
    samples = draw_samples(flow, 1, seed=1, context=labels, batch_size=2)
    assert samples.shape == (5, 1, 6, 6)
    # Several for each row, row by row: as if each row stood there as often.
    several = draw_samples(flow, 3, seed=1, context=labels, batch_size=4)
    repeated = labels.repeat_interleave(3)
    assert torch.equal(several, draw_samples(flow, 1, seed=1, context=repeated, batch_size=4))
    other = draw_samples(flow, 1, seed=1, context=(repeated + 1) % 3, batch_size=4)
    assert (several != other).flatten(1).any(1).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_samples": 0}, "num_samples to be a positive"),
        ({"num_samples": 1, "seed": -1}, "a seed from 0"),
    ],
)
def test_drawing_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_samples(ImageFlow(PixelScaling(4), (1, 1, 2), levels=4), **arguments)


def test_temperatures_scale_the_same_latents():
    """With latents of which pixels are a scaled copy, the distances to the middle scale."""
    flow = ImageFlow(PixelScaling(256, -2.0, 2.0), (1, 4, 4))
    panels = temperature_grid(flow, [0.0, 0.25, 0.5], num_samples=6, seed=3)
    assert list(panels) == ["temperature 0", "temperature 0.25", "temperature 0.5"]
    none, quarter, half = (images.double() + 0.5 - 128 for images in panels.values())
    assert none.abs().max() <= 0.5
    inside = half.abs() < 127
    assert inside.double().mean() > 0.9
    torch.testing.assert_close(half[inside], 2 * quarter[inside], atol=1.5, rtol=0)
    with pytest.raises(ValueError, match="temperatures that differ"):
        temperature_grid(flow, [0.5, 0.5])


@pytest.mark.parametrize("base", [DiagonalNormal, NormalMixture])
def test_interpolation_ends_at_the_images(base):
    flow, first, second = small_flow(base=base), pixels(5), pixels(5)
    way = interpolation(flow, first, second, steps=4, batch_size=3)
    assert way.shape == (5, 4, 1, 6, 6) and way.dtype == torch.uint8
    assert torch.equal(way[:, 0], first) and torch.equal(way[:, -1], second)
    back = interpolation(flow, second, first, steps=4).flip(1)
    assert (back.int() - way.int()).abs().max() <= 1


def test_interpolation_is_spherical():
    """Half way between orthogonal latents of length r lies their sum / sqrt(2)."""
    flow = ImageFlow(PixelScaling(256, -128.0, 128.0), (1, 1, 2)).double()
    # Mid-points are half a pixel from 128, so that latents are (100.5, 0.5) and (-0.5, 100.5).
    first = torch.tensor([[[[228, 128]]]], dtype=torch.uint8)
    second = torch.tensor([[[[127, 228]]]], dtype=torch.uint8)
    middle = interpolation(flow, first, second, steps=3)[0, 1, 0, 0]
    expected = [128 + (100.5 - 0.5) / math.sqrt(2), 128 + (100.5 + 0.5) / math.sqrt(2)]
    assert middle.tolist() == [math.floor(value) for value in expected]
    still = interpolation(flow, first, first, steps=3)
    assert torch.equal(still, first[:, None].expand_as(still))


def test_interpolation_keeps_the_context():
    flow, labels = small_flow(num_classes=3), torch.tensor([0, 2])
    first, second = pixels(2), pixels(2)
    way = interpolation(flow, first, second, steps=3, context=labels, batch_size=2)
    assert torch.equal(way[:, 0], first) and torch.equal(way[:, 2], second)


def test_interpolation_says_what_is_wrong():
    flow = small_flow()
    with pytest.raises(ValueError, match="2 steps or more"):
        interpolation(flow, pixels(2), pixels(2), steps=1)
    with pytest.raises(ValueError, match="as many first as second"):
        interpolation(flow, pixels(2), pixels(3))


def test_reconstruction_measures_in_pixel_values():
    images = pixels(4)
    pairs, error = reconstruction(small_flow(), images)
    assert error < 1e-8 and torch.equal(pairs[:, 0], images) and torch.equal(pairs[:, 1], images)

    class Lossy(PixelScaling):
        def inverse(self, inputs, context=None):
            outputs, logabsdet = super().inverse(inputs)
            return outputs + 2.25, logabsdet

    images = pixels(4) // 2
    pairs, error = reconstruction(ImageFlow(Lossy(17), (1, 6, 6), levels=17), images)
    assert error == pytest.approx(2.25, abs=1e-4)
    assert torch.equal(pairs[:, 1], images + 2)

    class Broken(PixelScaling):
        def inverse(self, inputs, context=None):
            return inputs * math.nan, inputs.flatten(1).sum(1)

    with pytest.warns(RuntimeWarning, match="4 of 4 images .* not finite"):
        _, error = reconstruction(ImageFlow(Broken(17), (1, 6, 6), levels=17), images)
    assert math.isnan(error)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (3, 96, 64)])
def test_pictures_are_written_with_titles_and_labels(tmp_path, shape):
    first, second = pixels(10, shape, 256), pixels(3, shape, 256)
    panels = {"training": first, "temperature 0.7": second}
    labels = ["one", "two", "three"]
    save_grids(tmp_path / "grid.png", panels, 256, columns=4, title="Flow", row_labels=labels)
    save_rows(tmp_path / "rows.png", panels, 256, title="Rows")
    for name in ("grid.png", "rows.png"):
        width, height = size_of(tmp_path / name)
        assert width > 300 and height > 80
    # Each pixel of a large image has a dot of its own.
    if shape[1] == 96:
        assert size_of(tmp_path / "rows.png")[0] > 10 * 64


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_grey_and_white_reach_the_picture(tmp_path):
    white = torch.full((2, 1, 4, 4), 16, dtype=torch.uint8)
    save_rows(tmp_path / "rows.png", {"white": white, "black": 0 * white[:1]}, levels=17)
    with Image.open(tmp_path / "rows.png") as picture:
        colours = picture.convert("RGB").getcolors(100_000)
    counts = {colour[0]: count for count, colour in colours}
    # The lines are grey, and so is the place beside the single black image.
    assert counts[255] > 1.5 * counts[0] > 0
    assert counts.get(127, 0) + counts.get(128, 0) > counts[0]


def test_neighbours_stand_beside_their_samples(tmp_path):
    """Rows of colours: where each lies in the picture."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255]])
    images = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 8)
    rows = images[torch.tensor([[0, 1, 2], [3, 2, 1]])]  # a sample and its two neighbours, twice
    distances = torch.tensor([[1.5, 2.5], [1e4, 123456.0]])
    path = tmp_path / "neighbours.png"
    save_neighbours(path, rows[:, 0], rows[:, 1:], distances, 256, title="of a crop")
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB")).astype(int)

    def boxes(colour):
        """Top, bottom, left and right of each row of the picture that has this colour."""
        found = np.abs(array - colour).sum(-1) < 30
        lines = np.flatnonzero(found.any(1))
        parts = np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)
        columns = [np.flatnonzero(found[part].any(0)) for part in parts]
        return [(p[0], p[-1], c[0], c[-1]) for p, c in zip(parts, columns)]

    (red,), (magenta,) = boxes([255, 0, 0]), boxes([255, 0, 255])
    (green, green_below), (blue, blue_below) = boxes([0, 255, 0]), boxes([0, 0, 255])
    for row in ([red, green, blue], [magenta, blue_below, green_below]):
        (top, bottom, *_), *_ = row
        assert all(abs(box[0] - top) <= 1 and abs(box[1] - bottom) <= 1 for box in row)
        assert all(before[3] < after[2] for before, after in zip(row, row[1:]))
    assert magenta[0] > red[1]


def test_pictures_say_what_is_wrong(tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(ValueError, match="C = 1 or 3"):
        save_grids(path, {"two": pixels(4, (2, 4, 4))}, 17)
    with pytest.raises(ValueError, match="one label for each of 2 rows, got 1"):
        save_grids(path, {"a": pixels(4)}, 17, columns=2, row_labels=["x"])
    with pytest.raises(ValueError, match="one panel or more"):
        save_grids(path, {}, 17)
    with pytest.raises(ValueError, match="images of one shape"):
        save_rows(path, {"a": pixels(4), "b": pixels(4, (1, 3, 3))}, 17)
    with pytest.raises(ValueError, match=r"neighbours \[4, k, \*\[1, 6, 6\]\], got"):
        save_neighbours(path, pixels(4), pixels(4)[:, None], torch.zeros(4, 2), 17)
