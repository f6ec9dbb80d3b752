"""A coupling, a conditioner and a linear block of one's own beside the built-in ones.

    python -m benchmarks.speed.own_parts

Each does the arithmetic of a part of the library, written anew outside of the package on its public
base: what is measured is what it costs not to be built in. A training step of a CIFAR-10 MixerFlow
of two layers, batches of 64 and 8, in one interleaved run; ratios of the time of the flow with the
own part to that of the built-in one, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.environment import machine, versions
from benchmarks.speed.interleaved import interleaved, ratios
from nflows_mixer import ImageFlow, mixerflow
from nflows_mixer.nn import MLP, Conditioner
from nflows_mixer.nn.conditioner import zero_linear
from nflows_mixer.transforms import Coupling, LinearBlock


class OwnAffine(Coupling):
    """The affine coupling with the exponential scale."""

    parameters_per_feature = 2

    @staticmethod
    def elementwise(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        log_scale, shift = parameters.chunk(2, dim=1)
        return moved * log_scale.exp() + shift, log_scale.sum(1)

    @staticmethod
    def elementwise_inverse(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo shift and scale."""
        log_scale, shift = parameters.chunk(2, dim=1)
        return (moved - shift) * (-log_scale).exp(), -log_scale.sum(1)


class OwnMLP(Conditioner):
    """The MLP with LayerNorm: two hidden layers."""

    def __init__(self, in_features: int, out_features: int, hidden_features: int = 128) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in (in_features, hidden_features):
            self.layers += [nn.Linear(width, hidden_features), nn.LayerNorm(hidden_features)]
        self.last = zero_linear(hidden_features, out_features)

    @staticmethod
    def evaluate(inputs: Tensor, weights: tuple, options: tuple) -> tuple[Tensor, tuple]:
        """Linear, norm and GELU, twice; then the last linear layer."""
        *hidden, last, last_bias = weights
        rows = inputs
        for i in range(0, len(hidden), 4):
            rows = F.linear(rows, hidden[i], hidden[i + 1])
            rows = F.gelu(F.layer_norm(rows, rows.shape[1:], hidden[i + 2], hidden[i + 3]))
        return F.linear(rows, last, last_bias), ()


class OwnLU(LinearBlock):
    """L U + b, one block at a time."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.packed = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def weight(self) -> Tensor:
        """L U, [D, D]."""
        unit = torch.eye(self.features, dtype=self.packed.dtype, device=self.packed.device)
        upper = self.packed.triu(1) + self.packed.diagonal().exp().diag()
        return (self.packed.tril(-1) + unit) @ upper

    def logabsdet(self) -> Tensor:
        """Sum of the diagonal, a scalar."""
        return self.packed.diagonal().sum()


NORM = {"norm": "layer"}
PAIRS: dict[str, tuple[dict, dict]] = {
    "coupling": (NORM | {"channel_flow": OwnAffine, "patch_flow": OwnAffine}, NORM),
    "conditioner": ({"conditioner": OwnMLP}, NORM | {"conditioner": MLP}),
    "linear block": (NORM | {"linear": OwnLU}, NORM),
}
"""Part -> arguments of the flow with the own part, and with the built-in one."""


def training_step(flow: ImageFlow, images: Tensor) -> None:
    """Forward and backward."""
    flow.zero_grad()
    (-flow.log_prob(images).mean()).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    folder = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=folder / "own-parts-cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    tasks: dict[str, Callable[[], None]] = {}
    for part, both in PAIRS.items():
        for kind, options in zip(("own", "built-in"), both):
            flow = mixerflow("cifar10", num_layers=2, **options)
            flow.initialize(images)
            for size in (64, 8):
                step = partial(training_step, flow, images[:size])
                tasks[f"{part}, batch {size}, {kind}"] = step
    seconds = interleaved(tasks, arguments.rounds)
    found = {}
    for name in tasks:
        if name.endswith(", own"):
            title = name.removesuffix(", own")
            found[title] = ratios(seconds, name, f"{title}, built-in")
            print(f"{title:24} {found[title]['median']:.3f}")
    result = {"own / built-in": found, "machine": machine("cpu", 1), "versions": versions()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
