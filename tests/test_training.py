"""Training, step by step, against loops written by hand and numbers known beforehand."""

import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nflows.flows import Flow
from nflows.transforms import CompositeTransform
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.evaluation import draw_samples, evaluate
from nflows_mixer.flows import ImageFlow, load_weights, mixerflow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import (
    FlowModule,
    ImageDataModule,
    OrderedBatches,
    Recipe,
    ShuffledBatches,
    find_non_finite,
    fit,
    moving_average,
)
from nflows_mixer.transforms import ActNorm, AffineCoupling, FlowLayer, PatchMixerTransform

SHAPE = (1, 4, 4)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def plain(test):
    """A test of a plain Trainer, which gives the advice that fit() leaves out."""
    for message in (".*does not have many workers", ".*LeafSpec.* is deprecated"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


def tiny(**options):
    arguments = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 1}
    arguments |= {"num_flow_layers": 1, "hidden_features": 8, "shift": None}
    return mixerflow(**arguments | options)


def pixels(count):
    return torch.randint(17, (count, *SHAPE), dtype=torch.uint8)


def noise_data(sizes=(20, 12, 8), classes=None):
    def part(size):
        return ImageDataset(pixels(size), None if classes is None else torch.arange(size) % classes)

    return ImageData("noise", *map(part, sizes), levels=17)


def initialized(flow, context=None, amount=0.1):
    """The flow some way from where it starts, so that all its parts matter."""
    flow.initialize(pixels(40), context)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += amount * torch.randn_like(parameter)
    return flow


def plain_trainer(steps=-1, **options):
    arguments = {"max_steps": steps, "max_epochs": -1, "logger": False, **QUIET}
    arguments |= {"enable_checkpointing": False, "enable_model_summary": False}
    arguments |= {"num_sanity_val_steps": 0, "use_distributed_sampler": False}
    arguments |= {"val_check_interval": 1000, "check_val_every_n_epoch": None}
    return Trainer(**arguments | options)


def train(module, data, **options):
    """The recipe's steps with Lightning, without files; the module afterwards."""
    trainer = plain_trainer(module.recipe.steps, **options)
    trainer.fit(module, datamodule=ImageDataModule(data, module.recipe, module.seed))
    assert trainer.global_step == module.recipe.steps
    return module


