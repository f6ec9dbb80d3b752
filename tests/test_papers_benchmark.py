"""The benchmarks of the papers' tables: rows, claims, images, results and reports."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from benchmarks.papers import run as runs
from benchmarks.papers.claims import Comparison, comparisons, degradations
from benchmarks.papers.figures import figure_of
from benchmarks.papers.images import (
    NOISE,
    SIZES,
    SMALL,
    Absent,
    averaged,
    averaged_down,
    images_of,
    noise_images,
)
from benchmarks.papers.kept import (
    columns,
    command,
    deviation_of,
    expression_of,
    read,
    text_of,
    unshuffled,
    without_shuffle,
)
from benchmarks.papers.models import MODELS
from benchmarks.papers.report import main as report_main
from benchmarks.papers.rows import FIGURES, ROWS, ROWS_OF, TABLES, Run, scaled_down
from benchmarks.papers.run import curve, describe, path_of, result_of
from benchmarks.papers.samples import main as samples_main
from benchmarks.test_papers import CASES, COLUMNS
from nflows_mixer.training import FlowModule, fit

RUN = Run("made-mnist", "mnist")
PARAMETERS = [name for name, of in MODELS.items() if of.parameters and of.preset is None]


# Rows and models


@pytest.mark.parametrize("size", ROWS_OF)
def test_every_row_has_a_table_a_model_and_a_data_set(size):
    for row in ROWS_OF[size]:
        assert row.table in TABLES and row.figure in FIGURES
        assert getattr(MODELS[row.run.model], size) is not None
        assert row.run.data in (SIZES if size == "paper" else SMALL)
        imagenet = "old" if row.table.startswith("mixerflow") else "new"
        assert row.version == (imagenet if row.run.data.startswith("imagenet") else "")


def test_names_of_rows_are_all_different():
    for rows in ROWS_OF.values():
        assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "name, published",
    {
        "mixerflow-1-cifar10-plain-mixerflow-32": 3.46,
        "mixerflow-1-imagenet32-plain-woodbury": 4.22,
        "mixerflow-2-animefaces-plain-glow-37": 3.21,
        "mixerflow-3-mnist-plain-mixerflow-mnist": 1.22,
        "mixerflow-4-imagenet32-global-butterfly": 6.18,
        "mixerflow-5-cifar10-local-mixerflow-32": 3.49,
        "mixerflow-6-galaxy32-plain-spline-11": 2.25,
        "mixerflow-7-cifar10-plain-glow-11-probe_accuracy": 41.23,
        "mixerflow-9-cifar10-plain-mixerflow-base-60": 3.52,
        "denseflow-1-celeba64-plain-denseflow-74-10-celeba": 1.99,
        "denseflow-2-cifar10-plain-denseflow-74-10-training_hours": 250,
        "denseflow-4-cifar10-plain-denseflow-45-6": 3.07,
    }.items(),
)
def test_published_figures(name, published):
    assert [row.published for row in ROWS if row.name == name] == [published]


def test_larger_baselines_share_the_scaled_down_model_of_the_smaller():
    row = next(row for row in ROWS if row.run.model == "glow-44" and row.run.shuffle)
    assert scaled_down(row).run == Run("glow-11", "cifar10", "global")
    assert scaled_down(next(row for row in ROWS if row.table == "mixerflow-2")) is None


def parameters_of(model, size, shape):
    with torch.device("meta"):
        flow = MODELS[model].at(size, shape, 256)
    return sum(parameter.numel() for parameter in flow.parameters())


@pytest.mark.parametrize("model", PARAMETERS)
def test_models_are_as_large_as_published(model):
    shape = (3, 64, 64) if model in ("glow-37", "spline-38", "mixerflow-64") else (3, 32, 32)
    count = parameters_of(model, "paper", shape) / 1e6
    assert count == pytest.approx(MODELS[model].parameters, rel=0.01)


@pytest.mark.parametrize("table", ["mixerflow-1", "mixerflow-4", "mixerflow-5"])
def test_scaled_down_models_of_a_table_are_as_large_as_each_other(table):
    models = {row.run.model for row in ROWS_OF["small"] if row.table == table}
    counts = [parameters_of(model, "small", (3, 16, 16)) for model in models]
    assert len(counts) > 2 and max(counts) < 1.02 * min(counts)


# Claims


def made_up(row, seed, bits, **more):
    """A result as a run writes it, without the run."""
    small = row.run.data in SMALL
    shape = list(SIZES[row.run.data][:1]) + 2 * [SMALL[row.run.data] if small else 32]
    return {
        "name": row.run.name,
        "run": {"model": row.run.model, "data": row.run.data, "shuffle": row.run.shuffle},
        "size": "small",
        "budget": {"name": "short"},
        "seed": seed,
        "synthetic": False,
        "data": {
            "data": row.run.data,
            "version": row.version,
            "image_shape": shape,
            "train_images": 48_000,
            "split_hash": "0123456789abcdef",
        },
        "recipe": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 64},
        "date": "2026-01-02",
        "parameters": 455_131,
        "bits_per_dim": {"train": 1.0, "validation": 2.0, "test": bits},
        "worst_image": {"train": 9.0, "validation": 8.0, "test": bits + 2},
        "evaluated_images": {"train": 2000, "validation": 2000, "test": 2000},
        "steps": 400,
        "train_seconds": 60.0,
        "images_per_second": 400.0,
        "machine": "1 of 2 cores",
        "versions": {"torch": "2.15.0"},
        "history": [
            {"step": 10, "seconds": 1.0, "train": 50.0},
            {"step": 200, "seconds": 20.0, "train": bits + 0.2},
            {"step": 200, "seconds": 20.0, "validation": bits + 0.1},
            {"step": 400, "seconds": 40.0, "train": bits},
            {"step": 400, "seconds": 40.0, "validation": bits},
        ],
        **more,
    }


def row_of(name, size="small"):
    return next(row for row in ROWS_OF[size] if row.name == name)


def rows_of(table):
    return [row for row in ROWS_OF["small"] if row.table == table]


def results_of(figures, table="mixerflow-1-cifar10-plain", **more):
    """(model, seed) -> bits/dim as the mapping that claims take."""
    found = {}
    for (model, seed), bits in figures.items():
        row = row_of(f"{table}-{model}")
        found[row.run.name, seed] = made_up(row, seed, bits, **more)
    return found


def test_verdict_by_hand():
    # Mean 0.2, standard deviation 0.1, standard error 0.1 / sqrt(3).
    claim = Comparison("", 0.05, (0.1, 0.2, 0.3))
    assert claim.mean == pytest.approx(0.2)
    assert claim.error == pytest.approx(0.1 / math.sqrt(3))
    assert claim.verdict == "as published"
    assert Comparison("", 0.05, (-0.1, -0.2, -0.3)).verdict == "the other way"
    assert Comparison("", 0.05, (-0.1, 0.1, 0.2)).verdict == "undecided"
    assert Comparison("", 0.05, (-0.1,)).verdict == "the other way"
    assert Comparison("", 0.05, (-0.1,)).error is None


def test_claims_are_of_the_seeds_that_both_rows_have():
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): 5.2, ("glow-11", 7): 9.0}
    figures |= {("mixerflow-32", 0): 4.9, ("mixerflow-32", 1): 5.3}
    [claim] = comparisons(rows_of("mixerflow-1"), results_of(figures))
    assert claim.words == "MixerFlow better than Glow"
    assert claim.published == pytest.approx(0.05)
    assert claim.here == pytest.approx((0.1, -0.1))
    assert claim.verdict == "undecided"


def test_of_accuracies_the_higher_is_better():
    figures = {("glow-11", 0): 5.0, ("mixerflow-32", 0): 5.0}
    results = results_of(figures)
    for (name, _), result in results.items():
        better = "mixerflow" in name
        result["probe"] = {"loss": 1.9 if better else 1.6, "accuracy": 0.45 if better else 0.4}
    loss, accuracy = comparisons(rows_of("mixerflow-7"), results)
    assert (loss.published, accuracy.published) == pytest.approx((0.15, 3.88))
    assert loss.here == pytest.approx((-0.3,)) and loss.verdict == "the other way"
    assert accuracy.here == pytest.approx((5.0,)) and accuracy.verdict == "as published"


def shuffled_results(**more):
    plain = {("glow-11", 0): 4.9, ("mixerflow-32", 0): 4.8}
    shuffled = {("glow-11", 0): 6.0, ("mixerflow-32", 0): 5.6, ("glow-11", 1): 6.1}
    return results_of(plain, **more) | results_of(shuffled, "mixerflow-4-cifar10-global", **more)


def test_degradation_by_hand():
    rows = [row_of(f"mixerflow-4-cifar10-global-{m}") for m in ("glow-11", "mixerflow-32")]
    plain = [without_shuffle(row) for row in rows]
    [claim] = degradations(rows, plain, unshuffled("cifar10"), shuffled_results())
    assert claim.words == "the shuffle costs MixerFlow less than Glow"
    assert claim.published == pytest.approx((5.18 - 3.51) - (4.09 - 3.46))
    assert claim.here == pytest.approx(((6.0 - 4.9) - (5.6 - 4.8),))


def test_degradation_is_of_bits_per_dim_where_there_are_probes_too(tmp_path):
    keep(tmp_path, shuffled_results(probe={"loss": 1.5, "accuracy": 0.4}))
    [kept] = read(tmp_path)
    column = next(c for c in columns("small") if c.table == "mixerflow-4")
    better, cheaper = column.claims(kept)
    assert better.here == pytest.approx((0.4,))
    assert cheaper.here == pytest.approx((0.3,))


def test_figure_is_of_the_validation_part_where_there_is_no_test():
    row = row_of("mixerflow-1-cifar10-plain-glow-11")
    result = made_up(row, 0, 5.0)
    assert figure_of(row, result) == 5.0
    del result["bits_per_dim"]["test"]
    assert figure_of(row, result) == 2.0
    assert figure_of(row_of("mixerflow-7-cifar10-plain-glow-11-probe_loss"), result) is None


# Curves


def test_curve_by_hand():
    history = [
        {"step": 10, "train/bits_per_dim": 6.12341, "images_per_second": 100.0},
        {"step": 20, "train/bits_per_dim": 5.0, "images_per_second": 50.0},
        {"step": 20, "validation/bits_per_dim": 5.5},
    ]
    assert curve(history, batch_size=20) == [
        {"step": 10, "seconds": 2.0, "train": 6.1234},
        {"step": 20, "seconds": 6.0, "train": 5.0},
        {"step": 20, "seconds": 6.0, "validation": 5.5},
    ]


# Images


def save_images(folder, data, count=60, height=4):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        pixels = rng.integers(256, size=(count, height, height, 3), dtype=np.uint8)
        np.savez(folder / f"{data}_{part}.npz", images=pixels, labels=np.arange(count) % 10)


def test_images_that_are_absent_are_named(tmp_path):
    with pytest.raises(Absent, match="expected galaxy32_train.npz and galaxy32_test.npz") as absent:
        images_of("galaxy32", str(tmp_path))
    assert str(tmp_path) in str(absent.value)


def test_images_of_another_version_are_refused(tmp_path):
    save_images(tmp_path, "imagenet32")
    with pytest.raises(Absent, match="expected the old version of imagenet32.*do not compare"):
        images_of("imagenet32", str(tmp_path), version="old")


def test_test_images_alone_are_called_that(tmp_path):
    save_images(tmp_path, "cifar10")
    (tmp_path / "cifar10_train.npz").unlink()
    assert images_of("cifar10", str(tmp_path)).version == "of the test images alone"


def test_averages_by_hand():
    pixels = torch.tensor([[0, 1, 10, 20], [2, 3, 30, 41], [255, 255, 0, 0], [255, 255, 0, 1]])
    found = averaged(pixels.to(torch.uint8)[None, None], 2)
    # 1.5 and 0.25 are rounded to even and down, 25.25 down.
    assert found.tolist() == [[[[2, 25], [255, 0]]]]


def test_images_are_averaged_down_with_their_labels(tmp_path):
    save_images(tmp_path, "cifar10")
    whole = images_of("cifar10", str(tmp_path))
    small = images_of("cifar10", str(tmp_path), size=2)
    assert small.image_shape == (3, 2, 2)
    assert torch.equal(small.test.labels(), whole.test.labels())
    mean = whole.test.images()[0, :, :2, 2:].double().mean((1, 2)).round()
    assert torch.equal(small.test.images()[0, :, 0, 1].double(), mean)
    with pytest.raises(ValueError, match="expected square images of a multiple of 3"):
        averaged_down(whole, 3)


def test_noise_is_marked_synthetic():
    images = noise_images("mnist")
    assert images.version == NOISE
    assert images.image_shape == SIZES["mnist"]
    assert describe(RUN, "paper", "smoke", 0, images)["synthetic"]


# Runs


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    return folder, result(folder)


def result(folder, seed=0, images=None):
    return result_of(
        RUN,
        "paper",
        "smoke",
        seed,
        images or noise_images("mnist"),
        folder / "results",
        folder / "runs",
        "cpu",
    )


def test_a_result_that_is_kept_is_read(trained_once, monkeypatch):
    folder, first = trained_once
    monkeypatch.setattr(runs, "fit", None)  # nothing is trained
    assert result(folder) == first
    path = path_of(RUN, "paper", "smoke", 0, folder / "results")
    assert json.loads(path.read_text()) == first
    assert first["synthetic"] and math.isfinite(first["bits_per_dim"]["test"])


def test_a_result_of_another_setting_is_refused(trained_once):
    folder, _ = trained_once
    path = path_of(RUN, "paper", "smoke", 0, folder / "results")
    before = path.read_text()
    path.write_text(before.replace('"batch_size": 4', '"batch_size": 5'))
    with pytest.raises(ValueError, match="budget, recipe differ; delete it, or give another --out"):
        result(folder)
    path.write_text(before)


class StopAt(Callback):
    """An error in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError("stopped here")


