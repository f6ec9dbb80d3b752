"""The benchmarks of DenseFlow: that the floor, the sizes and the tables are what they say."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.denseflow import ablation, cost, table
from benchmarks.denseflow.convolutions import ALONE, Convolution, convolutions
from benchmarks.denseflow.rows import (
    ROWS,
    TABLE,
    Scale,
    arguments_of,
    cross_unit_parameters,
    nearest,
    parameters_of,
    widths_of,
)
from benchmarks.speed.floor import Floor, multiply_adds
from nflows_mixer.flows import denseflow
from nflows_mixer.transforms import GlowStep

SMALL = {
    "units": (2, 1),
    "modules": (1, 1),
    "growth": 2,
    "hidden_channels": 8,
    "dense_layers": 1,
    "dense_growth": 4,
    "attention_channels": 6,
}


@pytest.fixture(autouse=True)
def threads():
    """The commands set the number of threads of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small_flow(**changes):
    flow = denseflow(image_shape=(1, 8, 8), levels=17, **SMALL, **changes)
    images = torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8)
    return flow.initialize(images).eval(), images


def of_module(channels):
    """Multiply-adds of a glow-like module at one pixel, written out."""
    dense = 8 * 8 + 9 * 8 * 4 + (8 + 4) * 3 * 8
    attention = 8 * 6 + 6 * 8
    network = channels // 2 * 8 + dense + attention + 16 * 8 + 8 * channels
    return channels**2 + network


@torch.no_grad()
def test_convolutions_are_those_of_a_hand_count():
    flow, images = small_flow(dequantization="uniform")
    units = 16 * (of_module(4) + of_module(6)) + 4 * of_module(12)
    cross_unit = 16 * (9 * 4 * 16 + 16 * 4)
    forward = convolutions(flow, lambda: flow.log_prob(images))
    assert multiply_adds(forward) == units + cross_unit
    assert multiply_adds(convolutions(flow, lambda: flow.sample(2))) == units
    assert forward[-3:] == [
        Convolution(c, c, (1, 1), (1, 1), (0, 0), (size, size), (size, size))
        for c, size in ((4, 4), (6, 4), (12, 2))
    ]
    assert not any(part._forward_hooks for part in flow.modules())


@torch.no_grad()
def test_convolutions_are_those_that_run():
    flow, images = small_flow(dequantization_channels=8)
    with FlopCounterMode(display=False) as counter:
        flow.log_prob(images)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    found = convolutions(flow, lambda: flow.log_prob(images))
    networks = sum(isinstance(part, nn.Conv2d) for part in flow.modules())
    assert counted == 2 * len(images) * multiply_adds(found[:networks])
    # Of three modules, and five of the noise of the dequantisation.
    assert len(found) == networks + 3 + 5
    assert {each.stride for each in found} == {(1, 1), (2, 2)}


def test_floor_runs_forward_and_both_backward_products():
    found = [
        Convolution(3, 5, (3, 3), (1, 1), (1, 1), (6, 4), (6, 4)),
        Convolution(2, 4, (2, 2), (2, 2), (0, 0), (6, 4), (3, 2)),
    ]
    floor = Floor([*found, found[0]], batch_size=2, dtype=torch.float64)
    assert floor.steps[0] is floor.steps[2] and floor.steps[0] is not floor.steps[1]
    assert multiply_adds(found) == 9 * 3 * 5 * 24 + 4 * 2 * 4 * 6
    for step, convolution in zip(floor.steps, found):
        inputs, weight = (t.clone().requires_grad_() for t in (step.inputs, step.weight))
        outputs = F.conv2d(inputs, weight, stride=convolution.stride, padding=convolution.padding)
        torch.testing.assert_close(step.forward(), outputs.detach(), rtol=0, atol=1e-12)
        expected = torch.autograd.grad(outputs, (inputs, weight), step.outputs_gradient)
        torch.testing.assert_close(step.backward(), expected, rtol=0, atol=1e-12)


def test_floor_of_training_runs_each_convolution_both_ways(monkeypatch):
    found = [
        Convolution(channels, 1, (1, 1), (1, 1), (0, 0), (1, 1), (1, 1)) for channels in (1, 2, 1)
    ]
    floor, calls = Floor(found, batch_size=1), []
    for kind in ("forward", "backward"):
        monkeypatch.setattr(
            type(floor.steps[0]),
            kind,
            lambda step, kind=kind: calls.append((kind, step.inputs.shape[1])),
        )
    floor.training()
    assert calls == [*(("forward", c) for c in (1, 2, 1)), *(("backward", c) for c in (1, 2, 1))]
    calls.clear()
    floor.forward()
    assert calls == [("forward", c) for c in (1, 2, 1)]


def test_kept_bytes_are_of_storages_beyond_the_parameters():
    layer = nn.Linear(10, 1, bias=False)
    weight = layer.weight

    def loss():
        once = weight.exp()  # which is saved for its own gradient and for that of the square
        return (weight * weight).sum() + (once * once).sum()

    assert cost.kept_bytes(layer, loss) == 4 * 10