def train_by_hand(flow, data, recipe, seed, micro=1):
    """The same without any of the training room's parts but its order of rows."""
    size, total = recipe.batch_size, recipe.steps
    adam = torch.optim.Adam(flow.parameters(), recipe.learning_rate, recipe.betas)
    rising = int(total * recipe.warmup)
    norms = []
    batches = ShuffledBatches(len(data.train), size, total, seed=seed)
    for step, rows in enumerate(batches):
        if step < rising:
            factor = (step + 1) / rising
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
        adam.param_groups[0]["lr"] = recipe.learning_rate * factor
        adam.zero_grad()
        for number, part in enumerate(rows.split(size // micro)):
            batch = data.train[part]
            dtype = next(flow.parameters()).dtype
            index = number * len(part) + torch.arange(len(part))
            noise = uniform_noise(seed, 1 + step, index, SHAPE, dtype)
            if step == number == 0:
                flow.initialize(*batch, noise=noise)
            log_prob = flow.log_prob(*batch, noise=noise)
            (bits_per_dim(log_prob, SHAPE).mean() / micro).backward()
        norms.append(nn.utils.clip_grad_norm_(flow.parameters(), recipe.gradient_clip).item())
        adam.step()
    return norms


def run(module, data, out, **options):
    """``fit`` on the CPU, without a bar, and without validation unless it is asked for."""
    return fit(module, data, out, **{"validate_every": 1000, **QUIET, **options})


def assert_same(first, second):
    expected, got = first.state_dict(), second.state_dict()
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def norms_of(flow):
    return [part for part in flow.modules() if isinstance(part, ActNorm)]


# The recipe.


def test_schedule_by_hand():
    recipe = Recipe(steps=10, warmup=0.2)
    quarter = 0.5 * (1 + math.sqrt(0.5))
    expected = {0: 0.5, 1: 1.0, 2: 1.0, 4: quarter, 6: 0.5, 8: 1 - quarter, 10: 0.0, 11: 0.0}
    assert {step: recipe.schedule(step) for step in expected} == pytest.approx(expected, abs=1e-15)
    paper = Recipe(steps=4)
    values = [paper.schedule(step) for step in range(5)]
    assert values == pytest.approx([1.0, quarter, 0.5, 1 - quarter, 0.0], abs=1e-15)
    assert Recipe(steps=0).schedule(0) == 1


def test_last_pattern_that_fits_gives_the_rate():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    recipe = Recipe(2e-3, layer_rates={"*": 0.5, "1.*": 0, "1.bias": 3.0, "2.[w]*": 0.5})
    groups = recipe.parameter_groups(net)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in net.named_parameters()}
    others = dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias"], 1e-3)
    assert named == pytest.approx({**others, "1.weight": 0.0, "1.bias": 6e-3})
    assert sum(len(group["params"]) for group in groups) == 6


def test_pattern_that_fits_nothing_is_named():
    recipe = Recipe(layer_rates={"0.*": 1.0, "first.*": 0.1, "*.bia": 0.1})
    with pytest.raises(ValueError, match=r"'weight'.*\['\*.bia', '0.\*', 'first.\*'\]; print"):
        recipe.parameter_groups(nn.Linear(1, 1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0}, "learning_rate above 0, got 0"),
        ({"learning_rate": math.nan}, "learning_rate above 0, got nan"),
        ({"gradient_clip": math.inf}, "gradient_clip above 0, got inf"),
        ({"steps": -1}, "0 steps or more, got -1"),
        ({"steps": True}, "0 steps or more, got True"),
        ({"batch_size": 0}, "batch_size to be a positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size to be a positive integer, got 2.5"),
        ({"warmup": 1.0}, "0 <= warmup < 1, got 1.0"),
        ({"warmup": math.nan}, "0 <= warmup < 1, got nan"),
        ({"ema_decay": 1.0}, "0 < ema_decay < 1, got 1.0"),
        ({"layer_rates": {"*": -1}}, "layer_rates of 0 or more, got {'\\*': -1}"),
        ({"layer_rates": {"*": math.nan}}, "layer_rates of 0 or more"),
        ({"steps": 1.5}, "steps.*got 1.5"),
        ({"betas": (0.9, 1.5)}, "betas.*got"),
        ({"betas": (0.9,)}, "betas.*got"),
    ],
)
def test_recipe_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**arguments)


@pytest.mark.parametrize("decay", [-0.5, 1.5, math.nan])
def test_moving_average_that_would_not_be_one_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        moving_average(nn.Linear(1, 1), decay)


# Steps.


@plain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_is_the_loop_written_by_hand(dtype):
    data = noise_data((25, 5, 5))
    flow = tiny().to(dtype)
    twin = copy.deepcopy(flow)
    start = copy.deepcopy(flow)
    recipe = Recipe(3e-2, (0.8, 0.95), 0.75, steps=7, batch_size=10, warmup=0.3)
    norms = train_by_hand(twin, data, recipe, seed=5)
    train(FlowModule(flow, recipe, seed=5), data)
    assert_same(twin, flow)
    # The bound on the gradient acted, and did so at some steps only.
    assert min(norms) < 0.75 < max(norms)
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), flow.parameters())]
    assert sum(moved) > len(moved) / 2 and all(norm.initialized for norm in norms_of(flow))


@plain
def test_first_batch_initialises_with_its_noise():
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


@plain
def test_rates_by_layer_freeze_and_scale():
    data, start = noise_data(), initialized(tiny(num_layers=2)).double()
    finals = "*.conditioner.final.*"
    flows = {}
    for name, rates in {"all": {}, "some": {finals: 0, "*log_scale": 0.25}}.items():
        flows[name] = copy.deepcopy(start)
        recipe = Recipe(1e-3, gradient_clip=1e9, steps=1, batch_size=10, layer_rates=rates)
        train(FlowModule(flows[name], recipe), data)
    seen = {"frozen": 0, "scaled": 0, "free": 0}
    for (name, before), full, some in zip(
        start.named_parameters(), *(flow.parameters() for flow in flows.values())
    ):
        if ".conditioner.final." in name:
            kind, factor = "frozen", 0.0
            assert torch.equal(some, before)
        elif name.endswith("log_scale"):
            kind, factor = "scaled", 0.25
        else:
            kind, factor = "free", 1.0
        torch.testing.assert_close(some - before, factor * (full - before), rtol=1e-6, atol=1e-15)
        seen[kind] += bool((full != before).any())
    assert all(count > 2 for count in seen.values())
    # Frozen for a whole run, not for a step.
    flow = copy.deepcopy(start)
    recipe = Recipe(1e-2, steps=3, batch_size=10, layer_rates={finals: 0})
    train(FlowModule(flow, recipe), data)
    for (name, before), after in zip(start.named_parameters(), flow.parameters()):
        assert torch.equal(before, after) == (".conditioner.final." in name) or not after.grad.any()


