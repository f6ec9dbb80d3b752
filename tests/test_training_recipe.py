"""The recipe: its schedule, the rates of its layers, and the moving average of the weights."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import Evaluation, evaluate
from nflows_mixer.flows import load_weights
from nflows_mixer.training import FlowModule, Recipe
from tests.training import (
    assert_same,
    initialized,
    noise_data,
    norms_of,
    pixels,
    plain,
    run,
    tiny,
    train,
)

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


def test_schedule_with_decay_and_fine_tuning_by_hand():
    """Warm-up of 4 steps, halved every 3, the last 2 of 12 steps at a hundredth of the peak."""
    recipe = Recipe(
        1e-2, steps=12, warmup=4, decay=0.5, decay_every=3, fine_tune_steps=2, fine_tune_rate=1e-4
    )
    expected = [1 / 4, 2 / 4, 3 / 4, 4 / 4 / 2, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 8]
    expected += [0.01, 0.01, 0.01]  # the last one is that of steps beyond
    values = [recipe.schedule(step) for step in range(13)]
    assert values == pytest.approx(expected, rel=1e-14)
    constant = Recipe(steps=9, decay=1, decay_every=1)
    assert [constant.schedule(step) for step in range(9)] == [1.0] * 9


def test_cosine_before_fine_tuning_by_hand():
    recipe = Recipe(1e-3, steps=10, warmup=2, fine_tune_steps=4)
    half = 0.5
    expected = [half, 1.0, 1.0, 0.5 * (1 + math.sqrt(0.5)), half, 0.5 * (1 - math.sqrt(0.5))]
    assert [recipe.schedule(step) for step in range(6)] == pytest.approx(expected, abs=1e-15)
    assert [recipe.schedule(step) for step in range(6, 10)] == [2e-5 / 1e-3] * 4


def test_warmup_is_a_part_of_the_steps_or_their_number():
    part, number = Recipe(steps=200, warmup=0.05), Recipe(steps=200, warmup=10)
    for step in range(201):
        assert part.schedule(step) == number.schedule(step)
    assert Recipe(steps=5, warmup=1).schedule(0) == 1 == Recipe(steps=5, warmup=0).schedule(0)


def test_epoch_of_a_decay_is_that_of_the_images():
    recipe = Recipe(steps=9, batch_size=10, decay=0.5)
    with pytest.raises(ValueError, match="decay_every, the steps of an epoch, got none; give it"):
        recipe.schedule(0)
    whole = recipe.resolved(39)
    assert [whole.schedule(step) for step in (0, 2, 3, 8)] == [1, 1, 0.5, 0.25]
    assert recipe.resolved(9).decay_every == 1 and recipe.decay_every is None
    # Nothing falls in less than an epoch; what is given or not needed stays.
    assert recipe.resolved(500).schedule(8) == 1
    given, cosine = Recipe(steps=9, decay=0.5, decay_every=2), Recipe(steps=9)
    assert given.resolved(500) is given and cosine.resolved(500) is cosine


@plain
def test_trainer_gives_the_recipe_its_epoch(tmp_path):
    recipe = Recipe(1e-2, steps=5, batch_size=10, decay=0.5)
    results = run(FlowModule(tiny(), recipe), noise_data(), tmp_path, record_every=1)
    assert results["recipe"]["decay_every"] == 2
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["decay_every"] == 2
    history = json.loads((tmp_path / "history.json").read_text())
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3])  # each after its step
    # And the same where the trainer is the user's own.
    module = train(FlowModule(tiny(), recipe), noise_data())
    assert module.recipe.decay_every == 2


def test_recipe_of_the_denseflow_paper():
    """Appendix C, its epochs counted in steps of the training images that each had."""
    recipe = Recipe.from_preset("denseflow-74-10")
    epoch = 50_000 // 64
    assert (recipe.steps, recipe.fine_tune_steps) == (650 * epoch, 70 * epoch)
    assert (recipe.decay, recipe.decay_every) == (0.9975, None)
    recipe = recipe.resolved(50_000)
    assert (recipe.optimizer, recipe.learning_rate, recipe.warmup) == ("adamax", 1e-3, 5000)
    assert recipe.flip and recipe.gradient_clip is None and recipe.batch_size == 64
    assert recipe.learning_rate * recipe.schedule(recipe.steps - 1) == pytest.approx(2e-5)
    before = recipe.learning_rate * recipe.schedule(580 * epoch - 1)
    assert before == pytest.approx(1e-3 * 0.9975**579)
    faces = Recipe.from_preset("denseflow-74-10-celeba")
    assert faces.batch_size == 32
    assert (faces.decay, faces.fine_tune_steps) == (0.95, 5 * (162_770 // 32))


def test_adamw_takes_off_all_parameters():
    weight = nn.Parameter(torch.tensor([2.0]))
    recipe = Recipe(0.1, optimizer="adamw", weight_decay=0.5)
    optimizer = recipe.optimizer_of([{"params": [weight], "lr": 0.1}])
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_preset_that_is_none_is_named():
    with pytest.raises(ValueError, match="preset to be one of 'anf', .*'cifar10', .*got 'cifar11'"):
        Recipe.from_preset("cifar11")


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
        ({"optimizer": "adamw"}, "weight_decay above 0 with adamw.*got 0.0 with adamw"),
        ({"weight_decay": 1e-4}, "none with another optimizer, got 0.0001 with adam"),
        ({"optimizer": "adamw", "weight_decay": -1}, "weight_decay above 0.*got -1 with adamw"),
        ({"gradient_skip": 0}, "gradient_skip above 0, got 0"),
        ({"gradient_skip": 5.0}, "gradient_clip below gradient_skip=5.0, got 5.0"),
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
        ({"gradient_clip": 0}, "gradient_clip above 0, got 0; 5, or None for no bound"),
        ({"warmup": -1}, "a number of steps or 0 <= warmup < 1, got -1"),
        ({"warmup": 2.5}, "a number of steps or 0 <= warmup < 1, got 2.5"),
        ({"warmup": True}, "a number of steps or 0 <= warmup < 1, got True"),
        ({"optimizer": "sgd"}, "optimizer to be one of 'adam', 'adamax', 'adamw', got 'sgd'"),
        ({"decay": 0.0, "decay_every": 1}, "0 < decay <= 1, got 0.0"),
        ({"decay": 1.5, "decay_every": 1}, "0 < decay <= 1, got 1.5"),
        ({"decay": 0.9, "decay_every": 0}, "decay_every to be a positive integer, got 0"),
        ({"decay_every": 9}, "a decay beside decay_every=9, got none; give decay too"),
        ({"decay": 0.9, "decay_every": 1000}, "decay_every below the 1000 steps .* got 1000"),
        ({"warmup": 1000}, "fewer than the 1000 steps before .*, got 1000; a run of fewer steps"),
        ({"warmup": 500, "fine_tune_steps": 500}, "fewer than the 500 steps before .*, got 500"),
        ({"warmup": 0.9, "fine_tune_steps": 500}, "fewer than the 500 steps before .*, got 0.9"),
        ({"flip": 1}, "flip of True or False, got 1"),
        ({"flip": "no"}, "flip of True or False, got no"),
        ({"whiten": 1}, "whiten of True or False, got 1"),
        ({"fine_tune_steps": -1}, "0 steps of fine-tuning or more, got -1"),
        ({"fine_tune_steps": 1000}, "fewer fine_tune_steps than all 1000 steps, got 1000"),
        ({"fine_tune_steps": 1, "steps": 0}, "fewer fine_tune_steps than all 0 steps, got 1"),
        ({"fine_tune_steps": 9, "fine_tune_rate": 0}, "fine_tune_rate above 0, got 0"),
        ({"fine_tune_rate": 1e-4}, "fine_tune_steps beside fine_tune_rate=0.0001, got none"),
    ],
)
def test_recipe_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**arguments)


# Rates by layer.


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


def test_recorded_rate_is_the_recipes_where_the_first_layer_is_frozen(tmp_path):
    flow = tiny()
    first = next(name for name, _ in flow.named_parameters())
    recipe = Recipe(1e-2, steps=4, batch_size=10, layer_rates={first: 0})
    run(FlowModule(flow, recipe), noise_data(), tmp_path, record_every=2)
    history = json.loads((tmp_path / "history.json").read_text())
    rates = [e["learning_rate"] for e in history if "learning_rate" in e]
    assert rates == pytest.approx([1e-2 * recipe.schedule(step) for step in (2, 4)])


# The moving average.


class Snapshots(Callback):
    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *_):
        self.states.append({k: v.clone() for k, v in module.flow.state_dict().items()})


@plain
def test_moving_average_by_hand():
    snapshots = Snapshots()
    module = FlowModule(
        tiny(norm="batch").double(), Recipe(1e-2, steps=5, batch_size=10, ema_decay=0.7)
    )
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


def test_moving_average_of_a_flow_that_is_initialized_after_the_module_is_made(tmp_path):
    data, flow = noise_data(), tiny()
    module = FlowModule(flow, Recipe(steps=2, batch_size=10, ema_decay=0.9))
    flow.initialize(data.train.images())
    results = run(module, data, tmp_path)
    bits = evaluate(module.average.module, data.test).mean().item()
    assert results["bits_per_dim"]["test"] == pytest.approx(bits, abs=1e-6)


def test_gradients_of_frozen_parameters_do_not_shrink_those_of_the_others():
    flow = initialized(tiny())
    first = next(name for name, _ in flow.named_parameters())
    module = FlowModule(flow, Recipe(gradient_clip=1.0, layer_rates={first: 0}))
    optimizer = module.configure_optimizers()["optimizer"]
    frozen, *others = flow.parameters()
    frozen.grad = torch.full_like(frozen, 1e6)
    for parameter in others:
        parameter.grad = torch.full_like(parameter, 1e-3)
    assert sum(p.numel() for p in others) * 1e-6 < 1
    images = pixels(3)
    module._last = (images, None, torch.rand(images.shape), torch.tensor(1.0))
    module.configure_gradient_clipping(optimizer)
    for parameter in others:
        assert torch.equal(parameter.grad, torch.full_like(parameter, 1e-3))


# Numbers of numpy.


def test_numpy_numbers_are_numbers_all_the_way_into_the_files(tmp_path):
    """JSON takes none of them, and Lightning checks for Python's."""
    recipe = Recipe(
        np.float32(2**-7),
        (np.float64(0.5), np.float32(0.25)),
        steps=np.int64(2),
        batch_size=np.int32(10),
        warmup=np.int64(1),
        layer_rates={"*": np.float32(0.5)},
        flip=np.bool_(True),
    )
    assert recipe == Recipe(
        2**-7, (0.5, 0.25), steps=2, batch_size=10, warmup=1, layer_rates={"*": 0.5}, flip=True
    )
    assert [type(v) for v in (recipe.learning_rate, recipe.steps, recipe.flip)] == [
        float,
        int,
        bool,
    ]
    module = FlowModule(tiny(), recipe, seed=np.int64(3))
    options = {"validate_every": np.int64(2), "checkpoint_every": np.int32(1)}
    options |= {"evaluation_images": np.int64(5), "facts": {"budget": np.float32(0.5)}}
    results = run(module, noise_data(), tmp_path, **options)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (results["seed"], results["budget"], results["recipe"]["steps"]) == (3, 0.5, 2)
    data = load_images(seed=np.int64(1), shuffle="local", shuffle_patch=np.int64(2))
    assert json.loads(json.dumps(data.describe()))["shuffle"]["patch_size"] == 2
    asked = Evaluation(draws=np.int64(2), seed=np.int64(5), temperatures=(np.float32(0.5),))
    assert asked == Evaluation(draws=2, seed=5, temperatures=(0.5,))
    assert json.dumps(vars(asked))