def test_models_share_weights_and_agree():
    models = cost.Models(
        "denseflow-45-6",
        {**SMALL, "image_shape": (1, 8, 8), "dequantization": "uniform"},
        4,
        "cpu",
        torch.float64,
    )
    gradients = []
    noise = models.evaluated.draw_noise(0, 0, torch.arange(4), torch.float64)
    for flow in models.trained.values():
        for mine, its in zip(flow.parameters(), models.evaluated.parameters(), strict=True):
            assert mine.data_ptr() == its.data_ptr()
        loss = -flow.log_prob(models.images, noise=noise).mean()
        gradients.append(torch.autograd.grad(loss, list(flow.parameters())))
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others):
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-9)
    assert models.inexact() == []


def test_cost_command_writes_what_the_table_needs(tmp_path, capsys):
    sizes = {**SMALL, "modules": [4, 1], "image_shape": [1, 8, 8], "dequantization": "uniform"}
    cost.main("denseflow-45-6", 4, (8, 16), rounds=1, changes=sizes, out=str(tmp_path))
    (path,) = tmp_path.glob("cost-cpu-*.json")
    results = json.loads(path.read_text())
    written = path.with_suffix(".md").read_text()
    assert written == table.cost_table(results) and written in capsys.readouterr().out
    assert path.with_suffix(".png").stat().st_size > 0
    measures, adds = results["measures"], results["multiply_adds"]
    assert list(measures["training"]) == [ALONE, *cost.MEMORY]
    assert list(measures["log_prob"]) == list(measures["sampling"]) == [ALONE, "full"]
    assert adds["training"] == 3 * adds["log_prob"] > 3 * adds["sampling"]
    for timed in (each for of_kind in measures.values() for each in of_kind.values()):
        assert timed["milliseconds"] * timed["images_per_second"] == pytest.approx(4000)
        assert timed["rounds"] == [timed["milliseconds"]]
    memory = results["mib_per_image"]
    assert memory["full"]["kept"] > memory["checkpoint"]["kept"] > 0
    # At the end of the forward pass all that is kept is there.
    assert all(of["peak"] >= of["kept"] for of in memory.values())


@pytest.mark.parametrize("name", ROWS)
def test_rows_differ_in_what_the_table_says(name):
    row = ROWS[name]
    arguments = arguments_of(row, Scale(), (1, 8, 8), 17)
    flow = denseflow(**{**arguments, "hidden_channels": 4})
    assert sum(isinstance(part, GlowStep) for part in flow.modules()) == 3 * 2 + 4
    # Noise of the dequantisation, and six channels at 4 x 4 behind two units of the first block.
    appended = 2 * 6 * 4 * 4 if row.augmented else 0
    assert math.prod(flow.noise_shape) == 64 + appended
    assert (cross_unit_parameters(flow) > 0) == row.preconditioned
    names = {type(part).__name__ for part in flow.modules()}
    assert ("CrossUnitCoupling" in names) == row.augmented
    assert ("DenseBlock" in names) == row.fused == ("ConvConditioner" not in names)
    assert ("NystromAttention" in names) == (row.fused and name != "no attention")


def test_bisection_finds_the_nearest_integer():
    counts = partial(lambda width, square: width**2 if square else 10 * width + 3, square=True)
    assert [nearest(counts, aim) for aim in (0, 1, 4, 29, 31, 10_000)] == [1, 1, 2, 5, 6, 100]
    assert nearest(partial(counts, square=False), 74) == 7


@pytest.mark.parametrize("name", ["3", "6"])
def test_rows_have_equal_parameters(name):
    arguments = arguments_of(ROWS[name], Scale((2, 1), (1, 2)), (3, 16, 16), 256)
    flow = denseflow(**{**arguments, **widths_of(arguments, 60_000)})
    assert parameters_of(flow) == pytest.approx(60_000, rel=0.02)


def made_up(values, **changes):
    """Results of these bits/dim, by row and seed."""
    jobs = [
        {
            "row": row,
            "seed": seed,
            "parameters": 1000,
            "cross_unit_parameters": 0,
            "hidden_channels": 9,
            "dense_growth": None,
            "bits_per_dim": bits,
            "importance_bits_per_dim": bits - 0.01,
            "train_cpu_seconds": 5.0,
        }
        for row, of_row in values.items()
        for seed, bits in enumerate(of_row)
    ]
    setting = {
        "name": "made up",
        "data": {"image_shape": [3, 4, 4], "train_images": 7, "split_hash": "0"},
        "parameters": 1000,
        "scale": {"units": [3, 1], "modules": [2, 4], "growth": 6},
        "recipe": {"steps": 5, "batch_size": 2, "learning_rate": 0.1},
        "evaluated_images": 3,
        "draws": 4,
        **changes,
    }
    return {
        "setting": setting,
        "machine": "CPU, 1 thread",
        "versions": {"torch": "2"},
        "jobs": jobs,
    }