class Snapshots(Callback):
    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *_):
        self.states.append({k: v.clone() for k, v in module.flow.state_dict().items()})


@plain
def test_moving_average_by_hand():
    snapshots = Snapshots()
    module = FlowModule(tiny().double(), Recipe(1e-2, steps=5, batch_size=10, ema_decay=0.7))
    train(module, noise_data(), callbacks=[snapshots])
    average = dict(snapshots.states[0])
    for state in snapshots.states[1:]:
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = 0.7 * average[name] + 0.3 * value
            else:
                average[name] = value
    got = module.average.module.state_dict()
    assert got.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-14, msg=name)
        if not value.is_floating_point():
            assert torch.equal(got[name], module.flow.state_dict()[name])
        elif name.endswith("running_var"):
            assert not torch.equal(got[name], module.flow.state_dict()[name])
    assert any(name.endswith("num_batches_tracked") for name in got)
    assert all(norm.initialized for norm in norms_of(module.average))
    assert not any(p.requires_grad for p in module.average.parameters())


def test_moving_average_is_what_is_evaluated_and_saved_also_after_resuming(tmp_path):
    data = noise_data()
    recipe = Recipe(3e-2, steps=4, batch_size=10, ema_decay=0.5)
    module = FlowModule(tiny(), recipe)
    results = run(module, data, tmp_path, validate_every=3)
    bits = evaluate(module.average.module, data.test)
    assert results["bits_per_dim"]["test"] == pytest.approx(bits.mean().item(), abs=1e-6)
    assert abs(evaluate(module.flow, data.test).mean() - bits.mean()) > 1e-4
    assert_same(load_weights(tmp_path / "weights.safetensors"), module.average.module)
    resumed = FlowModule(tiny(), recipe)
    again = run(resumed, data, tmp_path, resume=True)
    assert_same(resumed, module)
    assert all(norm.initialized for norm in norms_of(resumed.average))
    assert again["bits_per_dim"] == results["bits_per_dim"]


def test_moving_average_of_a_flow_that_is_initialised_after_the_module_is_made(tmp_path):
    data, flow = noise_data(), tiny()
    module = FlowModule(flow, Recipe(steps=2, batch_size=10, ema_decay=0.9))
    flow.initialize(data.train.images())
    results = run(module, data, tmp_path)
    bits = evaluate(module.average.module, data.test).mean().item()
    assert results["bits_per_dim"]["test"] == pytest.approx(bits, abs=1e-6)


def test_no_steps_measure_the_moving_average_as_the_flow(tmp_path):
    data = noise_data()
    results = []
    for decay in (None, 0.9):
        torch.manual_seed(0)
        module = FlowModule(tiny(), Recipe(steps=0, batch_size=10, ema_decay=decay))
        torch.manual_seed(1)
        results.append(run(module, data, tmp_path / str(decay))["bits_per_dim"])
    assert results[0] == results[1]


def test_no_steps_give_the_same_figures_whatever_was_drawn_before(tmp_path):
    data, flow = noise_data(), tiny()
    figures = []
    for state in (1, 2):
        torch.manual_seed(state)
        module = FlowModule(copy.deepcopy(flow), Recipe(steps=0, batch_size=10))
        figures.append(run(module, data, tmp_path / str(state))["bits_per_dim"])
    assert figures[0] == figures[1]


# Accumulated batches.


