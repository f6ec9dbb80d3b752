"""Convolutions over the grid of a row: what they see, and where they answer."""

from functools import partial

import pytest
import torch

from nflows_mixer import mixerflow
from nflows_mixer.nn import GridConditioner
from nflows_mixer.transforms import AffineCoupling, RationalQuadraticCoupling, mask_order
from tests.helpers import expect, moved

NETWORK = partial(GridConditioner, hidden_features=6)


def test_outputs_depend_on_neighbors_in_the_grid_alone():
    """Two convolutions of 3 x 3 see two positions to each side."""
    torch.manual_seed(0)
    coupling = moved(AffineCoupling(63, NETWORK, mask="checkerboard", axes=(7, 9)).double(), 0.5)
    row = torch.randn(1, 63, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: coupling(x)[0], row)[0, :, 0]
    places = torch.cartesian_prod(torch.arange(7), torch.arange(9))
    distance = (places[:, None] - places).abs().amax(2)
    parity = places.sum(1) % 2
    seen = (jacobian != 0) & ~torch.eye(63, dtype=torch.bool)
    expected = (distance <= 2) & (parity[:, None] == 1) & (parity == 0)
    assert torch.equal(seen, expected)


def test_pixels_of_a_patch_have_their_colors_as_channels():
    torch.manual_seed(0)
    coupling = moved(AffineCoupling(48, NETWORK, mask="columns", axes=(4, 4, 3)), 0.3)
    assert coupling.conditioner.network.initial.in_channels == 6
    order = mask_order("columns", (4, 4, 3))
    assert torch.equal(coupling.conditioner.fixed, order[:24])
    rows = torch.randn(5, 48)
    assert torch.equal(coupling(rows)[0][:, order[:24]], rows[:, order[:24]])


def test_second_half_conditions_where_asked():
    coupling = AffineCoupling(10, NETWORK, conditioning="second", axes=(2, 5))
    assert coupling.conditioner.fixed.tolist() == [5, 6, 7, 8, 9]
    assert coupling.conditioner.moved.tolist() == [0, 1, 2, 3, 4]


def test_parameters_of_splines_are_in_their_order():
    """As many for each number as a spline has, one behind the other for all that move."""
    torch.manual_seed(0)
    network = GridConditioner(3, 15, (2, 3), (torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])), 4)
    network.network.final.bias.data = torch.arange(5.0)  # of the same at each position
    outputs = network(torch.randn(4, 3))
    assert torch.equal(outputs, torch.arange(5.0).repeat_interleave(3).expand(4, 15))
    spline = RationalQuadraticCoupling(12, NETWORK, axes=(3, 4), num_bins=3)
    rows = torch.randn(2, 12)
    torch.testing.assert_close(spline(rows)[0], rows)


def test_builder_hands_couplings_the_axes_of_their_rows():
    sizes = {"image_shape": (3, 8, 8), "patch_size": 2, "num_layers": 1, "shift": None}
    flow = mixerflow(**sizes, patch_flow=partial(AffineCoupling, mask="rows", conditioner=NETWORK))
    found = [part for part in flow.modules() if isinstance(part, GridConditioner)]
    assert [(part.height, part.width) for part in found] == [(4, 4)] * 4
    assert torch.equal(found[0].fixed, mask_order("rows", (4, 4))[:8])


def test_rows_in_another_order_are_refused():
    sizes = {"image_shape": (3, 8, 8), "patch_size": 2, "num_layers": 1, "shift": None}
    with expect(ValueError, "beside a mask of mixerflow rows have none"):
        mixerflow(**sizes, mask="checkerboard", conditioner=NETWORK)
    with expect(ValueError, "axes"):
        AffineCoupling(8, NETWORK)


@pytest.mark.parametrize("axes, outputs", [((2, 4), 8), ((2, 3), 7)])
def test_sizes_that_do_not_fit_are_refused(axes, outputs):
    with expect(ValueError, "GridConditioner"):
        GridConditioner(3, outputs, axes, (torch.arange(3), torch.arange(3, 6)))