def test_a_run_that_is_stopped_goes_on(trained_once, tmp_path, monkeypatch):
    stopped = partial(fit, callbacks=(StopAt(1),))
    monkeypatch.setattr(runs, "fit", stopped)
    with pytest.raises(InterruptedError):
        result(tmp_path)
    assert not (tmp_path / "results").exists()

    trained = []
    step = FlowModule.training_step
    monkeypatch.setattr(
        FlowModule, "training_step", lambda self, *a: (trained.append(1), step(self, *a))[1]
    )
    monkeypatch.setattr(runs, "fit", fit)
    found = result(tmp_path)
    assert len(trained) == 1  # of two steps
    whole = trained_once[1]
    assert found["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-6)


# Reports


def keep(folder, results, size_budget="small-short"):
    for (name, seed), found in results.items():
        path = Path(folder, size_budget, f"{name}-{seed}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))


def test_report_has_published_figures_and_ours_in_columns_of_their_own(tmp_path):
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): 5.2, ("mixerflow-32", 0): 4.9}
    keep(tmp_path, results_of(figures))
    report_main(str(tmp_path))
    text = (tmp_path / "small-short" / "report.md").read_text()
    cells = {}
    for line in text.split("\n"):
        words = [word.strip() for word in line.strip("|").split("|")]
        cells.setdefault(words[0], words)
    head = cells["model"]
    assert head[2] == "published: bits/dim" and head[4] == "ours (short budget): bits/dim"
    # Mean 5.1, deviation 0.2 / sqrt(2).
    assert cells["Glow"][1:8] == "11.02 M|3.51|455,131|5.100 ± 0.141|2|7.20|60".split("|")
    assert cells["MaCow"][1:] == ["11.43 M", "3.48", *"––––––"]
    claim = cells["MixerFlow better than Glow"]
    assert claim[1:] == ["+0.05", "+0.100", "1", "as published"]
    assert "1 of 1 claims come out as published." in text
    assert "400 steps of 64 images; Adam at 0.01; cifar10, split 0123456789abcdef" in text
    assert "3 x 16 x 16" in text and "2,000 test images; 1 of 2 cores; torch 2.15.0" in text