class Recording(FlowModule):
    """Keeps what the loss was given."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = []

    def loss(self, images, context, noise, labels):
        self.seen.append((images.clone(), noise.clone()))
        return super().loss(images, context, noise, labels)


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


@plain
@pytest.mark.parametrize("num_images", [20, 25])
def test_accumulated_batches_have_the_rows_of_whole_ones(num_images):
    data = noise_data((num_images, 5, 5))
    recipe = Recipe(steps=5, batch_size=10)
    whole, parts = (
        train(Recording(tiny(), recipe, seed=4), data, accumulate_grad_batches=micro).seen
        for micro in (1, 2)
    )
    for step, (images, _) in enumerate(whole):
        again = torch.cat([parts[2 * step][0], parts[2 * step + 1][0]])
        assert torch.equal(images, again), f"step {step}"


def test_accumulated_batches_leave_the_history_at_the_same_steps(tmp_path):
    histories = []
    for micro in (1, 2):
        module = FlowModule(tiny(), Recipe(steps=4, batch_size=10))
        options = {"accumulate_grad_batches": micro, "validate_every": 2, "record_every": 2}
        run(module, noise_data(), tmp_path / str(micro), **options)
        history = json.loads((tmp_path / str(micro) / "history.json").read_text())
        histories.append([(e["step"], "train/bits_per_dim" in e) for e in history])
    assert histories[0] == [(2, True), (2, False), (4, True), (4, False)]
    assert histories[1] == histories[0]


@plain
def test_batch_that_does_not_split_into_its_parts_is_refused():
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
    with pytest.raises(ValueError, match="1 processes share evenly in 3 parts, got 10; take a mul"):
        train(module, noise_data(), accumulate_grad_batches=3)


# Runs that stop in between.


class StopAt(Callback):
    """An error in the middle of a step, after its batch has begun."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError("stopped here")


@pytest.mark.parametrize("module_is", ["new", "the same"])
def test_run_that_is_stopped_goes_on_with_the_same_numbers(tmp_path, module_is):
    data, start = noise_data(), tiny().double()
    recipe = Recipe(1e-2, steps=6, batch_size=10)
    options = {"checkpoint_every": 3, "record_every": 4, "validate_every": 6}
    whole = FlowModule(copy.deepcopy(start), recipe)
    run(whole, data, tmp_path / "whole", **options)
    module = FlowModule(copy.deepcopy(start), recipe)
    with pytest.raises(InterruptedError):
        run(module, data, tmp_path / "stopped", callbacks=(StopAt(3),), **options)
    if module_is == "new":
        module = FlowModule(copy.deepcopy(start), recipe)
    run(module, data, tmp_path / "stopped", resume=True, **options)
    assert_same(whole, module)
    bits = [
        [
            (e["step"], e.get("train/bits_per_dim"), e.get("validation/bits_per_dim"))
            for e in json.loads((tmp_path / run / "history.json").read_text())
        ]
        for run in ("whole", "stopped")
    ]
    assert bits[0] == bits[1]  # in float64, to the last digit


@plain
def test_module_that_is_trained_again_draws_the_noise_of_the_first_time():
    data, start = noise_data(), initialized(tiny())
    recipe = Recipe(1e-2, steps=1, batch_size=10)
    module = Recording(start, recipe)
    train(module, data), train(module, data)
    assert torch.equal(module.seen[0][1], module.seen[1][1])


# Evaluation.


@pytest.mark.parametrize("decay", [None, 0.8])
def test_figures_are_those_of_evaluate(tmp_path, decay):
    data = noise_data((620, 12, 503))  # the batches of evaluation have 500
    module = FlowModule(tiny(), Recipe(1e-2, steps=3, batch_size=10, ema_decay=decay), seed=9)
    results = run(module, data, tmp_path, validate_every=3)
    # Of the images trained on, as many as are held out.
    parts = {"train": data.train.subset(slice(503)), "validation": data.validation}
    parts["test"] = data.test
    for (part, dataset), images in zip(parts.items(), (503, 12, 503)):
        bits = evaluate(module.evaluated, dataset, seed=9).double()
        assert results["evaluated_images"][part] == len(bits) == images
        assert results["bits_per_dim"][part] == pytest.approx(bits.mean().item(), abs=2e-6)
        assert results["worst_image"][part] == pytest.approx(bits.max().item(), abs=2e-6)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    last = json.loads((tmp_path / "history.json").read_text())[-1]
    assert last["validation/bits_per_dim"] == pytest.approx(results["bits_per_dim"]["validation"])
    assert last["validation/worst_image"] == pytest.approx(results["worst_image"]["validation"])


