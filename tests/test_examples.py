"""The example scripts, end to end at tiny budgets, and the runs that are kept of them."""

import difflib
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from nflows.flows import Flow

import nflows_mixer.data
from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate, evaluate_bounds, nearest_images
from nflows_mixer.flows import load_weights
from nflows_mixer.training import table as results_table
from tests.training import QUIET_COMMAND

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
RESULTS = EXAMPLES / "results"

MOONS = {"train_seconds", "machine", "parameters", "reference_models", "steps", "seed", "layer"}
MOONS |= {"log_density", "worst_point"}
IMAGES = {"data", "split_hash", "train_images", "test_images", "bits_per_dim", "worst_image"}
IMAGES |= {"reference_models", "parameters", "recipe", "seed", "machine", "versions"}
IMAGES |= {"train_seconds"}
BOUNDS = {"draws", "average_bits_per_dim", "importance_weighted_bits_per_dim", "recipe"}
KEYS = {
    "train_mixerflow": IMAGES | {"model"},
    "train_denseflow": BOUNDS | {"distance_to_training_images"},
    "maf_mnist": IMAGES | {"passes", "row_lengths", "maf"},
    "zuko_spline": IMAGES | {"logabsdet_error"},
    "tarflow": IMAGES | {"inverses"},
    "hybrid_digits": IMAGES | {"linear_probe", "hybrid", "out_of_distribution"},
    "class_conditional": IMAGES | {"marginal_bits_per_dim", "accuracy", "draws"},
    "moons_nflows": MOONS,
    "moons_mixer": MOONS,
}

KEPT = [
    ("train_mixerflow", "digits/results"),
    ("train_mixerflow", "cifar10-fresh/results"),
    ("train_mixerflow", "cifar10-unshuffled/results"),
    ("train_mixerflow", "cifar10-shuffled/results"),
    ("train_denseflow", "denseflow-digits/results"),
    ("maf_mnist", "maf-mnist/results"),
    ("maf_mnist", "maf-mnist-6-layers/results"),
    ("maf_mnist", "maf-mnist-zuko/results"),
    ("zuko_spline", "zuko-spline/results"),
    ("tarflow", "tarflow/results"),
    ("class_conditional", "class-conditional/results"),
    ("hybrid_digits", "hybrid-digits/results"),
    ("moons_nflows", "moons/nflows"),
    ("moons_mixer", "moons/mixer"),
]


def run(monkeypatch, capsys, name, out, *flags):
    """Run a script, check what every script writes and prints, and return its results."""
    script = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(out), *map(str, flags)])
    runpy.run_path(str(script), run_name="__main__")
    written = out.with_suffix(".json") if name.startswith("moons") else out / "results.json"
    # The DenseFlow's own figures are printed after those of its training.
    printed = written.with_suffix(".md").read_text() in capsys.readouterr().out
    assert printed or name == "train_denseflow"
    figures = json.loads(written.read_text())
    assert KEYS[name] <= set(figures)
    assert str(out.parent) not in written.read_text()
    return figures


def is_png(path):
    return path.read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def few_digits(monkeypatch):
    """Fewer of them, which scripts load like all."""

    def load_few(*arguments, **options):
        digits = load_images(*arguments, **options)
        return replace(
            digits, train=digits.train.subset(range(400)), test=digits.test.subset(range(80))
        )

    monkeypatch.setattr(nflows_mixer.data, "load_images", load_few)


@pytest.fixture(scope="module")
def strokes(tmp_path_factory):
    """A file of 28 x 28 images of bright strokes on a background of zeros."""
    path = tmp_path_factory.mktemp("data") / "strokes.npz"
    generator = np.random.default_rng(0)
    images = np.zeros((200, 28, 28), dtype=np.uint8)
    for image in images:
        column, top = generator.integers(5, 20, size=2)
        image[top - 5 : top + 5, column : column + 3] = generator.integers(100, 256, size=(10, 3))
    np.savez(path, images=images)
    return path


