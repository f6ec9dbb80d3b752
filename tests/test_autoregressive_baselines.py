"""MADE and MAF: which value depends on which, the Gaussian conditionals, and their parts."""

import math

import pytest
import torch
from nflows.transforms import BatchNorm
from torch import distributions

from benchmarks.baselines.autoregressive import FlattenTransform, gaussian_made, made, maf
from nflows_mixer.transforms import AffineAutoregressive
from tests.helpers import moved


def exact(module):
    return moved(module, 0.3).double().eval()


def jacobian_of_rows(function, features):
    row = torch.randn(1, features, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: function(x)[0].flatten(), row)[:, 0]


def test_flatten_keeps_the_values_of_a_channel_together():
    images = torch.arange(12).reshape(1, 3, 2, 2)
    rows, logabsdet = FlattenTransform((3, 2, 2))(images)
    assert rows.tolist() == [list(range(12))] and logabsdet.tolist() == [0]
    assert torch.equal(FlattenTransform((3, 2, 2)).inverse(rows)[0], images)
    with pytest.raises(ValueError, match=r"expected inputs of shape \[B, 12\]"):
        FlattenTransform((3, 2, 2)).inverse(rows[:, :-1])


@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_made_has_every_earlier_value_and_no_later_one(hidden_layers):
    # With 0.3 noise and this many units no output is cut off by rectifiers that are all at zero.
    jacobian = jacobian_of_rows(exact(gaussian_made(8, 700, hidden_layers)), 8)
    assert torch.equal(jacobian != 0, torch.ones(8, 8).tril().bool())


@pytest.mark.parametrize("features, hidden", [(1, 3), (9, 2), (3072, 1024), (784, 1024)])
def test_hidden_units_see_up_to_the_last_input_but_one(features, hidden):
    degrees = gaussian_made(features, hidden).network.initial_layer.degrees
    assert len(degrees) == hidden and degrees[-1] == features - 1
    widths = {after - before for before, after in zip((0, *degrees), degrees)}
    assert max(widths) - min(widths) <= 1


@torch.no_grad()
def test_made_is_a_product_of_normals():
    """With weights of zero the conditionals are normals of means and scales that are known."""
    flow = made((1, 2, 2), hidden_features=5, levels=4).double()
    log_scale = torch.tensor([0.1, -0.2, 0.3, 0.5], dtype=torch.float64)
    shift = torch.tensor([1.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    (layer,) = (part for part in flow.modules() if isinstance(part, AffineAutoregressive))
    layer.network.final_layer.bias.copy_(torch.stack([log_scale, shift], 1).flatten())
    pixels = 4 * torch.rand(3, 1, 2, 2, dtype=torch.float64)
    normal = distributions.Normal(-shift / log_scale.exp(), (-log_scale).exp())
    expected = normal.log_prob(pixels.flatten(1) / 4 - 0.5).sum(1) - 4 * math.log(4)
    torch.testing.assert_close(flow.deterministic.log_prob(pixels), expected)


def test_made_of_rows_has_the_conditionals_of_its_network():
    layer = exact(gaussian_made(6, 50))
    rows = torch.randn(4, 6, dtype=torch.float64)
    log_scale, shift = layer.network(rows).reshape(4, 6, 2).unbind(2)
    mean, scale = -shift / log_scale.exp(), (-log_scale).exp()
    outputs, logabsdet = layer(rows)
    torch.testing.assert_close(outputs, (rows - mean) / scale)
    torch.testing.assert_close(logabsdet, -scale.log().sum(1))


def test_every_second_layer_of_maf_goes_the_other_way():
    flow = maf((1, 2, 3), num_layers=2, hidden_features=400).double().eval()
    rows = torch.nn.Sequential(*list(flow._transform._transforms)[2:])

    def function(row):
        for part in rows:
            row, _ = part(row)
        return row, None

    first, second = (part for part in rows if isinstance(part, AffineAutoregressive))
    exact(second)
    # The first is the identity yet, and the outputs are in the order that the second one took.
    jacobian = jacobian_of_rows(function, 6)
    assert torch.equal(jacobian.flip(1) != 0, torch.ones(6, 6).tril().bool())
    exact(first)
    assert (jacobian_of_rows(function, 6) != 0).all()


@torch.no_grad()
def test_batch_normalization_follows_every_layer():
    flow = maf((1, 4, 4), num_layers=3, hidden_features=32)
    assert sum(isinstance(part, BatchNorm) for part in flow.modules()) == 3
    pixels = 256 * torch.rand(500, 1, 4, 4)
    before, _ = flow.eval()._transform(pixels)
    assert before.std() < 0.4  # of its running statistics, which are 0 and 1
    latents, _ = flow.train()._transform(pixels)
    torch.testing.assert_close(latents.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(0), torch.ones(16), atol=1e-3, rtol=0)


@torch.no_grad()
def test_pixels_go_through_a_logit_where_one_is_asked_for():
    flow = made((1, 2, 2), hidden_features=5, logit=0.05, levels=4).eval()
    pixels = 4 * torch.rand(3, 1, 2, 2)
    latents, logabsdet = flow._transform(pixels)
    expected = torch.logit(0.05 + 0.9 * pixels / 4).flatten(1)
    torch.testing.assert_close(latents, expected)
    slopes = 0.9 / 4 * (torch.exp(expected) + 2 + torch.exp(-expected))
    torch.testing.assert_close(logabsdet, slopes.log().sum(1))


@pytest.mark.parametrize("build", [made, maf])
def test_samples_and_likelihoods_of_images(build):
    flow = build((3, 4, 4), hidden_features=64, logit=0.05)
    images = torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8)
    flow.train().log_prob(images).mean().backward()
    samples = flow.sample(5)
    assert samples.shape == (5, 3, 4, 4) and samples.dtype == torch.uint8
    assert flow.eval().log_prob(images).isfinite().all()


@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_number_of_parameters(hidden_layers):
    features, hidden = 48, 100
    layer = features * hidden + hidden + (hidden_layers - 1) * (hidden**2 + hidden)
    layer += 2 * features * (hidden + 1)
    flow = made((3, 4, 4), hidden, hidden_layers)
    assert sum(parameter.numel() for parameter in flow.parameters()) == layer
    flow = maf((3, 4, 4), 10, hidden, hidden_layers)
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert count == 10 * (layer + 2 * features)


@pytest.mark.parametrize("name", ["num_layers", "hidden_features", "hidden_layers"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} to be a positive integer"):
        maf((1, 4, 4), **{name: 0})
