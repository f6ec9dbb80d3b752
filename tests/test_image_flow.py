"""ImageFlow: the boundary between integer images and the flow below."""

import copy
import pickle
from functools import partial

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from torch import nn

from nflows_mixer.distributions import DiagonalNormal, StudentT
from nflows_mixer.flows import ImageFlow, denseflow, mixerflow
from nflows_mixer.likelihood import importance_weighted_log_prob, log_prob_draws
from nflows_mixer.transforms import (
    CompositeTransform,
    FlowLayer,
    PatchMixerTransform,
    PermutePixels,
    PixelScaling,
    UniformDequantization,
)
from tests.helpers import moved

SHAPE = (1, 6, 6)


def build(std=0.05, **options) -> ImageFlow:
    sizes = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 2}
    flow = mixerflow(**{**sizes, "hidden_features": 16, "num_flow_layers": 2, **options})
    features = options.get("context_features")
    context = features and torch.randn(64, features)
    return moved(flow.initialize(images(64), context), std).eval()


def images(count, levels=17):
    return torch.randint(levels, (count, *SHAPE), dtype=torch.uint8)


def test_log_prob_is_that_of_the_deterministic_flow_at_the_given_noise():
    flow = build().double()
    batch, noise = images(5), torch.rand(5, *SHAPE, dtype=torch.float64)
    plain = flow.deterministic
    assert isinstance(plain, Flow)
    torch.testing.assert_close(flow.log_prob(batch, noise=noise), plain.log_prob(batch + noise))
    assert not torch.equal(flow.log_prob(batch), flow.log_prob(batch))
    assert flow.log_prob(batch[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantisation_keeps_every_pixel_at_the_ends_of_the_noise(dtype, levels):
    dequantize = UniformDequantization(levels).to(dtype)
    pixels = torch.arange(levels, dtype=torch.uint8)[None]
    for value in (0.0, 0.5, 1 - 1e-12, 1.0):
        noise = torch.full(pixels.shape, value, dtype=torch.float64)
        outputs, logabsdet = dequantize(pixels, noise=noise)
        assert outputs.dtype == logabsdet.dtype == dtype
        assert (outputs < pixels.long() + 1).all() and outputs.max() < levels
        assert torch.equal(dequantize.inverse(outputs)[0], pixels)


def test_dequantisation_noise_is_uniform():
    dequantize = UniformDequantization(256)
    noise = dequantize(torch.full((1, 100_000), 7, dtype=torch.uint8))[0] - 7
    ordered = noise.flatten().sort().values
    gap = (ordered - (torch.arange(100_000) + 0.5) / 100_000).abs().max()
    assert gap < 0.01  # Kolmogorov-Smirnov: 0.0052 at the 1 % level


def test_rounding_clamps_to_the_levels():
    values = torch.tensor([[-3.0, 0.99, 16.5, 17.0, 400.0]])
    assert UniformDequantization(17).inverse(values)[0].tolist() == [[0, 0, 16, 16, 16]]


def test_samples_are_images_of_the_levels_drawn_in_evaluation_mode():
    flow = build().train()
    flow._transform._transforms[0].eval()
    modes = [m.training for m in flow.modules()]
    statistics = copy.deepcopy(flow.state_dict())
    samples = flow.sample(7)
    assert samples.shape == (7, *SHAPE) and samples.dtype == torch.uint8
    assert samples.max() < 17 and not samples.requires_grad
    assert [m.training for m in flow.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(statistics.values(), flow.state_dict().values()))


def test_batch_size_does_not_change_samples():
    flow = build()
    torch.manual_seed(5)
    whole = flow.sample(10)
    torch.manual_seed(5)
    assert torch.equal(flow.sample(10, batch_size=3), whole)


def test_context_reaches_density_and_samples_in_the_shape_of_nflows():
    flow = build(context_features=3, std=0.1)
    batch, context = images(4), torch.randn(4, 3)
    noise = torch.rand(4, *SHAPE)
    first = flow.log_prob(batch, context, noise=noise)
    assert not torch.allclose(first, flow.log_prob(batch, context + 1, noise=noise))
    samples = flow.sample(5, context)
    assert samples.shape == (4, 5, *SHAPE)
    torch.manual_seed(1)
    whole = flow.sample(5, context)
    torch.manual_seed(1)
    assert torch.equal(flow.sample(5, context, batch_size=3), whole)
    # Row i of the samples belongs to row i of the context.
    torch.manual_seed(1)
    latents = flow._distribution.sample(5, context)[2]
    values, _ = flow._transform.inverse(latents, context[2:3].expand(5, -1))
    assert torch.equal(flow.dequantization.inverse(values)[0], whole[2])


def test_bases_of_nflows_serve():
    flow = ImageFlow(PixelScaling(17), SHAPE, StandardNormal(SHAPE), levels=17)
    assert flow.sample(3).shape == (3, *SHAPE)
    with pytest.raises(ValueError, match="temperature"):
        flow.sample(3, temperature=0.5)

    class Flatten(PixelScaling):
        def forward(self, inputs, context=None):
            outputs, logabsdet = super().forward(inputs)
            return outputs.flatten(1), logabsdet

        def inverse(self, inputs, context=None):
            return super().inverse(inputs.unflatten(1, SHAPE))

    base = ConditionalDiagonalNormal([36], nn.Linear(3, 72))
    flow = ImageFlow(Flatten(17), SHAPE, base, levels=17)
    assert flow.sample(2, torch.randn(4, 3)).shape == (4, 2, *SHAPE)
    assert flow.log_prob(images(4), torch.randn(4, 3)).shape == (4,)


def test_double_works_whole():
    flow = build(base=partial(StudentT, degrees_of_freedom=4.0)).double()
    assert flow.log_prob(images(3)).dtype == torch.float64
    assert flow.transform_to_noise(images(3)).dtype == torch.float64
    assert flow.sample(2).dtype == torch.uint8


def test_initialize_happens_once_and_keeps_modes():
    flow = mixerflow(image_shape=SHAPE, patch_size=2, levels=17, num_layers=2).eval()
    assert flow.initialize(images(50)) is flow
    assert not any(m.training for m in flow.modules())
    before = copy.deepcopy(flow.state_dict())
    flow.initialize(images(50) // 4)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), flow.state_dict().values()))


def test_first_training_step_initializes_as_initialize_does():
    first, second = (
        mixerflow(image_shape=SHAPE, patch_size=2, levels=17, num_layers=2) for _ in range(2)
    )
    second.load_state_dict(first.state_dict())
    batch = images(50)
    torch.manual_seed(7)
    first.initialize(batch)
    torch.manual_seed(7)
    second.train().log_prob(batch)
    for a, b in zip(first.state_dict().values(), second.state_dict().values()):
        assert torch.equal(a, b)


def test_saved_flow_reloads_to_the_same_likelihood(tmp_path):
    flow = build()
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    sizes = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 2}
    again = mixerflow(**sizes, hidden_features=16, num_flow_layers=2).eval()
    again.load_state_dict(torch.load(tmp_path / "flow.pt", weights_only=True))
    batch, noise = images(4), torch.rand(4, *SHAPE)
    for other in (again, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(batch, noise=noise), flow.log_prob(batch, noise=noise))


def test_deterministic_flow_shares_parameters_and_samples_with_log_prob():
    flow = build(context_features=3).double()
    plain, context = flow.deterministic, torch.randn(2, 3, dtype=torch.float64)
    assert {id(p) for p in plain.parameters()} == {id(p) for p in flow.parameters()}
    assert plain.sample(5, context, batch_size=2).shape == (2, 5, *SHAPE)
    samples, log_prob = plain.sample_and_log_prob(5, context)
    assert samples.shape == (2, 5, *SHAPE) and log_prob.shape == (2, 5)
    again = plain.log_prob(samples[:, 3], context)
    torch.testing.assert_close(again, log_prob[:, 3], rtol=1e-6, atol=1e-6)


def test_samples_that_overflow_are_said():
    flow = build()
    with torch.no_grad():
        flow._distribution.location[0, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="3 of 3 samples have .* not finite") as caught:
        flow.sample(3, batch_size=2)
    assert [w.filename for w in caught] == [__file__]


def test_latents_are_a_function_of_each_image_even_in_training_mode():
    flow = build(std=0.1).double().train()
    batch = images(6)
    statistics = copy.deepcopy(flow.state_dict())
    latents = flow.transform_to_noise(batch)
    torch.testing.assert_close(flow.transform_to_noise(batch[2:3])[0], latents[2])
    middle = flow.deterministic.eval().transform_to_noise(batch.double() + 0.5)
    torch.testing.assert_close(latents, middle)
    flow.train()
    assert all(torch.equal(a, b) for a, b in zip(statistics.values(), flow.state_dict().values()))
    assert latents.requires_grad and flow.training


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_samples_are_inverted_latents_that_the_temperature_scales(temperature):
    flow = build().double()
    torch.manual_seed(5)
    cool = flow.sample(50, temperature=temperature)
    torch.manual_seed(5)
    base = flow._distribution
    latents = base.location + temperature * (base.sample(50) - base.location)
    values, _ = flow._transform.inverse(latents)
    assert torch.equal(cool, flow.dequantization.inverse(values)[0])


def test_integer_pixels_go_through_a_composite():
    parts = [PermutePixels(SHAPE, seed=1), UniformDequantization(17), PixelScaling(17)]
    composite = CompositeTransform(parts)
    batch = images(4)
    outputs, logabsdet = composite(batch)
    assert outputs.dtype == logabsdet.dtype == torch.float32
    assert torch.equal(composite.inverse(outputs)[0], batch)


def real(**options) -> ImageFlow:
    """A flow on real images, of either sign."""
    sizes = {"image_shape": SHAPE, "patch_size": 2, "levels": None, "num_layers": 2}
    flow = mixerflow(**{**sizes, "hidden_features": 16, "num_flow_layers": 2, **options})
    return moved(flow.initialize(2 * torch.randn(64, *SHAPE)), 0.05).eval()


def test_density_of_real_images_is_exact_and_that_of_their_samples():
    flow = real().double()
    batch = 2 * torch.randn(3, *SHAPE, dtype=torch.float64)
    log_prob = flow.log_prob(batch)
    assert torch.equal(log_prob, flow.log_prob(batch))
    for same in (flow.deterministic, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(log_prob, same.log_prob(batch))

    def latents(image):
        return flow._transform(image[None])[0].flatten()

    for image, value in zip(batch, log_prob):
        jacobian = torch.autograd.functional.jacobian(latents, image).reshape(36, 36)
        of_base = flow._distribution.log_prob(latents(image).reshape(1, *SHAPE))
        torch.testing.assert_close(value, of_base[0] + torch.linalg.slogdet(jacobian)[1])
    samples, density = flow.sample_and_log_prob(20)
    torch.testing.assert_close(flow.log_prob(samples), density)
    assert flow.sample(2).dtype == torch.float64 and flow.sample(200).min() < 0
    assert torch.equal(flow.dequantize_mid(batch), batch)
    torch.testing.assert_close(flow._transform.inverse(flow.transform_to_noise(batch))[0], batch)


def test_real_images_take_the_precision_of_the_flow_and_no_noise():
    flow, batch = real(), torch.randn(4, *SHAPE)
    assert torch.equal(flow.log_prob(batch.double()), flow.log_prob(batch))
    noise = flow.draw_noise(0, 1, torch.arange(4))
    assert flow.noise_shape == (0,) and noise.shape == (4, 0)
    assert torch.equal(flow.log_prob(batch, noise=noise), flow.log_prob(batch))
    draws = log_prob_draws(flow, batch, 3)
    assert torch.equal(draws, draws[:1].expand(3, -1))
    torch.testing.assert_close(importance_weighted_log_prob(flow, batch, 3), draws[0])


def test_nothing_is_before_the_flow_of_real_images_that_was_given():
    plain = Flow(PatchMixerTransform(SHAPE, 2, FlowLayer, FlowLayer), StandardNormal(SHAPE))
    batch = torch.randn(20, *SHAPE)
    flow = ImageFlow.from_flow(plain, SHAPE, levels=None)
    flow.initialize(batch)
    assert torch.equal(flow.eval().log_prob(batch), plain.log_prob(batch))


def test_a_flow_that_appends_noise_takes_real_images_and_gives_a_bound():
    sizes = {"units": (2, 1), "modules": (1, 1), "growth": 2}
    flow = denseflow(image_shape=(1, 4, 4), levels=None, **sizes)
    flow.initialize(torch.randn(20, 1, 4, 4))
    batch, noise = torch.randn(5, 1, 4, 4), flow.eval().draw_noise(0, 1, torch.arange(5))
    assert noise.shape[1] == flow._transform.noise_shape((1, 4, 4))[0] > 0
    assert torch.equal(*(flow.log_prob(batch, noise=noise) for _ in range(2)))
    assert flow.sample(3).is_floating_point()
    with pytest.raises(RuntimeError, match="got one that draws noise"):
        flow.sample_and_log_prob(2)
    whole = denseflow(image_shape=(1, 4, 4), levels=None, **{**sizes, "growth": 0})
    whole.initialize(torch.randn(20, 1, 4, 4))
    samples, density = whole.double().eval().sample_and_log_prob(4)
    torch.testing.assert_close(whole.log_prob(samples), density)


def test_a_loop_of_ones_own_fits_a_density_of_real_images():
    torch.manual_seed(0)
    data = 3 + 2 * torch.randn(512, 1, 4, 4)
    sizes = {"patch_size": 2, "num_layers": 2, "shift": None, "hidden_features": 8}
    flow = mixerflow(image_shape=(1, 4, 4), levels=None, **sizes).initialize(data)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    for batch in data.split(128) * 5:
        optimizer.zero_grad()
        loss = -flow.log_prob(batch).mean()
        loss.backward()
        optimizer.step()
    fresh = 3 + 2 * torch.randn(2000, 1, 4, 4)
    true = DiagonalNormal((1, 4, 4)).log_prob((fresh - 3) / 2) - 16 * torch.tensor(2.0).log()
    with torch.no_grad():
        assert 0 < (true - flow.eval().log_prob(fresh)).mean() < 1