@plain
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_broken_image_breaks_the_mean_and_the_worst(value):
    data, flow = noise_data((20, 12, 510)), initialized(tiny())
    broken = data.test.images(3)
    log_prob = flow.log_prob

    def breaking(images, *arguments):
        hit = (images == broken).flatten(1).all(1)
        return log_prob(images, *arguments).masked_fill(hit, -value)

    flow.log_prob = breaking
    recipe = Recipe(batch_size=10)
    trainer = plain_trainer()
    module = FlowModule(flow, recipe)
    trainer.test(module, datamodule=ImageDataModule(data, recipe), verbose=False)
    figures = {name: figure.item() for name, figure in trainer.callback_metrics.items()}
    for name in ("test/bits_per_dim", "test/worst_image"):
        assert figures.pop(name) == pytest.approx(value, nan_ok=True)
    figures = {k: v for k, v in figures.items() if "evaluated_images" not in k}
    assert len(figures) == 4 and all(map(math.isfinite, figures.values()))


def test_data_without_a_test_part_report_the_validation_part(tmp_path):
    data = noise_data()
    data = ImageData("noise", data.train, data.validation, None, levels=17)
    results = run(FlowModule(tiny(), Recipe(steps=1, batch_size=10)), data, tmp_path)
    assert list(results["bits_per_dim"]) == list(results["worst_image"]) == ["train", "validation"]
    assert (tmp_path / "results.md").read_text().startswith("| noise, 12 validation images |")


@plain
def test_many_loaders_keep_their_figures_apart():
    """Eleven and more, of which the numbers sort as words would."""
    module = FlowModule(initialized(tiny()), Recipe())
    sets = [pixels(3) for _ in range(12)]
    trainer = plain_trainer()
    trainer.test(module, [DataLoader(images, batch_size=2) for images in sets], verbose=False)
    figures = trainer.callback_metrics
    for number, images in enumerate(sets):
        expected = evaluate(module.flow, images).mean().item()
        assert figures[f"test/{number}/bits_per_dim"].item() == pytest.approx(expected, abs=1e-6)


def test_data_of_other_levels_than_the_flow_are_refused(tmp_path):
    """Bits per dimension of 256 levels beside yardsticks of 17 would compare nothing."""
    module = FlowModule(tiny(levels=256), Recipe(steps=1, batch_size=10))
    with pytest.raises(ValueError, match="levels"):
        run(module, noise_data(), tmp_path)


def test_images_that_are_said_to_be_evaluated_are(tmp_path):
    data = noise_data((20, 12, 510))
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
    try:
        results = run(module, data, tmp_path, limit_test_batches=1)
    except ValueError:
        return  # refused is as good
    bits = evaluate(module.flow, data.test)[: results["evaluated_images"]["test"]]
    assert results["bits_per_dim"]["test"] == pytest.approx(bits.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"evaluation_images": 0},
        {"evaluation_images": -1},
        {"record_every": 0},
        {"validate_every": 0},
        {"accumulate_grad_batches": 0},
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, arguments):
    module = FlowModule(tiny(), Recipe(steps=2, batch_size=10))
    with pytest.raises(ValueError, match="expected .*got"):
        run(module, noise_data(), tmp_path, **arguments)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_is_good_for_all_or_refused(tmp_path, seed):
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10), seed=seed)
    if seed < 0:
        with pytest.raises(ValueError, match="expected a seed from 0"):
            run(module, noise_data(), tmp_path)
        return
    try:
        assert run(module, noise_data(), tmp_path)["seed"] == seed
    except ValueError as error:
        assert "expected a seed" in str(error)


# Batches.


