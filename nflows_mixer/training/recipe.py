"""How a flow is trained, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.flows.presets import PRESETS


@dataclass(frozen=True)
class Recipe:
    r"""Adam with a linear warm-up, a cosine to zero and a bound on the gradient.

    .. math:: \eta_t = \eta \min\Big(1, \frac{t + 1}{w}\Big)
              \cdot \tfrac12 \Big(1 + \cos \frac{\pi \max(t - w, 0)}{T - w}\Big), \qquad
              w = \lfloor T \cdot \mathrm{warmup} \rfloor

    Args:
        learning_rate: the peak, eta.
        betas: of Adam.
        gradient_clip: largest norm of the gradient.
        steps: optimiser steps, T.
        batch_size: images per step, over all processes together.
        warmup: part of the steps in which the rate rises to its peak; 0 for none.
        ema_decay: of the exponential moving average of the weights (and buffers) that is then
            what is evaluated, sampled and saved; None for none.
        layer_rates: pattern of parameter names -> multiple of the learning rate, such as
            ``{"_transform._transforms.2.*": 0.1}``; 0 freezes. The last pattern that fits counts.

    Raises:
        ValueError: if a value is out of range.

    References:
        MixerFlow, Table 8 (the defaults are its column CIFAR-10, but for steps and batch size).

    Example:
        >>> recipe = Recipe(steps=100, warmup=0.1)
        >>> [round(recipe.schedule(step), 3) for step in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 5.0
    steps: int = 1000
    batch_size: int = 100
    warmup: float = 0.0
    ema_decay: float | None = None
    layer_rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 0:
            raise mismatch("Recipe", "0 steps or more", self.steps, "give an integer")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            expected = "two betas, each 0 or more and below 1"
            raise mismatch("Recipe", expected, self.betas, "(0.9, 0.999) is usual")
        check_positive("Recipe", "batch_size", self.batch_size)
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise mismatch("Recipe", f"{name} above 0", value, "1e-3 and 5 are usual")
        if not 0 <= self.warmup < 1:
            raise mismatch("Recipe", "0 <= warmup < 1", self.warmup, "0.05 is usual")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise mismatch("Recipe", "0 < ema_decay < 1", self.ema_decay, "0.999 is usual")
        if broken := {k: v for k, v in self.layer_rates.items() if not 0 <= v < math.inf}:
            raise mismatch("Recipe", "layer_rates of 0 or more", broken, "0 freezes a layer")

    @classmethod
    def from_preset(cls, preset: str) -> Recipe:
        """Return the recipe of a column of Table 8, at its full length, with a warm-up.

        The table names no warm-up. Without one, Adam's first step of 1e-3 makes a fresh flow of 30
        layers overflow on CIFAR-10 at the second step; here the first twentieth of the steps is
        one.

        Args:
            preset: see ``PRESETS``.

        Example:
            >>> recipe = Recipe.from_preset("animefaces")
            >>> recipe.betas, recipe.warmup
            ((0.9, 0.99), 0.05)
        """
        column = PRESETS[preset]
        return cls(
            column.learning_rate,
            column.betas,
            column.gradient_clip,
            column.steps,
            column.batch_size,
            warmup=0.05,
        )

    def schedule(self, step: int) -> float:
        """Return the multiple of the learning rate at ``step``, counted from 0."""
        rising = int(self.steps * self.warmup)
        if step < rising:
            return (step + 1) / rising
        falling = max(self.steps - rising, 1)
        return 0.5 * (1 + math.cos(math.pi * min(step - rising, falling) / falling))

    def parameter_groups(self, module: nn.Module) -> list[dict]:
        """Return groups of the module's parameters with their learning rates, for an optimiser.

        Args:
            module: a flow.

        Raises:
            ValueError: if a pattern of ``layer_rates`` fits no parameter.

        Example:
            >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            >>> groups = Recipe(1e-3, layer_rates={"1.*": 0.1}).parameter_groups(net)
            >>> [(len(group["params"]), group["lr"]) for group in groups]
            [(2, 0.001), (2, 0.0001)]
        """
        groups: dict[float, list[nn.Parameter]] = {}
        unread = set(self.layer_rates)
        for name, parameter in module.named_parameters():
            factor = 1.0
            for pattern, given in self.layer_rates.items():
                if fnmatchcase(name, pattern):
                    factor = given
                    unread.discard(pattern)
            groups.setdefault(factor, []).append(parameter)
        if unread:
            example = next(name for name, _ in module.named_parameters())
            expected = f"patterns of parameter names, such as {example!r}"
            raise mismatch("layer_rates", expected, sorted(unread), "print named_parameters()")
        return [
            {"params": parameters, "lr": factor * self.learning_rate}
            for factor, parameters in groups.items()
        ]
