"""The evaluation of weights as a command."""

import json

import numpy as np
import pytest
import torch

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate
from nflows_mixer.evaluation.command import evaluate_weights, main
from nflows_mixer.flows import load_weights, mixerflow, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files with weights of an untrained flow on digits, and of a class-conditional one."""
    folder = tmp_path_factory.mktemp("weights")
    data = load_images("digits")
    images, labels = data.train[:]
    for name, classes in (("plain", None), ("conditional", 10)):
        torch.manual_seed(0)
        flow = mixerflow(
            image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1, num_classes=classes
        )
        flow.initialize(images, labels if classes else None)
        save_weights(flow, folder / f"{name}.safetensors", {"data": "digits"})
    return folder


@pytest.mark.parametrize("name", ["plain", "conditional"])
def test_figures_and_pictures(weights, tmp_path, capsys, name):
    path = weights / f"{name}.safetensors"
    flags = ["--weights", str(path), "--draws", "3", "--images", "30", "--out", str(tmp_path)]
    report = main(flags)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert f"see {tmp_path}" in capsys.readouterr().out
    flow, data = load_weights(path), load_images("digits")
    test = data.test.subset(slice(30))
    labels = test.labels() if name == "conditional" else None
    expected = evaluate(flow, test, labels, draws=3)
    assert report["bits_per_dim"]["mean"] == pytest.approx(expected.mean().item())
    assert report["bits_per_dim"]["worst"] == pytest.approx(expected.max().item())
    # The bound by three draws together is at least the mean of three bounds, image by image.
    weighted = report["importance_weighted_bits_per_dim"]
    assert weighted["mean"] < report["bits_per_dim"]["mean"]
    assert report["split_hash"] == data.split_hash
    assert report["weights"]["data"] == "digits"
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [
        "interpolations.png",
        "neighbours.png",
        "reconstructions.png",
        "temperatures.png",
    ]


def test_probe_and_outside_images(weights, tmp_path):
    noise = np.random.default_rng(0).integers(17, size=(40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise)
    report = evaluate_weights(
        str(weights / "plain.safetensors"),
        images=60,
        draws=1,
        probe_steps=40,
        outside=str(tmp_path / "noise.npz"),
        out=str(tmp_path),
    )
    depths = [row["depth"] for row in report["linear_probe"]]
    assert depths == list(range(len(depths))) and len(depths) > 2
    assert all(row["accuracy"] > 0.6 for row in report["linear_probe"])
    assert json.dumps(report["out_of_distribution"]).count("noise")


def test_errors(weights, tmp_path):
    images = np.zeros((20, 4, 4), np.uint8)
    np.savez(tmp_path / "small.npz", images=images)
    plain = ["--weights", str(weights / "plain.safetensors"), "--out", str(tmp_path / "out")]
    small = str(tmp_path / "small.npz")
    with pytest.raises(SystemExit, match="expected images .1, 8, 8. of 17 levels, got .1, 4, 4."):
        main([*plain, "--data", small])
    with pytest.raises(SystemExit, match="expected outside images of .1, 8, 8.*resize|name images"):
        main([*plain, "--outside", small, "--images", "5", "--draws", "1"])
    with pytest.raises(SystemExit, match="a weights file|expected|no such file|No such file"):
        main([*plain, "--fid_weights", str(tmp_path / "none.pth"), "--images", "5"])
    assert not (tmp_path / "out" / "evaluation.json").exists()
