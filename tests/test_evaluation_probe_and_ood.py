"""Linear probes, out-of-distribution scores, and the Frechet Inception distance."""

import builtins
import json
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.evaluation import (
    auroc,
    embeddings,
    evaluate,
    frechet_inception_distance,
    linear_probe,
    ood_report,
    ood_scores,
    png_bits_per_dim,
    probe_depths,
    top_level_layers,
)
from nflows_mixer.flows import ImageFlow
from nflows_mixer.transforms import PixelScaling
from tests.helpers import pixels
from tests.test_evaluation import small_flow


def test_embeddings_of_every_depth():
    flow, images = small_flow().train(), pixels(7)
    layers = top_level_layers(flow)
    values, _ = flow.dequantization(images, noise=torch.full(images.shape, 0.5))
    flow.eval()
    with torch.no_grad():
        for depth, layer in enumerate(layers):
            values, _ = layer(values)
            found = embeddings(flow.train(), images, depth, batch_size=3)
            assert found.dtype == torch.float32 and found.device.type == "cpu"
            flow.eval()
            torch.testing.assert_close(found, values.flatten(1).float())
        latents = flow.transform_to_noise(images).flatten(1).float()
    torch.testing.assert_close(embeddings(flow, ImageDataset(images)), latents)
    torch.testing.assert_close(embeddings(flow, images, -len(layers)), embeddings(flow, images, 0))
    assert all(part.training for part in flow.train().modules())
    with pytest.raises(ValueError, match=f"a depth from -{len(layers)} to {len(layers) - 1}"):
        embeddings(flow, images, len(layers))


def test_embeddings_of_a_conditional_flow_and_of_a_single_layer():
    flow, images, labels = small_flow(num_classes=3), pixels(5), torch.tensor([0, 1, 2, 1, 0])
    with torch.no_grad():
        latents = flow.transform_to_noise(images, labels).flatten(1).float()
    torch.testing.assert_close(embeddings(flow, images, context=labels, batch_size=2), latents)
    with pytest.raises(ValueError, match="class labels"):
        embeddings(flow, images)
    scaled = ImageFlow(PixelScaling(17, 0.0, 17.0), (1, 6, 6), levels=17)
    assert torch.equal(embeddings(scaled, images), images.flatten(1) + 0.5)


@pytest.mark.slow
def test_probe_reads_labels_that_are_linear_in_pixels():
    images = pixels(400)
    labels = (images[:, 0, 0, 0] > 8).long() + (images[:, 0, 0, 0] > 8) * (images[:, 0, 1, 1] < 8)
    features = images.flatten(1).float()
    # Two half-planes and a quadrant: linear once the indicators are among the features.
    indicators = torch.stack([labels == label for label in range(3)], dim=1).float()
    features = torch.cat([features, indicators, torch.full((400, 1), 7.0)], dim=1)
    result = linear_probe(features[:300], labels[:300], features[300:], labels[300:], steps=300)
    assert result["accuracy"] == 1 and result["train_accuracy"] == 1 and result["loss"] < 0.1
    again = linear_probe(features[:300], labels[:300], features[300:], labels[300:], steps=300)
    assert again == result


def test_probe_of_random_labels_is_chance():
    features, labels = torch.randn(3000, 5), torch.randint(4, (3000,))
    result = linear_probe(features[:1500], labels[:1500], features[1500:], labels[1500:], steps=300)
    assert result["accuracy"] == pytest.approx(0.25, abs=0.06)
    assert result["loss"] == pytest.approx(math.log(4), abs=0.05)


