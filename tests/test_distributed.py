"""Two processes end with the parameters of one, and each image is evaluated once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nflows_mixer._distributed import all_reduce_max
from nflows_mixer.cli import run
from nflows_mixer.nn import BatchNorm1d, BatchNorm2d, all_reduce_batch_norm
from nflows_mixer.transforms import ActNorm
from tests.training import QUIET_COMMAND
from tests.two_processes import RUNS, train

ROOT = Path(__file__).parents[1]
BATCH = {
    "rows": 3 * torch.randn(8, 2, dtype=torch.float64) + 5,
    "images": torch.randn(7, 2, 3, 3, dtype=torch.float64),
}
# With 61 images, uneven over two processes.
ARGUMENTS = ["train", "--model.num_layers=2", "--model.hidden_features=16", "--recipe.steps=8"]
ARGUMENTS += ["--recipe.batch_size=40", "--recipe.ema_decay=0.8", "--evaluation_images=61"]
ARGUMENTS += ["--trainer.precision=64-true", *QUIET_COMMAND]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes have done all that these tests ask for."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(BATCH, folder / "batch.pt")
    command = [sys.executable, "-m", "tests.two_processes"]
    runs = [subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT) for rank in range(2)]
    try:
        assert [each.wait(timeout=500) for each in runs] == [0, 0]
    finally:
        for each in runs:
            each.kill()
    return folder


def results(folder, part):
    return [torch.load(folder / f"{part}-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_ended_alike(one, two):
    """The folders of two runs, of one process and of two."""
    states = [
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (one, two)
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-6, msg=name)
    figures = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert figures[1]["machine"].startswith("2 x")
    assert figures[0]["recipe"] == figures[1]["recipe"]
    assert figures[0]["evaluated_images"] == figures[1]["evaluated_images"]
    for figure in ("bits_per_dim", "worst_image"):
        for part, value in figures[0][figure].items():
            assert figures[1][figure][part] == pytest.approx(value, abs=1e-6)
    histories = [json.loads((folder / "history.json").read_text()) for folder in (one, two)]
    assert len(histories[0]) == len(histories[1])
    return states[0], figures[0]["evaluated_images"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_as_one(two, tmp_path, name):
    train(name, tmp_path, devices=1)
    state, counts = assert_ended_alike(tmp_path, two / "two" / name)
    assert set(counts.values()) == ({15} if name == "noise and flips" else {61, 56})
    moved = [
        not torch.equal(value, torch.ones_like(value))
        for key, value in state.items()
        if key.endswith("running_var")
    ]
    assert sum(moved) > 20 or name == "noise and flips"


@pytest.mark.slow
def test_command_starts_two_processes_that_end_as_one(tmp_path):
    run([*ARGUMENTS, "--out", str(tmp_path / "one")])
    command = [sys.executable, "-m", "nflows_mixer", *ARGUMENTS]
    out = ["--trainer.devices", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run([*command, *out], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    _, counts = assert_ended_alike(tmp_path / "one", tmp_path / "two")
    assert counts == {"train": 61, "validation": 56, "test": 61}


def test_normalization_sees_the_batch_of_all_processes(two):
    first, second = results(two, "normalize")
    assert first["max"][:2].tolist() == second["max"][:2].tolist() == [1.0, -torch.inf]
    assert first["max"][2].isnan() and second["max"][2].isnan()
    for name, inputs in torch.load(two / "batch.pt", weights_only=True).items():
        inputs.requires_grad_()
        layer = {"rows": nn.BatchNorm1d, "images": nn.BatchNorm2d}[name](2, momentum=None).double()
        for _ in range(2):
            outputs = layer(inputs)
        parts = [part.square() for part in outputs.split([3, len(inputs) - 3])]
        weights = [torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) for p in parts]
        ((parts[0] * weights[0]).sum() + 2 * (parts[1] * weights[1]).sum()).backward()
        norm = ActNorm(2).double()
        norm(inputs.detach())
        expected = {"outputs": outputs.detach(), "gradient": inputs.grad}
        for key, value in expected.items():
            torch.testing.assert_close(torch.cat([first[name][key], second[name][key]]), value)
        # Processes add their parameters' gradients up afterwards.
        total = first[name]["weight_gradient"] + second[name]["weight_gradient"]
        torch.testing.assert_close(total, layer.weight.grad)
        state = {**layer.state_dict(), **{f"norm.{k}": v for k, v in norm.state_dict().items()}}
        for key, value in state.items():
            torch.testing.assert_close(first[name][key], value)
            torch.testing.assert_close(second[name][key], value)


def test_what_one_process_cannot_rebuild_all_keep(two):
    for found in results(two, "rebuild"):
        assert found["names"] == ["_transforms.2"] and found["warned"] == 1
        *rebuilt, expected = found["gradients"]
        for gradients in rebuilt:
            torch.testing.assert_close(gradients, expected)


def test_loss_that_breaks_in_one_process_stops_all(two):
    for message, gradients in results(two, "break_loss"):
        assert "step 0: expected a finite loss" in message and gradients == 0


def test_alone_the_layers_are_those_of_torch():
    for ours, theirs, shape in (
        (BatchNorm1d, nn.BatchNorm1d, (9, 4)),
        (BatchNorm2d, nn.BatchNorm2d, (9, 4, 2, 2)),
    ):
        layer, reference = ours(4), theirs(4)
        inputs = torch.randn(shape)
        for training in (True, False):
            layer.train(training), reference.train(training)
            assert torch.equal(layer(inputs), reference(inputs))
        assert layer.state_dict().keys() == reference.state_dict().keys()
    assert all_reduce_max(torch.tensor(3.0)) == 3


def test_conversion_keeps_the_state_and_leaves_other_layers():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(3)), nn.LayerNorm(3))
    parameters = list(net.parameters())
    names = list(net.state_dict())
    assert all_reduce_batch_norm(net) is net
    assert [type(m) for m in (net[0], net[1][0], net[2])] == [
        BatchNorm1d,
        BatchNorm2d,
        nn.LayerNorm,
    ]
    assert all(a is b for a, b in zip(net.parameters(), parameters))
    assert list(net.state_dict()) == names
