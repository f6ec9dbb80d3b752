"""What is timed of a flow: training, log-likelihoods, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nflows_mixer.flows import MIXERFLOW_PRESETS, ImageFlow, mixerflow
from nflows_mixer.likelihood import bits_per_dim


class Unavailable(Exception):
    """A variant that this machine, or this version, does not have; the message says why."""


@dataclass(frozen=True)
class Setting:
    """The model that variants are of, and what it runs on.

    Args:
        preset: of ``mixerflow``.
        num_layers: mixer layers.
        batch_size: images.
        device: "cpu" or "cuda".
        dtype: of parameters and activations.
        changes: other arguments of ``mixerflow``.
    """

    preset: str = "cifar10"
    num_layers: int = 4
    batch_size: int = 64
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    changes: Mapping[str, Any] = field(default_factory=dict)

    def flow(self, **arguments: Any) -> ImageFlow:
        """Build the model as the library does."""
        return mixerflow(self.preset, num_layers=self.num_layers, **self.changes, **arguments)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return {**MIXERFLOW_PRESETS[self.preset].arguments, **self.changes}["image_shape"]

    def images(self) -> Tensor:
        """Draw the batch that all variants see."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, *self.image_shape)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return images.to(self.device)


class Variant:
    """A flow with what is timed of it; weights away from their start, and data-initialized.

    Args:
        flow: with ``log_prob`` and ``sample``, on uint8 images.
        setting: what it runs on.
        autocast: whether it runs under bf16 autocast.
        products: whether its matrix products are those of the floor.
        compiled: whether it is compiled at its first use.
    """

    def __init__(
        self,
        flow: nn.Module,
        setting: Setting,
        autocast: bool = False,
        products: bool = True,
        compiled: bool = False,
    ) -> None:
        self.flow: Any = flow.to(setting.device, setting.dtype)
        self.images = setting.images()
        self.products = products
        self.compiled = compiled
        self._autocast = torch.autocast(setting.device, torch.bfloat16, enabled=autocast)
        settle(self.flow, self.images, setting.num_layers)
        self.parameters = [p for p in self.flow.parameters() if p.requires_grad]
        # So small a rate that images which no flow fits do no harm in a few steps.
        self._optimizer = torch.optim.Adam(self.parameters, lr=1e-6, fused=False)

    @property
    def num_parameters(self) -> int:
        """Learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters)

    def forward_backward(self) -> None:
        """Mean bits/dim of the batch and its gradients, from none."""
        self._optimizer.zero_grad(set_to_none=True)
        self.add_gradients()

    def loss(self) -> Tensor:
        """Mean bits/dim of the batch."""
        with self._autocast:
            return bits_per_dim(self.flow.log_prob(self.images), self.images.shape[1:]).mean()

    def add_gradients(self) -> None:
        """The loss and its gradients, added to those that are there."""
        self.loss().backward()

    def training_step(self) -> None:
        """``forward_backward``, the gradient's norm bounded by 5, and a step of Adam."""
        self.forward_backward()
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self._optimizer.step()

    @torch.no_grad()
    def log_prob(self) -> Tensor:
        """Log-likelihoods of the batch."""
        with self._autocast:
            return self.flow.log_prob(self.images)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """As many images as a batch has."""
        with self._autocast:
            return self.flow.sample(len(self.images))


def settle(flow: Any, images: Tensor, num_layers: int) -> None:
    """Move the weights off their start, and set normalizations from a batch, in training mode.

    The identity that flows start at hides what rounding, overflow and zeros cost or save. The
    standard deviation is 0.01, and of more than 30 layers 0.01 * 30 / layers: with 0.01, numbers
    grow so much through 60 layers that float32 does not invert them.
    """
    std = 0.01 * min(1.0, 30 / num_layers)
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in flow.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter))
        for norm in norms:
            norm.momentum = 1.0
        flow.train()
        flow.log_prob(images)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
