"""The benchmarks of the papers' tables: rows, claims, images, results and reports."""

import json
import math
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.papers.picture import COLORS, save_curves, save_pictures
from benchmarks.papers.readme import ABLATION, BENCHMARKS, readme
from benchmarks.papers.report import main as report_main
from benchmarks.papers.report import report
from lightning.pytorch import Callback
from matplotlib.figure import Figure

from benchmarks.papers import run as runs
from benchmarks.papers.claims import Comparison, comparisons, degradations
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
from benchmarks.papers.kept import (
    RESULTS,
    columns,
    command,
    deviation_of,
    expression_of,
    read,
    tally,
    text_of,
    unshuffled,
    without_shuffle,
)
from benchmarks.papers.models import MODELS
from benchmarks.papers.parameters import table as parameters_table
from benchmarks.papers.rows import FIGURES, ROWS, ROWS_OF, TABLES, Run, scaled_down
from benchmarks.papers.run import curve, describe, path_of, result_of
from benchmarks.papers.samples import PANELS
from benchmarks.papers.samples import main as samples_main
from benchmarks.papers.step_time import FILE as STEP_TIMES
from benchmarks.papers.step_time import table as step_times_table
from benchmarks.test_papers import CASES, COLUMNS
from nflows_mixer.training import FlowModule, fit

RUN = Run("made-mnist", "mnist")
PROBE = {"loss": 1.5, "accuracy": 0.4, "train_images": 10_000, "test_images": 2000}
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
        "denseflow-1-celeba64-plain-denseflow-74-10-celeba-importance_bits_per_dim": 1.99,
        "denseflow-2-cifar10-plain-denseflow-74-10-training_hours": 250,
        "denseflow-4-cifar10-plain-denseflow-45-6-importance_bits_per_dim": 3.07,
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


def test_numbers_of_parameters_stand_beside_published_ones():
    text = parameters_table({"denseflow-74-10": 130_647_294, "denseflow-45-6": 75_020_522})
    assert "| 130,647,294 | 130M | +0.50% |" in text
    assert "| 75,020,522 |  |  |" in text  # which no table has


@pytest.mark.parametrize("table", ["mixerflow-1", "mixerflow-4", "mixerflow-5", "mixerflow-7"])
def test_scaled_down_models_of_a_table_are_as_large_as_each_other(table):
    models = {row.run.model for row in ROWS_OF["small"] if row.table == table}
    ours = parameters_of("mixerflow-32", "small", (3, 16, 16))
    assert len(models) > 2 and "mixerflow-32" in models
    for model in models:
        count = parameters_of(model, "small", (3, 16, 16))
        assert count == pytest.approx(ours, rel=0.01), model


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
    # Mean 0.3, standard deviation 0.1, standard error 0.058; of Student's t with two degrees of
    # freedom 95% are within 4.303, here 0.248, and with one within 12.706.
    claim = Comparison("", 0.05, (0.2, 0.3, 0.4))
    assert claim.mean == pytest.approx(0.3)
    assert claim.error == pytest.approx(0.1 / math.sqrt(3))
    assert claim.verdict == "as published"
    assert Comparison("", 0.05, (-0.2, -0.3, -0.4)).verdict == "the other way"
    assert Comparison("", 0.05, (0.1, 0.2, 0.3)).verdict == "undecided"
    assert Comparison("", 0.05, (0.12, 0.14)).verdict == "as published"  # 0.13, 0.127
    assert Comparison("", 0.05, (0.11, 0.13)).verdict == "undecided"  # 0.12, 0.127
    assert Comparison("", 0.05, (-0.1,)).verdict == "one seed"
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
    assert loss.here == pytest.approx((-0.3,))  # the other way
    assert accuracy.here == pytest.approx((5.0,))


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
    keep(tmp_path, shuffled_results(probe=PROBE))
    [kept] = read(tmp_path)
    column = next(c for c in columns("small") if c.table == "mixerflow-4")
    better, cheaper = column.claims(kept)
    assert better.here == pytest.approx((0.4,))
    assert cheaper.here == pytest.approx((0.3,))


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
def test_results_on_unequal_terms_are_not_compared(tmp_path, key, value, words):
    results = shuffled_results()
    results["cifar10-global-mixerflow-32", 0][key] = value
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    names = r".*cifar10-global-glow-11-0 and .*cifar10-global-mixerflow-32-0"
    with pytest.raises(ValueError, match=rf"equal terms \({words}\), got {names}"):
        column_of("mixerflow-4").claims(kept)


def test_terms_that_may_differ_are_compared(tmp_path):
    results = shuffled_results()
    for (name, _), result in results.items():
        if "plain" in name:  # of the same images, in another order of pixels
            result["data"]["split_hash"] = "ffff"
        if "glow" in name:
            result["recipe"]["learning_rate"] = 0.003
            result["accumulate"] = 1  # which is none
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    assert len(column_of("mixerflow-4").claims(kept)) == 2


