"""Flows inside other people's libraries, each with the figure that it must have.

``pip install nflows-mixer[clients]`` installs them; where one is missing its test is skipped.
"""

import math
from functools import partial

import pytest
import torch
from nflows.flows import Flow
from torch import nn

from nflows_mixer.adapters import to_zuko
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import mixerflow
from nflows_mixer.transforms import (
    CompositeTransform,
    FlowLayer,
    PatchMixerTransform,
    ReshapeTransform,
    initialize,
    initialize_identity,
)

IMAGE = (1, 8, 8)
NOISE = 0.5  # of what is observed
QUADRANTS = 4

# The parameters are white 8 x 8 images, and observed are their quadrants' sums over 4, which are
# standard normal, with noise. Along each quadrant's constant image the posterior is normal, with
# this variance and mean; across them it is the prior.
VARIANCE = NOISE**2 / (1 + NOISE**2)


def quadrants(images):
    """[N, 64] -> [N, 4]."""
    return images.unflatten(1, (2, 4, 2, 4)).sum((2, 4)).flatten(1) / 4


def simulated(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 64, generator=generator)
    noise = torch.randn(count, QUADRANTS, generator=generator)
    return images, quadrants(images) + NOISE * noise


def posterior_log_prob(images, observed):
    along = quadrants(images)
    across = images.square().sum(1) - along.square().sum(1)
    mean = observed / (1 + NOISE**2)
    log_prob = torch.distributions.Normal(mean, math.sqrt(VARIANCE)).log_prob(along).sum(1)
    return log_prob - across / 2 - (64 - QUADRANTS) / 2 * math.log(2 * math.pi)


def mixer_of_vectors():
    """Two mixer layers on vectors [N, 64], given what was observed."""
    layer = partial(FlowLayer, context_features=QUADRANTS)
    mixers = [PatchMixerTransform(IMAGE, 4, layer, layer) for _ in range(2)]
    first, last = ReshapeTransform((64,), IMAGE), ReshapeTransform(IMAGE, (64,))
    return initialize_identity(CompositeTransform([first, *mixers, last]))


def check_posterior(log_prob, samples, observed):
    """Within half a nat of the posterior, which differs from the prior by 3.2, on fresh pairs."""
    pairs = simulated(10_000, seed=2)
    with torch.no_grad():
        differences = posterior_log_prob(*pairs) - log_prob(*pairs)
    divergence, error = differences.mean().item(), differences.std().item() / 100
    assert -3 * error <= divergence < 0.5
    mean = quadrants(samples).mean(0)
    torch.testing.assert_close(mean, observed / (1 + NOISE**2), atol=0.15, rtol=0)


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_the_posterior_of_sbi_over_images_is_the_known_one(tmp_path, monkeypatch):
    pytest.importorskip("sbi")
    monkeypatch.chdir(tmp_path)  # where sbi leaves its logs
    from sbi.inference import NPE
    from sbi.neural_nets.estimators import NFlowsFlow

    torch.manual_seed(0)

    def estimator(images, observed):
        flow = Flow(mixer_of_vectors(), DiagonalNormal((64,)))
        return NFlowsFlow(flow, images[0].shape, observed[0].shape)

    prior = torch.distributions.MultivariateNormal(torch.zeros(64), torch.eye(64))
    inference = NPE(prior=prior, density_estimator=estimator, show_progress_bars=False)
    inference.append_simulations(*simulated(10_000, seed=1))
    trained = inference.train(training_batch_size=200, learning_rate=2e-3, max_num_epochs=12)
    observed = torch.tensor([1.0, -1.0, 0.5, 0.0])
    posterior = inference.build_posterior(trained)
    samples = posterior.sample((2_000,), x=observed[None], show_progress_bars=False)
    check_posterior(lambda images, x: trained.log_prob(images[None], x)[0], samples, observed)


def test_the_posterior_of_lampe_over_images_is_the_known_one():
    lampe = pytest.importorskip("lampe")
    torch.manual_seed(0)

    def build(features, context_features):
        return to_zuko(Flow(mixer_of_vectors(), DiagonalNormal((features,))))

    estimator = lampe.inference.NPE(64, QUADRANTS, build=build)
    loss = lampe.inference.NPELoss(estimator)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=2e-3)
    step = lampe.utils.GDStep(optimizer, clip=10.0)
    images, observed = simulated(10_000, seed=1)
    for _ in range(12):
        for rows in torch.randperm(len(images)).split(200):
            step(loss(images[rows], observed[rows]))
    seen = torch.tensor([1.0, -1.0, 0.5, 0.0])
    with torch.no_grad():
        samples = estimator.flow(seen).sample((2_000,))
    check_posterior(estimator, samples, seen)


