"""Training of a DenseFlow: flips, all its noise, decay, fine-tuning, runs that stop on the way."""

import copy
import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from nflows_mixer.evaluation import evaluate
from nflows_mixer.flows import load_weights, read_metadata
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import FlowModule, HybridModule, Recipe, ShuffledBatches
from nflows_mixer.training.flips import FLIPS, random_flips
from tests.training import (
    LEARNED,
    SHAPE,
    Recording,
    assert_same,
    noise_data,
    norms_of,
    pixels,
    plain,
    run,
    tiny,
    tiny_denseflow,
    train,
)

TUNED = {"warmup": 3, "decay": 0.7, "decay_every": 2, "fine_tune_steps": 2, "fine_tune_rate": 1e-3}
TUNED |= {"optimizer": "adamax", "gradient_clip": None, "flip": True}


# Flips.


def test_half_of_the_images_are_mirrored():
    images = torch.randint(256, (4000, 2, 3, 4), dtype=torch.uint8)
    seen = random_flips(images, seed=3, number=7, index=torch.arange(4000))
    flipped = (seen == images.flip(-1)).flatten(1).all(1)
    kept = (seen == images).flatten(1).all(1)
    assert (flipped | kept).all() and seen.dtype == torch.uint8
    assert abs(flipped.sum() - 2000) < 4 * math.sqrt(1000)
    # And no more often than by chance the same ones at another step, or of another seed.
    for other in ({"seed": 4, "number": 7}, {"seed": 3, "number": 8}):
        again = random_flips(images, **other, index=torch.arange(4000))
        same = (again == seen).flatten(1).all(1).sum()
        assert abs(same - 2000) < 4 * math.sqrt(1000)


def test_flips_have_a_stream_of_their_own():
    """Neither the noise of their step nor that of any other decides them."""
    index = torch.arange(50)
    flips = uniform_noise(0, FLIPS + 1, index, (1,))
    steps = [uniform_noise(0, step, index, (1,)) for step in (*range(300), 2**40, FLIPS - 1)]
    assert not any(torch.equal(flips, noise) for noise in steps)
    images = pixels(50)
    mirrored = torch.where(flips[:, :, None, None] < 0.5, images.flip(-1), images)
    assert torch.equal(random_flips(images, 0, 1, index), mirrored)


# Batches, whole and split.


def draw_step(flow, images, seed, step, index):
    """Mirrored images and noise of a step, of which the noise is number 1 + step."""
    noise = flow.draw_noise(seed, 1 + step, index, next(flow.parameters()).dtype)
    return random_flips(images, seed, 1 + step, index), noise


@plain
@pytest.mark.parametrize("parts", [1, 2])
def test_images_and_noise_of_a_step_do_not_depend_on_how_it_is_split(parts):
    data, recipe = noise_data(), Recipe(1e-4, steps=4, batch_size=12, flip=True)
    module = train(Recording(tiny_denseflow(), recipe, seed=4), data, accumulate_grad_batches=parts)
    batches = list(ShuffledBatches(20, 12, 4, seed=4))
    for step, rows in enumerate(batches):
        images, index = data.train.images(rows), torch.arange(12)
        expected = draw_step(module.flow, images, 4, step, index)
        for whole, *got in zip(expected, *module.seen[parts * step : parts * (step + 1)]):
            assert torch.equal(torch.cat(got), whole)
    # As two processes see them, which have every other image of each part.
    for rank in range(2):
        ranked = FlowModule(module.flow, recipe, seed=4)
        ranked.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        ranked._micro_batch = (3, 0)
        for part, (images, noise) in zip(batches[3].chunk(parts), module.seen[3 * parts :]):
            mine = data.train.images(part)[rank::2]
            got = ranked._drawn(mine)
            assert torch.equal(got[0], images[rank::2]) and torch.equal(got[2], noise[rank::2])
            ranked.on_train_batch_end(None, mine, 0)