@pytest.mark.slow
def test_probe_reaches_the_minimum():
    """Against scikit-learn's logistic regression with the same penalty."""
    from sklearn.linear_model import LogisticRegression

    features, labels = torch.randn(300, 4), torch.arange(300) % 3
    features[:, 0] += labels
    result = linear_probe(features, labels, features, labels, steps=1500)
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    reference = LogisticRegression(C=1 / (result["penalty"] * 300), tol=1e-8, max_iter=1000)
    probabilities = reference.fit(standard, labels).predict_proba(standard)
    expected = -np.log(probabilities[np.arange(300), labels]).mean()
    assert result["train_loss"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_probes_of_digits_by_depth():
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    dataset = ImageDataset(images, torch.from_numpy(digits.target).long())
    order = torch.randperm(len(dataset))
    train, test = dataset.subset(order[:1400]), dataset.subset(order[1400:])
    flow = ImageFlow(PixelScaling(17), (1, 8, 8), levels=17)
    (row,) = probe_depths(flow, train, test, steps=400)
    assert row["depth"] == 0 and row["layer"] == "PixelScaling"
    assert row["accuracy"] > 0.9 and row["loss"] < 0.4
    assert json.loads(json.dumps(row)) == row
    with pytest.raises(ValueError, match="expected labels"):
        probe_depths(flow, ImageDataset(images), test)


def test_probes_name_their_depths():
    flow, images = small_flow(), pixels(40)
    dataset = ImageDataset(images, torch.arange(40) % 2)
    layers = top_level_layers(flow)
    table = probe_depths(flow, dataset, dataset, steps=3)
    assert [row["depth"] for row in table] == list(range(len(layers)))
    assert [row["layer"] for row in table] == [type(layer).__name__ for layer in layers]
    assert probe_depths(flow, dataset, dataset, depths=[-1], steps=3) == table[-1:]


def test_probe_says_what_is_wrong():
    features, labels = torch.randn(10, 3), torch.arange(10) % 2
    broken = features.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="finite test features, got 1 that are NaN"):
        linear_probe(features, labels, broken, labels)
    with pytest.raises(ValueError, match="train labels from 0"):
        linear_probe(features, labels - 1, features, labels)
    with pytest.raises(ValueError, match=r"test features \[N, 3\]"):
        linear_probe(features, labels, features[:, :2], labels)
    with pytest.raises(ValueError, match="real train features"):
        linear_probe(features.long(), labels, features, labels)


def test_auroc_by_hand_and_by_sklearn():
    from sklearn.metrics import roc_auc_score

    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == 1
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 0
    assert auroc(torch.ones(4), torch.ones(3)) == 0.5
    assert auroc(torch.tensor([0.0]), torch.tensor([math.inf])) == 1
    inside, outside = torch.randint(10, (50,)), torch.randint(3, 13, (70,))
    truth = [0] * 50 + [1] * 70
    expected = roc_auc_score(truth, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-12)


def test_auroc_drops_no_nan():
    scores = torch.tensor([1.0, math.nan])
    with pytest.raises(ValueError, match="outside scores with a rank, got 1 of 2 that are NaN"):
        auroc(torch.ones(2), scores)
    with pytest.raises(ValueError, match="inside scores with a rank"):
        auroc(scores, torch.ones(2))
    with pytest.raises(ValueError, match=r"inside scores \[N\], N > 0"):
        auroc(torch.empty(0), torch.ones(2))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_counts_bits_of_the_file(channels, tmp_path):
    from PIL import Image

    images = pixels(3, (channels, 8, 10))
    bits = png_bits_per_dim(images, batch_size=2)
    array = images[2].permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    picture.save(tmp_path / "image.png", optimize=True)
    size = (tmp_path / "image.png").stat().st_size
    assert bits[2].item() == 8 * size / (channels * 80)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), array.squeeze())
    with pytest.raises(ValueError, match="C = 1 or 3"):
        png_bits_per_dim(images.expand(-1, 2, -1, -1) if channels == 1 else images[:, :2])


def test_scores_by_hand():
    flow, images = small_flow(), pixels(6)
    bits = evaluate(flow, images, seed=2)
    scores = ood_scores(flow, ImageDataset(images), torch.tensor([1.0, 4.0]), seed=2, batch_size=4)
    torch.testing.assert_close(scores["likelihood"], bits)
    torch.testing.assert_close(scores["typicality"], (bits - 2.5).abs())
    torch.testing.assert_close(scores["input_complexity"], bits - png_bits_per_dim(images))
    unknown = ood_scores(flow, images, torch.tensor([1.0, math.nan]))
    assert unknown["typicality"].isnan().all() and unknown["likelihood"].isfinite().all()
    with pytest.raises(ValueError, match="train_bits"):
        ood_scores(flow, images, torch.empty(0))