def test_reports_leave_out_synthetic_results_and_other_versions(tmp_path):
    results = results_of({("glow-11", 0): 5.0}) | results_of(
        {("mixerflow-32", 0): 7.777}, synthetic=True
    )
    keep(tmp_path, results)
    old = row_of("mixerflow-1-imagenet32-plain-glow-11", "paper")
    other = made_up(old, 0, 6.666)
    other["data"]["version"] = "new"
    keep(tmp_path, {(old.run.name, 0): other}, "paper-short")
    report_main(str(tmp_path))
    small, paper, readme = (
        (tmp_path / name).read_text()
        for name in ("small-short/report.md", "paper-short/report.md", "README.md")
    )
    assert "7.777" not in small + readme and "6.666" not in paper + readme
    assert "Left out: 1 of synthetic images" in small and "5.000" in small
    assert "Left out: 1 of another version" in paper


def test_noise_of_a_smoke_test_is_synthetic_under_any_name(tmp_path):
    results = results_of({("glow-11", 0): 5.0})
    for found in results.values():
        found["data"]["version"] = f"{NOISE} first images"
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    assert kept.results == {} and kept.synthetic == 1


def test_figures_that_are_not_finite_are_shown(tmp_path):
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): math.nan, ("mixerflow-32", 0): 4.9}
    keep(tmp_path, results_of(figures | {("mixerflow-32", 1): 4.9}))
    report_main(str(tmp_path))
    text = (tmp_path / "small-short" / "report.md").read_text()
    assert "nan ± nan" in text and "| 2 | nan |" in text
    assert "| +0.05 | nan ± nan | 2 | not finite |" in text
    assert "0 of 1 claims come out as published; not finite: 1." in text


