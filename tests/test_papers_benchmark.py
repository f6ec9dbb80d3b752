"""The benchmarks of the papers' tables: rows, claims, images, results and reports."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.papers import run as runs
from benchmarks.papers.budgets import BUDGETS, recipe_of
from benchmarks.papers.figures import figure_of, worst_image
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
from benchmarks.papers.kept import RESULTS, Comparison, Kept, columns, comparisons, read
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import FIGURES, ROWS, ROWS_OF, TABLES, Run
from benchmarks.papers.run import Job, curve
from benchmarks.pictures import save_shuffles
from benchmarks.sizes import parameters_of
from benchmarks.tables import papers_page
from nflows_mixer.training import FlowModule, fit
from tests.training import StopAt

RUN = Run("made-mnist", "mnist")
PROBE = {"loss": 1.5, "accuracy": 0.4, "train_images": 10_000, "test_images": 2000}
TABLES_OF_A_SIZE = ["mixerflow-1", "mixerflow-4", "mixerflow-5", "mixerflow-7", "beyond"]
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


def size_of(model, size, shape):
    with torch.device("meta"):
        return parameters_of(MODELS[model].at(size, shape, 256))


@pytest.mark.slow
@pytest.mark.parametrize("model", PARAMETERS)
def test_models_are_as_large_as_published(model):
    shape = (3, 64, 64) if model in ("glow-37", "spline-38", "mixerflow-64") else (3, 32, 32)
    count = size_of(model, "paper", shape) / 1e6
    assert count == pytest.approx(MODELS[model].parameters, rel=0.01)


@pytest.mark.parametrize("table", TABLES_OF_A_SIZE)
def test_scaled_down_models_of_a_table_are_as_large_as_each_other(table):
    models = {row.run.model for row in ROWS_OF["small"] if row.table == table}
    ours = size_of("mixerflow-32", "small", (3, 16, 16))
    assert len(models) > 2 and "mixerflow-32" in models
    for model in models:
        count = size_of(model, "small", (3, 16, 16))
        assert count == pytest.approx(ours, rel=0.01), model


def test_ours_is_as_large_as_the_published_mixerflow_at_both_sizes():
    assert size_of("mixerflow-local", "small", (3, 16, 16)) == 451_963
    assert size_of("mixerflow-local", "paper", (3, 32, 32)) / 1e6 == pytest.approx(11.34, rel=0.02)


def test_a_model_has_fields_of_its_own_in_its_recipe_by_size_and_shuffle():
    def rates(model, size="small"):
        runs = [Run(model, "cifar10", shuffle) for shuffle in (None, "local", "global")]
        return [recipe_of(run, size, BUDGETS[size]["long"]).learning_rate for run in runs]

    assert rates("mixerflow-local") == [0.01, 0.01, 0.01]
    assert rates("mixerflow-local", "paper") == rates("mixerflow-32", "paper") == [1e-3] * 3
    assert rates("mixerflow-both") == [0.003] * 3


def test_linear_blocks_are_what_the_readings_of_the_ablation_differ_in():
    rows = {row.run.model for row in ROWS_OF["small"] if row.table == "mixerflow-9"}
    both = {row.run.model for row in ROWS_OF["small"] if row.table == "mixerflow-9-alternating"}
    for model in both - rows:
        alternating = MODELS[model].small
        assert alternating == MODELS[model.removesuffix("-alternating")].small | {"alternate": True}
        assert alternating.get("linear", "as published") is not None
    assert all(MODELS[model].small["linear"] is None for model in both & rows)


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
        "reference_models": {"uniform": 8.0, "normal, full covariance": 5.5, "histogram": 7.0},
        "steps": 400,
        "train_seconds": 60.0,
        "train_cpu_seconds": 50.0,
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


def kept_of(results):
    return Kept("small", "short", Path(), results)


def test_verdict_by_hand():
    # Mean 0.3, standard deviation 0.1, standard error 0.058; of Student's t with two degrees of
    # freedom 95% are within 4.303, here 0.248, and with one within 12.706.
    claim = Comparison("", 0.05, (0.2, 0.3, 0.4))
    assert claim.mean == pytest.approx(0.3)
    assert claim.verdict == "as published"
    assert Comparison("", 0.05, (-0.2, -0.3, -0.4)).verdict == "the other way"
    assert Comparison("", 0.05, (0.1, 0.2, 0.3)).verdict == "undecided"
    assert Comparison("", 0.05, (0.12, 0.14)).verdict == "as published"  # 0.13, 0.127
    assert Comparison("", 0.05, (0.11, 0.13)).verdict == "undecided"  # 0.12, 0.127
    assert Comparison("", 0.05, (-0.1,)).verdict == "one seed"


def test_claims_are_of_the_seeds_that_both_rows_have():
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): 5.2, ("glow-11", 7): 9.0}
    figures |= {("mixerflow-32", 0): 4.9, ("mixerflow-32", 1): 5.3}
    [claim] = comparisons(rows_of("mixerflow-1"), kept_of(results_of(figures)))
    assert claim.words == "MixerFlow better than Glow"
    assert claim.published == pytest.approx(0.05)
    assert claim.here == pytest.approx((0.1, -0.1))
    assert claim.verdict == "undecided"


def test_ours_is_expected_to_be_better_than_each_other_model_of_the_same_shuffle():
    figures = {("glow-11", 0): 5.0, ("mixerflow-local", 0): 4.6, ("glow-11", 1): 5.1}
    plain = {**figures, ("mixerflow-local", 1): 4.75, ("mixerflow-32", 0): 4.9}
    shuffled = {("glow-11", 0): 6.0, ("mixerflow-local", 0): 6.1}
    results = results_of(plain, "beyond-cifar10-plain")
    results |= results_of(shuffled, "beyond-cifar10-global")
    glow, mixer, against = column_of("beyond").claims(kept_of(results))
    assert glow.here == pytest.approx((0.4, 0.35)) and glow.verdict == "as expected"
    assert mixer.here == pytest.approx((0.3,)) and mixer.verdict == "one seed"
    assert against.here == pytest.approx((-0.1,)) and against.published is None
    assert "local flows, global shuffle better than Glow, global shuffle" in against.words


def test_of_accuracies_the_higher_is_better():
    figures = {("glow-11", 0): 5.0, ("mixerflow-32", 0): 5.0}
    results = results_of(figures)
    for (name, _), result in results.items():
        better = "mixerflow" in name
        result["probe"] = {"loss": 1.9 if better else 1.6, "accuracy": 0.45 if better else 0.4}
    loss, accuracy = comparisons(rows_of("mixerflow-7"), kept_of(results))
    assert (loss.published, accuracy.published) == pytest.approx((0.15, 3.88))
    assert loss.here == pytest.approx((-0.3,))  # the other way
    assert accuracy.here == pytest.approx((5.0,))


def shuffled_results(**more):
    plain = {("glow-11", 0): 4.9, ("mixerflow-32", 0): 4.8}
    shuffled = {("glow-11", 0): 6.0, ("mixerflow-32", 0): 5.6, ("glow-11", 1): 6.1}
    return results_of(plain, **more) | results_of(shuffled, "mixerflow-4-cifar10-global", **more)


def test_degradation_by_hand():
    better, cheaper = column_of("mixerflow-4").claims(kept_of(shuffled_results(probe=PROBE)))
    assert better.here == pytest.approx((0.4,))
    assert cheaper.words == "the shuffle costs MixerFlow less than Glow"
    assert cheaper.published == pytest.approx((5.18 - 3.51) - (4.09 - 3.46))
    assert cheaper.here == pytest.approx(((6.0 - 4.9) - (5.6 - 4.8),))


def column_of(table, figure="bits_per_dim"):
    return next(c for c in columns("small") if (c.table, c.figure) == (table, figure))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("data", {"version": "", "split_hash": "ffff"}, "split, global shuffle"),
        ("budget", {"name": "short", "steps": 401}, "budget"),
        ("accumulate", 2, "accumulate"),
    ],
)
def test_results_on_unequal_terms_are_not_compared(key, value, words):
    results = shuffled_results()
    results["cifar10-global-mixerflow-32", 0][key] = value
    names = r".*cifar10-global-glow-11-0 and .*cifar10-global-mixerflow-32-0"
    with pytest.raises(ValueError, match=rf"equal terms \({words}\), got {names}"):
        column_of("mixerflow-4").claims(kept_of(results))


@pytest.mark.parametrize("part", ["arguments", "recipe"])
def test_results_of_two_models_under_one_name_are_not_compared(part):
    results = shuffled_results()
    name = "cifar10-global-mixerflow-32"
    results[name, 1] = {**results[name, 0], "seed": 1, part: {"num_layers": "3"}}
    with pytest.raises(ValueError, match=rf"equal terms \({part}, {name}\)"):
        column_of("mixerflow-4").claims(kept_of(results))


def test_reference_is_the_lowest_of_the_simple_models():
    results = results_of({("glow-11", 0): 5.0}, probe=PROBE)
    mnist = row_of("mixerflow-3-mnist-plain-made-mnist")
    lower = {"normal, full covariance": 5.3, "histogram of each pixel": 1.7, "uniform": 8.0}
    results[mnist.run.name, 0] = made_up(mnist, 0, 2.0, reference_models=lower)
    maf = row_of("mixerflow-3-cifar10-plain-maf")
    results[maf.run.name, 0] = made_up(maf, 0, 2.0, reference_models={})
    kept = kept_of(results)
    assert column_of("mixerflow-1").reference(kept) == ("normal, full covariance", 5.5)
    assert column_of("mixerflow-3").reference(kept) == ("histogram of each pixel", 1.7)
    other = next(c for c in columns("small") if (c.table, c.data) == ("mixerflow-3", "cifar10"))
    assert other.reference(kept) is None  # of images too large for one
    assert column_of("mixerflow-7", "probe_loss").reference(kept) is None
    assert column_of("mixerflow-5").reference(kept) is None


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


def test_images_of_another_version_are_refused(tmp_path):
    save_images(tmp_path, "imagenet32")
    with pytest.raises(Absent, match="expected the old version of imagenet32.*do not compare"):
        images_of("imagenet32", str(tmp_path), version="old")


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


# Runs


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    return folder, job_in(folder).result()


def job_in(folder, images=None):
    images = images or noise_images("mnist")
    return Job(RUN, "paper", "smoke", 0, images, folder / "results", folder / "runs", "cpu")


def test_a_result_that_is_kept_is_read(trained_once, monkeypatch):
    folder, first = trained_once
    monkeypatch.setattr(runs, "fit", None)  # nothing is trained
    assert job_in(folder).result() == first
    path = job_in(folder).path
    assert json.loads(path.read_text()) == first
    assert first["synthetic"] and math.isfinite(first["bits_per_dim"]["test"])


def test_a_result_of_another_setting_is_refused(trained_once):
    folder, _ = trained_once
    path = job_in(folder).path
    before = path.read_text()
    path.write_text(before.replace('"batch_size": 4', '"batch_size": 5'))
    with pytest.raises(ValueError, match="budget, recipe differ; delete it, or give another --out"):
        job_in(folder).result()
    path.write_text(before)


def test_a_run_that_is_stopped_goes_on(trained_once, tmp_path, monkeypatch):
    stopped = partial(fit, callbacks=(StopAt(1),))
    monkeypatch.setattr(runs, "fit", stopped)
    with pytest.raises(InterruptedError):
        job_in(tmp_path).result()
    assert not (tmp_path / "results").exists()

    trained = []
    step = FlowModule.training_step
    monkeypatch.setattr(
        FlowModule, "training_step", lambda self, *a: (trained.append(1), step(self, *a))[1]
    )
    monkeypatch.setattr(runs, "fit", fit)
    found = job_in(tmp_path).result()
    assert len(trained) == 1  # of two steps
    whole = trained_once[1]
    assert found["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-6)


# Reports


def keep(folder, results, size_budget="small-short"):
    for (name, seed), found in results.items():
        path = Path(folder, size_budget, f"{name}-{seed}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))


def cells_of(folder, results, size_budget="small-short"):
    """First cell -> cells of the lines of a report, the first line of each."""
    keep(folder, results, size_budget)
    [kept] = [kept for kept in read(folder) if kept.folder.name == size_budget]
    cells = {}
    for line in papers_page(kept).split("\n"):
        words = [word.strip() for word in line.strip("|").split("|")]
        cells.setdefault(words[0], words)
    return cells


def test_report_has_published_figures_and_ours_in_columns_of_their_own(tmp_path):
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): 5.2, ("mixerflow-32", 0): 4.9}
    cells = cells_of(tmp_path, results_of(figures))
    # Mean 5.1, deviation 0.2 / sqrt(2).
    assert cells["Glow"][7:10] == ["60", "50", "400"]
    assert cells["Glow"][1:7] == ["3.51", "11.02", "5.100 ± 0.141", "455,131", "2", "7.20"]
    assert cells["MaCow"][1:4] == ["3.48", "11.43", "not run"]
    assert cells["MixerFlow better than Glow"][1:] == ["+0.05", "+0.100", "1", "one seed"]
    assert cells["(normal, full covariance)"][3] == "5.500"


def test_reports_leave_out_synthetic_results_and_other_versions(tmp_path):
    results = results_of({("mixerflow-32", 0): 7.777}, synthetic=True)
    keep(tmp_path, results | results_of({("glow-11", 0): 5.0}))
    old = row_of("mixerflow-1-imagenet32-plain-glow-11", "paper")
    other = made_up(old, 0, 6.666)
    other["data"]["version"] = "new"
    keep(tmp_path, {(old.run.name, 0): other}, "paper-short")
    paper, small = read(tmp_path)
    assert (small.left_out, len(small.results)) == (1, 1)
    assert (paper.left_out, len(paper.results)) == (1, 0)
    assert "7.777" not in papers_page(small) and "6.666" not in papers_page(paper)


def test_noise_of_a_smoke_test_is_synthetic_under_any_name(tmp_path):
    results = results_of({("glow-11", 0): 5.0})
    for found in results.values():
        found["data"]["version"] = f"{NOISE} first images"
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    assert kept.results == {} and kept.left_out == 1


def test_figures_that_are_not_finite_are_shown(tmp_path):
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): math.nan, ("mixerflow-32", 0): 4.9}
    cells = cells_of(tmp_path, results_of(figures | {("mixerflow-32", 1): 4.9}))
    assert cells["Glow"][3] == "nan ± nan" and cells["Glow"][6] == "nan"
    claim = cells["MixerFlow better than Glow"]
    assert claim[1:] == ["+0.05", "+nan ± nan", "2", "not finite"]


def test_worst_image_is_of_the_bound_that_is_reported():
    row = next(row for row in ROWS if row.figure == "importance_bits_per_dim")
    bound = {"test": 3.5, "worst_image": 5.0, "draws": 16, "test_images": 1000}
    result = made_up(row, 0, 4.0, importance_bits_per_dim=bound)
    assert worst_image(row, result) == 5.0
    assert worst_image(row_of("mixerflow-1-cifar10-plain-glow-11"), result) == 6.0
    del result["worst_image"]["test"]
    assert worst_image(row_of("mixerflow-1-cifar10-plain-glow-11"), result) == 8.0


def test_pictures_have_every_row_and_the_reference(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    keep(tmp_path, shuffled_results())
    [kept] = read(tmp_path)
    save_shuffles(kept)
    # Glow and MixerFlow have results of the table of ours, too, and draw it by shuffle.
    curves, *of_ours, costs = drawn
    assert [len(figure.axes[1].lines) for figure in of_ours] == [5, 6]
    ends = [line.get_xdata()[-1] for line in of_ours[0].axes[1].lines[:-1]]
    assert ends == pytest.approx([50.0] * 4)  # CPU seconds
    for axis in curves.axes:
        [line] = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert set(line.get_ydata()) == {5.5}
        assert axis.get_ylim()[0] < 5.5 < axis.get_ylim()[1]
    published, ours = costs.axes
    names = [text.get_text() for text in published.get_yticklabels()]
    assert names == ["Glow, global shuffle", "MixerFlow, global shuffle"]
    values = [list(line.get_xdata()) for line in ours.lines if line.get_marker() == "o"]
    assert values == [pytest.approx([6.0 - 4.9]), pytest.approx([5.6 - 4.8])]


# What is kept


@pytest.fixture(scope="module")
def kept_here():
    return read(RESULTS)


@pytest.mark.parametrize("table", ["mixerflow-4", "mixerflow-5"])
@pytest.mark.parametrize("other", ["Glow", "Neural Spline"])
def test_a_shuffle_costs_mixerflow_less(kept_here, table, other):
    [kept] = [kept for kept in kept_here if (kept.size, kept.budget) == ("small", "short")]
    words = f"the shuffle costs MixerFlow less than {other}"
    [claim] = [claim for claim in column_of(table).claims(kept) if claim.words == words]
    assert claim.verdict == "as published"
