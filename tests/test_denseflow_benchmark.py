"""The benchmarks of DenseFlow: that the floor, the sizes and the tables are what they say."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import tables
from benchmarks.denseflow import ablation, cost
from benchmarks.denseflow.convolutions import ALONE, Convolution, convolutions
from benchmarks.denseflow.rows import (
    ROWS,
    TABLE,
    Scale,
    arguments_of,
    conditioner_of,
    cross_unit_parameters,
    widths_of,
)
from benchmarks.sizes import nearest, parameters_of
from benchmarks.speed.floor import Floor, multiply_adds
from nflows_mixer.flows import denseflow
from nflows_mixer.nn import ConvConditioner, DenseAttentionConditioner
from nflows_mixer.transforms import GlowStep

NETWORK = partial(
    DenseAttentionConditioner, hidden_channels=8, num_layers=1, growth=4, attention_channels=6
)
SMALL = {"units": (2, 1), "modules": (1, 1), "growth": 2, "conditioner": NETWORK, "norm": "batch"}
KEPT = Path(cost.__file__).parent / "results"


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


@torch.no_grad()
def test_convolutions_are_those_that_run():
    flow, images = small_flow(noise_channels=8)
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


def test_kept_bytes_are_of_storages_beyond_the_parameters():
    layer = nn.Linear(10, 1, bias=False)
    weight = layer.weight

    def loss():
        once = weight.exp()  # which is saved for its own gradient and for that of the square
        return (weight * weight).sum() + (once * once).sum()

    assert cost.kept_bytes(layer, loss) == 4 * 10


@pytest.mark.slow
def test_cost_command_writes_what_the_table_needs(tmp_path, capsys):
    sizes = {**SMALL, "modules": [4, 1], "image_shape": (1, 8, 8), "dequantization": "uniform"}
    cost.main("denseflow-45-6", 4, (8, 16), rounds=1, changes=sizes, out=str(tmp_path))
    path = tmp_path / "cost-cpu.json"
    results = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out
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
    conditioner = conditioner_of(row, Scale(), {"hidden_channels": 4, "dense_growth": 4})
    flow = denseflow(**arguments, conditioner=conditioner)
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
    row, scale = ROWS[name], Scale((2, 1), (1, 2))
    arguments = arguments_of(row, scale, (3, 16, 16), 256)
    widths = widths_of(row, scale, arguments, 60_000)
    flow = denseflow(**arguments, conditioner=conditioner_of(row, scale, widths))
    assert parameters_of(flow) == pytest.approx(60_000, rel=0.02)


@pytest.mark.slow
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
        ran.append((arguments["conditioner"].func, seed))
        given = ("row", "seed", "hidden_channels", "dense_growth")
        return {key: value for key, value in job.items() if key not in given}

    monkeypatch.setattr(ablation, "run", run)
    ablation.main("digits", only=["6", "1"], seeds=[0, 1], **quick)
    assert ran == [
        (DenseAttentionConditioner, 0),
        (ConvConditioner, 0),
        (ConvConditioner, 1),
    ]
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


def test_kept_ablation_is_whole_and_of_equal_sizes():
    results = json.loads((KEPT / "ablation-cifar-10.json").read_text())
    rows = tables.jobs_of(results)
    for name in TABLE:
        assert [job["seed"] for job in rows[name]] == [0, 1, 2]
    aim = results["setting"]["parameters"]
    assert all(job["parameters"] == pytest.approx(aim, rel=0.02) for job in results["jobs"])