def test_passes_are_permutations_of_whole_batches():
    batches = list(ShuffledBatches(num_images=11, batch_size=3, num_batches=9, seed=1))
    assert [len(batch) for batch in batches] == [3] * 9
    passes = [torch.cat(batches[i : i + 3]).tolist() for i in (0, 3, 6)]
    for rows in passes:
        assert len(set(rows)) == 9 and set(rows) <= set(range(11))
    assert len(set(map(tuple, passes))) == 3
    left_out = [set(range(11)) - set(rows) for rows in passes]
    assert len(set(map(tuple, left_out))) > 1
    other = torch.cat(list(ShuffledBatches(11, 3, 3, seed=2))).tolist()
    assert other != passes[0]


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_batches_start_anywhere_and_split_over_processes(start):
    whole = list(ShuffledBatches(13, 6, 9, seed=7))
    later = list(ShuffledBatches(13, 6, 9, start=start, seed=7))
    assert len(later) == 9 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], later))
    ranks = [list(ShuffledBatches(13, 6, 9, start, 7, rank, 3)) for rank in range(3)]
    for batch, parts in zip(later, zip(*ranks)):
        assert torch.equal(torch.stack(parts, dim=1).flatten(), batch)


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="a batch of at most 5 images.*got 6; make batch_size sm"):
        ShuffledBatches(5, 6, 1)
    with pytest.raises(ValueError, match="2 processes share evenly in 1 parts, got 3; take a mul"):
        ShuffledBatches(5, 3, 1, world_size=2)


@pytest.mark.parametrize("num_images, world_size", [(10, 1), (11, 3), (2, 3), (1, 3)])
def test_ordered_batches_have_each_image_once(num_images, world_size):
    seen = []
    for rank in range(world_size):
        batches = OrderedBatches(num_images, 2, rank, world_size)
        rows = [batch.tolist() for batch in batches]
        assert len(rows) == len(batches) and all(1 <= len(row) <= 2 for row in rows)
        flat = sum(rows, [])
        assert flat == sorted(flat) and all(row % world_size == rank for row in flat)
        seen += flat
    assert sorted(seen) == list(range(num_images))


@plain
@pytest.mark.parametrize("form", ["tensor", "alone in a tuple", "with labels"])
def test_own_loaders_and_a_plain_trainer(form):
    images, labels = pixels(30), torch.arange(30) % 3
    dataset = {
        "tensor": images,
        "alone in a tuple": TensorDataset(images),
        "with labels": TensorDataset(images, labels),
    }[form]
    flow = tiny()
    twin = copy.deepcopy(flow)
    recipe = Recipe(1e-2, steps=3, batch_size=10)
    adam = torch.optim.Adam(twin.parameters())
    for step in range(3):
        adam.param_groups[0]["lr"] = 1e-2 * recipe.schedule(step)
        batch = images[10 * step : 10 * step + 10]
        noise = uniform_noise(6, 1 + step, torch.arange(10), SHAPE)
        twin.initialize(batch, noise=noise)
        adam.zero_grad()
        bits_per_dim(twin.log_prob(batch, noise=noise), SHAPE).mean().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), recipe.gradient_clip)
        adam.step()
    trainer = plain_trainer(3, val_check_interval=3)
    module = FlowModule(flow, recipe, seed=6)
    trainer.fit(module, DataLoader(dataset, batch_size=10), DataLoader(dataset, batch_size=7))
    assert_same(flow, twin)
    bits = evaluate(flow, images, seed=6)
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert figures["validation/bits_per_dim"] == pytest.approx(bits.mean().item(), abs=1e-6)
    assert figures["validation/worst_image"] == pytest.approx(bits.max().item(), abs=1e-6)


# Context.


@plain
def test_labels_are_the_context():
    data, flow = noise_data(classes=3), tiny(num_classes=3)
    twin, blind = copy.deepcopy(flow), copy.deepcopy(flow)
    recipe = Recipe(3e-2, steps=4, batch_size=10)
    train_by_hand(twin, data, recipe, seed=1)
    module = FlowModule(flow, recipe, conditional=True, seed=1)
    train(module, data)
    assert_same(twin, flow)
    other = ImageData("noise", data.train.with_labels(data.train.labels() * 0), *[data.test] * 2)
    train(FlowModule(blind, recipe, conditional=True, seed=1), other)
    assert any(not torch.equal(a, b) for a, b in zip(flow.parameters(), blind.parameters()))
    trainer = plain_trainer()
    trainer.test(module, datamodule=ImageDataModule(data, recipe, seed=1), verbose=False)
    bits = evaluate(flow, data.test, data.test.labels(), seed=1).mean().item()
    assert trainer.callback_metrics["test/bits_per_dim"].item() == pytest.approx(bits, abs=1e-6)


@plain
def test_conditional_training_wants_labels():
    module = FlowModule(tiny(num_classes=3), Recipe(steps=1, batch_size=10), conditional=True)
    with pytest.raises(ValueError, match=r"expected batches of \(images, labels\), got images al"):
        train(module, noise_data())