@plain
def test_first_batch_initializes_with_its_flips_and_noise():
    data, flow = noise_data(), tiny_denseflow().double()
    rows = next(iter(ShuffledBatches(20, 10, 1, seed=3)))
    images, noise = draw_step(flow, data.train.images(rows), 3, 0, torch.arange(10))
    expected = copy.deepcopy(flow).initialize(images, noise=noise)
    unflipped = copy.deepcopy(flow).initialize(data.train.images(rows), noise=noise)
    train(FlowModule(flow, Recipe(1e-300, steps=1, batch_size=10, flip=True), seed=3), data)
    for ours, theirs in zip(norms_of(flow), norms_of(expected)):
        torch.testing.assert_close(ours.log_scale, theirs.log_scale, rtol=0, atol=1e-200)
    assert not torch.equal(norms_of(flow)[0].log_scale, norms_of(unflipped)[0].log_scale)


def test_run_of_no_steps_initializes_as_the_first_step_would(tmp_path):
    data, flow = noise_data(), tiny_denseflow()
    twin = copy.deepcopy(flow)
    images = data.train.images(slice(10))
    images, noise = draw_step(twin, images, 5, 0, torch.arange(10))
    twin.initialize(images, noise=noise)
    run(FlowModule(flow, Recipe(steps=0, batch_size=10, flip=True), seed=5), data, tmp_path)
    assert_same(flow, twin)


# Steps.


@plain
@pytest.mark.parametrize("options", [{}, LEARNED], ids=["uniform", "learned"])
def test_training_is_the_loop_written_by_hand(options):
    data = noise_data((25, 5, 5))
    flow = tiny_denseflow(**options).double()
    twin = copy.deepcopy(flow)
    recipe = Recipe(1e-2, steps=6, batch_size=10, **TUNED)
    rates = [1 / 3, 2 / 3, 0.7, 0.7, 0.1, 0.1]
    optimizer = torch.optim.Adamax(twin.parameters(), 1e-2)
    for step, rows in enumerate(ShuffledBatches(25, 10, 6, seed=5)):
        index = torch.arange(10)
        mirrored = uniform_noise(5, 2**63 + 1 + step, index, (1, 1, 1)) < 0.5
        images = data.train.images(rows)
        images = torch.where(mirrored, images.flip(3), images)
        noise = twin.draw_noise(5, 1 + step, index, torch.float64)
        if step == 0:
            twin.initialize(images, noise=noise)
        optimizer.param_groups[0]["lr"] = 1e-2 * rates[step]
        optimizer.zero_grad()
        bits_per_dim(twin.log_prob(images, noise=noise), SHAPE).mean().backward()
        optimizer.step()
    train(FlowModule(flow, recipe, seed=5), data)
    assert_same(flow, twin)  # to the last bit: Adamax takes rounding errors for gradients


def clipped(bound, value):
    """A module whose gradients are all of one value, and what clips them."""
    flow = tiny_denseflow().initialize(pixels(20))
    module = FlowModule(flow, Recipe(gradient_clip=bound))
    for parameter in flow.parameters():
        parameter.grad = torch.full_like(parameter, value)
    noise = flow.draw_noise(0, 0, torch.arange(5))
    module._last = (pixels(5), None, noise, torch.tensor(1.0))
    optimizer = module.configure_optimizers()["optimizer"]
    return flow, partial(module.configure_gradient_clipping, optimizer)


def test_gradient_without_a_bound_is_left_as_it_is():
    flow, clip = clipped(None, 1e4)
    clip()
    assert all((parameter.grad == 1e4).all() for parameter in flow.parameters())
    # One that is not finite stops the run all the same.
    name, parameter = list(flow.named_parameters())[3]
    parameter.grad.flatten()[0] = math.inf
    with pytest.raises(FloatingPointError, match=f"gradients are not of {name!r}"):
        clip()


