"""DenseFlow, built from its architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import check_choice
from nflows_mixer.distributions import BaseDistribution, DiagonalNormal, ProductDistribution
from nflows_mixer.flows.denseflow_architecture import DenseFlowArchitecture
from nflows_mixer.flows.denseflow_presets import DENSEFLOW_PRESETS
from nflows_mixer.flows.dequantization import dequantization_of, noise_encoder, noise_network
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.nn import ClassEmbedding, ConvConditioner, FusedConditioner
from nflows_mixer.transforms import (
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    GlowStep,
    LearnedAugmentation,
    MultiScaleTransform,
    PixelScaling,
    ReversibleCompositeTransform,
    SqueezeAndDrop,
    SqueezeTransform,
)
from nflows_mixer.transforms.reversible import MEMORY


def denseflow(preset: str | None = None, *, memory: str = "full", **arguments: Any) -> ImageFlow:
    """Build a DenseFlow from a preset, from arguments, or from a preset with some of them changed.

    Args:
        preset: "denseflow-74-10", "denseflow-45-6", "vflow", ...: see ``DENSEFLOW_PRESETS``.
        memory: of the backward pass: "full" keeps activations; "checkpoint" computes those of a
            coupling again from its inputs; "constant" rebuilds the inputs, too. See
            ``ReversibleCompositeTransform``. A learned dequantisation is computed again in both.
        **arguments: those of ``DenseFlowArchitecture``; ``image_shape`` is needed where there is
            no preset.

    Returns:
        A flow on uint8 images whose ``log_prob`` is a bound: its transform appends noise. ActNorm
        wants one batch before evaluation: ``flow.initialize(images)``, or one training step.

    Raises:
        ValueError: if the preset or a choice is unknown, or sizes do not fit.
        TypeError: if an argument is unknown or missing.

    References:
        DenseFlow, Sections 2 and 3.

    Example:
        >>> import torch
        >>> small = {"hidden_channels": 8, "dense_layers": 1, "dense_growth": 8}
        >>> sizes = {"units": (2, 1), "modules": (1, 2), "growth": 2, "dequantization": "uniform"}
        >>> flow = denseflow(image_shape=(1, 8, 8), levels=17, **sizes, **small)
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> loss = -flow.log_prob(images).mean()
        >>> flow.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    if preset is not None:
        check_choice("denseflow", "preset", preset, tuple(DENSEFLOW_PRESETS))
        arguments = {**vars(DENSEFLOW_PRESETS[preset].architecture), **arguments}
    known = {field.name for field in dataclasses.fields(DenseFlowArchitecture)}
    if unknown := sorted(set(arguments) - known):
        raise TypeError(
            f"denseflow: expected arguments among {', '.join(sorted(known))}, "
            f"got {', '.join(unknown)}; see DenseFlowArchitecture for what each one is"
            + ("; torch.compile what you call" if "compile" in unknown else "")
        )
    if "image_shape" not in arguments:
        raise TypeError(
            "denseflow: expected a preset or image_shape, got neither; name one of "
            f"{', '.join(DENSEFLOW_PRESETS)}, or give the shape"
        )
    check_choice("denseflow", "memory", memory, ("full", *MEMORY))
    composite: Callable[[list[Transform]], Transform] = CompositeTransform
    if memory != "full":
        composite = partial(ReversibleCompositeTransform, memory=memory)
    return _build(DenseFlowArchitecture(**arguments), composite, memory != "full")


def _build(
    spec: DenseFlowArchitecture,
    composite: Callable[[list[Transform]], Transform],
    checkpoint: bool,
) -> ImageFlow:
    shape = spec.image_shape
    parts: list[Transform] = [PixelScaling(spec.levels), SqueezeTransform(2)]
    channels = 4 * shape[0]
    if spec.growth and spec.augmentation == "input":
        parts.append(_augmentation(spec, channels))
        channels += spec.growth
    growth = spec.growth if spec.augmentation == "units" else 0
    earlier = 0
    for i, (units, modules) in enumerate(zip(spec.units, spec.modules)):
        if i:
            parts.append(SqueezeAndDrop(2))
            channels, earlier = 2 * channels, 4 * earlier
        block = DenseFlowBlock(
            channels,
            units,
            partial(_unit, spec, composite, modules),
            growth,
            spec.preconditioning if growth else None,
            spec.embedded_features if growth and spec.preconditioning else None,
            earlier,
        )
        parts.append(block)
        if growth and spec.preconditioning == "all":
            # z_0 and the outputs of all units but the last.
            earlier += channels + sum(channels + growth * unit for unit in range(units - 1))
        channels += growth * (units - 1)
    transform = MultiScaleTransform(parts, shape)
    priors: dict[str, BaseDistribution] = {
        name: DiagonalNormal(piece, learnable=False)
        for name, piece in transform.latent_shapes.items()
    }
    if spec.learned_prior:
        priors["final"] = DiagonalNormal(transform.latent_shapes["final"], per_channel=True)
    features, classes = spec.embedded_features, spec.num_classes
    kind, width = spec.dequantization, spec.dequantization_channels
    flow = ImageFlow(
        transform,
        shape,
        ProductDistribution(priors),
        spec.levels,
        features,
        None if classes is None else ClassEmbedding(classes, features or 0),
        dequantization_of(kind, shape, spec.levels, width, checkpoint),
    )
    flow.architecture = spec
    return flow


def _augmentation(spec: DenseFlowArchitecture, channels: int) -> Transform:
    """Return what appends noise to the input alone."""
    if spec.preconditioning is None:
        return CrossUnitCoupling(channels, spec.growth)
    width = spec.dequantization_channels
    noise = ConditionalNoise(spec.growth, width, network=noise_network(width))
    encoder = noise_encoder(width, stride=1)(channels, width)
    return LearnedAugmentation(channels, spec.growth, noise, encoder)


def _unit(
    spec: DenseFlowArchitecture,
    composite: Callable[[list[Transform]], Transform],
    modules: int,
    channels: int,
) -> Transform:
    """Return a unit of glow-like modules."""
    conditioner = partial(_conditioner, spec)
    return composite(
        [GlowStep(channels, conditioner, spec.scale, swap=spec.swap) for _ in range(modules)]
    )


def _conditioner(spec: DenseFlowArchitecture, in_channels: int, out_channels: int) -> nn.Module:
    """Return the network of one coupling."""
    features = spec.embedded_features
    if spec.conditioner == "conv":
        return ConvConditioner(in_channels, out_channels, spec.width, features)
    return FusedConditioner(
        in_channels,
        out_channels,
        spec.width,
        spec.dense_layers,
        spec.dense_growth,
        spec.dense,
        spec.attention,
        spec.attention_channels,
        spec.heads,
        spec.landmarks,
        spec.tokens,
        features,
    )
