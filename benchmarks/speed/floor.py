"""The floor: a model's matrix products alone, as plain products on hot buffers.

What no implementation of the same products on the same machine can beat: no activations, no
normalization, no memory that is not in a cache. The products are read off the flow itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms import (
    ChannelMixingTransform,
    LULinear,
    PatchMixerTransform,
    PatchMixingTransform,
    PatchTransform,
)


@dataclass(frozen=True)
class Product:
    """The product of ``rows`` rows of each image, of length ``inputs``, with one matrix."""

    rows: int
    inputs: int
    outputs: int

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return self.rows * self.inputs * self.outputs

    def buffers(self, batch_size: int, device: str, dtype: torch.dtype) -> _Buffers:
        """Return what runs it for a batch."""
        return _Buffers(self, batch_size, device, dtype)


def matrix_products(flow: nn.Module, collapsed: bool = False) -> list[Product]:
    """Return the products of the channel and patch flows, in the order of the modules.

    Of each linear block one, with L U multiplied out; of each conditioner one for each layer.
    The 1x1 convolution over the colours (9 multiply-adds per pixel) is left out.

    Args:
        flow: a MixerFlow.
        collapsed: whether the linear tail of residual conditioners is one product, see
            ``collapsed_sizes``.
    """
    products = []
    for mixer in (part for part in flow.modules() if isinstance(part, PatchMixerTransform)):
        patches = _first(mixer, PatchTransform)
        for mixing, rows in (
            (_first(mixer, ChannelMixingTransform), patches.n_patches),
            (_first(mixer, PatchMixingTransform), patches.channels),
        ):
            products += [Product(rows, *size) for size in _sizes(mixing, collapsed)]
    return products


def collapsed_sizes(network: ResidualMLP) -> list[tuple[int, int]]:
    r"""Sizes (inputs, outputs) of a residual conditioner's products, its linear tail collapsed.

    Nothing non-linear follows the last block's second layer, so that

    .. math:: W_3 (h + W_2 r + b_2) + b_3 = (W_3 W_2)\, r + W_3 h + c,

    and where h = W_0 a + b_0, of one block, :math:`W_3 h` is :math:`(W_3 W_0)\, a` and a constant.
    """
    *kept, _, final = _linear_sizes(network)
    hidden, outputs = final
    skip = kept[0][0] if len(network.blocks) == 1 else hidden
    return [*kept, (hidden, outputs), (skip, outputs)]


def multiply_adds(operations: Sequence[Any]) -> int:
    """Multiply-adds of one image, forward."""
    return sum(operation.multiply_adds for operation in operations)


class Floor:
    """Runs operations for a batch; equal ones share their buffers, which stay in the cache.

    Args:
        operations: of one image; each has ``buffers``, which return what runs it for a batch.
        batch_size: images.
        device: of the buffers.
        dtype: of the buffers.
    """

    def __init__(
        self,
        operations: Sequence[Any],
        batch_size: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        buffers = {each: each.buffers(batch_size, device, dtype) for each in operations}
        self.steps = [buffers[each] for each in operations]

    def forward(self) -> None:
        """Those of one evaluation, or of sampling."""
        for step in self.steps:
            step.forward()

    def training(self) -> None:
        """Those of one training step: forward, and of inputs and weights backward."""
        for step in self.steps:
            step.forward()
        for step in reversed(self.steps):
            step.backward()


class _Buffers:
    def __init__(self, product: Product, batch_size: int, device: str, dtype: torch.dtype) -> None:
        def buffer(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        rows = product.rows * batch_size
        self.weight = buffer(product.outputs, product.inputs)
        self.weight_gradient = torch.empty_like(self.weight)
        self.inputs = buffer(rows, product.inputs)
        self.inputs_gradient = torch.empty_like(self.inputs)
        self.outputs = buffer(rows, product.outputs)
        self.outputs_gradient = buffer(rows, product.outputs)

    def forward(self) -> None:
        torch.mm(self.inputs, self.weight.t(), out=self.outputs)

    def backward(self) -> None:
        torch.mm(self.outputs_gradient, self.weight, out=self.inputs_gradient)
        torch.mm(self.outputs_gradient.t(), self.inputs, out=self.weight_gradient)


def _sizes(mixing: nn.Module, collapsed: bool) -> list[tuple[int, int]]:
    sizes: list[tuple[int, int]] = []
    inside: set[nn.Module] = set()
    for part in mixing.modules():
        if isinstance(part, LULinear):
            sizes.append((part.features, part.features))
        elif isinstance(part, ResidualMLP):
            sizes += collapsed_sizes(part) if collapsed else _linear_sizes(part)
            inside.update(part.modules())
        elif isinstance(part, nn.Linear) and part not in inside:
            sizes.append((part.in_features, part.out_features))
    return sizes


def _linear_sizes(network: nn.Module) -> list[tuple[int, int]]:
    layers = (part for part in network.modules() if isinstance(part, nn.Linear))
    return [(layer.in_features, layer.out_features) for layer in layers]


def _first(module: nn.Module, kind: type) -> Any:
    return next(part for part in module.modules() if isinstance(part, kind))