def test_a_guide_of_pyro_learns_the_posterior():
    pyro = pytest.importorskip("pyro")
    from pyro import distributions as dist
    from pyro.infer.autoguide import AutoNormalizingFlow

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    observed = torch.tensor([1.0, -1.0, 0.5, 0.0])

    def model():
        images = pyro.sample("images", dist.Normal(torch.zeros(64), 1.0).to_event(1))
        seen = dist.Normal(quadrants(images.reshape(-1, 64)).reshape(*images.shape[:-1], 4), NOISE)
        pyro.sample("seen", seen.to_event(1), obs=observed)

    mixer = PatchMixerTransform(IMAGE, 4, FlowLayer, FlowLayer)
    shapes = (64,), IMAGE
    parts = [ReshapeTransform(*shapes), mixer, ReshapeTransform(*shapes[::-1])]
    transform = initialize_identity(CompositeTransform(parts))
    guide = AutoNormalizingFlow(model, lambda features: to_zuko(transform)().inv)
    guide()
    assert set(guide.parameters()) == set(transform.parameters())
    loss = pyro.infer.Trace_ELBO(num_particles=16, vectorize_particles=True).differentiable_loss
    optimizer = torch.optim.Adam(guide.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        loss(model, guide).backward()
        optimizer.step()
        schedule.step()
    evidence = torch.distributions.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(observed).sum()
    with torch.no_grad():
        posterior = guide.get_posterior()
        samples = posterior.sample((10_000,))
        differences = posterior.log_prob(samples)
        differences = differences - posterior_log_prob(samples, observed.expand(10_000, 4))
    divergence, error = differences.mean().item(), differences.std().item() / 100
    assert -3 * error <= divergence < 0.1
    elbo = -sum(loss(model, guide).item() for _ in range(20)) / 20
    assert abs(elbo - evidence.item()) < 0.2


def small_flow():
    torch.manual_seed(0)
    flow = mixerflow(image_shape=IMAGE, patch_size=2, num_layers=2, hidden_features=16)
    images = torch.randint(256, (32, *IMAGE), dtype=torch.uint8)
    return initialize(flow, images), images


def test_captum_attributes_the_density_to_pixels_and_sees_layers():
    attr = pytest.importorskip("captum.attr")
    flow, images = small_flow()
    flow.validate_args = False
    density = flow.eval().deterministic
    pixels, baseline = images[:4].float() + 0.5, torch.full((1, *IMAGE), 128.0)
    gradients = attr.IntegratedGradients(density.log_prob)
    found = gradients.attribute(pixels, baseline, n_steps=200)
    expected = density.log_prob(pixels) - density.log_prob(baseline)
    torch.testing.assert_close(found.flatten(1).sum(1), expected, rtol=0.01, atol=0.5)
    seen = 0
    for layer in flow.modules():
        if isinstance(layer, (FlowLayer, PatchMixerTransform)):
            activation = attr.LayerActivation(density.log_prob, layer).attribute(pixels)
            values = activation[0] if isinstance(activation, tuple) else activation
            assert values.shape[0] % len(pixels) == 0 and values.isfinite().all()
            seen += 1
    assert seen == 2 * (1 + 8)


def test_a_loop_of_accelerate_trains_a_flow():
    accelerate = pytest.importorskip("accelerate")
    flow, _ = small_flow()
    generator = torch.Generator().manual_seed(1)
    # Each image is of one grey value, and a little noise.
    grey = torch.randint(32, 224, (512, 1, 1, 1), generator=generator)
    noise = torch.randint(-8, 9, (512, *IMAGE), generator=generator)
    images = (grey + noise).to(torch.uint8)
    flow = mixerflow(image_shape=IMAGE, patch_size=2, num_layers=2, hidden_features=16)
    initialize(flow, images)
    accelerator = accelerate.Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(images, batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    flow, optimizer, loader = accelerator.prepare(flow, optimizer, loader)
    for _ in range(12):
        for batch in loader:
            with accelerator.accumulate(flow):
                loss = -flow(batch).mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(flow.parameters(), 10.0)
                optimizer.step()
                optimizer.zero_grad()
    bits = -flow(images).mean().item() / 64 / math.log(2)
    # Uniform noise of 17 values, and 7.6 bits of one grey value for each image: 4.1 and 0.12.
    assert 4.2 < bits < 4.9
    assert isinstance(accelerator.unwrap_model(flow), nn.Module)
