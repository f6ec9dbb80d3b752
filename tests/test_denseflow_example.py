"""The DenseFlow script, end to end at a tiny budget, and the run that is kept of it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate_bounds, nearest_images
from nflows_mixer.flows import load_weights
from nflows_mixer.training import table

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_denseflow.py"
KEPT = ROOT / "examples" / "results" / "denseflow-digits"
SMALL = ["--model.modules=[1, 1]", "--model.conditioner.hidden_channels=8", "--recipe.steps=6"]
SMALL += ["--evaluation_images=20"]


def run(monkeypatch, *arguments):
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *quiet, *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_digits_end_with_bounds_and_neighbours(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(monkeypatch, *SMALL, "--seed", 3, "--out", out)

    printed, results = capsys.readouterr().out, json.loads((out / "results.json").read_text())
    assert (out / "results.md").read_text() == table(results)
    assert printed.endswith("\n".join(results["notes"]) + "\n") and f"see {out}" in printed
    assert printed.count("| DenseFlow |") == 1
    assert results["notes"][0] in table(results) and str(tmp_path) not in json.dumps(results)
    for name in ("out/samples", "out/curve", "out-evaluation/neighbours"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"

    data = load_images("digits", seed=3)
    flow = load_weights(out / "weights.safetensors")
    held_out = data.test.subset(slice(20))
    bounds = evaluate_bounds(flow, held_out, seed=3, draws=results["draws"])
    weighted = results["importance_weighted_bits_per_dim"]
    assert weighted == pytest.approx(bounds["importance"].double().mean().item(), abs=1e-6)
    average = results["average_bits_per_dim"]
    assert average == pytest.approx(bounds["average"].double().mean().item(), abs=1e-6)
    assert weighted < average
    # The reference is of held-out images, against those that were trained on.
    _, distances = nearest_images(held_out.images(), data.train)
    usual = results["distance_to_training_images"]["held-out images"]
    assert usual == pytest.approx(distances[:, 0].quantile(0.5).item())


def test_kept_run_is_what_the_script_writes():
    results = json.loads((KEPT / "results.json").read_text())
    assert (KEPT / "results.md").read_text() == table(results)
    config = yaml.safe_load((KEPT / "config.yaml").read_text())
    assert config["recipe"] == results["recipe"]
    assert config["model"]["class_path"] == "nflows_mixer.denseflow"
    assert results["importance_weighted_bits_per_dim"] < results["average_bits_per_dim"]
    # Copies would be far nearer than images that were not trained on.
    distances = results["distance_to_training_images"]
    assert distances["samples"] > 0.5 * distances["held-out images"]
    for name in ("samples", "neighbours", "curve"):
        assert (KEPT / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
