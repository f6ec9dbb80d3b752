"""MixerFlow, built from its architecture."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from nflows.distributions.base import Distribution
from nflows.transforms import BatchNorm, MaskedAffineAutoregressiveTransform, Transform

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer.core.as_transform import FlowLike
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.core.context import takes_context
from nflows_mixer.flows.architecture import (
    BASES,
    CONDITIONERS,
    LINEAR_BLOCKS,
    POSITIONS,
    MixerFlowArchitecture,
)
from nflows_mixer.flows.dequantization import dequantization_of
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.presets import PRESETS
from nflows_mixer.nn import ClassEmbedding, LipschitzMLP
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    FlowLayer,
    InvertibleConv1x1,
    LogitTransform,
    PatchMixerTransform,
    PatchTransform,
    PixelScaling,
    RationalQuadraticCoupling,
    ResidualTransform,
    ReversibleCompositeTransform,
    RLULinear,
    ShiftTransform,
    SqueezeTransform,
)
from nflows_mixer.transforms.reversible import MEMORY


def mixerflow(
    preset: str | None = None, *, compile: bool = False, memory: str = "full", **arguments: Any
) -> ImageFlow:
    """Build a MixerFlow from a preset, from arguments, or from a preset with some of them changed.

    Args:
        preset: "cifar10", "imagenet32", "galaxy32", "imagenet64", "animefaces" or "mnist": the
            columns of the paper's Table 8 (see ``PRESETS``).
        compile: whether ``torch.compile`` compiles the flow layers, at the first use: a function
            for each row length, shared by all layers.
        memory: "full" keeps activations for the backward pass; "constant" rebuilds them through
            inverses, so that memory does not grow with depth; "checkpoint" computes those of a
            layer again from its inputs, and so does "constant" under autocast. See
            ``ReversibleCompositeTransform``.
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
    flows = [arguments.get(name, "affine") for name in ("channel_flow", "patch_flow")]
    for name in ("hidden_features", "num_blocks"):
        if name in arguments and all(map(callable, flows)):
            raise mismatch(
                "mixerflow",
                f"a channel or patch flow that is named, to read {name}",
                "two factories",
                f"leave {name} out, and build the factories with it",
            )
    if preset is not None:
        check_choice("mixerflow", "preset", preset, tuple(PRESETS))
        arguments = {**vars(PRESETS[preset].architecture), **arguments}
    known = {field.name for field in dataclasses.fields(MixerFlowArchitecture)}
    if unknown := sorted(set(arguments) - known):
        raise TypeError(
            f"mixerflow: expected arguments among {', '.join(sorted(known))}, "
            f"got {', '.join(unknown)}; see MixerFlowArchitecture for what each one is"
        )
    if missing := sorted({"image_shape", "patch_size"} - set(arguments)):
        raise TypeError(
            f"mixerflow: expected a preset, or image_shape and patch_size, got no "
            f"{', '.join(missing)}; name one of {', '.join(PRESETS)}, or give what is missing"
        )
    check_choice("mixerflow", "memory", memory, MEMORY)
    composite = partial(ReversibleCompositeTransform, memory=memory, compile=compile)
    return _build(MixerFlowArchitecture(**arguments), composite, memory != "full")


