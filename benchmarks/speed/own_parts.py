"""A coupling, a conditioner and a linear block of one's own beside the built-in ones.

    python -m benchmarks.speed.own_parts

Each does the arithmetic of a part of the library, written anew outside of the package on its public
base: what is measured is what it costs not to be built in. A training step of a CIFAR-10 MixerFlow
of two layers, batches of 64 and 8, in one interleaved run; ratios of the time of the flow with the
own part to that of the built-in one, medians of the rounds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import tables
from benchmarks.speed.variants import Setting, Variant
from benchmarks.timing import environment, interleaved, ratios
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


def main(rounds: int = 9, out: str = str(Path(__file__).parent / "results")):
    """Time flows with a part of one's own beside those with the built-in one.

    Args:
        rounds: in each of which every flow runs once.
        out: folder for the results.
    """
    torch.set_num_threads(1)
    tasks = {}
    for part, both in PAIRS.items():
        for size in (64, 8):
            for kind, options in zip(("own", "built-in"), both):
                setting = Setting(num_layers=2, batch_size=size, changes=options)
                variant = Variant(setting.flow(), setting)
                tasks[f"{part}, batch {size}, {kind}"] = variant.forward_backward
    seconds = interleaved(tasks, rounds)
    titles = [name.removesuffix(", own") for name in tasks if name.endswith(", own")]
    results = {
        "rounds": rounds,
        "own / built-in": {
            title: ratios(seconds, f"{title}, own", f"{title}, built-in") for title in titles
        },
        **environment(),
    }
    tables.write("own parts", Path(out, "own-parts-cpu.json"), results)


if __name__ == "__main__":
    auto_cli(main)
