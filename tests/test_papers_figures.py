"""What rows of the papers' tables report beside the bits/dim of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.papers.figures import figure_of, importance, with_figure
from benchmarks.papers.images import noise_images
from benchmarks.papers.kept import read
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import ROWS
from benchmarks.papers.run import Job


def row_of(name):
    return next(row for row in ROWS if row.name == name)


@pytest.fixture
def job_of(tmp_path):
    """The run of a row for two steps on random pixels."""

    def job(row):
        images = noise_images(row.run.data)
        folders = (tmp_path / "results", tmp_path / "runs")
        return Job(row.run, "paper", "smoke", 0, images, *folders, "cpu")

    return job


def test_probe_and_cost_are_kept_beside_each_other(job_of):
    loss = row_of("mixerflow-7-cifar10-plain-glow-11-probe_loss")
    job = job_of(loss)
    job.result()
    first = with_figure(loss, job)
    # Another row of the run, which read the result before the probe was added.
    cost = replace(loss, figure="training_hours", run=replace(loss.run, model="denseflow-74-10"))
    job.path.rename(job_of(cost).path)
    both = with_figure(cost, job_of(cost))
    assert both["probe"] == first["probe"]
    assert figure_of(loss, both) == first["probe"]["loss"]
    # 650 epochs of 50,000 images.
    hours = 650 * 50_000 / both["images_per_second"] / 3600
    assert figure_of(cost, both) == pytest.approx(hours, rel=1e-3)


def test_figures_without_weights_say_how_to_get_them(job_of, tmp_path):
    row = row_of("mixerflow-7-cifar10-plain-glow-11-probe_loss")
    job_of(row).result()
    with pytest.raises(FileNotFoundError, match="delete its JSON file"):
        with_figure(row, replace(job_of(row), scratch=tmp_path / "elsewhere"))


@pytest.mark.slow
def test_denseflow_is_reported_by_importance_weights(job_of):
    row = row_of("denseflow-1-cifar10-plain-denseflow-74-10-importance_bits_per_dim")
    job = job_of(row)
    result = job.result()
    assert figure_of(row, result) is None
    found = with_figure(row, job)["importance_bits_per_dim"]
    assert (found["draws"], found["test_images"]) == (2, 8)
    assert found["worst_image"] >= found["test"]
    # More draws are a tighter bound: of one it is the one-draw bound of the result itself.
    many, one = (importance(job, draws)["test"] for draws in (20, 1))
    assert many < one
    assert one == pytest.approx(result["bits_per_dim"]["test"], abs=0.05)


def test_a_changed_model_does_not_go_on_from_a_checkpoint(job_of, monkeypatch):
    row = row_of("mixerflow-1-cifar10-plain-spline-11")
    job_of(row).result()
    job_of(row).path.unlink()
    model = MODELS["spline-11"]
    changed = replace(model, smoke={**model.smoke, "tail_bound": 0.3})
    monkeypatch.setitem(MODELS, "spline-11", changed)
    with pytest.raises(ValueError, match="tail_bound"):
        job_of(row).result()


def test_run_that_overflows_is_kept_as_that_and_reported(job_of, monkeypatch):
    def overflows(*arguments, **options):
        raise FloatingPointError("step 7: expected a finite loss and gradient, got nan")

    row = row_of("mixerflow-1-cifar10-plain-glow-11")
    monkeypatch.setattr("benchmarks.papers.run.fit", overflows)
    monkeypatch.setattr("benchmarks.papers.run.NOISE", "none of these")  # as if images were real
    with pytest.raises(FloatingPointError, match="step 7"):
        job_of(row).result()
    monkeypatch.undo()
    monkeypatch.setattr("benchmarks.papers.run.NOISE", "none of these")
    with pytest.raises(FloatingPointError, match="step 7"):  # it is read, not trained again
        job_of(row).result()
    monkeypatch.setattr("benchmarks.papers.kept.NOISE", "none of these")
    [kept] = read(job_of(row).out)
    assert kept.results == {} and list(kept.failed) == [(row.run.name, 0)]
    assert "step 7" in kept.failed[row.run.name, 0]