def test_seeds_of_one_row_are_of_equal_terms(tmp_path):
    results = results_of({("glow-11", 0): 5.0, ("glow-11", 1): 5.0})
    results["cifar10-plain-glow-11", 1]["budget"] = {"name": "short", "steps": 1}
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    with pytest.raises(ValueError, match="cifar10-plain-glow-11-0 and .*-plain-glow-11-1"):
        column_of("mixerflow-1").claims(kept)


def test_claims_of_one_seed_are_counted_apart():
    one, two = (-0.1,), (0.2, 0.2)
    claims = [Comparison("", 0.1, here) for here in (one, one, two, (math.nan,), (0.2, -0.2))]
    assert tally(claims) == {"one seed": 3, "as published": 1, "undecided": 1}


def test_yardstick_is_the_lowest_of_the_simple_models(tmp_path):
    results = results_of({("glow-11", 0): 5.0}, probe=PROBE)
    mnist = row_of("mixerflow-3-mnist-plain-made-mnist")
    lower = {"normal, full covariance": 5.3, "histogram of each pixel": 1.7, "uniform": 8.0}
    results[mnist.run.name, 0] = made_up(mnist, 0, 2.0, reference_models=lower)
    maf = row_of("mixerflow-3-cifar10-plain-maf")
    results[maf.run.name, 0] = made_up(maf, 0, 2.0, reference_models={})
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    assert column_of("mixerflow-1").yardstick(kept) == ("normal, full covariance", 5.5)
    assert column_of("mixerflow-3").yardstick(kept) == ("histogram of each pixel", 1.7)
    other = next(c for c in columns("small") if c.key[:2] == ("mixerflow-3", "cifar10"))
    assert other.yardstick(kept) is None  # of images too large for one
    assert column_of("mixerflow-7", "probe_loss").yardstick(kept) is None
    assert column_of("mixerflow-5").yardstick(kept) is None


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
    assert claim[1:] == ["+0.05", "+0.100", "1", "one seed"]
    assert "No claim has two seeds yet. Of one seed, not counted: 1." in text
    assert cells["(normal, full covariance)"][1:] == ["–"] * 3 + ["5.500"] + ["–"] * 4
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
    assert "0 of 1 claims of two seeds or more come out as published; not finite: 1." in text


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
    simple = next(r for r in report.read_text().split("\n") if r.startswith("| (normal"))
    assert simple.count("|") == 12  # eleven columns