@pytest.mark.slow
def test_mixerflow_ends_with_figures_pictures_and_weights(tmp_path, monkeypatch, capsys):
    flags = [*QUIET_COMMAND, "--recipe.steps=50", "--model.num_layers=2"]
    results = run(monkeypatch, capsys, "train_mixerflow", tmp_path / "out", *flags)
    # 50 steps are enough to be far below the uniform model.
    bits = results["bits_per_dim"]["test"]
    assert 1 < bits < 3.2 < results["reference_models"]["uniform, 17 levels"]
    assert results["worst_image"]["test"] >= bits and results["round_trip_error"] < 1e-4
    for name in ("samples.png", "curve.png", "samples/step-00000050.png"):
        assert is_png(tmp_path / "out" / name)
    flow = load_weights(tmp_path / "out" / "weights.safetensors")
    found = evaluate(flow, load_images("digits").test).mean().item()
    assert found == pytest.approx(bits, abs=1e-6)


@pytest.mark.slow
def test_denseflow_ends_with_bounds_and_neighbours(tmp_path, monkeypatch, capsys):
    flags = [
        *QUIET_COMMAND,
        "--model.modules=[1, 1]",
        "--model.conditioner.hidden_channels=8",
        "--seed=3",
    ]
    flags += ["--recipe.steps=6", "--evaluation_images=20", "--seed=3"]
    results = run(monkeypatch, capsys, "train_denseflow", tmp_path / "out", *flags)
    pictures = ("out/samples", "out/curve", "out-evaluation/neighbours")
    assert all(is_png(tmp_path / f"{name}.png") for name in pictures)
    data = load_images("digits", seed=3)
    flow = load_weights(tmp_path / "out" / "weights.safetensors")
    held_out = data.test.subset(slice(20))
    bounds = evaluate_bounds(flow, held_out, seed=3, draws=results["draws"])
    for name, found in (("importance", "importance_weighted"), ("average", "average")):
        expected = bounds[name].double().mean().item()
        assert results[f"{found}_bits_per_dim"] == pytest.approx(expected, abs=1e-6)
    assert results["importance_weighted_bits_per_dim"] < results["average_bits_per_dim"]
    # The reference is of held-out images, against those that were trained on.
    _, distances = nearest_images(held_out.images(), data.train)
    usual = results["distance_to_training_images"]["held-out images"]
    assert usual == pytest.approx(distances[:, 0].quantile(0.5).item())


@pytest.mark.slow
@pytest.mark.parametrize("maf", ["nflows", "zuko"])
def test_maf_counts_the_passes_of_its_samples(strokes, tmp_path, monkeypatch, capsys, maf):
    flags = ["--data", strokes, "--maf", maf, "--layers", 1, "--steps", 4, "--batch_size", 16]
    flags = [*flags, "--learning_rate", 1e-3]
    results = run(monkeypatch, capsys, "maf_mnist", tmp_path / "out", *flags)
    assert results["row_lengths"] == {"channel": 16, "patch": 49}
    # Trained a little, a MAF has dependencies to follow; one pass more is for the log-determinant.
    assert 2 < results["passes"] <= 49 + 1
    assert results["worst_image"]["test"] >= results["bits_per_dim"]["test"] > 0
    assert results["train_images"] == 173 and results["test_images"] == 20
    assert is_png(tmp_path / "out" / "samples.png") and is_png(tmp_path / "out" / "curve.png")


@pytest.mark.slow
def test_zuko_spline_checks_its_log_determinant(tmp_path, monkeypatch, capsys):
    results = run(monkeypatch, capsys, "zuko_spline", tmp_path / "out", "--steps", 15)
    assert 0 <= results["logabsdet_error"] < 1e-8
    assert (
        1 < results["bits_per_dim"]["test"] < 4 < results["reference_models"]["uniform, 17 levels"]
    )
    assert is_png(tmp_path / "out" / "samples.png")


@pytest.mark.slow
def test_class_conditional_flow_classifies(tmp_path, monkeypatch, capsys):
    flags = ["--steps", 40, "--layers", 1]
    results = run(monkeypatch, capsys, "class_conditional", tmp_path / "out", *flags)
    # A tenth would be chance.
    assert 0.5 < results["accuracy"] <= 1
    # p(x) is at least p(x | c) p(c): not to know the class costs log2(10) bits an image at most.
    excess = 64 * (results["marginal_bits_per_dim"] - results["conditional_bits_per_dim"])
    assert excess < np.log2(10) + 0.1
    assert is_png(tmp_path / "out" / "samples.png") and is_png(tmp_path / "out" / "classes.png")


