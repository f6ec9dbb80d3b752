"""MixerFlow, built from its architecture."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from nflows.transforms import (
    BatchNorm,
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    Transform,
)
from torch import nn

from nflows_mixer._checks import check_choice
from nflows_mixer.bridges import FlowLike
from nflows_mixer.flows.architecture import (
    BASES,
    CONDITIONERS,
    LINEAR_BLOCKS,
    POSITIONS,
    MixerFlowArchitecture,
)
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.presets import PRESETS
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    FlowLayer,
    InvertibleConv1x1,
    LogitTransform,
    PatchMixerTransform,
    PixelScaling,
    ShiftTransform,
    SqueezeTransform,
)


def mixerflow(preset: str | None = None, **arguments) -> ImageFlow:
    """Build a MixerFlow from a preset, from arguments, or from a preset with some of them changed.

    Args:
        preset: "cifar10", "imagenet32", "galaxy32", "imagenet64", "animefaces" or "mnist": the
            columns of the paper's Table 8 (see ``PRESETS``).
        **arguments: those of ``MixerFlowArchitecture``; ``image_shape`` and ``patch_size`` are
            needed where there is no preset.

    Returns:
        A flow on uint8 images, at the identity but for the scaling of pixels. ActNorm wants one
        batch before evaluation: ``flow.initialize(images)``, or one training step.

    Raises:
        ValueError: if the preset or a choice is unknown, or sizes do not fit.
        TypeError: if an argument is unknown or missing, or a flow is no transform.

    References:
        MixerFlow, Section 4 and Table 8.

    Example:
        >>> flow = mixerflow("cifar10")
        >>> sum(p.numel() for p in flow.parameters())
        11343833
        >>> small = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=2)
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> loss = -small.log_prob(images).mean()
    """
    if preset is not None:
        check_choice("mixerflow", "preset", preset, tuple(PRESETS))
        arguments = {**vars(PRESETS[preset].architecture), **arguments}
    known = {field.name for field in dataclasses.fields(MixerFlowArchitecture)}
    missing, unknown = {"image_shape", "patch_size"} - set(arguments), set(arguments) - known
    if missing or unknown:
        raise TypeError(
            f"mixerflow: expected arguments of MixerFlowArchitecture ({', '.join(sorted(known))}), "
            f"got {', '.join(sorted(unknown)) or 'all known'} and no "
            f"{', '.join(sorted(missing)) or 'gap'}; name a preset, or give what is missing"
        )
    return _build(MixerFlowArchitecture(**arguments))


def _build(architecture: MixerFlowArchitecture) -> ImageFlow:
    a = architecture
    if a.logit is None:
        transforms: list[Transform] = [PixelScaling(a.levels)]
    else:
        transforms = [PixelScaling(a.levels, low=0.0, high=1.0), LogitTransform(a.logit)]
    channels, height, width = a.image_shape
    if a.conv1x1:
        transforms.append(InvertibleConv1x1(channels))
    if a.squeeze > 1:
        transforms.append(SqueezeTransform(a.squeeze))
    positions = None
    if a.positions is not None:
        positions = partial(POSITIONS[a.positions], features=a.position_features)
    shape = (channels * a.squeeze**2, height // a.squeeze, width // a.squeeze)
    layers = zip(a.per_layer("patch_size"), a.per_layer("layout"))
    for index, (patch_size, layout) in enumerate(layers):
        mixer = partial(
            PatchMixerTransform,
            patch_size=patch_size,
            channel_flow=partial(_mixing_flow, a, a.channel_flow),
            patch_flow=partial(_mixing_flow, a, a.patch_flow),
            layout=layout,
            positions=positions,
        )
        if a.shift is not None and index % a.shift_period == 0:
            transforms.append(ShiftTransform(shape, patch_size, a.shift, mixer))
        else:
            transforms.append(mixer(shape))
    base = a.base(shape) if callable(a.base) else BASES[a.base](shape)
    return ImageFlow(CompositeTransform(transforms), a.image_shape, base, a.levels)


def _mixing_flow(a: MixerFlowArchitecture, kind: FlowLike | str, features: int) -> Transform:
    """Return a channel or patch flow for rows of this length."""
    layers: list[Transform] = [ActNorm(features)] if a.norm == "actnorm" else []
    for index in range(a.num_flow_layers):
        flow = partial(_row_flow, a, kind, index) if isinstance(kind, str) else kind
        layers.append(FlowLayer(features, linear=LINEAR_BLOCKS[a.linear], flow=flow))
    if a.norm == "batchnorm":
        layers.append(BatchNorm(features))
        # nflows starts it at 0, where evaluation after a few steps scales by 1 / sqrt(eps).
        layers[-1].running_var.fill_(1.0)
    return CompositeTransform(layers)


def _row_flow(a: MixerFlowArchitecture, kind: str, index: int, features: int) -> Transform:
    """Return the row flow of flow layer ``index``."""
    context_features = _context_features(a)
    if kind == "maf":
        return _identity_maf(a, features, context_features)
    conditioner = a.conditioner
    if isinstance(conditioner, str):
        depth: dict[str, dict[str, Any]] = {
            "residual": {"num_blocks": a.num_blocks},
            "mlp": {"num_layers": 1 + a.num_blocks},
        }
        conditioner = partial(
            CONDITIONERS[conditioner],
            hidden_features=a.hidden_features,
            context_features=context_features,
            **depth[conditioner],
        )
    # Without a linear block nothing else exchanges the parts.
    conditioning = "second" if a.linear is None and index % 2 else "first"
    if kind == "additive":
        return AdditiveCoupling(features, conditioner, conditioning)
    return AffineCoupling(features, conditioner, a.scale, conditioning)


def _identity_maf(
    a: MixerFlowArchitecture, features: int, context_features: int | None
) -> MaskedAffineAutoregressiveTransform:
    """Return nflows' MAF with its last layer set so that it starts at the identity."""
    maf = MaskedAffineAutoregressiveTransform(
        features,
        a.hidden_features,
        context_features=context_features,
        num_blocks=a.num_blocks,
        use_batch_norm=True,
    )
    final = maf.autoregressive_net.final_layer
    nn.init.zeros_(final.weight)
    with torch.no_grad():
        # Its scale is softplus(u) + 1e-3, with (u, shift) interleaved along the outputs.
        final.bias.copy_(torch.tensor([0.999, 0.0]).repeat(features))
        final.bias[::2].expm1_().log_()
    return maf


def _context_features(a: MixerFlowArchitecture) -> int | None:
    total = (a.context_features or 0) + (a.position_features if a.positions else 0)
    return total or None
