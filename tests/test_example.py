"""The example script, end to end at a tiny budget."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nflows_mixer.flows import mixerflow

SCRIPT = Path(__file__).parents[1] / "examples" / "train_mixerflow.py"


def run(monkeypatch, out, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads((out / "results.json").read_text())


def test_digits_end_with_figures_pictures_and_a_checkpoint(tmp_path, monkeypatch, capsys):
    results = run(monkeypatch, tmp_path, "--steps", 50, "--layers", 2)
    printed = capsys.readouterr().out
    assert (tmp_path / "results.md").read_text() in printed
    # 50 steps are enough to be far below the uniform model.
    assert 1 < results["bits_per_dim"] < 3.2 < results["yardsticks"]["uniform, 17 levels"]
    assert results["worst_image"] >= results["bits_per_dim"]
    assert results["round_trip_error"] < 1e-4
    assert results["train_images"] == 1400 and results["test_images"] == 397
    for name in ("samples.png", "loss.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    flow = mixerflow(**saved["architecture"])
    flow.load_state_dict(saved["state_dict"])
    assert flow.eval().sample(3).shape == (3, 1, 8, 8)


def test_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 150


def test_same_seed_gives_the_same_figures(tmp_path, monkeypatch):
    first, second, other = (
        run(monkeypatch, tmp_path / str(i), "--steps", 5, "--layers", 1, "--seed", seed)
        for i, seed in enumerate((3, 3, 4))
    )
    assert first["bits_per_dim"] == second["bits_per_dim"] != other["bits_per_dim"]


def test_npz_with_a_preset_and_no_steps(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(60, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    flags = ["--data", tmp_path / "images.npz", "--preset", "galaxy32", "--layers", 1]
    results = run(monkeypatch, tmp_path, *flags, "--steps", 0, "--test-images", 4)
    assert results["architecture"]["hidden_features"] == 64
    assert results["architecture"]["num_layers"] == 1
    assert results["round_trip_error"] < 1e-4


def test_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    flags = ["--steps", 60, "--layers", 2, "--lr", 1e4]
    with pytest.raises(SystemExit, match="expected a finite loss, got .*lower --lr"):
        run(monkeypatch, tmp_path, *flags)