@pytest.mark.slow
def test_hybrid_trains_with_all_labels_and_with_few(few_digits, tmp_path, monkeypatch, capsys):
    flags = ["--steps", 6, "--probe_steps", 20]
    results = run(monkeypatch, capsys, "hybrid_digits", tmp_path / "out", *flags)
    assert len(results["hybrid"]) == 4
    assert all(0.1 < figures["accuracy"] <= 1 for figures in results["hybrid"].values())
    assert all(probe["accuracy"] > 0.5 for probe in results["linear_probe"])
    aurocs = results["out_of_distribution"]["auroc"]
    assert all(0 <= value <= 1 for scores in aurocs.values() for value in scores.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moons_nflows", "moons_mixer"])
def test_moons(tmp_path, monkeypatch, capsys, name):
    out = tmp_path / "runs" / name
    results = run(monkeypatch, capsys, name, out, "--steps", 60)
    normal, drawn_from = results["reference_models"].values()
    assert normal < results["log_density"] < drawn_from < -1.0
    assert is_png(out.with_suffix(".png"))


def test_moons_differ_in_the_transform_alone():
    first, second = (
        (EXAMPLES / f"moons_{name}.py").read_text().splitlines() for name in ("nflows", "mixer")
    )
    diff = list(difflib.unified_diff(first, second, n=0, lineterm=""))[2:]
    removed = [line[1:].strip() for line in diff if line.startswith("-")]
    added = [line[1:].strip() for line in diff if line.startswith("+")]
    assert len(first) == len(second) and len(removed) == len(added) == 2
    assert removed[0].startswith("from nflows.") and added[0].startswith("from nflows_mixer.")
    assert all("layers.append(" in line for line in (removed[1], added[1]))


def test_loss_that_is_not_finite_stops_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(Flow, "log_prob", lambda self, given, *_: given.sum() * float("nan"))
    flags = ["--out", str(tmp_path / "out"), "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["moons_mixer", *flags])
    with pytest.raises(SystemExit, match="step 0: expected a finite loss, got nan"):
        runpy.run_path(str(EXAMPLES / "moons_mixer.py"), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_is_short_explains_itself_and_stands_alone(script, monkeypatch, capsys):
    text = script.read_text()
    assert len(text.splitlines()) < 150
    starts = [f"\n{word} {other.stem}" for word in ("import", "from") for other in SCRIPTS]
    assert not any(start in text for start in starts)
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    help_text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(flag in help_text for flag in ("steps STEPS", "--seed", "--out"))


@pytest.mark.parametrize("script, path", KEPT, ids=[path for _, path in KEPT])
def test_kept_run_is_what_the_script_writes(script, path):
    kept = RESULTS / f"{path}.json"
    figures = json.loads(kept.read_text())
    assert KEYS[script] <= set(figures)
    table = results_table
    if script.startswith("moons"):
        table = runpy.run_path(str(EXAMPLES / f"{script}.py"))["table"]
    assert kept.with_suffix(".md").read_text() == table(figures)
    picture = f"{kept.stem}.png" if script.startswith("moons") else "samples.png"
    assert is_png(kept.parent / picture)


def test_kept_denseflow_is_its_configuration_and_copies_no_image():
    folder = RESULTS / "denseflow-digits"
    results = json.loads((folder / "results.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["recipe"] == results["recipe"]
    assert config["model"]["class_path"] == "nflows_mixer.denseflow"
    assert results["importance_weighted_bits_per_dim"] < results["average_bits_per_dim"]
    # Copies would be far nearer than images that were not trained on.
    distances = results["distance_to_training_images"]
    assert distances["samples"] > 0.5 * distances["held-out images"]
    assert all(is_png(folder / f"{name}.png") for name in ("samples", "neighbours", "curve"))


def test_spline_coupling_fits_the_moons_at_least_as_well():
    nflows, mixer = (
        json.loads((RESULTS / "moons" / f"{name}.json").read_text()) for name in ("nflows", "mixer")
    )
    assert nflows["steps"] == mixer["steps"] and nflows["train_points"] == mixer["train_points"]
    assert nflows["log_density"] <= mixer["log_density"]
