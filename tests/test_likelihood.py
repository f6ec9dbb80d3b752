"""Bounds over appended noise, for flows whose marginal likelihood is known."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import distributions, nn

from nflows_mixer.distributions import DiagonalNormal, ProductDistribution
from nflows_mixer.flows import ImageFlow
from nflows_mixer.likelihood import importance_weighted_log_prob, log_mean_exp, log_prob_draws
from nflows_mixer.transforms import DenseFlowBlock, InvertibleConv1x1, MultiScaleTransform

LEVELS = 4


def linear_flow(channels=1, of_posterior=True) -> ImageFlow:
    """Pixels x and one channel of noise e, through linear maps of the channels of each pixel.

    z_2 = W_2 [W_1 x, s e + m(x)] is standard normal, so that [W_1 x, s e + m(x)] is normal of
    precision W_2' W_2. Given x its last channel a is normal with precision P_aa and mean
    -P_az W_1 x / P_aa: where s and m say just that, q is the posterior.
    """
    torch.manual_seed(5)
    block = DenseFlowBlock(
        channels,
        2,
        lambda c: InvertibleConv1x1(c, "full"),
        1,
        network=lambda i, o: nn.Conv2d(i, o, 1),
    )
    transform = MultiScaleTransform([block], (channels, 1, 2))
    base = ProductDistribution({"final": DiagonalNormal((channels + 1, 1, 2), learnable=False)})
    flow = ImageFlow(transform, (channels, 1, 2), base, LEVELS).double().eval()
    first, second = (unit.linear.matrix for unit in block.units)
    network = block.couplings[0].network
    with torch.no_grad():
        first += 0.3 * torch.randn_like(first)
        second += 0.3 * torch.randn_like(second)
        precision = second.T @ second
        shift = -precision[-1, :-1] @ first / precision[-1, -1]
        network.weight[0], network.weight[1] = 0, shift[:, None, None]
        # The scale is exp(2 tanh(u / 2)).
        network.bias[0] = 2 * math.atanh(-precision[-1, -1].log().item() / 4)
        network.bias[1] = 0
        if not of_posterior:
            network.weight[1] += 0.2
            network.bias += 0.5
    return flow


def marginal(flow: ImageFlow) -> distributions.MultivariateNormal:
    """The exact distribution of the channels of a pixel."""
    block = flow._transform._transforms[0]
    first, second = (unit.linear.matrix.detach() for unit in block.units)
    covariance = (second.T @ second).inverse()[:-1, :-1]
    inverse = first.inverse()
    return distributions.MultivariateNormal(
        torch.zeros(len(first), dtype=torch.float64), inverse @ covariance @ inverse.T
    )


def exact_log_prob(flow: ImageFlow, images: torch.Tensor) -> torch.Tensor:
    """log P of images of one channel: the mass of the normal distribution in each pixel's cell."""
    scale = marginal(flow).covariance_matrix.sqrt().squeeze()
    normal = distributions.Normal(torch.zeros_like(scale), scale)
    return (normal.cdf(images + 1.0) - normal.cdf(images.double())).log().flatten(1).sum(1)