def _build(
    spec: MixerFlowArchitecture,
    composite: Callable[[list[Transform]], Transform],
    checkpoint: bool,
) -> ImageFlow:
    if spec.logit is None:
        transforms: list[Transform] = [PixelScaling(spec.levels)]
    else:
        scaling = PixelScaling(spec.levels, low=0.0, high=1.0)
        transforms = [scaling, LogitTransform(spec.logit)]
    channels, height, width = spec.image_shape
    if spec.conv1x1:
        transforms.append(InvertibleConv1x1(channels))
    if spec.squeeze > 1:
        transforms.append(SqueezeTransform(spec.squeeze))
    shape = (channels * spec.squeeze**2, height // spec.squeeze, width // spec.squeeze)
    positions = None
    if spec.positions is not None:
        positions = partial(POSITIONS[spec.positions], features=spec.position_features)
    layers = zip(spec.per_layer("patch_size"), spec.per_layer("layout"))
    for index, (patch_size, layout) in enumerate(layers):
        mixer = partial(_mixer, spec, index, patch_size, layout, positions)
        if spec.shift is not None and index % spec.shift_period == 0:
            transforms.append(ShiftTransform(shape, patch_size, spec.shift, mixer))
        else:
            transforms.append(mixer(shape))
    base = BASES[spec.base] if isinstance(spec.base, str) else spec.base
    if not isinstance(base, Distribution):
        base = base(shape)
    classes = spec.num_classes
    flow = ImageFlow(
        composite(transforms),
        spec.image_shape,
        base,
        spec.levels,
        spec.embedded_features,
        None if classes is None else ClassEmbedding(classes, spec.embedded_features or 0),
        dequantization_of(
            spec.dequantization,
            spec.image_shape,
            spec.levels,
            spec.dequantization_channels,
            checkpoint,
        ),
    )
    flow.architecture = spec
    layers_of_flow = [part for part in flow.modules() if isinstance(part, FlowLayer)]
    unread = sum(not takes_context(layer) for layer in layers_of_flow)
    if spec.embedded_features is not None and unread:
        warnings.warn(
            f"mixerflow: {unread} of {len(layers_of_flow)} flow layers take no context and stay "
            "unconditional; build the flow that was given for a context of "
            f"{spec.embedded_features} features, as in partial(zuko.flows.NSF, "
            f"context={spec.embedded_features})",
            stacklevel=3,
        )
    return flow


def _mixer(
    spec: MixerFlowArchitecture,
    layer: int,
    patch_size: int | tuple[int, int],
    layout: str,
    positions: Callable[[int], torch.Tensor] | None,
    shape: tuple[int, int, int],
) -> PatchMixerTransform:
    """Return mixer layer ``layer``, for images of this shape."""
    patch = PatchTransform(shape, patch_size, layout).patch_size
    channels, height, width = shape
    of_patch = (*patch, channels)
    of_grid = (height // patch[0], width // patch[1])
    return PatchMixerTransform(
        shape,
        patch_size,
        channel_flow=partial(_mixing_flow, spec, spec.channel_flow, layer, of_patch),
        patch_flow=partial(_mixing_flow, spec, spec.patch_flow, layer, of_grid),
        layout=layout,
        positions=positions,
    )


def _mixing_flow(
    spec: MixerFlowArchitecture,
    kind: FlowLike | str,
    layer: int,
    axes: tuple[int, ...],
    features: int,
) -> Transform:
    """Return the channel or patch flow of mixer layer ``layer``, for rows of this length."""
    parts: list[Transform] = []
    for index in range(spec.num_flow_layers):
        depth = layer * spec.num_flow_layers + index
        row_flow = partial(_row_flow, spec, kind, depth) if isinstance(kind, str) else kind
        linear = LINEAR_BLOCKS[spec.linear]
        block = None if linear is None else linear(features, axes)
        parts.append(FlowLayer(features, ActNorm, block, row_flow))
    if spec.norm == "actnorm":
        parts.append(ActNorm(features))
    if spec.norm == "batchnorm":
        norm = BatchNorm(features)
        # nflows starts it at 0, where evaluation after a few steps scales by 1 / sqrt(eps).
        norm.running_var.fill_(1.0)
        parts.append(norm)
    flow = CompositeTransform(parts)
    reversals = sum(isinstance(module, RLULinear) for module in flow.modules())
    if spec.shift is not None and reversals % 2:
        raise mismatch(
            "mixerflow",
            "an even number of RLU flow layers before a shift",
            reversals,
            "an odd number leaves positions reversed, so that the shifted grid joins pixels that "
            "are not neighbours; make num_flow_layers even, or pass linear='lu'",
        )
    return flow


def _row_flow(spec: MixerFlowArchitecture, kind: str, depth: int, features: int) -> Transform:
    """Return the row flow of a flow layer, with ``depth`` others of its kind before it."""
    context = (spec.embedded_features or 0) + (spec.position_features if spec.positions else 0)
    if kind == "maf":
        return _identity_maf(spec, features, context or None)
    if kind == "residual":
        network = LipschitzMLP(
            features, spec.hidden_features, 1 + spec.num_blocks, context_features=context or None
        )
        return ResidualTransform(features, network)
    conditioner = spec.conditioner
    if isinstance(conditioner, str):
        layers: dict[str, dict[str, Any]] = {
            "residual": {"num_blocks": spec.num_blocks, "norm": "batch"},
            "mlp": {"num_layers": 1 + spec.num_blocks},
        }
        conditioner = partial(
            CONDITIONERS[conditioner],
            hidden_features=spec.hidden_features,
            context_features=context or None,
            **layers[conditioner],
        )
    # Without a linear block nothing else exchanges the parts.
    conditioning = "second" if spec.linear is None and depth % 2 else "first"
    if kind == "additive":
        return AdditiveCoupling(features, conditioner, conditioning)
    if kind == "spline":
        return RationalQuadraticCoupling(
            features, conditioner, spec.num_bins, spec.tail_bound, conditioning
        )
    return AffineCoupling(features, conditioner, spec.scale, conditioning)


def _identity_maf(
    spec: MixerFlowArchitecture, features: int, context_features: int | None
) -> MaskedAffineAutoregressiveTransform:
    """Return nflows' MAF with its last layer set so that it starts at the identity."""
    maf = MaskedAffineAutoregressiveTransform(
        features,
        spec.hidden_features,
        context_features=context_features,
        num_blocks=spec.num_blocks,
        use_batch_norm=True,
    )
    # Its outputs are pairs (u, shift), and its scale softplus(u) + 1e-3: 1 at this u.
    start = torch.tensor([math.log(math.expm1(1 - 1e-3)), 0.0])
    final = maf.autoregressive_net.final_layer
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(start.repeat(features))
    return maf
