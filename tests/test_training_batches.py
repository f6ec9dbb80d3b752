"""The batches of training and evaluation, loaders of one's own, and labels as the context."""

import copy
from types import SimpleNamespace

import pytest
import torch
from nflows.flows import Flow
from nflows.transforms import CompositeTransform
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nflows_mixer.data import ImageData
from nflows_mixer.evaluation import evaluate
from nflows_mixer.flows import ImageFlow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import FlowModule, ImageDataModule, Recipe, ShuffledBatches
from tests.training import (
    SHAPE,
    assert_same,
    initialized,
    noise_data,
    pixels,
    plain,
    plain_trainer,
    run,
    tiny,
    train,
    train_by_hand,
)

# Batches.


def test_passes_are_permutations_of_whole_batches():
    batches = list(ShuffledBatches(num_images=11, batch_size=3, num_batches=9, seed=1))
    assert [len(batch) for batch in batches] == [3] * 9
    passes = [torch.cat(batches[i : i + 3]).tolist() for i in (0, 3, 6)]
    for rows in passes:
        assert len(set(rows)) == 9 and set(rows) <= set(range(11))
    assert len(set(map(tuple, passes))) == 3
    left_out = [set(range(11)) - set(rows) for rows in passes]
    assert len(set(map(tuple, left_out))) > 1
    other = torch.cat(list(ShuffledBatches(11, 3, 3, seed=2))).tolist()
    assert other != passes[0]


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_batches_start_anywhere_and_split_over_processes(start):
    whole = list(ShuffledBatches(13, 6, 9, seed=7))
    later = list(ShuffledBatches(13, 6, 9, start=start, seed=7))
    assert len(later) == 9 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], later))
    ranks = [list(ShuffledBatches(13, 6, 9, start, 7, rank, 3)) for rank in range(3)]
    for batch, parts in zip(later, zip(*ranks)):
        assert torch.equal(torch.stack(parts, dim=1).flatten(), batch)


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="a batch of at most 5 images.*got 6; make batch_size sm"):
        ShuffledBatches(5, 6, 1)
    with pytest.raises(ValueError, match="2 processes share evenly in 1 parts, got 3; take a mul"):
        ShuffledBatches(5, 3, 1, world_size=2)


@pytest.mark.parametrize("num_images, world_size", [(10, 1), (11, 3), (2, 3), (1, 3)])
def test_ordered_batches_have_each_image_once(num_images, world_size):
    seen = []
    for rank in range(world_size):
        part = noise_data((5, num_images, 5)).validation
        module = ImageDataModule(ImageData("noise", part, part, None), Recipe(), 0, None, 2)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        rows = [batch.tolist() for batch in module.val_dataloader()[0].dataset.rows]
        assert all(1 <= len(row) <= 2 for row in rows)
        flat = sum(rows, [])
        assert flat == sorted(flat) and all(row % world_size == rank for row in flat)
        seen += flat
    assert sorted(seen) == list(range(num_images))


# Loaders.


@pytest.mark.slow
@plain
@pytest.mark.parametrize("form", ["tensor", "alone in a tuple", "with labels"])
def test_own_loaders_and_a_plain_trainer(form):
    images, labels = pixels(30), torch.arange(30) % 3
    dataset = {
        "tensor": images,
        "alone in a tuple": TensorDataset(images),
        "with labels": TensorDataset(images, labels),
    }[form]
    flow = tiny()
    twin = copy.deepcopy(flow)
    recipe = Recipe(1e-2, steps=3, batch_size=10)
    adam = torch.optim.Adam(twin.parameters(), fused=True)  # as the recipe takes it on the CPU
    for step in range(3):
        adam.param_groups[0]["lr"] = 1e-2 * recipe.schedule(step)
        batch = images[10 * step : 10 * step + 10]
        noise = uniform_noise(6, 1 + step, torch.arange(10), SHAPE)
        twin.initialize(batch, noise=noise)
        adam.zero_grad()
        bits_per_dim(twin.log_prob(batch, noise=noise), SHAPE).mean().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), recipe.gradient_clip)
        adam.step()
    trainer = plain_trainer(3, val_check_interval=3)
    module = FlowModule(flow, recipe, seed=6)
    trainer.fit(module, DataLoader(dataset, batch_size=10), DataLoader(dataset, batch_size=7))
    assert_same(flow, twin)
    bits = evaluate(flow, images, seed=6)
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert figures["validation/bits_per_dim"] == pytest.approx(bits.mean().item(), abs=1e-6)
    assert figures["validation/worst_image"] == pytest.approx(bits.max().item(), abs=1e-6)


@pytest.mark.slow
@plain
def test_many_loaders_keep_their_figures_apart():
    """Eleven and more, of which the numbers sort as words would."""
    module = FlowModule(initialized(tiny()), Recipe())
    sets = [pixels(3) for _ in range(12)]
    trainer = plain_trainer()
    trainer.test(module, [DataLoader(images, batch_size=2) for images in sets], verbose=False)
    figures = trainer.callback_metrics
    for number, images in enumerate(sets):
        expected = evaluate(module.flow, images).mean().item()
        assert figures[f"test/{number}/bits_per_dim"].item() == pytest.approx(expected, abs=1e-6)


# Context.


@pytest.mark.slow
@plain
def test_labels_are_the_context():
    data, flow = noise_data(classes=3), tiny(num_classes=3)
    twin, blind = copy.deepcopy(flow), copy.deepcopy(flow)
    recipe = Recipe(3e-2, steps=4, batch_size=10)
    train_by_hand(twin, data, recipe, seed=1)
    module = FlowModule(flow, recipe, conditional=True, seed=1)
    train(module, data)
    assert_same(twin, flow)
    other = ImageData("noise", data.train.with_labels(data.train.labels() * 0), *[data.test] * 2)
    train(FlowModule(blind, recipe, conditional=True, seed=1), other)
    assert any(not torch.equal(a, b) for a, b in zip(flow.parameters(), blind.parameters()))
    trainer = plain_trainer()
    trainer.test(module, datamodule=ImageDataModule(data, recipe, seed=1), verbose=False)
    bits = evaluate(flow, data.test, data.test.labels(), seed=1).mean().item()
    assert trainer.callback_metrics["test/bits_per_dim"].item() == pytest.approx(bits, abs=1e-6)


@plain
def test_conditional_training_wants_labels():
    module = FlowModule(tiny(num_classes=3), Recipe(steps=1, batch_size=10), conditional=True)
    with pytest.raises(ValueError, match=r"expected batches of \(images, labels\), got images al"):
        train(module, noise_data())


class OneHot(nn.Module):
    def forward(self, labels):
        return nn.functional.one_hot(labels, 3).to(torch.get_default_dtype())


@pytest.mark.slow
def test_conditional_flow_of_nflows_with_an_embedding_of_its_own(tmp_path):
    layers = list(tiny(context_features=3)._transform._transforms)[1:]
    plain = Flow(CompositeTransform(layers), tiny()._distribution, OneHot())
    flow = ImageFlow.from_flow(plain, SHAPE, levels=17)
    data = noise_data(classes=3)
    module = FlowModule(flow, Recipe(steps=2, batch_size=10), conditional=True)
    results = run(module, data, tmp_path, validate_every=2)
    bits = evaluate(flow, data.test, data.test.labels()).mean().item()
    assert results["bits_per_dim"]["test"] == pytest.approx(bits, abs=1e-6)