def test_report_of_digits_and_others():
    """A normal fitted to each pixel of digits, whose most likely image is no typical one."""
    digits = torch.from_numpy(load_digits().images.astype(np.uint8))[torch.randperm(1797), None]
    train, held_out = digits[:1400], digits[1400:]
    flow = ImageFlow(PixelScaling(17, 0.0, 17.0), (1, 8, 8), levels=17)
    with torch.no_grad():
        flow._distribution.location.copy_(train.float().mean(0) + 0.5)
        flow._distribution.log_scale.copy_((train.float().std(0) + 0.5).log())
    noise, mean = pixels(100, (1, 8, 8)), train.float().mean(0).floor().to(torch.uint8)
    outside = {"noise": noise, "held out": held_out[200:], "mean": mean.expand(100, -1, -1, -1)}
    report = ood_report(flow, train, ImageDataset(held_out[:200]), outside, batch_size=64)
    assert json.loads(json.dumps(report)) == report
    table = report["auroc"]
    assert set(table) == set(outside)
    assert table["noise"]["likelihood"] > 0.99 and table["noise"]["typicality"] > 0.99
    assert all(abs(value - 0.5) < 0.1 for value in table["held out"].values())
    # The failure that typicality is for.
    assert table["mean"]["likelihood"] < 0.1 < 0.9 < table["mean"]["typicality"]
    assert report["bits_per_dim"]["train"]["images"] == 1400
    with pytest.raises(ValueError, match="other names"):
        ood_report(flow, noise, noise, {"inside": noise})
    with torch.no_grad():
        flow._distribution.location[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="that are NaN"):
        ood_report(flow, noise, noise, {"noise": noise})


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Inception with random weights, and the file that they lie in; nothing is loaded."""
    pytest.importorskip("torchmetrics", reason="the extra fid")
    pytest.importorskip("torch_fidelity", reason="the extra fid")
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        network = module.FeatureExtractorInceptionV3
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        net = network("inception-v3-compat", ["64"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return net, path


def frechet(first, second):
    """By the symmetric square root."""
    (m1, s1), (m2, s2) = ((f.mean(0), np.cov(f.T)) for f in (first, second))
    values, vectors = np.linalg.eigh(s1)
    root = vectors @ np.diag(values.clip(0) ** 0.5) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_is_the_distance_of_the_features(inception, channels):
    net, weights = inception
    real, generated = pixels(6, (channels, 8, 8), 17), pixels(5, (channels, 8, 8), 9)
    features = []
    with torch.no_grad():
        for images in (generated, real):
            scaled = (images.double() * 255 / 16).round().to(torch.uint8)
            colour = scaled.repeat(1, 3 // channels, 1, 1)
            features.append(net(colour)[0].double().numpy())
    found = frechet_inception_distance(
        generated, ImageDataset(real), weights, levels=17, features=64, batch_size=4
    )
    assert found == pytest.approx(frechet(*features), rel=1e-3)


def test_fid_says_what_is_missing(inception, monkeypatch, tmp_path):
    _, weights = inception
    images = pixels(3, (3, 8, 8), 256)
    with pytest.raises(ValueError, match="weights-inception-2015"):
        frechet_inception_distance(images, images, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="2 generated images or more, got 1"):
        frechet_inception_distance(images[:1], images, weights, features=64)
    with pytest.raises(ValueError, match="pixels from 0 to 16"):
        frechet_inception_distance(images, images, weights, levels=17, features=64)
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "torch_fidelity":
            raise ModuleNotFoundError("no", name=name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"torch_fidelity; pip install 'nflows-mixer\[fid\]'"):
        frechet_inception_distance(images, images, weights)
