"""Patches, shifts and shuffles: pixels by hand, and definitions over random shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.transforms import PointwiseAffineTransform

from nflows_mixer.transforms import PatchTransform, PermutePixels, ShiftTransform, SqueezeTransform

quick = settings(max_examples=60, deadline=None)


def numbered(*shape):
    """Images whose pixels are 0, 1, 2, ... in the order of memory."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize(
    "shape, patch, layout, expected",
    [
        ((1, 2, 4), 2, "patch", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        # Channel 1 is channel 0 plus 6.
        ((2, 1, 6), (1, 3), "patch", [[0, 6, 1, 7, 2, 8], [3, 9, 4, 10, 5, 11]]),
        ((1, 4, 3), 2, "band", [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
        ((1, 3, 4), 2, "stripe", [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]),
        ((1, 2, 4), 2, "dilated", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        # A grid of 1 x 3, so that offsets are 3 columns apart.
        ((1, 1, 6), (1, 2), "dilated", [[0, 3], [1, 4], [2, 5]]),
    ],
)
def test_layouts_by_hand(shape, patch, layout, expected):
    matrix, logabsdet = PatchTransform(shape, patch, layout)(numbered(1, *shape))
    assert matrix[0].tolist() == expected and logabsdet.tolist() == [0]


def grid(draw, most=4):
    channels = draw(st.integers(1, 3))
    patch = draw(st.integers(1, most)), draw(st.integers(1, most))
    count = draw(st.integers(1, most)), draw(st.integers(1, most))
    return (channels, patch[0] * count[0], patch[1] * count[1]), patch


@quick
@given(st.data(), st.sampled_from(["patch", "band", "stripe", "dilated"]))
def test_every_layout_is_its_definition(data, layout):
    shape, (p_h, p_w) = grid(data.draw)
    channels, height, width = shape
    transform = PatchTransform(shape, (p_h, p_w), layout)
    p_w = width if layout == "band" else p_w
    p_h = height if layout == "stripe" else p_h
    n_h, n_w = height // p_h, width // p_w
    images = numbered(2, *shape)
    matrix, logabsdet = transform(images)
    assert matrix.shape == (2, n_h * n_w, channels * p_h * p_w) and not logabsdet.any()
    for i in range(height):
        for j in range(width):
            if layout == "dilated":
                token, offset = (i % n_h, j % n_w), (i // n_h, j // n_w)
            else:
                token, offset = (i // p_h, j // p_w), (i % p_h, j % p_w)
            row = token[0] * n_w + token[1]
            column = (offset[0] * p_w + offset[1]) * channels
            assert torch.equal(matrix[:, row, column : column + channels], images[:, :, i, j])
    assert torch.equal(transform.inverse(matrix)[0], images)


def test_shift_by_hand():
    # 4 x 6, patches of 2 x 3, shift (1, 2): inner rows [1, 3), columns [2, 5).
    tenfold = PointwiseAffineTransform(scale=10.0)
    layer = ShiftTransform((1, 4, 6), (2, 3), (1, 2), tenfold)
    outputs, logabsdet = layer(torch.ones(1, 1, 4, 6))
    assert outputs[0, 0].tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 10, 10, 10, 1],
        [1, 1, 10, 10, 10, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert logabsdet.item() == pytest.approx(6 * torch.tensor(10.0).log().item())


@pytest.mark.parametrize(
    "size, patch, shift, frame", [(32, 4, 1, 240), (64, 8, 2, 960), (28, 4, 1, 208)]
)
def test_shift_geometry_of_the_paper(size, patch, shift, frame):
    layer = ShiftTransform((1, size, size), patch, shift, PointwiseAffineTransform(scale=2.0))
    moved = layer(torch.ones(1, 1, size, size))[0][0, 0] == 2
    assert (~moved).sum() == frame
    inner = slice(shift, size - patch + shift)
    assert moved[inner, inner].all()


@quick
@given(st.data())
def test_shift_leaves_the_frame_alone(data):
    channels = data.draw(st.integers(1, 2))
    patch = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    shift = tuple(data.draw(st.integers(1, p - 1)) for p in patch)
    height, width = (p * data.draw(st.integers(2, 4)) for p in patch)
    seen = []

    def factory(inner_shape):
        seen.append(inner_shape)
        return PatchesReversed(inner_shape, patch)

    layer = ShiftTransform((channels, height, width), patch, shift, factory)
    assert seen == [(channels, height - patch[0], width - patch[1])]
    images = numbered(2, channels, height, width)
    outputs, _ = layer(images)
    inside = torch.zeros(height, width, dtype=torch.bool)
    rows = slice(shift[0], height - patch[0] + shift[0])
    columns = slice(shift[1], width - patch[1] + shift[1])
    inside[rows, columns] = True
    assert torch.equal(outputs[..., ~inside], images[..., ~inside])
    # The first pixel of the first inner patch now comes from the last inner patch.
    last = images[..., rows, columns][..., -patch[0], -patch[1]]
    assert torch.equal(outputs[..., shift[0], shift[1]], last)
    assert torch.equal(layer.inverse(outputs)[0], images)


class PatchesReversed(PatchTransform):
    """Image to image: the order of the patches turned around."""

    def forward(self, inputs, context=None):
        matrix, logabsdet = super().forward(inputs)
        return super().inverse(matrix.flip(1))[0], logabsdet

    def inverse(self, inputs, context=None):
        return self.forward(inputs)


@quick
@given(st.data(), st.sampled_from([torch.uint8, torch.float64]))
def test_local_shuffle_keeps_patches_together(data, dtype):
    shape, patch = grid(data.draw)
    shuffle = PermutePixels(shape, "local", patch, seed=data.draw(st.integers(0, 99)))
    images = (numbered(1, *shape) % 256).to(dtype)
    shuffled, logabsdet = shuffle(images)
    assert shuffled.dtype == dtype and logabsdet.is_floating_point() and not logabsdet.any()
    cut = PatchTransform(shape, patch)
    before, after = cut(images)[0][0], cut(shuffled)[0][0]
    assert sorted(row.sort().values.tolist() for row in before) == sorted(
        row.sort().values.tolist() for row in after
    )
    assert torch.equal(shuffle.inverse(shuffled)[0], images)


def test_shuffle_is_a_function_of_its_seed_and_moves_pixels():
    images = numbered(1, 3, 8, 8)
    same, again, other = (PermutePixels((3, 8, 8), seed=s)(images)[0] for s in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.equal(same, other) and not torch.equal(same, images)
    # Channels of a pixel stay together: they are 64 apart.
    assert torch.equal(same[:, 1], same[:, 0] + 64)


def test_local_shuffle_uses_one_permutation_within_all_patches():
    shuffled = PermutePixels((1, 4, 4), "local", 2, seed=5)(numbered(1, 1, 4, 4))[0]
    rows = PatchTransform((1, 4, 4), 2)(shuffled)[0][0]
    assert sorted(rows.min(1).values.tolist()) == [0, 2, 8, 10]
    assert rows.min(1).values.tolist() != [0, 2, 8, 10]
    offsets = [(row - row.min()).tolist() for row in rows]
    assert all(row == offsets[0] for row in offsets) and offsets[0] != [0, 1, 4, 5]


def test_squeeze_by_hand():
    outputs, _ = SqueezeTransform(2)(numbered(1, 1, 2, 4))
    assert outputs[0].tolist() == [[[0, 2]], [[1, 3]], [[4, 6]], [[5, 7]]]