def test_what_a_gpu_measures_has_columns_where_there_is_any(tmp_path):
    results = results_of({("glow-11", 0): 5.0, ("mixerflow-32", 0): 4.9})
    report = tmp_path / "small-short" / "report.md"
    keep(tmp_path, results)
    report_main(str(tmp_path))
    assert "float32 peak" not in report.read_text()
    results["cifar10-plain-glow-11", 0] |= {"fraction_of_peak": 0.123, "peak_memory_mb": 1234}
    keep(tmp_path, results)
    report_main(str(tmp_path))
    assert "| 400 | 1,234 | 12.3% |" in report.read_text()
    assert "| 400 | – | – |" in report.read_text()


def test_means_and_deviations_by_hand():
    assert text_of([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert text_of([1.5], 1) == "1.5"
    assert text_of([], 1) == "–"
    assert math.isnan(deviation_of([1.0, math.inf]))


def test_shuffles_are_drawn_and_shown(tmp_path):
    keep(tmp_path, shuffled_results())
    report_main(str(tmp_path))
    for name in ("curves-mixerflow-4-cifar10.png", "degradation-cifar10.png"):
        assert (tmp_path / "small-short" / name).read_bytes()[:4] == b"\x89PNG"
        assert f"](small-short/{name})" in (tmp_path / "README.md").read_text()


def test_readme_has_a_row_for_each_claim(tmp_path):
    keep(tmp_path, results_of({("glow-11", 0): 5.0, ("glow-11", 1): 5.2}))
    report_main(str(tmp_path))
    lines = (tmp_path / "README.md").read_text().split("\n")
    claims = [line for line in lines if "`pytest benchmarks -m" in line]
    assert len(claims) == sum(len(rows) for rows in ROWS_OF.values())
    glow = "-k mixerflow-1-cifar10-plain-glow-11"
    [run] = [line for line in claims if f"-m cpu {glow} --seeds 0,1`" in line]
    assert "| 3.51 | 5.100 ± 0.141 | scaled down, short: 400 steps | 1 of 2 cores | 2026" in run
    [not_run] = [line for line in claims if f"-m gpu {glow}`" in line]
    assert "| 3.51 | not run | published size | – | – |" in not_run


def selected(expression, ids):
    """What pytest's -k selects by these words."""
    first, *others = expression.split(" and not ")
    return [name for name in ids if first in name and not any(word in name for word in others)]


@pytest.mark.parametrize("size", ROWS_OF)
def test_commands_select_their_rows_alone(size):
    mark = "gpu" if size == "paper" else "cpu"
    cases, orders = (
        [case.id for case in given if [m.name for m in case.marks] == [mark]]
        for given in (CASES, COLUMNS)
    )
    ending = "" if size == "paper" else "-small"
    for row in ROWS_OF[size]:
        expression = expression_of(row, size)
        assert selected(expression, [*cases, *orders]) == [row.name + ending]
        column = f"{row.table}-{row.run.data}"
        figures = [c.name for c in columns(size) if c.key[:2] == (row.table, row.run.data)]
        assert selected(column, orders) == [f"{name}-{size}" for name in figures]
        whole = [r for r in ROWS_OF[size] if (r.table, r.run.data) == (row.table, row.run.data)]
        assert selected(column, cases) == [r.name + ending for r in whole]


def test_commands_name_what_is_not_usual():
    assert command("paper", "short", "a-b", [0]) == "pytest benchmarks -m gpu -k a-b"
    words = 'pytest benchmarks -m cpu -k "a and not b" --budget long --seeds 1,2'
    assert command("small", "long", "a and not b", [2, 1]) == words


def test_samples_say_what_was_not_trained(tmp_path, capsys):
    save_images(tmp_path, "cifar10", height=32)
    with pytest.raises(SystemExit, match="expected weights of one model or more"):
        samples_main(str(tmp_path), str(tmp_path), str(tmp_path / "samples.png"))
    said = capsys.readouterr().out
    assert "left out: Glow: " in said
    assert "pytest benchmarks -m cpu -k mixerflow-9-cifar10-plain-mixerflow-base-linear" in said
    assert not (tmp_path / "samples.png").exists()
