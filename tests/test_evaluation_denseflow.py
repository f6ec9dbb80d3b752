"""Evaluation of flows that append noise, dequantise by learned noise and have flat latents."""

import json
import math

import numpy as np
import pytest
import torch

from nflows_mixer.cli import run
from nflows_mixer.evaluation import (
    Evaluation,
    embeddings,
    evaluate,
    evaluate_bounds,
    evaluate_weights,
    interpolation,
    reconstruction,
    round_trip_error,
    top_level_layers,
)
from nflows_mixer.flows import save_weights
from nflows_mixer.likelihood import bits_per_dim
from tests.helpers import pixels
from tests.test_denseflow import SHAPE
from tests.test_denseflow import build as dense_flow


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return dense_flow()


def test_bounds_are_those_of_all_noise(flow):
    images = pixels(5, SHAPE)
    index = torch.tensor([3, 0, 4])
    noise = [flow.draw_noise(7, draw, index) for draw in range(3)]
    with torch.no_grad():
        draws = torch.stack([flow.log_prob(images[index], noise=part) for part in noise])
    expected = {"average": draws.mean(0), "importance": draws.exp().mean(0).log()}
    found = evaluate_bounds(flow, images, seed=7, batch_size=2, draws=3, rows=index)
    for name, log_prob in expected.items():
        # Per pixel value of an image, of which the latents have more.
        torch.testing.assert_close(found[name], bits_per_dim(log_prob, SHAPE))
    assert (found["importance"] < found["average"]).all()


def test_round_trip_starts_from_the_pixels_of_the_learned_dequantisation(flow, monkeypatch):
    images = pixels(5, SHAPE)
    away = flow.dequantize_mid(images) - (images + 0.5)
    assert away.abs().max() > 0.01
    assert round_trip_error(flow, images, batch_size=2) < 1e-12
    pairs, error = reconstruction(flow, images, batch_size=2)
    assert error < 1e-11 and torch.equal(pairs[:, 0], images) and torch.equal(pairs[:, 1], images)
    inverse = flow._transform.inverse

    def off(latents, context=None):
        values, logabsdet = inverse(latents, context)
        values[-1, 0, 3, 4] += 1.75
        return values, logabsdet

    monkeypatch.setattr(flow._transform, "inverse", off)
    assert round_trip_error(flow, images, batch_size=2) == pytest.approx(1.75 / 17, abs=1e-12)
    assert reconstruction(flow, images, batch_size=2)[1] == pytest.approx(1.75, abs=1e-11)


