"""Transforms that draw noise, by name: the properties of test_properties.py run over them too."""

from __future__ import annotations

from functools import partial

import torch

from nflows_mixer.nn import DenseEncoder
from nflows_mixer.transforms import (
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    GlowStep,
    LearnedAugmentation,
    MultiScaleTransform,
    ReversibleCompositeTransform,
    SqueezeAndDrop,
    SqueezeTransform,
    UniformDequantization,
    VariationalDequantization,
)
from nflows_mixer.transforms.variational import NEARLY_UNIFORM
from tests.registry import LEVELS, Case, conditional_layer, conv, dense, fused, glow, mixer


def noisy(make, shape, noise, out_shape, context=None, **options) -> Case:
    """A transform that draws noise."""
    options = {"out_shape": out_shape, "context_shape": context, "std": 0.1, **options}
    return Case(make, shape, noise=noise, compiles=False, **options)


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
    parts = [SqueezeTransform(2), first, SqueezeAndDrop(2), second, SqueezeAndDrop(2, 3), third]
    return MultiScaleTransform(parts, (1, 8, 8))


STOCHASTIC_TRANSFORMS: dict[str, Case] = {
    "UniformDequantization": noisy(
        lambda: UniformDequantization(LEVELS),
        (1, 4, 4),
        (1, 4, 4),
        (1, 4, 4),
        pixels=True,
        draw_noise=torch.rand,
        any_shape=True,
    ),
    "VariationalDequantization": noisy(
        lambda: VariationalDequantization(
            (2, 2, 4), LEVELS, partial(NEARLY_UNIFORM, network=dense), encoder, 5
        ),
        (2, 2, 4),
        (8, 1, 2),
        (2, 2, 4),
        pixels=True,
    ),
    "CrossUnitCoupling-white": noisy(
        lambda: CrossUnitCoupling(3, 2), (3, 2, 4), (2, 2, 4), (5, 2, 4)
    ),
    "CrossUnitCoupling": noisy(
        lambda: CrossUnitCoupling(3, 2, context_channels=4),
        (3, 2, 4),
        (2, 2, 4),
        (5, 2, 4),
        context=(4, 2, 4),
    ),
    "CrossUnitCoupling-exp": noisy(
        lambda: CrossUnitCoupling(3, 2, context_channels=4, scale="exp"),
        (3, 2, 4),
        (2, 2, 4),
        (5, 2, 4),
        context=(4, 2, 4),
    ),
    "CrossUnitCoupling-vector": noisy(
        lambda: CrossUnitCoupling(3, 2, context_channels=4),
        (3, 2, 4),
        (2, 2, 4),
        (5, 2, 4),
        context=(4,),
    ),
    "LearnedAugmentation": noisy(
        lambda: learned_augmentation(3, 2), (3, 2, 4), (2, 2, 4), (5, 2, 4)
    ),
    "DenseFlowBlock": noisy(
        lambda: DenseFlowBlock(2, 3, partial(GlowStep, conditioner=fused), 2),
        (2, 2, 4),
        (4, 2, 4),
        (6, 2, 4),
    ),
    "DenseFlowBlock-all": noisy(
        lambda: DenseFlowBlock(2, 3, step, 2, "all"), (2, 2, 4), (4, 2, 4), (6, 2, 4)
    ),
    "DenseFlowBlock-previous": noisy(
        lambda: DenseFlowBlock(2, 3, step, 2, "previous"), (2, 2, 4), (4, 2, 4), (6, 2, 4)
    ),
    "DenseFlowBlock-white": noisy(
        lambda: DenseFlowBlock(2, 3, step, 2, None), (2, 2, 4), (4, 2, 4), (6, 2, 4)
    ),
    "DenseFlowBlock-context-of-couplings": noisy(
        lambda: DenseFlowBlock(2, 3, step, 2, context_features=3),
        (2, 2, 4),
        (4, 2, 4),
        (6, 2, 4),
        context=(3,),
    ),
    "DenseFlowBlock-context-of-units": noisy(
        lambda: DenseFlowBlock(2, 2, conditional_step, 2),
        (2, 2, 4),
        (2, 2, 4),
        (4, 2, 4),
        context=(3,),
    ),
    "DenseFlowBlock-reversible": noisy(
        lambda: DenseFlowBlock(2, 2, rebuilt, 2), (2, 2, 4), (2, 2, 4), (4, 2, 4)
    ),
    "DenseFlowBlock-mixer": noisy(
        lambda: DenseFlowBlock(2, 2, lambda channels: mixer((channels, 4, 4)), 1, "previous"),
        (2, 4, 4),
        (1, 4, 4),
        (3, 4, 4),
    ),
    "MultiScale": noisy(lambda: blocks("block"), (1, 8, 8), (20,), (84,)),
    "MultiScale-all": noisy(
        lambda: blocks("all", context_features=3), (1, 8, 8), (20,), (84,), context=(3,)
    ),
    "MultiScale-input": noisy(
        lambda: MultiScaleTransform(
            [SqueezeTransform(2), learned_augmentation(4, 2), glow(6), SqueezeAndDrop(2), glow(12)],
            (1, 4, 8),
        ),
        (1, 4, 8),
        (16,),
        (48,),
    ),
    "MultiScale-mixers": noisy(
        lambda: MultiScaleTransform(
            [
                mixer((1, 4, 4), flow=conditional_layer),
                CrossUnitCoupling(1, 1),
                SqueezeAndDrop(2),
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
