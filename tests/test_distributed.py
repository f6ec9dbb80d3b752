"""Two processes end with the parameters of one, and each image is evaluated once."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from nflows_mixer._distributed import all_reduce_max
from nflows_mixer.cli import run
from nflows_mixer.nn import BatchNorm1d, BatchNorm2d, all_reduce_batch_norm
from nflows_mixer.transforms import ActNorm

ARGUMENTS = [
    "--model.num_layers=2",
    "--model.hidden_features=16",
    # torch's BatchNorm in a network of nflows, beside our own
    "--model.channel_flow=nflows.transforms.MaskedAffineAutoregressiveTransform",
    "--model.channel_flow.hidden_features=16",
    "--model.channel_flow.use_batch_norm=true",
    "--model.norm=batch",
    "--recipe.steps=8",
    "--recipe.batch_size=40",
    "--recipe.ema_decay=0.8",
    "--trainer.precision=64-true",
    "--evaluation_images=61",  # uneven over two processes
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


@pytest.mark.parametrize("parts, memory", [(1, "full"), (2, "full"), (1, "constant")])
def test_two_processes_end_as_one(tmp_path, parts, memory):
    steps = 3 if (parts, memory) != (1, "full") else 8
    options = [f"--trainer.accumulate_grad_batches={parts}", f"--model.memory={memory}"]
    arguments = ["train", *ARGUMENTS, *options, f"--recipe.steps={steps}"]
    one = run([*arguments, "--out", str(tmp_path / "one")])
    command = [sys.executable, "-m", "nflows_mixer", *arguments]
    out = ["--trainer.devices", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run([*command, *out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two/results.json").read_text())
    assert two["machine"].startswith("2 x")
    states = [
        torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("one", "two")
    ]
    moved = 0
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-6, msg=name)
        moved += name.endswith("running_var") and not torch.equal(value, torch.ones_like(value))
    assert moved > 20
    for part, count in (("train", 61), ("validation", 56), ("test", 61)):
        assert one["evaluated_images"][part] == two["evaluated_images"][part] == count
        for figure in ("bits_per_dim", "worst_image"):
            assert two[figure][part] == pytest.approx(one[figure][part], abs=1e-6)
    lines = (tmp_path / "two/history.json").read_text()
    assert len(json.loads(lines)) == len(json.loads((tmp_path / "one/history.json").read_text()))


def test_two_processes_end_as_one_with_all_noise_and_flips(tmp_path):
    """A DenseFlow, which draws noise on its way; its decay is by epochs of the data."""
    model = ["modules=[1,1]", "growth=2", "noise_channels=4", "norm=batch"]
    model += [f"conditioner.{name}" for name in ("hidden_channels=4", "num_layers=1", "growth=4")]
    recipe = ["steps=2", "batch_size=20", "flip=true", "decay=0.5", "optimizer=adam"]
    arguments = ["train", "--config=denseflow-digits", *(f"--model.{a}" for a in model)]
    arguments += ARGUMENTS[-4:]
    arguments += [*(f"--recipe.{a}" for a in recipe), "--evaluation_images=15"]
    one = run([*arguments, "--out", str(tmp_path / "one")])
    command = [sys.executable, "-m", "nflows_mixer", *arguments, "--trainer.devices=2"]
    out = ["--out", str(tmp_path / "two")]
    done = subprocess.run([*command, *out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two/results.json").read_text())
    assert two["machine"].startswith("2 x") and two["recipe"] == one["recipe"]
    for part, bits in one["bits_per_dim"].items():
        assert two["bits_per_dim"][part] == pytest.approx(bits, abs=1e-6)


# Two processes, with uneven parts of one batch; each saves what the other cannot know.
LAYERS = textwrap.dedent(
    """
    import sys, torch
    from torch import distributed, nn
    from nflows_mixer._distributed import all_reduce_max
    from nflows_mixer.nn import BatchNorm1d, BatchNorm2d, all_reduce_batch_norm
    from nflows_mixer.transforms import ActNorm
    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    batch = torch.load(f"{folder}/batch.pt", weights_only=True)
    results = {}
    for name, inputs in batch.items():
        part = (inputs[:3] if rank == 0 else inputs[3:]).clone().requires_grad_()
        layer = {"rows": BatchNorm1d, "images": BatchNorm2d}[name](2, momentum=None).double()
        for _ in range(2):
            outputs = layer(part)
        weight = torch.arange(outputs.numel(), dtype=outputs.dtype).reshape(outputs.shape)
        (outputs.square() * (1 + rank) * weight).sum().backward()
        norm = ActNorm(2).double()
        norm(part.detach())
        results[name] = {
            "outputs": outputs.detach(),
            "gradient": part.grad,
            "weight_gradient": layer.weight.grad,
            **{k: v for k, v in layer.state_dict().items()},
            **{f"norm.{k}": v for k, v in norm.state_dict().items()},
        }
    results["max"] = all_reduce_max(torch.tensor([rank, -torch.inf, torch.nan if rank else 0.0]))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()  # a process that leaves before the other is done may abort it
    distributed.destroy_process_group()
    """
)


def test_normalisation_sees_the_batch_of_all_processes(tmp_path):
    batch = {
        "rows": 3 * torch.randn(8, 2, dtype=torch.float64) + 5,
        "images": torch.randn(7, 2, 3, 3, dtype=torch.float64),
    }
    torch.save(batch, tmp_path / "batch.pt")
    runs = [
        subprocess.Popen([sys.executable, "-c", LAYERS, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    assert first["max"][:2].tolist() == second["max"][:2].tolist() == [1.0, -torch.inf]
    assert first["max"][2].isnan() and second["max"][2].isnan()
    for name, inputs in batch.items():
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


# An inverse that is wrong for the inputs of the second process alone.
REBUILT = textwrap.dedent(
    """
    import sys, warnings, torch
    from functools import partial
    from torch import distributed, nn
    from nflows.transforms import Transform
    from nflows_mixer.core.composite import CompositeTransform
    from nflows_mixer.nn import ResidualMLP
    from nflows_mixer.transforms import AffineCoupling, LULinear, ReversibleCompositeTransform
    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)

    class Odd(Transform):
        def forward(self, inputs, context=None):
            return inputs.clone(), inputs.new_zeros(len(inputs))

        def inverse(self, inputs, context=None):
            return inputs + (inputs.mean() > 5), inputs.new_zeros(len(inputs))

    torch.manual_seed(0)
    network = partial(ResidualMLP, hidden_features=8)
    layers = [LULinear(4), AffineCoupling(4, network), Odd(), AffineCoupling(4, network)]
    flow = ReversibleCompositeTransform(layers).double()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows = torch.randn(20, 4, dtype=torch.float64) + 20 * rank
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for transform in (flow, flow, CompositeTransform(layers)):
            flow.zero_grad()
            transform(rows)[0].square().sum().backward()
            results.append([parameter.grad.clone() for parameter in flow.parameters()])
    names = sorted(flow.inexact)
    torch.save({"gradients": results, "names": names, "warned": len(caught)}, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
    """
)


def test_what_one_process_cannot_rebuild_all_keep(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", REBUILT, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["names"] == ["_transforms.2"] and found["warned"] == 1
        *rebuilt, expected = found["gradients"]
        for gradients in rebuilt:
            torch.testing.assert_close(gradients, expected)


# The loss of one process alone is infinite, with gradients that are finite.
BROKEN = textwrap.dedent(
    """
    import sys, torch
    from torch import distributed
    from nflows_mixer.flows import mixerflow
    from nflows_mixer.training import FlowModule, Recipe
    rank, folder = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
    images = torch.randint(256, (8, 1, 4, 4), dtype=torch.uint8)
    flow.initialize(images).train()
    module = FlowModule(flow, Recipe())
    optimizer = module.configure_optimizers()["optimizer"]
    noise = torch.rand(images.shape)
    flow.log_prob(images, noise=noise).mean().backward()
    module._last = (images, None, noise, torch.tensor(torch.inf if rank else 1.0))
    stopped = False
    try:
        module.configure_gradient_clipping(optimizer)
    except FloatingPointError as error:
        stopped = "step 0: expected a finite loss" in str(error)
    distributed.barrier()
    distributed.destroy_process_group()
    sys.exit(not stopped)
    """
)


def test_loss_that_breaks_in_one_process_stops_all(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", BROKEN, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    try:
        assert [run.wait(timeout=120) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()


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
