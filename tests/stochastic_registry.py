"""Transforms that draw noise, by name: the properties of test_stochastic.py run over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nflows_mixer.nn import DenseEncoder
from nflows_mixer.transforms import (
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    GlowStep,
    LearnedAugmentation,
    MultiScaleTransform,
    ReversibleCompositeTransform,
    SqueezeAndSplit,
    SqueezeTransform,
    StochasticTransform,
    UniformDequantization,
    VariationalDequantization,
)
from nflows_mixer.transforms.variational import NEARLY_UNIFORM
from tests.registry import conditional_layer, conv, dense, fused, glow, mixer

LEVELS = 17


@dataclass(frozen=True)
class StochasticCase:
    """A transform that draws noise, to be tested.

    ``shape``, ``noise`` and ``out_shape`` are those of one input, its noise and its output,
    ``context`` that of its context, ``pixels`` says that inputs are integers, and ``std`` is that
    of the noise put on every parameter.
    """

    make: Callable[[], StochasticTransform]
    shape: tuple[int, ...]
    noise: tuple[int, ...]
    out_shape: tuple[int, ...]
    context: tuple[int, ...] | None = None
    pixels: bool = False
    std: float = 0.1

    def draw(self, batch: int, dtype=torch.float64) -> tuple[Tensor, Tensor | None, Tensor]:
        """Inputs, context and noise."""
        if self.pixels:
            inputs = torch.randint(LEVELS, (batch, *self.shape), dtype=torch.uint8)
        else:
            inputs = torch.randn(batch, *self.shape, dtype=dtype)
        context = None if self.context is None else torch.randn(batch, *self.context, dtype=dtype)
        draw = torch.rand if self.make().noise_kind == "uniform" else torch.randn
        return inputs, context, draw(batch, *self.noise, dtype=dtype)


encoder = partial(DenseEncoder, hidden_channels=8, num_layers=1, growth=4)
step = partial(GlowStep, conditioner=conv)
conditional_step = partial(GlowStep, conditioner=partial(conv, context_features=3))


def learned_augmentation(channels: int, noise_channels: int) -> LearnedAugmentation:
    noise = ConditionalNoise(noise_channels, 5, num_steps=1, network=dense)
    return LearnedAugmentation(channels, noise.channels, noise, encoder(channels, 5, stride=1))


def rebuilt(channels: int) -> ReversibleCompositeTransform:
    """A unit whose activations are rebuilt in the backward pass."""
    return ReversibleCompositeTransform([GlowStep(channels, conv) for _ in range(2)], anchors=1)


def blocks(preconditioning: str | None, **options) -> MultiScaleTransform:
    """Three DenseFlow blocks of 2, 2 and 1 units."""
    first = DenseFlowBlock(4, 2, step, 1, preconditioning, **options)
    # "all" reads what was before at the resolution of the block: 4 times the channels each time.
    everything = preconditioning == "all"
    options["earlier_channels"] = 4 * (4 + 4) if everything else 0
    second = DenseFlowBlock(10, 2, step, 1, preconditioning, **options)
    options["earlier_channels"] = 4 * (32 + 10 + 10) if everything else 0
    third = DenseFlowBlock(3, 1, step, 1, preconditioning, **options)
    parts = [SqueezeTransform(2), first, SqueezeAndSplit(2), second, SqueezeAndSplit(2, 3), third]
    return MultiScaleTransform(parts, (1, 8, 8))


STOCHASTIC_TRANSFORMS: dict[str, StochasticCase] = {
    "UniformDequantization": StochasticCase(
        lambda: UniformDequantization(LEVELS), (1, 4, 4), (1, 4, 4), (1, 4, 4), pixels=True
    ),
    "VariationalDequantization": StochasticCase(
        lambda: VariationalDequantization(
            (2, 2, 4), LEVELS, partial(NEARLY_UNIFORM, network=dense), encoder, 5
        ),
        (2, 2, 4),
        (8, 1, 2),
        (2, 2, 4),
        pixels=True,
    ),
    "CrossUnitCoupling-white": StochasticCase(
        lambda: CrossUnitCoupling(3, 2), (3, 2, 4), (2, 2, 4), (5, 2, 4)
    ),
    "CrossUnitCoupling": StochasticCase(
        lambda: CrossUnitCoupling(3, 2, context_channels=4),
        (3, 2, 4),
        (2, 2, 4),
        (5, 2, 4),
        context=(4, 2, 4),
    ),
    "CrossUnitCoupling-exp": StochasticCase(
        lambda: CrossUnitCoupling(3, 2, context_channels=4, scale="exp"),
        (3, 2, 4),
        (2, 2, 4),
        (5, 2, 4),
        context=(4, 2, 4),
    ),
    "CrossUnitCoupling-vector": StochasticCase(
        lambda: CrossUnitCoupling(3, 2, context_channels=4),
        (3, 2, 4),
        (2, 2, 4),
        (5, 2, 4),
        context=(4,),
    ),
    "LearnedAugmentation": StochasticCase(
        lambda: learned_augmentation(3, 2), (3, 2, 4), (2, 2, 4), (5, 2, 4)
    ),
    "DenseFlowBlock": StochasticCase(
        lambda: DenseFlowBlock(2, 3, partial(GlowStep, conditioner=fused), 2),
        (2, 2, 4),
        (4, 2, 4),
        (6, 2, 4),
    ),
    "DenseFlowBlock-all": StochasticCase(
        lambda: DenseFlowBlock(2, 3, step, 2, "all"), (2, 2, 4), (4, 2, 4), (6, 2, 4)
    ),
    "DenseFlowBlock-previous": StochasticCase(
        lambda: DenseFlowBlock(2, 3, step, 2, "previous"), (2, 2, 4), (4, 2, 4), (6, 2, 4)
    ),
    "DenseFlowBlock-white": StochasticCase(
        lambda: DenseFlowBlock(2, 3, step, 2, None), (2, 2, 4), (4, 2, 4), (6, 2, 4)
    ),
    "DenseFlowBlock-context-of-couplings": StochasticCase(
        lambda: DenseFlowBlock(2, 3, step, 2, context_features=3),
        (2, 2, 4),
        (4, 2, 4),
        (6, 2, 4),
        context=(3,),
    ),
    "DenseFlowBlock-context-of-units": StochasticCase(
        lambda: DenseFlowBlock(2, 2, conditional_step, 2),
        (2, 2, 4),
        (2, 2, 4),
        (4, 2, 4),
        context=(3,),
    ),
    "DenseFlowBlock-reversible": StochasticCase(
        lambda: DenseFlowBlock(2, 2, rebuilt, 2), (2, 2, 4), (2, 2, 4), (4, 2, 4)
    ),
    "DenseFlowBlock-mixer": StochasticCase(
        lambda: DenseFlowBlock(2, 2, lambda channels: mixer((channels, 4, 4)), 1, "previous"),
        (2, 4, 4),
        (1, 4, 4),
        (3, 4, 4),
    ),
    "MultiScale": StochasticCase(lambda: blocks("block"), (1, 8, 8), (20,), (84,)),
    "MultiScale-all": StochasticCase(
        lambda: blocks("all", context_features=3), (1, 8, 8), (20,), (84,), context=(3,)
    ),
    "MultiScale-input": StochasticCase(
        lambda: MultiScaleTransform(
            [
                SqueezeTransform(2),
                learned_augmentation(4, 2),
                glow(6),
                SqueezeAndSplit(2),
                glow(12),
            ],
            (1, 4, 8),
        ),
        (1, 4, 8),
        (16,),
        (48,),
    ),
    "MultiScale-mixers": StochasticCase(
        lambda: MultiScaleTransform(
            [
                mixer((1, 4, 4), flow=conditional_layer),
                CrossUnitCoupling(1, 1),
                SqueezeAndSplit(2),
                CrossUnitCoupling(4, 2, context_channels=3),
                mixer((6, 2, 2), 1),
            ],
            (1, 4, 4),
        ),
        (1, 4, 4),
        (24,),
        (40,),
        context=(3,),
    ),
}