class OneHot(nn.Module):
    def forward(self, labels):
        return nn.functional.one_hot(labels, 3).to(torch.get_default_dtype())


def test_conditional_flow_of_nflows_with_an_embedding_of_its_own(tmp_path):
    layers = list(tiny(context_features=3)._transform._transforms)[1:]
    plain = Flow(CompositeTransform(layers), tiny()._distribution, OneHot())
    flow = ImageFlow.from_flow(plain, SHAPE, levels=17)
    data = noise_data(classes=3)
    module = FlowModule(flow, Recipe(steps=2, batch_size=10), conditional=True)
    results = run(module, data, tmp_path, validate_every=2)
    bits = evaluate(flow, data.test, data.test.labels()).mean().item()
    assert results["bits_per_dim"]["test"] == pytest.approx(bits, abs=1e-6)


# Any flow of nflows.


def test_any_nflows_flow_trains(tmp_path):
    layer = PatchMixerTransform(
        SHAPE, 2, lambda n: FlowLayer(n, AffineCoupling(n)), lambda n: FlowLayer(n)
    )
    plain = Flow(layer, tiny()._distribution)
    flow = ImageFlow.from_flow(plain, SHAPE, levels=17)
    start = [parameter.clone() for parameter in plain.parameters()]
    run(FlowModule(flow, Recipe(1e-2, steps=3, batch_size=10)), noise_data(), tmp_path)
    moved = [not torch.equal(a, b) for a, b in zip(start, plain.parameters())]
    assert sum(moved) > len(moved) / 2
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


# Numbers that are not finite.


def attributes_of(flow):
    return {name: sorted(vars(part)) for name, part in flow.named_modules()}


def test_forward_pass_that_breaks_is_traced_to_the_innermost_part():
    flow = initialized(tiny())
    coupling = next(name for name, m in flow.named_modules() if isinstance(m, AffineCoupling))
    before = attributes_of(flow)
    with torch.no_grad():
        flow.get_submodule(coupling).conditioner.final.bias.fill_(1e4)
    found = find_non_finite(flow, pixels(5), None, None)
    assert found.startswith(f"'{coupling}' (AffineCoupling) made values that are not finite")
    assert attributes_of(flow) == before
    parameter = next(flow.parameters())
    parameter.data.flatten()[0] = math.nan
    name = next(name for name, _ in flow.named_parameters())
    assert find_non_finite(flow, pixels(5), None, None) == (
        f"the parameter {name!r} is not finite already"
    )


def test_gradient_alone_that_breaks_and_nothing():
    flow = initialized(tiny())
    flow.log_prob(pixels(5)).mean().backward()
    assert find_non_finite(flow, pixels(5), None, None) == (
        "the forward pass and the gradients of a second run are finite"
    )
    name, parameter = list(flow.named_parameters())[3]
    parameter.grad.flatten()[0] = math.nan
    found = find_non_finite(flow, pixels(5), None, None)
    assert found == f"the forward pass is finite, and the gradients are not of {name!r}"


def test_base_that_breaks_is_not_called_finite():
    flow = initialized(tiny())
    with torch.no_grad():
        flow._distribution.location.fill_(1e25)  # its square is beyond float32
    assert not torch.isfinite(flow.log_prob(pixels(5))).any()
    assert "_distribution" in find_non_finite(flow, pixels(5), None, None)


def test_diagnosis_leaves_a_forward_that_someone_had_put_there():
    flow = initialized(tiny())
    part = flow._transform
    whole = part.forward
    part.forward = lambda *arguments, **keywords: whole(*arguments, **keywords)
    mine = part.forward
    find_non_finite(flow, pixels(5), None, None)
    assert part.forward is mine


# What is written down.