def all_images() -> torch.Tensor:
    values = torch.arange(LEVELS)
    return torch.cartesian_prod(values, values).reshape(-1, 1, 1, 2).to(torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_every_draw_of_the_exact_posterior_gives_the_marginal(channels):
    flow = linear_flow(channels)
    images = torch.randint(LEVELS, (6, *flow.image_shape), dtype=torch.uint8)
    uniform = torch.rand(6, channels * 2, dtype=torch.float64)
    values = images + uniform.reshape(images.shape)
    expected = marginal(flow).log_prob(values.permute(0, 2, 3, 1)).flatten(1).sum(1)
    for _ in range(5):
        noise = torch.cat((uniform, 3 * torch.randn(6, 2, dtype=torch.float64)), dim=1)
        found = flow.log_prob(images, noise=noise)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_another_distribution_of_the_noise_costs_its_divergence_from_the_posterior():
    """E log p(x, e) - log q(e | x) = log p(x) - KL(q || p(e | x)), which is known of normals."""
    flow, exact = linear_flow(of_posterior=False), linear_flow()
    image = torch.tensor([[[[1, 2]]]], dtype=torch.uint8)
    uniform = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    values = image + uniform.reshape(1, 1, 1, 2)
    made = []
    for one in (flow, exact):
        block = one._transform._transforms[0]
        u, shift = block.couplings[0].network(values).chunk(2, dim=1)
        made.append(distributions.Normal(shift, (2 * (u / 2).tanh()).exp()))
    divergence = distributions.kl_divergence(*made).sum()
    noise = torch.cat((uniform.expand(20_000, -1), torch.randn(20_000, 2).double()), dim=1)
    draws = flow.log_prob(image.expand(20_000, -1, -1, -1), noise=noise)
    expected = marginal(flow).log_prob(values.permute(0, 2, 3, 1)).sum() - divergence
    assert divergence > 0.3
    assert abs(draws.mean() - expected) < 5 * draws.std() / 20_000**0.5


@pytest.mark.parametrize("of_posterior", [True, False])
def test_importance_weights_reach_the_exact_likelihood(of_posterior):
    flow, images = linear_flow(of_posterior=of_posterior), all_images()
    exact = exact_log_prob(flow, images)
    draws = log_prob_draws(flow, images, 1000, seed=3)
    weights = (draws - exact).exp()
    # Each weight P(x, u) / q(u) has the mean P(x).
    error = weights.std(0) / 1000**0.5
    assert ((weights.mean(0) - 1).abs() < 5 * error).all() and error.max() < 0.1
    bound = importance_weighted_log_prob(flow, images, 1000, seed=3)
    torch.testing.assert_close(bound, log_mean_exp(draws))
    torch.testing.assert_close(bound, exact, atol=5 * error.max().item(), rtol=0)
    # One draw is below on the average, and by more the further q is from the posterior.
    gap = (exact - draws.mean(0)).mean()
    assert 0 < gap < 0.1 if of_posterior else gap > 0.5


def test_bound_grows_with_the_number_of_draws():
    """Averaged over all subsets of the same draws it does so exactly, by Jensen's inequality."""
    flow, images = linear_flow(of_posterior=False), all_images()
    draws = log_prob_draws(flow, images, 8, seed=2)
    means = []
    for k in range(1, 9):
        subsets = [log_mean_exp(draws[list(rows)]) for rows in combinations(range(8), k)]
        assert len(subsets) == math.comb(8, k)
        means.append(torch.stack(subsets).mean(0))
    for looser, tighter in zip(means, means[1:]):
        assert (looser < tighter).all()
    torch.testing.assert_close(means[0], draws.mean(0))
    torch.testing.assert_close(means[7], importance_weighted_log_prob(flow, images, 8, seed=2))


@pytest.mark.parametrize("batch_size, draws, count", [(7, 10, 3), (5, 2, 12), (1, 3, 2)])
def test_memory_is_bounded_by_the_batch_size(monkeypatch, batch_size, draws, count):
    flow, images = linear_flow(), all_images()[:count]
    whole = importance_weighted_log_prob(flow, images, draws, seed=1)
    rows = {"log_prob": [], "draw_noise": []}

    def spied(name, method):
        def call(*arguments, **options):
            result = method(*arguments, **options)
            rows[name].append(len(result))
            return result

        return call

    for name in rows:
        monkeypatch.setattr(flow, name, spied(name, getattr(flow, name)))
    found = importance_weighted_log_prob(flow, images, draws, seed=1, batch_size=batch_size)
    torch.testing.assert_close(found, whole)
    for sizes in rows.values():
        assert sum(sizes) == draws * count and max(sizes) <= batch_size


def test_draws_are_those_of_the_flow_whatever_the_batch():
    flow, images = linear_flow(of_posterior=False), all_images()[:5]
    index = torch.tensor([9, 2, 0, 30, 4])
    draws = log_prob_draws(flow, images, 4, seed=8, index=index)
    for i in range(4):
        noise = flow.draw_noise(8, i, index)
        torch.testing.assert_close(draws[i], flow.log_prob(images, noise=noise).detach())
    for batch_size in (1, 3, 6):
        again = log_prob_draws(flow, images, 4, seed=8, index=index, batch_size=batch_size)
        torch.testing.assert_close(again, draws)