@pytest.mark.parametrize("bound", [None, 5.0])
def test_gradient_whose_norm_overflows_is_named(bound):
    flow, clip = clipped(bound, 1e25)
    name, parameter = list(flow.named_parameters())[3]
    parameter.grad *= -100
    with pytest.raises(FloatingPointError, match=f"overflows; .*{name!r}, up to 1e\\+27"):
        clip()


# Runs.


def test_run_with_another_recipe_is_not_resumed(tmp_path):
    data, recipe = noise_data(), {"steps": 2, "batch_size": 10, "decay": 0.5}
    run(FlowModule(tiny_denseflow(), Recipe(**recipe, decay_every=1)), data, tmp_path)
    for change in ({"flip": True}, {"optimizer": "adamax"}):
        module = FlowModule(tiny_denseflow(), Recipe(**recipe, decay_every=1, **change))
        with pytest.raises(ValueError, match=f"recipe.{next(iter(change))}: .* there, .* now"):
            run(module, data, tmp_path, resume=True)


def test_shuffled_images_are_not_mirrored(tmp_path):
    data = dataclasses.replace(noise_data(), shuffle={"mode": "global"})
    with pytest.raises(ValueError, match="beside the recipe's flip, got shuffled pixels; mirr"):
        run(FlowModule(tiny_denseflow(), Recipe(steps=2, batch_size=10, flip=True)), data, tmp_path)


# Figures, labels, embeddings.


def test_figures_are_those_of_an_evaluation(tmp_path):
    data = noise_data()
    module = FlowModule(tiny_denseflow(), Recipe(1e-2, steps=2, batch_size=10, flip=True))
    results = run(module, data, tmp_path)
    bits = evaluate(module.flow, data.test, seed=module.seed)
    assert results["bits_per_dim"]["test"] == pytest.approx(bits.mean().item(), abs=1e-6)
    assert results["worst_image"]["test"] == pytest.approx(bits.max().item(), abs=1e-6)
    assert_same(load_weights(tmp_path / "weights.safetensors"), module.flow)
    assert read_metadata(tmp_path / "weights.safetensors")["flip"] == "true"
    text = (tmp_path / "results.md").read_text()
    assert "| DenseFlow |" in text and "one draw of\nthe noise for each test image" in text


def test_labels_are_not_mirrored(tmp_path):
    data = noise_data(classes=3)
    recipe = Recipe(1e-2, steps=2, batch_size=10, flip=True)
    module = FlowModule(tiny_denseflow(num_classes=3), recipe, conditional=True)
    start = {name: p.clone() for name, p in module.flow.named_parameters()}
    results = run(module, data, tmp_path)
    assert math.isfinite(results["bits_per_dim"]["test"])
    moved = {n for n, p in module.flow.named_parameters() if not torch.equal(p, start[n])}
    assert any(name.startswith("_embedding_net") for name in moved)
    rows = list(ShuffledBatches(20, 10, 2))[1]
    assert torch.equal(module.last_context, data.train.labels(rows))


@pytest.mark.parametrize("flow", [tiny_denseflow, tiny], ids=["denseflow", "mixerflow"])
def test_classifier_reads_all_latents(tmp_path, flow):
    """Those of a DenseFlow are pixels and noise, in one row."""
    data = noise_data(classes=3)
    module = HybridModule(flow(), Recipe(1e-2, steps=2, batch_size=10, flip=True), num_classes=3)
    run(module, data, tmp_path)
    module.eval()
    images, labels = data.test.images(), data.test.labels()
    noise = module.flow.draw_noise(1, 1, torch.arange(len(images)))
    latents, log_prob = module.flow.transform_and_log_prob(images, None, noise)
    assert latents[0].numel() == module.head.in_features
    bits = -log_prob.mean() / (16 * math.log(2))
    expected = F.cross_entropy(module.head(latents.flatten(1)), labels) + bits
    torch.testing.assert_close(module.loss(images, None, noise, labels)[0], expected)
