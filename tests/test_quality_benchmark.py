"""The benchmark of time to quality: whose rung counts, and that its command runs."""

import json

import normflows as nf
import pytest
import torch

from benchmarks import quality
from benchmarks.papers.models import MODELS
from benchmarks.quality import CLIMBS, REFERENCE, Climb, Setting, climbed, reached
from benchmarks.sizes import parameters_of
from tests.helpers import moved

SHAPE = (3, 16, 16)
pytestmark = pytest.mark.filterwarnings("ignore:torch.lu is deprecated")


@pytest.mark.parametrize("model", CLIMBS)
def test_models_are_as_large_as_each_other(model):
    count = parameters_of(MODELS[model].at("small", SHAPE, 256))
    assert count == pytest.approx(455_131, rel=0.01)


@torch.no_grad()
def test_the_reference_is_the_multiscale_flow_of_normflows():
    flow = MODELS[REFERENCE].at("small", SHAPE, 256)
    values = torch.randn(5, *SHAPE).cumsum(2)
    scaling, *parts = flow._transform._transforms
    flow._transform(values)  # the first batch initializes
    moved(flow.double(), 0.01)
    blocks = [part.flow for part in parts if hasattr(part, "flow")][::-1]
    levels = [[*half, nf.flows.Squeeze()] for half in (blocks[:8], blocks[8:])]
    bases = [nf.distributions.DiagGaussian(shape) for shape in ((24, 4, 4), (6, 8, 8))]
    whole = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], class_cond=False).double()
    for parameter in flow._distribution.parameters():
        parameter.zero_()  # where the bases of both start
    scaled, of_scaling = scaling(values.double())
    expected = whole.log_prob(scaled, None) + of_scaling
    latents, logabsdet = flow._transform(values.double())
    found = flow._distribution.log_prob(latents) + logabsdet
    assert torch.allclose(found, expected, rtol=1e-10)


def ran(model, steps, rate, seed, bits, seconds):
    figures = {"validation": bits, "test": bits + 1, "train_cpu_seconds": seconds}
    key = {"model": model, "steps": steps, "learning_rate": rate, "seed": seed}
    return {**key, "parameters": 9, **figures}


def test_the_first_rung_whose_mean_over_seeds_reaches_the_target_counts():
    runs = [ran("a", 50, 0.01, 0, 4.9, 1.0), ran("a", 50, 0.01, 1, 5.2, 1.0)]
    runs += [ran("a", 100, 0.01, 0, 4.8, 2.0), ran("a", 100, 0.01, 1, 5.0, 3.0)]
    runs += [ran("a", 100, 0.1, 0, 1.0, 2.0), {**ran("a", 100, 0.1, 1, 1, 2), "failed": "NaN"}]
    climb = Climb((0.01, 0.1), (50, 100, 200))
    found = reached(runs, "a", climb, 5.0)
    assert (found["steps"], found["learning_rate"]) == (100, 0.01)
    assert found["train_cpu_seconds"] == [2.0, 3.0] and found["test"] == [5.8, 6.0]
    assert reached(runs, "a", climb, 4.7) is reached(runs, "a", climb, 5.0, below=100) is None


def test_models_climb_in_turn_until_they_reach_the_target(monkeypatch, tmp_path):
    made = []

    def rung(model, steps, rate, seed, *_):
        made.append((model, steps, rate, seed))
        # The reference is best at its lower rate; the other one reaches it with half the steps.
        bits = 6 - steps / 100 + (rate if model == REFERENCE else -2)
        return ran(model, steps, rate, seed, bits, steps / 10)

    monkeypatch.setattr(quality, "rung", rung)
    climbs = {REFERENCE: Climb((0.1, 0.2), (200, 400)), "glow-11": Climb((1,), (100, 200, 400))}
    results = {"runs": []}
    given = (climbs, [0, 1], None, Setting("small", 64, 8), tmp_path / "quality.json")
    climbed(results, *given)
    assert made[:4] == [(REFERENCE, 400, rate, seed) for seed in (0, 1) for rate in (0.1, 0.2)]
    last = [("glow-11", 100, 1, 0), ("glow-11", 100, 1, 1)]
    last += [(n, 200, r, seed) for seed in (0, 1) for n, r in ((REFERENCE, 0.1), ("glow-11", 1))]
    assert made[4:] == last
    seconds = {name: of["train_cpu_seconds"] for name, of in results["reached"].items()}
    assert seconds == {REFERENCE: [40.0, 40.0], "glow-11": [20.0, 20.0]}
    # A command that was stopped makes those alone that are not kept.
    kept = json.loads((tmp_path / "quality.json").read_text())
    del made[:], kept["runs"][-1]
    climbed(kept, *given)
    assert made == last[-1:] and kept["reached"] == results["reached"]


@pytest.mark.filterwarnings("ignore")  # of normflows, and of Lightning on processes that load
def test_command_runs(tmp_path):
    quality.main(seeds=[0], out=str(tmp_path), smoke=True)
    results = json.loads((tmp_path / "quality.json").read_text())
    assert set(results["reached"]) == set(CLIMBS) == {run["model"] for run in results["runs"]}
    page = (tmp_path / "quality.md").read_text()
    assert all(MODELS[name].label in page for name in CLIMBS)
    with pytest.raises(ValueError, match="seeds differ"):
        quality.main(seeds=[1], out=str(tmp_path), smoke=True)
