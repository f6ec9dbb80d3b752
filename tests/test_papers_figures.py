"""What rows of the papers' tables report beside the bits/dim of a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.papers import step_time
from benchmarks.papers.budgets import BUDGETS, draws_of
from benchmarks.papers.figures import figure_of, importance, with_figure
from benchmarks.papers.images import noise_images
from benchmarks.papers.kept import Kept, read
from benchmarks.papers.models import MODELS, Model
from benchmarks.papers.rows import ROWS, Run
from benchmarks.papers.run import path_of, result_of, trained
from benchmarks.pictures import step_times


def row_of(name):
    return next(row for row in ROWS if row.name == name)


@pytest.fixture
def run_of(tmp_path):
    """Train the run of a row for two steps on random pixels."""

    def result(row):
        images = noise_images(row.run.data)
        folders = (tmp_path / "results", tmp_path / "runs")
        return result_of(row.run, "paper", "smoke", 0, images, *folders, "cpu"), images, folders

    result.out = tmp_path / "results"
    return result


def test_probe_and_cost_are_kept_beside_each_other(run_of):
    loss = row_of("mixerflow-7-cifar10-plain-glow-11-probe_loss")
    before, images, folders = run_of(loss)
    first = with_figure(loss, before, images, *folders, "cpu")
    # Another row of the run, which read the result before the probe was added.
    cost = replace(loss, figure="training_hours", run=replace(loss.run, model="denseflow-74-10"))
    path = path_of(loss.run, "paper", "smoke", 0, folders[0])
    path.rename(path_of(cost.run, "paper", "smoke", 0, folders[0]))
    both = with_figure(cost, before, images, *folders, "cpu")
    assert both["probe"] == first["probe"]
    assert figure_of(loss, both) == first["probe"]["loss"]
    # 650 epochs of 50,000 images.
    hours = 650 * 50_000 / both["images_per_second"] / 3600
    assert figure_of(cost, both) == pytest.approx(hours, rel=1e-3)


def test_figures_without_weights_say_how_to_get_them(run_of, tmp_path):
    row = row_of("mixerflow-7-cifar10-plain-glow-11-probe_loss")
    result, images, (out, _) = run_of(row)
    with pytest.raises(FileNotFoundError, match="delete its JSON file"):
        with_figure(row, result, images, out, tmp_path / "elsewhere", "cpu")


def test_denseflow_is_reported_by_importance_weights(run_of):
    row = row_of("denseflow-1-cifar10-plain-denseflow-74-10-importance_bits_per_dim")
    result, images, folders = run_of(row)
    assert figure_of(row, result) is None
    found = with_figure(row, result, images, *folders, "cpu")["importance_bits_per_dim"]
    assert (found["draws"], found["test_images"]) == (2, 8)
    assert found["worst_image"] >= found["test"]
    # More draws are a tighter bound: of one it is the one-draw bound of the result itself.
    flow = trained(row.run, "paper", "smoke", 0, images, folders[1])
    budget = BUDGETS["paper"]["smoke"]
    many, one = (importance(flow, images, budget, draws)["test"] for draws in (20, 1))
    assert many < one
    assert one == pytest.approx(result["bits_per_dim"]["test"], abs=0.05)


def test_draws_are_the_published_ones_at_the_published_budget():
    assert draws_of(Run("denseflow-74-10", "cifar10"), "paper") == 1000
    assert draws_of(Run("denseflow-74-10-celeba", "celeba64"), "paper") == 200
    assert draws_of(Run("denseflow-74-10", "cifar10"), "short") == 16


def test_a_changed_model_does_not_go_on_from_a_checkpoint(run_of, monkeypatch):
    row = row_of("mixerflow-1-cifar10-plain-spline-11")
    _, _, (out, _) = run_of(row)
    path_of(row.run, "paper", "smoke", 0, out).unlink()
    model = MODELS["spline-11"]
    changed = replace(model, smoke={**model.smoke, "tail_bound": 0.3})
    monkeypatch.setitem(MODELS, "spline-11", changed)
    with pytest.raises(ValueError, match="tail_bound"):
        run_of(row)


def test_run_that_overflows_is_kept_as_that_and_reported(run_of, monkeypatch):
    def overflows(*arguments, **options):
        raise FloatingPointError("step 7: expected a finite loss and gradient, got nan")

    row = row_of("mixerflow-1-cifar10-plain-glow-11")
    monkeypatch.setattr("benchmarks.papers.run.fit", overflows)
    monkeypatch.setattr("benchmarks.papers.run.NOISE", "none of these")  # as if images were real
    with pytest.raises(FloatingPointError, match="step 7"):
        run_of(row)
    monkeypatch.undo()
    monkeypatch.setattr("benchmarks.papers.run.NOISE", "none of these")
    with pytest.raises(FloatingPointError, match="step 7"):  # it is read, not trained again
        run_of(row)
    monkeypatch.setattr("benchmarks.papers.kept.NOISE", "none of these")
    [kept] = read(run_of.out)
    assert kept.results == {} and list(kept.failed) == [(row.run.name, 0)]
    assert "step 7" in kept.failed[row.run.name, 0]


def test_results_are_json_that_any_reader_takes(run_of):
    row = row_of("mixerflow-1-cifar10-plain-glow-11")
    result, _, (out, _) = run_of(row)
    text = path_of(row.run, "paper", "smoke", 0, out).read_text()
    assert json.loads(text) == result
    assert result["synthetic"] and result["steps"] == 2 and "peak_memory_mb" not in result


def test_step_that_is_timed_is_one_of_training(monkeypatch):
    flows = []

    def built(model, *arguments):
        flows.append(at(model, *arguments))
        return flows[-1]

    at = Model.at
    monkeypatch.setattr(Model, "at", built)
    step = step_time.training_step("made", 4)
    step()
    parameters = list(flows[0].parameters())
    assert all(p.grad is not None for p in parameters)
    # Within the bound of the recipe, where it was above.
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    assert norm.item() == pytest.approx(5.0, rel=1e-3)


def test_times_of_steps_by_hand(tmp_path):
    results = {
        "batch_size": 64,
        "rounds": 3,
        "seconds": {"mixerflow-32": 0.3, "glow-11": 0.2},
        "ratios": {"mixerflow-32": {"median": 1.52}, "glow-11": {"median": 1.0}},
        "machine": "CPU, 1 thread",
        "cores": 2,
        "versions": {"torch": "2.15.0"},
        "date": "2026-01-02",
    }
    folder = tmp_path / "small-short"
    kept = Kept("small", "short", folder)
    assert step_times(kept, "cifar10") == {}
    (tmp_path / "step-times.json").write_text(json.dumps(results))
    assert step_times(kept, "cifar10") == results["seconds"]
    assert step_times(kept, "mnist") == {}  # of other images
    assert step_times(Kept("paper", "short", folder), "cifar10") == {}  # of other models
