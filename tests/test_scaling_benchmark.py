"""The benchmark of structured linear blocks: what it counts, and that its commands run."""

import json

import numpy as np
import pytest
import torch

from benchmarks.scaling import likelihood, measure
from benchmarks.scaling.models import mixer
from benchmarks.sizes import parameters_of


def test_exponents_of_costs_that_are_known():
    rows = [
        {
            "model": "known",
            "way": "any",
            "size": size,
            "cpu_seconds": 1e-6 * size**3,
            "multiply_adds": size**2 if size < 64 else size**4 / 64**2,
        }
        for size in (16, 32, 64, 128)
    ]
    (found,) = measure.exponents(rows)
    assert found["cpu_seconds"] == pytest.approx(1.5)
    assert found["last_cpu_seconds"] == pytest.approx(1.5)
    assert found["last_multiply_adds"] == pytest.approx(2.0)
    assert 1.0 < found["multiply_adds"] < 2.0


@pytest.mark.parametrize("name", ["lu", "butterfly", "kronecker", "butterfly-root", "none"])
def test_flows_differ_in_the_linear_block_alone(name):
    options = {"num_layers": 1, "num_flow_layers": 2, "hidden_features": 8}
    flow, plain = (mixer(each, 24, 8, **options) for each in (name, "none"))
    images = torch.randint(256, (9, 3, 24, 24), dtype=torch.uint8)
    assert flow.initialize(images).log_prob(images).shape == (9,)
    more = parameters_of(flow) - parameters_of(plain)
    # Rows of 192, and columns of the 4 patches inside the shift, each in two flow layers: D + D^2
    # for a full block.
    assert (more > 0) == (name != "none")
    if name == "lu":
        assert more == 2 * (192 + 192**2 + 4 + 4**2)


@pytest.mark.slow
def test_cost_command_runs(tmp_path):
    measure.main([16, 32], ["lu", "kronecker"], pixels_per_batch=1024, rounds=1, out=str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["model"] for row in results["rows"]} == {"lu", "kronecker", "glow"}
    assert (tmp_path / "results.md").exists()
    assert (tmp_path / "results.png").stat().st_size > 0


@pytest.mark.filterwarnings("ignore")  # Lightning's, of few processes that load images
def test_likelihood_command_runs(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("train", "test"):
        images = generator.integers(256, size=(60, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.zeros(60, int))
    files = (str(tmp_path / "train.npz"), str(tmp_path / "test.npz"))
    small = {"layers": 1, "flow_layers": 1, "hidden_features": 8, "steps": 2, "batch_size": 8}
    likelihood.main(
        *files, "noise", ["lu", "none"], [0], **small, evaluated=8, out=str(tmp_path / "out")
    )
    results = json.loads((tmp_path / "out/likelihood.json").read_text())
    assert len(results["runs"]) == 2
    assert (tmp_path / "out/likelihood.md").exists()
