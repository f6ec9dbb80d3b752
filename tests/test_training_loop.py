"""Training, step by step, against loops written by hand."""

import copy
import math
from functools import partial

import pytest
import torch
from nflows.flows import Flow
from torch import nn

from nflows_mixer.flows import ImageFlow
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import FlowModule, Recipe, ShuffledBatches
from nflows_mixer.transforms import AffineCoupling, FlowLayer, PatchMixerTransform
from tests.training import (
    LEARNED,
    SHAPE,
    Recording,
    StopAt,
    assert_same,
    history,
    initialized,
    most_moved,
    noise_data,
    norms_of,
    pixels,
    plain,
    run,
    tiny,
    tiny_denseflow,
    train,
    train_by_hand,
)

# Steps.


@plain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_is_the_loop_written_by_hand(dtype):
    data = noise_data((25, 5, 5))
    flow = tiny().to(dtype)
    twin = copy.deepcopy(flow)
    start = [parameter.clone() for parameter in flow.parameters()]
    recipe = Recipe(3e-2, (0.8, 0.95), 0.75, steps=7, batch_size=10, warmup=0.3)
    norms = train_by_hand(twin, data, recipe, seed=5)
    train(FlowModule(flow, recipe, seed=5), data)
    assert_same(twin, flow)
    # The bound on the gradient acted, and did so at some steps only.
    assert min(norms) < 0.75 < max(norms)
    assert most_moved(flow, start) and all(norm.initialized for norm in norms_of(flow))


@plain
@pytest.mark.parametrize("asked", [True, False])
def test_checks_of_values_are_left_as_the_user_has_them(asked):
    flow = tiny()
    flow.validate_args, seen = asked, []
    log_prob = flow.log_prob
    flow.log_prob = lambda *given, **named: (
        seen.append(flow.validate_args) or log_prob(*given, **named)
    )
    train(FlowModule(flow, Recipe(steps=2, batch_size=10)), noise_data())
    assert flow.validate_args is asked and {*seen} == {asked}


@plain
def test_first_batch_initializes_with_its_noise():
    """A rate too small to move anything leaves what the first batch set."""
    data, flow = noise_data(), tiny().double()
    recipe = Recipe(1e-300, steps=2, batch_size=10)
    rows = next(iter(ShuffledBatches(20, 10, 1, seed=3)))
    noise = uniform_noise(3, 1, torch.arange(10), SHAPE, torch.float64)
    expected = copy.deepcopy(flow).initialize(data.train.images(rows), noise=noise)
    train(FlowModule(flow, recipe, seed=3), data)
    for ours, theirs in zip(norms_of(flow), norms_of(expected)):
        torch.testing.assert_close(ours.log_scale, theirs.log_scale, rtol=0, atol=1e-200)
        torch.testing.assert_close(ours.shift, theirs.shift, rtol=0, atol=1e-200)
    assert max(norm.log_scale.abs().max() for norm in norms_of(flow)) > 1e-2


def test_no_steps_give_the_same_figures_whatever_was_drawn_before(tmp_path):
    data, flow = noise_data(), tiny()
    figures = []
    for state in (1, 2):
        torch.manual_seed(state)
        module = FlowModule(copy.deepcopy(flow), Recipe(steps=0, batch_size=10))
        figures.append(run(module, data, tmp_path / str(state))["bits_per_dim"])
    assert figures[0] == figures[1]


# Accumulated batches.