class Figures(Callback):
    def __init__(self):
        self.bits, self.rates = [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.bits.append(module.training_bits)


def test_history_files_and_events(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures = Figures()
    recipe = Recipe(1e-2, steps=5, batch_size=10, ema_decay=0.5)
    module = FlowModule(tiny(), recipe, seed=2)
    options = {"validate_every": 3, "record_every": 2, "callbacks": (figures,)}
    results = run(module, noise_data(), tmp_path, **options)
    history = json.loads((tmp_path / "history.json").read_text())
    entries = [e for e in history if "train/bits_per_dim" in e]
    assert [e["step"] for e in history] == [2, 3, 4, 5]
    assert [e["step"] for e in entries] == [2, 4, 5]
    for entry, first in zip(entries, (0, 2, 4)):
        bits = torch.cat(figures.bits[first : entry["step"]])
        assert entry["train/bits_per_dim"] == pytest.approx(bits.mean().item())
        assert entry["train/worst_image"] == pytest.approx(bits.max().item())
        assert entry["learning_rate"] == pytest.approx(1e-2 * recipe.schedule(entry["step"]))
        assert entry["images_per_second"] > 0 and entry["peak_memory_mb"] > 10
    assert results["images_per_second"] > 0 and results["peak_memory_mb"] > 10
    for name in ("samples.png", "curve.png", "samples/step-00000003.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in set().union(*history) - {"step"}:
        logged = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(e["step"], e[name]) for e in history if name in e]
        for step, value in expected:
            assert any(s == step and v == pytest.approx(value, rel=1e-6) for s, v in logged)
    (image,) = events.Images("samples")
    assert image.step == 3
    grid = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))
    assert grid.shape == (32, 32)


def test_curves_of_tensorboard_have_the_steps_of_the_history_and_no_others(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = FlowModule(tiny(), Recipe(steps=4, batch_size=10))
    run(module, noise_data(), tmp_path, validate_every=2, record_every=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("learning_rate")] == [2, 4]
    history = json.loads((tmp_path / "history.json").read_text())
    curve = [e["validation/bits_per_dim"] for e in history if "validation/bits_per_dim" in e]
    # The last is the evaluation at the end of the run.
    logged = [(e.step, e.value) for e in events.Scalars("validation/bits_per_dim")]
    assert [step for step, _ in logged] in ([2, 4], [2, 4, 4])
    assert [value for _, value in logged][:2] == pytest.approx(curve, rel=1e-6)


def test_drawn_samples_are_those_of_the_moving_average(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = FlowModule(tiny(), Recipe(0.1, steps=4, batch_size=10, ema_decay=0.9), seed=2)
    run(module, noise_data(), tmp_path, validate_every=4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("samples")
    grid = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))
    shown = torch.as_tensor(grid.copy()).reshape(8, 4, 8, 4).transpose(1, 2).reshape(64, 4, 4)
    for flow, same in ((module.average.module, True), (module.flow, False)):
        samples = draw_samples(flow, 64, seed=2)[:, 0].double() * 255 / 16
        assert ((shown - samples).abs().max().item() <= 1) == same


def dropout(in_features, out_features):
    return nn.Sequential(
        nn.Linear(in_features, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, out_features)
    )


def test_validation_and_samples_leave_the_random_state_of_training(tmp_path):
    """With dropout, of which the masks come from the global state."""
    data, start = noise_data(), tiny(conditioner=dropout)
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


def test_recorded_rate_is_the_recipes_where_the_first_layer_is_frozen(tmp_path):
    flow = tiny()
    first = next(name for name, _ in flow.named_parameters())
    recipe = Recipe(1e-2, steps=4, batch_size=10, layer_rates={first: 0})
    run(FlowModule(flow, recipe), noise_data(), tmp_path, record_every=2)
    history = json.loads((tmp_path / "history.json").read_text())
    rates = [e["learning_rate"] for e in history if "learning_rate" in e]
    assert rates == pytest.approx([1e-2 * recipe.schedule(step) for step in (2, 4)])


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
    moved = [not torch.equal(a, b) for a, b in zip(start, flow.parameters())]
    assert sum(moved) > len(moved) / 2


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_half_precision_is_refused(tmp_path, precision):
    module = FlowModule(tiny(), Recipe(steps=1, batch_size=10))
    with pytest.raises(ValueError, match="expected 32-true, 64-true or bf16-mixed, got"):
        run(module, noise_data(), tmp_path, precision=precision)


def test_sixteen_bits_mixed_are_refused_where_there_is_a_device_for_them():
    class OfGPU:
        precision, world_size = "16-mixed", 1

    trainer, module = OfGPU(), FlowModule(tiny(), Recipe())
    module.trainer = trainer
    with pytest.raises(ValueError, match="expected 32-true, 64-true or bf16-mixed, got 16-mixed"):
        module.setup("fit")