@pytest.mark.parametrize("preconditioning", ["block", "all"])
def test_embeddings_of_every_depth_by_hand(preconditioning):
    flow = dense_flow(preconditioning=preconditioning, dequantization="uniform")
    images = pixels(6, SHAPE)
    scaling, squeeze, first, drop, second = top_level_layers(flow)
    noise = torch.zeros(6, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        scaled, _ = scaling(images.double() + 0.5)
        squeezed, _ = squeeze(scaled)
        of_first, _, earlier = first.run(squeezed, None, noise)
        kept, dropped = drop.split(drop(of_first)[0])
        earlier = [drop(part)[0] for part in earlier]
        of_second, _, _ = second.run(kept, None, noise[:, :, :2, :2], tuple(earlier))
    assert bool(earlier) == (preconditioning == "all")
    rows = dropped.flatten(1)
    of_drop = torch.cat([rows, kept.flatten(1)], 1)
    latents = torch.cat([rows, of_second.flatten(1)], 1)
    for depth, expected in enumerate([scaled, squeezed, of_first, of_drop, latents]):
        expected = expected.flatten(1).float()
        for place in (depth, depth - 5):
            found = embeddings(flow.train(), images, place, batch_size=4)
            torch.testing.assert_close(found, expected)
        assert all(part.training for part in flow.modules())
    with torch.no_grad():
        torch.testing.assert_close(flow.transform_to_noise(images).float(), latents.float())


def test_interpolation_by_hand():
    """Half way between standardised latents, with a base of parts that differ."""
    flow, first, second = dense_flow(), pixels(4, SHAPE), pixels(4, SHAPE)
    parts = flow._distribution.parts
    with torch.no_grad():
        parts["final"].location += torch.randn_like(parts["final"].location)
        parts["final"].log_scale += 0.3 * torch.randn_like(parts["final"].log_scale)
    way = interpolation(flow, first, second, steps=3, batch_size=5)
    assert way.shape == (4, 3, *SHAPE)
    assert torch.equal(way[:, 0], first) and torch.equal(way[:, 2], second)
    normals = [part.as_torch() for part in parts.values()]
    mean = torch.cat([normal.mean.flatten() for normal in normals])
    deviation = torch.cat([normal.stddev.flatten() for normal in normals])
    assert mean.abs().max() > 0.1 and deviation.std() > 0.01
    with torch.no_grad():
        ends = [(flow.transform_to_noise(images) - mean) / deviation for images in (first, second)]
        cosine = torch.cosine_similarity(*ends, dim=1)[:, None]
        middle = (ends[0] + ends[1]) / (2 * (cosine.acos() / 2).cos())
        values, _ = flow._transform.inverse(middle * deviation + mean)
    assert torch.equal(way[:, 1], flow.dequantization.inverse(values)[0])


def test_conditional_flows_keep_the_context():
    flow, labels = dense_flow(num_classes=3, dequantization="uniform"), torch.tensor([0, 1, 2, 1])
    images = pixels(4, SHAPE)
    bits = evaluate(flow, images, labels, seed=1)
    assert (evaluate(flow, images, (labels + 1) % 3, seed=1) != bits).all()
    assert round_trip_error(flow, images, labels, batch_size=3) < 1e-12
    assert reconstruction(flow, images, labels, batch_size=3)[1] < 1e-11
    with torch.no_grad():
        latents = flow.transform_to_noise(images, labels).float()
    torch.testing.assert_close(embeddings(flow, images, context=labels, batch_size=3), latents)
    inner = embeddings(flow, images, 2, labels)
    assert (inner != embeddings(flow, images, 2, (labels + 1) % 3)).any(1).all()
    way = interpolation(flow, images[:2], images[2:], 3, labels[:2], batch_size=4)
    assert torch.equal(way[:, 0], images[:2]) and torch.equal(way[:, 2], images[2:])
    with pytest.raises(ValueError, match="class labels, 0 to 2"):
        embeddings(flow, images, 2)


@pytest.mark.slow
def test_command_over_weights(tmp_path):
    """Figures and pictures, with probes, other images and nearest images of a crop."""
    torch.manual_seed(0)
    flow = dense_flow(dequantization="uniform").float()
    save_weights(flow, tmp_path / "weights.safetensors", {"data": "digits"})
    np.savez(tmp_path / "noise.npz", images=pixels(20, SHAPE)[:, 0].numpy())
    flags = ["--weights", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "out")]
    sizes = ["--images", "20", "--draws", "3", "--batch_size", "16", "--probe_steps", "3"]
    more = ["--neighbours", "3", "--crop", "6", "--flipped", "true"]
    report = run(["evaluate", *flags, *sizes, *more, "--outside", str(tmp_path / "noise.npz")])
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == report
    assert report["round_trip_error"] < 1e-4
    weighted = report["importance_weighted_bits_per_dim"]["mean"]
    assert math.isfinite(weighted) and weighted < report["bits_per_dim"]["mean"]
    assert [row["layer"] for row in report["linear_probe"]][2:4] == [
        "DenseFlowBlock",
        "SqueezeAndSplit",
    ]
    assert report["memorisation"]["crop"] == [6, 6] and report["memorisation"]["flipped"] is True
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


@pytest.mark.slow
def test_command_over_weights_with_learned_dequantisation(flow, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(flow, path)
    report = evaluate_weights(path, options=Evaluation(2, 4), out=tmp_path / "out")
    assert report["bits_per_dim"]["non_finite"] == 0 and report["round_trip_error"] < 1e-12
