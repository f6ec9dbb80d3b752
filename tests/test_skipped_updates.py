"""Updates that are left out where the gradient leaps."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from nflows_mixer.training import AtomicCheckpointIO, FlowModule, Recipe
from nflows_mixer.transforms import LULinear
from tests.training import StopAt, assert_same, noise_data, plain, run, tiny, train, train_by_hand

ARGUMENTS = {"learning_rate": 1e-2, "steps": 8, "batch_size": 10, "gradient_skip": 100.0}
LEFT_OUT = "the gradient's norm is .* not finite; this update is left out"


class Leaping(FlowModule):
    """A loss that is multiplied at some steps."""

    def __init__(self, flow, leaps, **recipe):
        super().__init__(flow, Recipe(**ARGUMENTS | recipe), seed=5)
        self.leaps = leaps

    def loss(self, images, context, noise, labels):
        loss, bits = super().loss(images, context, noise, labels)
        factor = self.leaps.get(self.global_step, 1.0)
        return loss * factor, bits * factor


@plain
@pytest.mark.parametrize("leap", [1e6, math.inf, math.nan])
def test_update_that_is_left_out_moves_nothing(leap):
    flow, data = tiny(), noise_data()
    twin = copy.deepcopy(flow)
    with pytest.warns(UserWarning, match=f"step [26]: {LEFT_OUT}"):
        module = train(Leaping(flow, {2: leap, 6: leap}), data)
    norms = train_by_hand(twin, data, module.recipe, 5, left_out=(2, 6))
    assert module.skipped_updates.total == 2 and max(norms) < 100
    assert_same(flow, twin)  # and Adam's moments are as if those steps had not been


class Overflowing(Leaping):
    """A forward pass that overflows at step 3, and what the statistics are before and behind it."""

    def loss(self, images, context, noise, labels):
        if self.global_step != 3:
            return super().loss(images, context, noise, labels)
        weights = next(part for part in self.flow.modules() if isinstance(part, LULinear)).packed
        before = weights.detach().clone()
        weights.data.fill_(1e30)
        self.before = copy.deepcopy(statistics_of(self.flow))
        found = super().loss(images, context, noise, labels)
        self.broken = copy.deepcopy(statistics_of(self.flow))
        weights.data.copy_(before)
        return found

    def optimizer_step(self, *arguments, **keywords):
        super().optimizer_step(*arguments, **keywords)
        if hasattr(self, "broken") and not hasattr(self, "behind"):
            self.behind = copy.deepcopy(statistics_of(self.flow))


def statistics_of(flow):
    norms = [part for part in flow.modules() if isinstance(part, nn.BatchNorm1d)]
    return [buffer for norm in norms for buffer in norm.buffers()]


@pytest.mark.filterwarnings(f"ignore:.*{LEFT_OUT}")
def test_statistics_of_a_batch_that_is_left_out_are_left_out_too(tmp_path):
    module = Overflowing(tiny(norm="batch"), {}, ema_decay=0.8)
    results = run(module, noise_data(), tmp_path)
    assert results["skipped_updates"] == 1
    assert not all(torch.isfinite(buffer.float()).all() for buffer in module.broken)
    assert len(module.before) > 3
    assert all(torch.equal(one, other) for one, other in zip(module.before, module.behind))
    assert all(math.isfinite(bits) for bits in results["bits_per_dim"].values())


@plain
def test_norm_is_that_before_it_is_bounded():
    flow, data = tiny(), noise_data()
    module = Leaping(copy.deepcopy(flow), {3: 30.0}, gradient_clip=0.01, gradient_skip=2.0)
    norms = train_by_hand(copy.deepcopy(flow), data, module.recipe, 5, left_out=(3,))
    others = norms[:3] + norms[4:]
    assert 0.01 < max(others) < 2 < 30 * norms[3]
    with pytest.warns(UserWarning, match=f"step 3: {LEFT_OUT}"):
        assert train(module, data).skipped_updates.total == 1


@plain
def test_run_that_only_leaps_is_stopped():
    flow = tiny()
    with pytest.warns(UserWarning, match=LEFT_OUT):
        with pytest.raises(FloatingPointError, match="step 12: .* after 10 updates left out, got"):
            train(Leaping(flow, dict.fromkeys(range(2, 20), 1e6), steps=20), noise_data())
    # Not so where one update in eleven can be made.
    leaps = dict.fromkeys([*range(2, 12), *range(13, 20)], 1e6)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert train(Leaping(flow, leaps, steps=20), noise_data()).skipped_updates.total == 17


@pytest.mark.filterwarnings(f"ignore:.*{LEFT_OUT}")
def test_resumed_run_leaves_out_the_same_and_counts_on(tmp_path):
    data, leaps = noise_data(), dict.fromkeys(range(2, 12), math.inf)
    start, stop = tiny(), {"checkpoint_every": 3}

    def ours(leaps):
        return Leaping(copy.deepcopy(start), leaps, steps=14, ema_decay=0.8)

    whole = run(ours(leaps), data, tmp_path / "whole")
    out = tmp_path / "killed"
    with pytest.raises(InterruptedError):
        run(ours(leaps), data, out, callbacks=[StopAt(7)], **stop)
    resumed = run(ours(leaps), data, out, resume=True, **stop)
    assert whole["skipped_updates"] == resumed["skipped_updates"] == 10
    assert whole["bits_per_dim"] == resumed["bits_per_dim"]
    states = [AtomicCheckpointIO().load_checkpoint(f) for f in tmp_path.glob("*/last.ckpt")]
    first, second = (state["state_dict"] for state in states)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((out / "results.json").read_text())["skipped_updates"] == 10
    # Nor is the run given up later than it would have been.
    worse, out = dict.fromkeys(range(2, 14), math.inf), tmp_path / "given up"
    with pytest.raises(InterruptedError):
        run(ours(worse), data, out, callbacks=[StopAt(7)], **stop)
    with pytest.raises(FloatingPointError, match="step 12: .* after 10 updates left out"):
        run(ours(worse), data, out, resume=True, **stop)