def test_means_and_deviations_by_hand():
    assert text_of([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert text_of([1.5], 1) == "1.5"
    assert text_of([], 1) == "–"
    assert math.isnan(deviation_of([1.0, math.inf]))


def test_numbers_of_parameters_are_published_where_the_table_prints_them(tmp_path):
    keep(tmp_path, results_of({("mixerflow-32", 0): 4.9}, probe=PROBE))
    report_main(str(tmp_path))
    text = (tmp_path / "small-short" / "report.md").read_text()
    assert "| MixerFlow | 11.34 M | 3.46 |" in text  # Table 1
    assert "| MixerFlow | – | 1.54 |" in text  # Table 7
    assert "| Neural Spline, no shuffle | 89.9 M |" in text  # Table 4


def test_importance_weighted_figures_stand_beside_their_draws(tmp_path):
    row = next(row for row in ROWS if row.figure == "importance_bits_per_dim")
    bound = {"test": 3.456, "worst_image": 5.0, "draws": 16, "test_images": 1000}
    found = made_up(row, 0, 4.0, size="paper", importance_bits_per_dim=bound)
    keep(tmp_path, {(row.run.name, 0): found}, "paper-short")
    report_main(str(tmp_path))
    text = (tmp_path / "paper-short" / "report.md").read_text()
    assert "| 2.98 | 455,131 | 3.456 | 1 |" in text
    assert "figures of 1,000 test images, 16 draws of each;" in text
    assert "| (normal, full covariance) | – | – | – | 5.500 |" in text


def test_models_that_are_not_below_the_yardstick_are_named(tmp_path):
    report = tmp_path / "small-short" / "report.md"
    beginning = "Not below 5.500 bits/dim (normal, full covariance) at this budget: "
    keep(tmp_path, shuffled_results())
    report_main(str(tmp_path))
    # 6.05 of two seeds.
    models = "Glow, global shuffle (6.050); MixerFlow, global shuffle (5.600)."
    assert beginning + models in report.read_text()
    learned = {("glow-11", 0): math.nan, ("mixerflow-32", 0): 5.4, ("glow-11", 1): 5.0}
    keep(tmp_path, results_of(learned, "mixerflow-4-cifar10-global"))
    report_main(str(tmp_path))
    assert f"{beginning}Glow, global shuffle (nan)." in report.read_text()
    learned["glow-11", 0] = 5.3
    keep(tmp_path, results_of(learned, "mixerflow-4-cifar10-global"))
    report_main(str(tmp_path))
    assert f"{beginning}none." in report.read_text()


def test_models_of_images_as_they_are_have_the_yardstick_too(tmp_path):
    keep(tmp_path, results_of({("glow-11", 0): 5.6, ("mixerflow-32", 0): 5.4}))
    report_main(str(tmp_path))
    text = (tmp_path / "small-short" / "report.md").read_text()
    line = "Not below 5.500 bits/dim (normal, full covariance) at this budget: Glow (5.600)."
    assert line in text


def test_probes_are_reported_of_the_seeds_that_have_them(tmp_path):
    results = results_of({("glow-11", 0): 5.0, ("glow-11", 1): 6.0})
    results["cifar10-plain-glow-11", 0]["probe"] = PROBE
    results["cifar10-plain-glow-11", 1] |= {"train_seconds": 1e6, "parameters": 1}
    keep(tmp_path, results)
    report_main(str(tmp_path))
    text = (tmp_path / "small-short" / "report.md").read_text()
    assert "| Glow | – | 1.69 | 455,131 | 1.500 | 1 | 7.00 | 60 | 400 |" in text
    assert "fitted to the latents of 10,000 images and tested on those of 2,000;" in text
    assert "-k mixerflow-7-cifar10`, then" in text
    assert "-k mixerflow-1-cifar10 --seeds 0,1`, then" in text
    [line] = [
        line
        for line in (tmp_path / "README.md").read_text().split("\n")
        if line.startswith("| cifar10, Glow, cross-entropy") and "not run" not in line
    ]
    assert "--seeds" not in line


def test_worst_image_is_of_the_bound_that_is_reported():
    row = next(row for row in ROWS if row.figure == "importance_bits_per_dim")
    bound = {"test": 3.5, "worst_image": 5.0, "draws": 16, "test_images": 1000}
    result = made_up(row, 0, 4.0, importance_bits_per_dim=bound)
    assert worst_image(row, result) == 5.0
    assert worst_image(row_of("mixerflow-1-cifar10-plain-glow-11"), result) == 6.0
    del result["worst_image"]["test"]
    assert worst_image(row_of("mixerflow-1-cifar10-plain-glow-11"), result) == 8.0


def test_pictures_of_one_seed_say_so_and_leave_out_what_has_none(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    results = shuffled_results()
    del results["cifar10-global-glow-11", 1]
    keep(tmp_path, results)
    [kept] = read(tmp_path)
    save_pictures(kept)
    curves, costs = drawn
    assert curves.get_suptitle().endswith("400 steps; one seed")
    published, ours = costs.axes
    assert ours.get_title().endswith("(one seed)")
    names = [text.get_text() for text in published.get_yticklabels()]
    assert names == ["Glow, global shuffle", "MixerFlow, global shuffle"]
    assert published.get_xlim() == ours.get_xlim()
    # The difference of 5.6 and 4.8 in the colour of MixerFlow in the curves.
    [line] = [line for line in ours.lines if line.get_color() == COLORS["MixerFlow"]]
    assert line.get_xdata() == pytest.approx([0.8])
    mixed = [h for h in curves.legends[0].legend_handles if h.get_label() == "MixerFlow"]
    assert [handle.get_color() for handle in mixed] == [COLORS["MixerFlow"]]
    assert len(set(COLORS.values())) == len(COLORS)


def test_curves_have_the_yardstick_in_sight(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    keep(tmp_path, shuffled_results())
    [kept] = read(tmp_path)
    save_curves(tmp_path / "curves.png", column_of("mixerflow-4"), kept)
    [figure] = drawn
    for axis in figure.axes:
        [line] = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert set(line.get_ydata()) == {5.5}
        assert axis.get_ylim()[0] < 5.5 < axis.get_ylim()[1]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-1] == "(normal, full covariance)"


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
    # Under the heading of the table, what was run first.
    first = lines.index("### MixerFlow, Table 1: 32x32 images")
    assert lines[first + 4] == run
    assert [line for line in lines if line.startswith("### ")] == [
        "### Order",
        *(f"### {title}" for title in TABLES.values()),
    ]
    here = sum(line.startswith("|") for line in lines[first + 4 : lines.index("", first + 4)])
    assert here == sum(row.table == "mixerflow-1" for rows in ROWS_OF.values() for row in rows)


def test_readme_has_a_line_for_each_budget(tmp_path):
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): 5.2, ("mixerflow-32", 0): 4.9}
    keep(tmp_path, results_of(figures))
    longer = {"budget": {"name": "long"}, "steps": 2000}
    keep(tmp_path, results_of({("glow-11", 0): 4.5}, **longer), "small-long")
    report_main(str(tmp_path))
    text = (tmp_path / "README.md").read_text()
    lines = text.split("\n")
    first = lines.index("### MixerFlow, Table 1: 32x32 images") + 4
    cells = [line.split(" | ")[:4] for line in lines[first : first + 4]]
    assert cells[:3] == [
        ["| cifar10, Glow", "3.51", "5.100 ± 0.141", "scaled down, short: 400 steps"],
        ["| cifar10, MixerFlow", "3.46", "4.900", "scaled down, short: 400 steps"],
        ["| cifar10, Glow", "3.51", "4.500", "scaled down, long: 2,000 steps"],
    ]
    assert cells[3][2] == "not run"
    assert "[small-short](small-short/report.md), [small-long](small-long/report.md)." in text


def test_readme_counts_claims_of_one_seed_apart(tmp_path):
    figures = {("glow-11", 0): 5.0, ("glow-11", 1): 5.0, ("spline-11", 0): 4.9}
    figures |= {("mixerflow-32", 0): 4.8, ("mixerflow-32", 1): 4.8}
    keep(tmp_path, results_of(figures))
    report_main(str(tmp_path))
    # Of three claims one has two seeds.
    order = "| MixerFlow, Table 1: cifar10 | small-short | 1 of 1 | 0 | 0 | 0 | 2 |"
    asked = '`pytest benchmarks -m cpu -k "test_order and mixerflow-1-cifar10"'
    line = f"{order} {asked} --out benchmarks/papers/results` |"
    assert line in (tmp_path / "README.md").read_text()


def test_readme_has_the_scaled_down_ablation_of_denseflow(tmp_path):
    keep(tmp_path, results_of({("glow-11", 0): 5.0}))
    report_main(str(tmp_path))
    lines = (tmp_path / "README.md").read_text().split("\n")
    jobs = json.loads(ABLATION.read_text())["jobs"]
    for number, preset in enumerate(
        "none white preconditioned fused fused-white denseflow-45-6".split(), start=1
    ):
        model = preset if preset == "denseflow-45-6" else f"table4-{preset}"
        [row] = [row for row in ROWS if (row.table, row.run.model) == ("denseflow-4", model)]
        [line] = [line for line in lines if line.endswith(f"""--only '["{number}"]'` |""")]
        values = [j["importance_bits_per_dim"] for j in jobs if j["row"] == str(number)]
        here = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        assert line.startswith(f"| cifar10, {row.label}, importance-weighted bits/dim |")
        assert f"| {row.published:.2f} | {here} | scaled down: 800 steps of 32 images |" in line
        assert "`python -m benchmarks.denseflow.ablation --name CIFAR-10 --data cifar10_" in line
    [order] = [line for line in lines if line.startswith("| DenseFlow, Table 4: cifar10 |")]
    # Of 15 pairs of rows, t-tests of paired seeds find 6 in the published order and 3 in the other.
    assert "| 6 of 15 | 6 | 3 | 0 | 0 |" in order


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
    assert all(f"left out: {title}: " in said for title in PANELS.values())
    assert "pytest benchmarks -m cpu -k mixerflow-9-cifar10-plain-mixerflow-base-linear" in said
    assert not (tmp_path / "samples.png").exists()


# What is kept


@pytest.fixture(scope="module")
def kept_here():
    return read(RESULTS)


def test_kept_reports_are_of_the_kept_results(kept_here):
    assert kept_here
    for kept in kept_here:
        assert (kept.folder / "report.md").read_text() == report(kept), kept.folder.name


def test_kept_readme_is_of_the_kept_results(kept_here):
    path = BENCHMARKS / "README.md"
    assert path.read_text() == readme(kept_here, path)


@pytest.mark.parametrize(
    "file, table", [("parameters.json", parameters_table), (STEP_TIMES, step_times_table)]
)
def test_kept_tables_are_of_the_kept_measurements(file, table):
    path = RESULTS / file
    assert path.with_suffix(".md").read_text() == table(json.loads(path.read_text()))


@pytest.mark.parametrize("table", ["mixerflow-4", "mixerflow-5"])
@pytest.mark.parametrize("other", ["Glow", "Neural Spline"])
def test_a_shuffle_costs_mixerflow_less(kept_here, table, other):
    [kept] = [kept for kept in kept_here if (kept.size, kept.budget) == ("small", "short")]
    words = f"the shuffle costs MixerFlow less than {other}"
    [claim] = [claim for claim in column_of(table).claims(kept) if claim.words == words]
    assert claim.verdict == "as published"
