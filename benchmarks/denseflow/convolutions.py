"""The floor: a model's convolutions alone, on hot buffers.

What is left of a DenseFlow when activations, normalisation, attention, concatenation and the flow
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
from nflows_mixer.transforms import InvertibleConv1x1

ALONE = "convolutions alone"
"""What tables and pictures call it."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of feature maps, as many columns and rows of zeros around as it says."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    inputs: tuple[int, int]
    """Height and width that it reads."""
    outputs: tuple[int, int]
    """Height and width that it writes."""

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
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        convolution = _of_module(module, inputs[0], outputs)
        found.append(convolution)
        sizes[module] = convolution.outputs

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
        inside = [sizes[part] for part in step.modules() if part in sizes]
        for part in step._transforms:
            if inside and isinstance(part, InvertibleConv1x1):
                found.append(_pointwise(part.channels, inside[-1]))
    return found


class _Buffers:
    def __init__(self, of: Convolution, batch_size: int, device: str, dtype: torch.dtype) -> None:
        buffer = partial(torch.randn, device=device, dtype=dtype)
        self.inputs = buffer(batch_size, of.in_channels, *of.inputs)
        self.weight = buffer(of.out_channels, of.in_channels, *of.kernel)
        self.outputs_gradient = buffer(batch_size, of.out_channels, *of.outputs)
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


def _of_module(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Convolution:
    assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
    return Convolution(
        module.in_channels,
        module.out_channels,
        _pair(module.kernel_size),
        _pair(module.stride),
        _pair(module.padding),
        _pair(inputs.shape[2:]),
        _pair(outputs.shape[2:]),
    )


def _pointwise(channels: int, size: tuple[int, int]) -> Convolution:
    return Convolution(channels, channels, (1, 1), (1, 1), (0, 0), size, size)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    one, other = values
    return one, other
