"""A density and a classifier on one set of embeddings, and semi-supervised training."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from nflows_mixer.data import ImageData, ImageDataset, load_images
from nflows_mixer.flows import Pixels, load_weights
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import (
    HybridModule,
    ImageDataModule,
    Recipe,
    ShuffledBatches,
    fit,
    hide_labels,
)
from tests.training import QUIET, SHAPE, initialized, noise_data, plain, plain_trainer, tiny, train


def module_and_batch(weight, labels, **options):
    module = HybridModule(initialized(tiny(**options)).double(), Recipe(), 3, weight=weight)
    with torch.no_grad():
        module.head.weight.normal_()
        module.head.bias.normal_()
    module = module.double()
    images = torch.randint(17, (len(labels), *SHAPE), dtype=torch.uint8)
    noise = torch.rand(len(labels), *SHAPE, dtype=torch.float64)
    return module, images, noise, torch.tensor(labels)


def parts_by_hand(module, images, noise, labels):
    """Bits/dim of each image, and -log p(y | z) of those with a label."""
    latents, log_prob = module.flow.transform_and_log_prob(images, None, noise)
    logits = latents.reshape(len(images), 16) @ module.head.weight.T + module.head.bias
    known = labels >= 0
    log_normalizer = logits.exp().sum(1).log()
    chosen = logits[torch.arange(len(labels)), labels.clamp_min(0)]
    return -log_prob / (16 * math.log(2)), (log_normalizer - chosen)[known]


@pytest.mark.parametrize("weight", [0, 0.3, 1, 1e6])
@pytest.mark.parametrize("labels", [[0, 1, 2, 2, 1], [0, -1, 2, -1, -1]])
def test_loss_by_hand(weight, labels):
    module, *batch = module_and_batch(weight, labels)
    images, noise, given = batch
    module.eval()
    bits, cross_entropy = parts_by_hand(module, *batch)
    loss, reported = module.loss(images, None, noise, given)
    torch.testing.assert_close(reported, bits)
    expected = cross_entropy.sum() / len(labels) + weight * bits.mean()
    torch.testing.assert_close(loss, expected)


def test_figures_by_hand():
    module, images, noise, labels = module_and_batch(1.0, [0, -1, 2, 1])
    module.eval()
    figures = module.figures(images, None, noise, labels)
    assert list(figures) == ["bits_per_dim", "cross_entropy", "accuracy", "labelled"]
    bits, cross_entropy = parts_by_hand(module, images, noise, labels)
    torch.testing.assert_close(figures["bits_per_dim"], bits)
    known = torch.tensor([True, False, True, True])
    torch.testing.assert_close(figures["cross_entropy"][known], cross_entropy)
    latents, _ = module.flow.transform_and_log_prob(images, None, noise)
    right = module.head(latents.flatten(1)).argmax(1) == labels
    assert figures["accuracy"][known].tolist() == right[known].double().tolist()
    assert figures["labelled"].tolist() == known.double().tolist()
    means = {name: values.mean() for name, values in figures.items()}
    summary = module.summarise(means)
    torch.testing.assert_close(summary["cross_entropy"], cross_entropy.mean())
    torch.testing.assert_close(summary["accuracy"], right[known].double().mean())
    assert summary["labelled"] == 0.75 and summary["bits_per_dim"] == bits.mean()


@plain
def test_figures_of_held_out_images_say_how_many_have_a_label():
    data = noise_data(classes=3)
    labels = data.test.labels().clone()
    labels[2] = -1
    data = ImageData("noise", data.train, data.validation, data.test.with_labels(labels), 17)
    recipe = Recipe(batch_size=10)
    module, trainer = HybridModule(initialized(tiny()), recipe, 3), plain_trainer()
    trainer.test(module, datamodule=ImageDataModule(data, recipe), verbose=False)
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    count = len(data.test)
    assert figures["test/labelled"] == pytest.approx((count - 1) / count)
    # Means over labelled images are whole numbers of images again.
    right = figures["test/accuracy"] * (count - 1)
    assert right == pytest.approx(round(right)) and figures["train/labelled"] == 1


@plain
def test_step_is_adam_on_flow_and_classifier():
    """The classifier at the full rate, whatever the layers of the flow have."""
    data = noise_data(classes=3)
    flow = initialized(tiny())
    recipe = Recipe(1e-3, steps=1, batch_size=10, layer_rates={"*": 0})
    before = [p.clone() for p in flow.parameters()]
    module = train(HybridModule(flow, recipe, 3), data)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters()))
    # Adam's first step is its rate, in each parameter.
    torch.testing.assert_close(module.head.bias.abs(), torch.full((3,), 1e-3), rtol=1e-3, atol=0)


def test_digits_are_classified_after_a_short_run_with_a_moving_average(tmp_path):
    digits = load_images("digits")
    flow = tiny(image_shape=(1, 8, 8), hidden_features=16, pixels=Pixels(logit=1e-3))
    recipe = Recipe(2e-2, steps=100, batch_size=50, ema_decay=0.9)
    module = HybridModule(flow, recipe, 10, weight=0.1)
    results = fit(module, digits, tmp_path, validate_every=100, **QUIET)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["objective"] == "HybridModule"
    assert results["accuracy"]["test"] > 0.8 and results["accuracy"]["validation"] > 0.7
    assert 0 < results["cross_entropy"]["test"] < 1
    # By hand, of the average that was saved.
    average = load_weights(tmp_path / "weights.safetensors").eval()
    images, labels = digits.test[:]
    noise = uniform_noise(0, 0, torch.arange(len(images)), (1, 8, 8))
    with torch.no_grad():
        latents, _ = average.transform_and_log_prob(images, None, noise)
        logits = module.evaluated_head(latents.flatten(1))
    assert not torch.equal(module.head.weight, module.evaluated_head.weight)
    head = load_file(tmp_path / "head.safetensors")
    assert torch.equal(head["weight"], module.evaluated_head.weight)
    right = (logits.argmax(1) == labels).double().mean().item()
    assert results["accuracy"]["test"] == pytest.approx(right, abs=1e-6)
    cross_entropy = F.cross_entropy(logits, labels).item()
    assert results["cross_entropy"]["test"] == pytest.approx(cross_entropy, abs=1e-5)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history[-1]["validation/accuracy"] == pytest.approx(results["accuracy"]["validation"])


class Still(HybridModule):
    """Without noise, so that a batch and its parts see the same numbers; keeps the gradient."""

    def _noise(self, images, step, before):
        return torch.full(images.shape, 0.5)

    def on_before_optimizer_step(self, optimizer):
        self.gradient = self.head.weight.grad.clone()


@plain
@pytest.mark.parametrize("missing", [0, 4])
def test_accumulated_batches_weigh_each_label_the_same(missing):
    """L are the labels of the batch, of which the first part has fewer than the second."""
    (order,) = ShuffledBatches(10, 10, 1)
    labels = torch.arange(10) % 3
    labels[order[:missing]] = -1
    part = ImageDataset(torch.randint(17, (10, *SHAPE), dtype=torch.uint8), labels)
    gradients = []
    for micro in (1, 2):
        torch.manual_seed(0)
        flow = initialized(tiny(conditioner=one_layer, hidden_features=None))
        recipe = Recipe(1e-3, gradient_clip=1e9, steps=1, batch_size=10)
        module = Still(flow, recipe, 3, weight=0.0)
        train(module, ImageData("noise", part, part, None, 17), accumulate_grad_batches=micro)
        gradients.append(module.gradient)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def one_layer(in_features, out_features):
    """A network without batch normalization, which parts of a batch would change."""
    return torch.nn.Linear(in_features, out_features)


def test_labels_are_hidden_at_random_and_the_images_shared():
    images = ImageDataset(torch.randint(17, (50, *SHAPE), dtype=torch.uint8), torch.arange(50) % 3)
    part = images.subset(range(49, 9, -1))
    hidden = hide_labels(part, 12, seed=1)
    kept = hidden.labels() >= 0
    assert kept.sum() == 12 and len(hidden) == 40
    assert torch.equal(hidden.labels()[kept], part.labels()[kept])
    assert (hidden.labels()[~kept] == -1).all()
    assert torch.equal(hidden.images(), part.images())
    assert (part.labels() >= 0).all()
    assert torch.equal(hide_labels(part, 12, seed=1).labels(), hidden.labels())
    assert not torch.equal(hide_labels(part, 12, seed=2).labels(), hidden.labels())
    assert torch.equal(hide_labels(part, 40).labels(), part.labels())
    assert (hide_labels(part, 0).labels() == -1).all()
    for number in (-1, 41):
        with pytest.raises(ValueError, match=f"0 to 40 labels to keep, got {number}"):
            hide_labels(part, number)
    with pytest.raises(ValueError, match="expected labels, got images alone"):
        hide_labels(ImageDataset(images.images()), 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes to be a positive integer, got 0"),
        ({"weight": -0.1}, "a weight of 0 or more, got -0.1"),
        ({"weight": math.nan}, "a weight of 0 or more, got nan"),
        ({"weight": math.inf}, "a weight of 0 or more, got inf"),
    ],
)
def test_module_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=f"HybridModule: expected {message}"):
        HybridModule(tiny(), Recipe(), **{"num_classes": 3, **arguments})


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"context_features": 2}])
def test_conditional_flow_is_refused(options):
    with pytest.raises(ValueError, match="expected a flow without context, got a conditional one"):
        HybridModule(tiny(**options), Recipe(), 3)


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "labels from 0 to 2, or -1, got images alone"),
        ([0, 3], "labels from 0 to 2, or -1, got labels from 0 to 3; count classes from 0"),
        ([-2, 1], "or -1, got labels from -2 to 1"),
        ([0.5, 1.7], "labels"),  # cut to 0 and 1 they would be other labels
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    module, images, noise, _ = module_and_batch(1.0, [0, 1])
    given = None if labels is None else torch.tensor(labels)
    for ask in (module.loss, module.figures):
        with pytest.raises(ValueError, match=message):
            ask(images, None, noise, given)