@plain
def test_accumulated_batches_are_the_loop_written_by_hand():
    data, flow = noise_data(), tiny().double()
    twin = copy.deepcopy(flow)
    recipe = Recipe(1e-2, steps=5, batch_size=10)
    train_by_hand(twin, data, recipe, seed=2, micro=2)
    module = Recording(flow, recipe, seed=2)
    train(module, data, accumulate_grad_batches=2)
    for ours, theirs in zip(flow.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert len(module.seen) == 10
    draws = torch.stack([noise for _, noise in module.seen])
    assert len(draws.unique(dim=0)) == 10


@pytest.mark.slow
def test_accumulated_batches_leave_the_history_at_the_same_steps(tmp_path):
    histories = []
    for micro in (1, 2):
        module = FlowModule(tiny(), Recipe(steps=4, batch_size=10))
        options = {"accumulate_grad_batches": micro, "validate_every": 2, "record_every": 2}
        run(module, noise_data(), tmp_path / str(micro), **options)
        entries = history(tmp_path / str(micro))
        histories.append([(e["step"], "train/bits_per_dim" in e) for e in entries])
    assert histories[0] == [(2, True), (2, False), (4, True), (4, False)]
    assert histories[1] == histories[0]


@plain
def test_batch_that_does_not_split_into_its_parts_is_refused():
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
    with pytest.raises(ValueError, match="1 processes share evenly in 3 parts, got 10; take a mul"):
        train(module, noise_data(), accumulate_grad_batches=3)


# Runs that stop in between.


TUNED = {"warmup": 3, "decay": 0.7, "decay_every": 2, "fine_tune_steps": 2, "fine_tune_rate": 1e-3}
TUNED |= {"optimizer": "adamax", "gradient_clip": None, "flip": True, "ema_decay": 0.8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, options, stop, every",
    [
        (tiny, {}, 3, 3),
        # Before and in the fine-tuning.
        (partial(tiny_denseflow, **LEARNED), TUNED, 2, 1),
        (partial(tiny_denseflow, **LEARNED), TUNED, 5, 1),
    ],
    ids=["mixerflow", "denseflow", "fine-tuning"],
)
@pytest.mark.parametrize("module_is", ["new", "the same"])
def test_run_that_is_stopped_goes_on_with_the_same_numbers(
    tmp_path, make, options, stop, every, module_is
):
    data, start = noise_data(), make().double()
    recipe = Recipe(1e-2, steps=6, batch_size=10, **options)
    times = {"checkpoint_every": every, "record_every": 4, "validate_every": 6}
    whole, module, new = (FlowModule(copy.deepcopy(start), recipe) for _ in range(3))
    expected = run(whole, data, tmp_path / "whole", **times)
    with pytest.raises(InterruptedError):
        run(module, data, tmp_path / "stopped", callbacks=(StopAt(stop),), **times)
    module = new if module_is == "new" else module
    results = run(module, data, tmp_path / "stopped", resume=True, **times)
    assert_same(whole, module)
    assert results["bits_per_dim"] == expected["bits_per_dim"]
    names = ("step", "train/bits_per_dim", "validation/bits_per_dim")
    bits = [
        [[entry.get(name) for name in names] for entry in history(tmp_path / out)]
        for out in ("whole", "stopped")
    ]
    assert bits[0] == bits[1]  # in float64, to the last digit


# Modes, and the random state.


def dropout(in_features, out_features):
    return nn.Sequential(
        nn.Linear(in_features, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, out_features)
    )


@pytest.mark.slow
def test_validation_and_samples_leave_the_random_state_of_training(tmp_path):
    """With dropout, of which the masks come from the global state."""
    data, start = noise_data(), tiny(conditioner=dropout, hidden_features=None)
    flows = []
    for validate_every in (1, 1000, 1000):
        torch.manual_seed(len(flows) // 2)
        flow = copy.deepcopy(start)
        module = FlowModule(flow, Recipe(1e-2, steps=3, batch_size=10))
        run(module, data, tmp_path / str(len(flows)), validate_every=validate_every)
        flows.append(flow)
    assert_same(flows[0], flows[1])
    with pytest.raises(AssertionError):  # or the masks had no part in it
        assert_same(flows[1], flows[2])


# Any flow of nflows.


@pytest.mark.slow
def test_any_nflows_flow_trains(tmp_path):
    layer = PatchMixerTransform(
        SHAPE, 2, lambda n: FlowLayer(n, linear=AffineCoupling(n)), lambda n: FlowLayer(n)
    )
    plain = Flow(layer, tiny()._distribution)
    flow = ImageFlow.from_flow(plain, SHAPE, levels=17)
    start = [parameter.clone() for parameter in plain.parameters()]
    run(FlowModule(flow, Recipe(1e-2, steps=3, batch_size=10)), noise_data(), tmp_path)
    assert most_moved(plain, start)
    # Nothing but the scaling of pixels lies between the two.
    flow.double().eval()
    images, noise = pixels(6), torch.rand(6, *SHAPE, dtype=torch.float64)
    scaled = (images + noise) / 17 - 0.5
    expected = plain.log_prob(scaled) - 16 * math.log(17)
    torch.testing.assert_close(flow.log_prob(images, None, noise), expected, rtol=0, atol=1e-12)


def test_plain_flow_is_a_type_error_that_says_what_to_do():
    plain = Flow(tiny()._transform, tiny()._distribution)
    with pytest.raises(TypeError, match=r"expected an ImageFlow, got Flow; ImageFlow.from_flow\("):
        FlowModule(plain, Recipe())


# Precision.


@plain
def test_bfloat16_is_in_the_conditioners_only():
    flow = initialized(tiny())
    seen = set()
    coupling = next(m for m in flow.modules() if isinstance(m, AffineCoupling))
    conditioner = coupling.conditioner.forward

    def watched(*arguments):
        outputs = conditioner(*arguments)
        seen.add(outputs.dtype)
        return outputs

    coupling.conditioner.forward = watched
    module = FlowModule(flow, Recipe(1e-2, steps=3, batch_size=10, ema_decay=0.9))
    start = [parameter.clone() for parameter in flow.parameters()]
    train(module, noise_data(), precision="bf16-mixed")
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module.training_bits.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in flow.parameters())
    assert most_moved(flow, start)


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_half_precision_is_refused(tmp_path, precision):
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
    with pytest.raises(ValueError, match="expected 32-true, 64-true or bf16-mixed, got"):
        run(module, noise_data(), tmp_path, precision=precision)


# Arguments.


NUMBERS = ["evaluation_images", "record_every", "validate_every", "accumulate_grad_batches"]
WRONG = [("seed", -1), ("evaluation_images", -1), *((name, 0) for name in NUMBERS)]


@pytest.mark.parametrize("name, value", WRONG)
def test_numbers_out_of_range_are_refused(tmp_path, name, value):
    options = {} if name == "seed" else {name: value}
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10), seed=0 if options else value)
    with pytest.raises(ValueError, match="expected .*got"):
        run(module, noise_data(), tmp_path, **options)


# Devices.


@pytest.mark.slow
@plain
def test_figures_are_computed_where_the_training_was(tmp_path, monkeypatch):
    """Lightning moves a module to the CPU behind training and testing: it has to come back."""
    from nflows_mixer.training import run as run_module

    moves = []

    class Recorded(FlowModule):
        def cpu(self):
            moves.append("cpu")
            return super().cpu()

        def to(self, *args, **kwargs):
            moves.append(f"to {args[0]}")
            return super().to(*args, **kwargs)

    def recorded(*args):
        moves.append("figures")
        return collect(*args)

    collect = run_module.collect
    monkeypatch.setattr(run_module, "collect", recorded)
    run_module.fit(
        Recorded(tiny(), Recipe(steps=1, batch_size=10)),
        noise_data(),
        tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    at = moves.index("figures")
    assert "cpu" in moves[:at] and moves[at - 1] == "to cpu"  # the device of this training
    assert moves[at:].count("cpu") == 1