def test_table_sets_published_figures_beside_ours():
    values = {"1": [5.0, 5.2], "2": [4.9, 5.0], "6": [5.1, 5.05], "previous": [5.2, 5.25]}
    results = made_up(values)
    written = table.ablation_table(results).splitlines()
    rows = {line.split(" | ")[0]: line for line in written if line.startswith("| ")}
    assert "| 3.42 | 5.100 ± 0.141 | 5.090 ± 0.141 | 1,000 |" in rows["| 1"]
    assert rows["| 6"].startswith("| 6 | yes | yes | yes | 3.07 | 5.075 ±")
    assert rows["| noise from the previous unit alone"].count("| 3.") == 0
    assert rows["| 1 → 2"] == (
        "| 1 → 2 | -0.02 | -0.150 ± 0.071 | -0.150 ± 0.071 | -0.100, -0.200 | yes |"
    )
    assert "| +0.01 | +0.150 ± 0.071 | +0.150 ± 0.071 | +0.100, +0.200 | yes |" in "".join(written)
    assert written[-1] == (
        "From best to worst, published: 6, 2, 1. Here, of one draw: 2, 6, 1; of 3 pairs of rows, 2 "
        "are in the published order. Here, of 4 draws: 2, 6, 1; of 3 pairs of rows, 2 are in the "
        "published order."
    )


def test_signs_and_orders_are_of_the_bound_that_they_name():
    results = made_up({"1": [5.0], "6": [5.1]})
    results["jobs"][1]["importance_bits_per_dim"] = 4.9
    written = table.ablation_table(results)
    assert "| 1 → 6" not in written
    assert "of one draw: 1, 6; of 1 pairs of rows, 0 are" in written
    assert "of 4 draws: 6, 1; of 1 pairs of rows, 1 are" in written
    results = made_up({"4": [5.0], "6": [5.1]})
    results["jobs"][1]["importance_bits_per_dim"] = 4.9
    assert "| 4 → 6 | -0.07 | +0.100 | -0.090 | -0.090 | yes |" in table.ablation_table(results)


def test_rows_without_a_common_seed_are_not_subtracted():
    results = made_up({"1": [5.0], "2": [4.0]})
    results["jobs"][1]["seed"] = 1
    assert "| from row to row |" not in table.ablation_table(results)


def test_agreement_counts_pairs():
    published, turned = (
        {name: [{"bits_per_dim": sign * ROWS[name].published}] for name in TABLE}
        for sign in (1, -1)
    )
    assert table.agreement(published, "bits_per_dim") == (15, 15)
    assert table.agreement(turned, "bits_per_dim") == (0, 15)
    few = {"1": published["1"], "previous": published["1"]}
    assert table.agreement(few, "bits_per_dim") == (0, 0)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of few processes that load images
def test_ablation_command_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    quick = {
        "size": 8,
        "parameters": 5000,
        "steps": 2,
        "batch_size": 16,
        "evaluated": 10,
        "draws": 3,
        "out": str(tmp_path),
    }
    ablation.main("digits", only=["6"], seeds=[1], **quick)
    path = tmp_path / "ablation-digits.json"
    (job,) = json.loads(path.read_text())["jobs"]
    assert (job["row"], job["seed"]) == ("6", 1)
    assert job["importance_bits_per_dim"] < job["bits_per_dim"]
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out
    assert path.with_suffix(".png").stat().st_size > 0

    ran = []

    def run(arguments, images, recipe, seed, *rest):
        ran.append((arguments["conditioner"], seed))
        return {key: value for key, value in job.items() if key not in ("row", "seed")}

    monkeypatch.setattr(ablation, "run", run)
    ablation.main("digits", only=["6", "1"], seeds=[0, 1], **quick)
    assert ran == [("fused", 0), ("conv", 0), ("conv", 1)]
    kept = json.loads(path.read_text())["jobs"]
    assert [(each["row"], each["seed"]) for each in kept] == [
        ("1", 0),
        ("1", 1),
        ("6", 0),
        ("6", 1),
    ]
    assert kept[-1] == job
    with pytest.raises(ValueError, match="expected jobs of this setting .* draws differ"):
        ablation.main("digits", only=["1"], **{**quick, "draws": 2})


@pytest.mark.parametrize("name", sorted(path.stem for path in table.RESULTS.glob("*.json")))
def test_kept_table_is_of_the_kept_figures(name):
    results = json.loads((table.RESULTS / f"{name}.json").read_text())
    written = (table.RESULTS / f"{name}.md").read_text()
    assert written == table.TABLES[name.split("-")[0]](results)


def test_kept_cost_is_of_the_published_model():
    results = json.loads((table.RESULTS / "cost-cpu.json").read_text())
    assert results["parameters"] == 130_647_294
    assert results["multiply_adds"]["log_prob"] / 1e9 == pytest.approx(16.4, abs=0.05)
    assert results["inexact"] == []


def test_kept_ablation_is_whole_and_of_equal_sizes():
    results = json.loads((table.RESULTS / "ablation-cifar-10.json").read_text())
    rows = table.by_row(results["jobs"])
    for name in TABLE:
        assert [job["seed"] for job in rows[name]] == [0, 1, 2]
    aim = results["setting"]["parameters"]
    assert all(job["parameters"] == pytest.approx(aim, rel=0.02) for job in results["jobs"])
