"""What tests of all rooms share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn


def expect(kind: type[Exception], pattern: str):
    """The three parts of every message: expected, got, and what to do."""
    return pytest.raises(kind, match=f"(?s)(?=.*expected .*got .*; ).*{pattern}")


@torch.no_grad()
def moved(module: nn.Module, std: float = 0.1) -> nn.Module:
    """The module, each of its parameters moved at random."""
    for parameter in module.parameters():
        parameter += std * torch.randn_like(parameter)
    return module


def log_prob_by_autograd(flow, images, context, noise):
    """Log-densities [B] of dequantized images under a standard normal, of autograd's Jacobians."""
    embedded = flow._embedding_net(context)
    found = []
    for n, values in enumerate(images + noise):
        one = None if embedded is None else embedded[n : n + 1]

        def latents(values, one=one):
            return flow._transform(values[None], one)[0][0]

        jacobian = torch.autograd.functional.jacobian(latents, values)
        log_det = torch.linalg.slogdet(jacobian.reshape(values.numel(), -1))[1]
        normal = -0.5 * (latents(values).square() + math.log(2 * math.pi)).sum()
        found.append(normal + log_det)
    return torch.stack(found)


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def pixels(count: int, shape: tuple[int, ...] = (1, 6, 6), levels: int = 17) -> torch.Tensor:
    """Images of random pixels."""
    return torch.randint(levels, (count, *shape), dtype=torch.uint8)


class Constant(nn.Module):
    """A conditioner that gives the same parameters for every row."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.as_tensor(values)

    def forward(self, inputs):
        return self.values.expand(len(inputs), -1)


@torch.no_grad()
def central_difference(loss, tensor, direction, step=1e-6):
    """Slope of a loss along a direction of one of the tensors that it is made of."""
    ends = []
    for factor in (1, -2):
        tensor.add_(direction, alpha=factor * step)
        ends.append(loss())
    tensor.add_(direction, alpha=step)
    return (ends[0] - ends[1]) / (2 * step)


@torch.no_grad()
def settled(net: nn.Module, std: float = 0.1) -> nn.Module:
    """In float64 and evaluation mode, all parameters and statistics away from their start."""
    net.double().eval()
    for tensor in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
        tensor += std * torch.rand_like(tensor)
    return net
