"""The floor: a model's convolutions alone, on hot buffers.

What is left of a DenseFlow when activations, normalization, attention, concatenation and the flow
itself cost nothing. The convolutions are those that a call of the flow makes, found by hooks, and
the invertible 1x1 ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.transforms import Coupling, InvertibleConv1x1

ALONE = "convolutions alone"
"""What tables and pictures call it."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of feature maps, as many columns and rows of zeros around as it says."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    inputs: tuple[int, ...]
    """Height and width that it reads."""
    outputs: tuple[int, ...]
    """Height and width that it writes."""
    layout: torch.memory_format = torch.contiguous_format
    """Of inputs and outputs: what the model has, or what is faster."""

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        (height, width), (rows, columns) = self.outputs, self.kernel
        return self.in_channels * self.out_channels * rows * columns * height * width

    def buffers(self, batch_size: int, device: str, dtype: torch.dtype) -> _Buffers:
        """Return what runs it for a batch."""
        return _Buffers(self, batch_size, device, dtype)


def convolutions(flow: nn.Module, task: Callable[[], object]) -> list[Convolution]:
    """Return the convolutions of a call: those of networks in their order, then the invertible."""
    found: list[Convolution] = []
    sizes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        sizes[module] = tuple(outputs.shape[2:])
        geometry = (module.kernel_size, module.stride, module.padding)
        of = (module.in_channels, module.out_channels, *geometry)
        found.append(Convolution(*of, tuple(inputs[0].shape[2:]), sizes[module]))

    hooks = [
        part.register_forward_hook(record) for part in flow.modules() if isinstance(part, nn.Conv2d)
    ]
    try:
        task()
    finally:
        for hook in hooks:
            hook.remove()
    for step in (part for part in flow.modules() if isinstance(part, CompositeTransform)):
        # A 1x1 convolution has the resolution of the coupling beside it, whose network was called.
        couplings = [part for part in step._transforms if isinstance(part, Coupling)]
        inside = [sizes[part] for each in couplings for part in each.modules() if part in sizes]
        for part in step._transforms:
            if inside and isinstance(part, InvertibleConv1x1):
                of = (part.channels, part.channels, (1, 1), (1, 1), (0, 0))
                found.append(Convolution(*of, inside[-1], inside[-1]))
    return found


class _Buffers:
    def __init__(self, of: Convolution, batch_size: int, device: str, dtype: torch.dtype) -> None:
        buffer = partial(torch.randn, device=device, dtype=dtype)
        self.inputs = buffer(batch_size, of.in_channels, *of.inputs).to(memory_format=of.layout)
        self.weight = buffer(of.out_channels, of.in_channels, *of.kernel)
        gradient = buffer(batch_size, of.out_channels, *of.outputs)
        self.outputs_gradient = gradient.to(memory_format=of.layout)
        self.stride, self.padding = of.stride, of.padding

    @torch.no_grad()
    def forward(self) -> Tensor:
        return F.conv2d(self.inputs, self.weight, None, self.stride, self.padding)

    def backward(self) -> tuple[Tensor, Tensor]:
        inputs_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
            self.outputs_gradient,
            self.inputs,
            self.weight,
            None,
            self.stride,
            self.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (True, True, False),
        )
        return inputs_gradient, weight_gradient
