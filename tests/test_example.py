"""The training script, end to end at a tiny budget."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate
from nflows_mixer.flows import load_weights

SCRIPT = Path(__file__).parents[1] / "examples" / "train_mixerflow.py"


def run(monkeypatch, out, *arguments):
    flags = ["--out", str(out), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads((out / "results.json").read_text())


def test_digits_end_with_figures_pictures_and_weights(tmp_path, monkeypatch, capsys):
    results = run(monkeypatch, tmp_path, "--recipe.steps", 50, "--model.num_layers", 2)
    printed = capsys.readouterr().out
    assert (tmp_path / "results.md").read_text() in printed
    assert "digits: 1,344 to train, 56 to validate, 397 to test" in printed
    # 50 steps are enough to be far below the uniform model.
    assert (
        1
        < results["bits_per_dim"]["test"]
        < 3.2
        < results["reference_models"]["uniform, 17 levels"]
    )
    assert results["worst_image"]["test"] >= results["bits_per_dim"]["test"]
    assert results["round_trip_error"] < 1e-4
    for name in ("samples.png", "curve.png", "samples/step-00000050.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    flow = load_weights(tmp_path / "weights.safetensors")
    bits = evaluate(flow, load_images("digits").test)
    assert bits.mean().item() == pytest.approx(results["bits_per_dim"]["test"], abs=1e-6)


def test_npz_with_a_preset_and_no_steps(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(60, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    flags = ["--config", "galaxy32", "--data", tmp_path / "images.npz", "--model.num_layers", 1]
    steps = ["--recipe.steps", 0, "--recipe.batch_size", 20, "--evaluation_images", 4]
    results = run(monkeypatch, tmp_path / "out", *flags, *steps)
    assert results["architecture"]["hidden_features"] == 64
    assert results["architecture"]["num_layers"] == 1
    assert results["evaluated_images"]["test"] == 4
    assert results["round_trip_error"] < 1e-4
