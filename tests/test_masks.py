"""Masks: which features of a coupling condition, by hand and by gradients."""

import pytest
import torch

from nflows_mixer import mixerflow
from nflows_mixer.transforms import (
    AffineCoupling,
    FlowLayer,
    PatchMixerTransform,
    PatchTransform,
    mask_order,
)
from nflows_mixer.transforms.masks import MASKS
from tests.helpers import expect, moved


def test_orders_of_a_grid_by_hand():
    assert mask_order("halves", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert mask_order("checkerboard", (2, 3)).tolist() == [0, 2, 4, 1, 3, 5]
    assert mask_order("rows", (3, 2)).tolist() == [0, 1, 4, 5, 2, 3]
    assert mask_order("columns", (2, 3)).tolist() == [0, 2, 3, 5, 1, 4]
    assert mask_order("checkerboard", (4,)).tolist() == [0, 2, 1, 3]


def test_channels_of_a_pixel_stay_together():
    assert mask_order("checkerboard", (2, 2, 2)).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]


def test_of_49_patches_25_are_even():
    order = mask_order("checkerboard", (7, 7))
    assert all((i // 7 + i % 7) % 2 == 0 for i in order[:25].tolist())


@pytest.mark.parametrize("mask", MASKS)
def test_an_order_is_a_permutation(mask):
    assert mask_order(mask, (3, 5, 2)).sort().values.tolist() == list(range(30))


def test_random_orders_are_functions_of_the_seed():
    assert torch.equal(mask_order("random", (9,), 3), mask_order("random", (9,), 3))
    assert not torch.equal(mask_order("random", (9,), 3), mask_order("random", (9,), 4))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ["patch", "dilated"])
def test_patches_in_an_order_are_the_patches_reordered(mask, layout):
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    plain = PatchTransform((2, 6, 6), 3, layout)(images)[0]
    patches = PatchTransform((2, 6, 6), 3, layout, mask, seed=1)
    matrix = patches(images)[0]
    rows, columns = mask_order(mask, (2, 2), 1), mask_order(mask, (3, 3, 2), 1)
    assert torch.equal(matrix, plain[:, rows][:, :, columns])
    assert torch.equal(patches.inverse(matrix)[0], images)


def test_a_checkerboard_mixer_layer_moves_no_pixel():
    """Flow layers that do nothing leave every pixel at its place, hence also before a shift."""
    nothing = [FlowLayer(n, actnorm=None, linear=None, flow=None) for n in (9, 16)]
    layer = PatchMixerTransform((1, 12, 12), 3, *nothing, mask="checkerboard")
    images = torch.randn(2, 1, 12, 12)
    assert torch.equal(layer(images)[0], images)


def conditioning(transform, features):
    """Features whose values change what happens to others."""
    jacobian = torch.autograd.functional.jacobian(
        lambda row: transform(row[None])[0][0], torch.randn(features, dtype=torch.float64)
    )
    off_diagonal = jacobian - jacobian.diag().diag()
    return [i for i in range(features) if off_diagonal[:, i].abs().max() > 0]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0, 1, 2]),
        ({"conditioning": "second"}, [3, 4, 5]),
        ({"mask": "checkerboard", "axes": (2, 3)}, [0, 2, 4]),
        ({"mask": "checkerboard", "axes": (2, 3), "conditioning": "second"}, [1, 3, 5]),
        ({"mask": [True, False, False, True, False, False]}, [0, 3]),
        (
            {"mask": [True, False, False, True, False, False], "conditioning": "second"},
            [1, 2, 4, 5],
        ),
    ],
)
@pytest.mark.parametrize("in_layer", [False, True])
def test_the_named_features_condition(options, expected, in_layer):
    coupling = AffineCoupling(6, **options)
    transform = FlowLayer(6, None, None, coupling) if in_layer else coupling
    assert conditioning(moved(transform.double(), 0.1), 6) == expected


def test_halves_alternate_and_the_mask_orders_the_patches():
    flow = mixerflow(
        image_shape=(1, 4, 4),
        patch_size=2,
        num_layers=1,
        num_flow_layers=2,
        shift=None,
        mask="checkerboard",
        alternate=True,
    )
    couplings = [part.conditioning for part in flow.modules() if isinstance(part, AffineCoupling)]
    assert couplings == ["first", "second"] * 2
    (patches,) = {part for part in flow.modules() if isinstance(part, PatchTransform)}
    assert patches.mask == "checkerboard" and patches.patch_order.tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize(
    "call, pattern",
    [
        (lambda: mask_order("zigzag", (4,)), "'checkerboard'.*got 'zigzag'"),
        (lambda: mask_order("rows", ()), r"sizes of a row.*got \(\)"),
        (lambda: AffineCoupling(6, mask="rows", axes=(2, 2)), r"axes of 6.*got \(2, 2\)"),
        (lambda: AffineCoupling(6, mask=[True] * 6), "1 to 5 features.*got 6"),
        (lambda: AffineCoupling(6, mask=[True, False]), r"6 booleans.*got torch.bool.*\[2\]"),
        (
            lambda: mixerflow(
                image_shape=(1, 4, 4), patch_size=2, num_layers=2, shift=None, mask=["rows"]
            ),
            "one mask for each of 2 layers, got 1",
        ),
    ],
)
def test_wrong_masks_are_refused(call, pattern):
    with expect(ValueError, pattern):
        call()
