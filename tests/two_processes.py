"""What each of two processes does for test_distributed.py, which reads what they save.

python -m tests.two_processes RANK FOLDER
"""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from torch import distributed

from nflows_mixer._distributed import all_reduce_max
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.data import load_images
from nflows_mixer.flows import denseflow, mixerflow
from nflows_mixer.nn import BatchNorm1d, BatchNorm2d, DenseAttentionConditioner, ResidualMLP
from nflows_mixer.training import FlowModule, Recipe, fit
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    LULinear,
    ReversibleCompositeTransform,
)

DIGITS = {"image_shape": (1, 8, 8), "levels": 17}


def maf(features):
    """nflows' networks with torch's BatchNorm, beside our own."""
    return MaskedAffineAutoregressiveTransform(features, 16, num_blocks=1, use_batch_norm=True)


def mixer(**options):
    sizes = {"patch_size": 2, "num_layers": 2, "hidden_features": 16, "channel_flow": maf}
    return mixerflow(**DIGITS, **sizes, norm="batch", **options)


def dense():
    """Draws noise on its way."""
    sizes = {"units": [2, 1], "modules": [1, 1], "growth": 2, "noise_channels": 4}
    network = partial(
        DenseAttentionConditioner, hidden_channels=4, num_layers=1, growth=4, attention_channels=4
    )
    return denseflow(**DIGITS, **sizes, conditioner=network, norm="batch")


RECIPE = Recipe(steps=3, batch_size=40, ema_decay=0.8)
FLIPPED = Recipe(steps=2, batch_size=20, flip=True, decay=0.5)
# A flow, its recipe, and arguments of fit; 61 and 15 are uneven over two processes.
RUNS = {
    "accumulated": (mixer, RECIPE, {"accumulate_grad_batches": 2, "evaluation_images": 61}),
    "constant memory": (partial(mixer, memory="constant"), RECIPE, {"evaluation_images": 61}),
    "noise and flips": (dense, FLIPPED, {"evaluation_images": 15}),
}


def train(name, out, devices):
    """Train one of the runs, on this many processes."""
    make, recipe, options = RUNS[name]
    torch.manual_seed(0)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "precision": "64-true"}
    module = FlowModule(make(), recipe)
    return fit(module, load_images("digits"), out, devices=devices, **quiet, **options)


def normalize(rank, folder):
    """Uneven parts of one batch; each process saves what the other cannot know."""
    results = {}
    for name, inputs in torch.load(folder / "batch.pt", weights_only=True).items():
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
            **layer.state_dict(),
            **{f"norm.{k}": v for k, v in norm.state_dict().items()},
        }
    results["max"] = all_reduce_max(torch.tensor([rank, -torch.inf, torch.nan if rank else 0.0]))
    return results


class Odd(Transform):
    """An inverse that is wrong for the inputs of the second process alone."""

    def forward(self, inputs, context=None):
        return inputs.clone(), inputs.new_zeros(len(inputs))

    def inverse(self, inputs, context=None):
        return inputs + (inputs.mean() > 5), inputs.new_zeros(len(inputs))


def rebuild(rank, folder):
    """Gradients in constant memory, twice, and in full memory."""
    torch.manual_seed(0)
    network = partial(ResidualMLP, hidden_features=8)
    layers = [LULinear(4), AffineCoupling(4, network), Odd(), AffineCoupling(4, network)]
    flow = ReversibleCompositeTransform(layers, memory="constant").double()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows = torch.randn(20, 4, dtype=torch.float64) + 20 * rank
    gradients = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for transform in (flow, flow, CompositeTransform(layers)):
            flow.zero_grad()
            transform(rows)[0].square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in flow.parameters()])
    return {"gradients": gradients, "names": sorted(flow.inexact), "warned": len(caught)}


def break_loss(rank, folder):
    """The loss of one process alone is infinite, with gradients that are finite.

    Returns the error of both, and how many gradients are left where such an update is left out.
    """
    torch.manual_seed(0)
    flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
    images = torch.randint(256, (8, 1, 4, 4), dtype=torch.uint8)
    flow.initialize(images).train()
    noise = torch.rand(images.shape)
    flow.log_prob(images, noise=noise).mean().backward()
    for skip in (None, 1e9):
        module = FlowModule(flow, Recipe(gradient_skip=skip))
        optimizer = module.configure_optimizers()["optimizer"]
        module._last = (images, None, noise, torch.tensor(torch.inf if rank else 1.0))
        try:
            module.configure_gradient_clipping(optimizer)
        except FloatingPointError as error:
            message = str(error)
    return message, sum(parameter.grad is not None for parameter in flow.parameters())


def main(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    # Lightning asks where the processes meet, though they have met already.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    for part in (normalize, rebuild, break_loss):
        torch.save(part(rank, folder), folder / f"{part.__name__}-{rank}.pt")
        distributed.barrier()
    for name in RUNS:
        train(name, folder / "two" / name, devices=2)
    distributed.barrier()  # a process that leaves before the other is done may abort it
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
