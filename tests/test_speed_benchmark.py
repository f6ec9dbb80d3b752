"""The speed benchmark: that its floor, its stock model and its counts are what they say."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing
from benchmarks.sizes import parameters_of
from benchmarks.speed import exactness, maf, measure, memory
from benchmarks.speed.floor import Floor, Product, matrix_products, multiply_adds
from benchmarks.speed.variants import VARIANTS, Setting
from benchmarks.speed.variants.stock import stock_mixerflow
from nflows_mixer.flows import mixerflow
from nflows_mixer.transforms import GlowSteps, RLULinear, identity_maf

# Old parts of torch that nflows and normflows still call.
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
SIZES = {"image_shape": (2, 12, 8), "patch_size": 4, "num_layers": 2, "hidden_features": 6}
SMALL = {**SIZES, "norm": "batch"}


@pytest.fixture(autouse=True)
def threads():
    """The commands set the number of threads of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def products_of_preset(collapsed):
    """Multiply-adds of an image in the CIFAR-10 column of Table 8, written out."""

    def row(length, hidden=128):
        moved = 2 * (length // 2)
        given = length - length // 2
        conditioner = given * hidden + 2 * hidden**2 + hidden * moved
        if collapsed:
            conditioner = given * hidden + hidden**2 + hidden * moved + given * moved
        return length**2 + conditioner

    plain, shifted = (patches * row(48) + 48 * row(patches) for patches in (64, 49))
    return 4 * (22 * plain + 8 * shifted)


@pytest.mark.slow
@pytest.mark.parametrize("collapsed, billions", [(False, 0.60), (True, 0.40)])
def test_floor_counts_the_products_of_the_preset(collapsed, billions):
    counted = multiply_adds(matrix_products(mixerflow("cifar10"), collapsed))
    assert counted == products_of_preset(collapsed)
    assert counted / 1e9 == pytest.approx(billions, abs=0.006)


def test_products_of_masked_flows_are_counted_too():
    flow = mixerflow(
        **SMALL, num_flow_layers=2, channel_flow=identity_maf, linear=RLULinear, shift=None
    )
    first = matrix_products(flow)[:5]
    assert [(p.inputs, p.outputs) for p in first] == [(32, 32), (32, 6), (6, 6), (6, 6), (6, 64)]


def test_convolutions_of_local_flows_are_counted_too():
    steps = partial(GlowSteps, num_steps=2, hidden_channels=5)
    setting = Setting(num_layers=1, batch_size=2, changes={"local_flow": steps})
    flow = setting.flow()
    added = multiply_adds(measure.operations(setting, flow, False))
    added -= multiply_adds(matrix_products(flow))
    of_pixel = 12**2 + 9 * 6 * 5 + 5**2 + 9 * 5 * 12  # of squares of 2 x 2 pixels of three colours
    assert added == 2 * 16**2 * of_pixel
    with_local = measure.operations(setting, flow, False)
    assert len(with_local) == len(matrix_products(flow)) + 2 * 4


def test_floor_runs_forward_and_both_backward_products():
    products = [Product(3, 5, 7), Product(4, 2, 6), Product(3, 5, 7)]
    floor = Floor(products, batch_size=2, dtype=torch.float64)
    assert floor.steps[0] is floor.steps[2]
    floor.training()
    step = floor.steps[0]
    expected = step.inputs @ step.weight.T
    torch.testing.assert_close(step.outputs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        step.inputs_gradient, step.outputs_gradient @ step.weight, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        step.weight_gradient, step.outputs_gradient.T @ step.inputs, rtol=0, atol=1e-12
    )
    assert step.inputs.shape == (6, 5) and step.weight.shape == (7, 5)


@quiet
def test_stock_model_makes_the_products_of_the_floor():
    """Forward, but for nflows' two triangular factors in the place of one matrix."""
    flow = mixerflow(**SMALL, num_flow_layers=1)
    stock = stock_mixerflow(**SMALL, num_flow_layers=1)
    images = torch.randint(256, (5, 2, 12, 8), dtype=torch.uint8)
    stock.initialize(images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stock.log_prob(images)
    counts = [parameters_of(each) for each in (flow, stock)]
    # A bias of nflows' LU of the colours, which the library's 1x1 convolution leaves out.
    assert counts[1] - counts[0] == 2
    products = matrix_products(flow)
    blocks = sum(rows * length**2 for rows, length in [(6, 32), (32, 6), (2, 32), (32, 2)])
    colours = 2 * 12 * 8 * 2**2
    assert counter.get_total_flops() == 2 * 5 * (multiply_adds(products) + blocks + colours)


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("name", ["our Glow", "Glow of nflows", "Glow of normflows"])
def test_glow_has_the_model_s_size_and_inverts(name):
    setting = Setting(num_layers=4, batch_size=2)
    variant = VARIANTS[name](setting)
    aim = sum(parameter.numel() for parameter in setting.flow().parameters())
    assert variant.num_parameters == pytest.approx(aim, rel=0.05)
    assert torch.isfinite(variant.log_prob()).all()
    assert variant.flow.eval().sample(3).shape == (3, 3, 32, 32)


@quiet
def test_inside_zuko_is_the_library_s_flow():
    variant = VARIANTS["inside zuko"](Setting(num_layers=1, changes={"hidden_features": 8}))
    flow = Setting(num_layers=1, changes={"hidden_features": 8}).flow()
    lazy = variant.flow.eval().flow
    flow._transform.load_state_dict(lazy.transform.transform.state_dict())
    flow._distribution.load_state_dict(lazy.base.base.state_dict())
    values = 256 * torch.rand(2, 3, 32, 32)
    expected = flow.eval().deterministic.log_prob(values)
    torch.testing.assert_close(lazy().log_prob(values), expected)


def test_order_of_rounds_changes_and_ratios_are_of_the_same_round():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.interleaved(tasks, rounds=4)
    assert "".join(order) == "aabbcc" + "abc" + "acb" + "cab" + "cba"
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 4)
    timed = {"model": [2.0, 9.0, 8.0], "floor": [1.0, 3.0, 2.0]}
    assert timing.ratios(timed, "model", "floor") == {"median": 3.0, "min": 2.0}


@pytest.mark.parametrize("threads, usual", [(1, "process_time"), (2, "perf_counter")])
def test_several_threads_are_timed_by_the_wall(threads, usual, monkeypatch):
    """CPU times of threads would be added up."""
    torch.set_num_threads(threads)
    read = []
    for name in ("process_time", "perf_counter"):
        monkeypatch.setattr(f"time.{name}", lambda name=name: read.append(name) or 0.0)
    timing.seconds_of(lambda: None)
    assert set(read) == {usual}
    assert timing.environment("cpu")["clock"] == ("CPU time" if threads == 1 else "wall time")


@pytest.mark.slow
@quiet
def test_speed_command_writes_what_the_table_needs(tmp_path, capsys):
    names = ["eager", "bf16 conditioner", "stock nflows parts", "our Glow"]
    measure.main(
        num_layers=1,
        batch_size=2,
        rounds=1,
        changes={"hidden_features": 8},
        variants=names,
        out=str(tmp_path),
    )
    results = kept(tmp_path)
    assert list(results["variants"]) == ["floor", "collapsed floor", *names]
    assert results["machine"] == "CPU, 1 thread" and results["skipped"] == {}
    for name, entry in results["variants"].items():
        assert list(entry["measures"]) == list(measure.MEASURES)
        for timed in entry["measures"].values():
            rate = timed["milliseconds"] * timed["images_per_second"]
            assert rate == pytest.approx(1000 * results["batch_size"])
            assert timed["rounds"] == [timed["milliseconds"]]
            assert ("to_floor" in timed) == (name != "our Glow")
    assert (tmp_path / "speed-cpu.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "speed-cpu.png").stat().st_size > 0


def kept(folder):
    """The figures of the only measurement that a folder holds."""
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
@quiet
def test_ratios_to_compiled_are_of_the_same_round(monkeypatch):
    rounds = {
        "floor": [1.0, 1.0],
        "collapsed floor": [0.5, 0.5],
        "compiled": [2.0, 4.0],
        "compiled constant": [3.0, 5.0],
    }
    monkeypatch.setattr(measure, "interleaved", lambda *_: rounds)
    setting = Setting(num_layers=1, batch_size=2, changes={"hidden_features": 8})
    built = {n: VARIANTS["eager"](setting) for n in ("compiled", "compiled constant")}
    model = setting.flow()
    for kind, (_, training) in measure.MEASURES.items():
        timed = measure.time_all(setting, model, built, kind, 2, 1)
        assert timed["compiled constant"]["rounds"] == [3000.0, 5000.0]
        expected = {"median": 1.375, "min": 1.25} if training else None
        assert timed["compiled constant"].get("to_compiled") == expected
        assert "to_compiled" not in timed["compiled"]


@pytest.mark.slow
@quiet
def test_exactness_command_compares_both_ways(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in [("train", 120), ("test", 12)]:
        images = rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    exactness.main(
        data=str(tmp_path / "train.npz"),
        test=str(tmp_path / "test.npz"),
        num_layers=1,
        steps=2,
        batch_size=8,
        gradient_images=4,
        evaluated=8,
        out=str(tmp_path),
    )
    results = kept(tmp_path)
    assert (tmp_path / "exactness-cpu.md").exists()
    assert list(results["gradient_errors"]) == ["fresh", "after 2 steps"]
    for errors in results["gradient_errors"].values():
        for way in exactness.WAYS:
            assert errors[f"{way}, float64"] < 1e-9 and errors[f"{way}, float32"] < 1e-3
    trips = results["round_trip_errors"]
    assert 0 < trips["float32 there, float32 back"] < 1e-4 and all(
        map(math.isfinite, trips.values())
    )
    assert results["bits_per_dim"]["bf16"] == pytest.approx(
        results["bits_per_dim"]["float32"], abs=0.1
    )


def test_unavailable_variants_are_named(monkeypatch):
    def missing(setting):
        raise measure.Unavailable("needs another machine")

    monkeypatch.setitem(VARIANTS, "missing", missing)
    found = measure.measure(Setting(num_layers=1), ["missing"], ["log_prob"], rounds=1)
    assert found["skipped"] == {"missing": "needs another machine"}


def test_peak_is_of_what_is_held_at_one_time():
    def task():
        first = torch.zeros(1000, dtype=torch.float64)
        second = torch.zeros(500, dtype=torch.float64)
        del first
        third = torch.zeros(700, dtype=torch.float64)
        return second, third

    assert memory.peak_bytes(task, "cpu") == 8 * 1500


@pytest.mark.slow
@quiet
def test_memory_command_gives_slopes(tmp_path):
    memory.main(
        depths=(1, 2),
        batch_sizes=(2, 4),
        variants=["eager", "stock nflows parts"],
        changes={"hidden_features": 8},
        out=str(tmp_path),
    )
    results = kept(tmp_path)
    assert (tmp_path / "memory-cpu.png").stat().st_size > 0
    setting = Setting(num_layers=1, changes={"hidden_features": 8})
    for name, (one, two) in results["mib_per_image"].items():
        # Every layer keeps its activations, at any batch size.
        assert 1.5 < two / one < 2.5
        assert memory.mib_per_image(setting, name, (4, 8)) == pytest.approx(one, rel=0.03)


def test_maf_command_divides_by_the_flow_s_own_forward(tmp_path):
    maf.main(sizes=((5, 20), (6, 10)), hidden_features=8, rounds=1, out=str(tmp_path))
    results = kept(tmp_path)
    assert [case["features"] for case in results["cases"]] == [5, 6]
    for case in results["cases"]:
        assert set(case["inverses"]) == set(maf.MAFS)
        for timed in case["inverses"].values():
            ratio = timed["inverse_milliseconds"] / timed["forward_milliseconds"]
            assert timed["inverse_to_forward"]["median"] == pytest.approx(ratio)
            assert timed["inverse_rounds"] == [timed["inverse_milliseconds"]]


@pytest.mark.parametrize("name", maf.MAFS)
def test_timed_inverses_are_inverses(name):
    build, inverse = maf.MAFS[name]
    transform = build(7, 8).double().eval()
    inputs = torch.randn(4, 7, dtype=torch.float64)
    rebuilt = inverse(transform)(transform(inputs)[0])[0]
    torch.testing.assert_close(rebuilt, inputs, rtol=0, atol=1e-9)
