"""MixerFlow, built from its architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Union

import torch
from nflows.distributions.base import Distribution
from nflows.transforms import (
    BatchNorm,
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    Transform,
)
from torch import Tensor, nn

from nflows_mixer._checks import check_choice, check_image_shape, check_positive, mismatch
from nflows_mixer.bridges import FlowLike
from nflows_mixer.distributions import DiagonalNormal, NormalMixture, StudentT
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.presets import PRESETS
from nflows_mixer.nn import MLP, ResidualMLP, learned_positions, sinusoidal_positions
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    FlowLayer,
    InvertibleConv1x1,
    LogitTransform,
    LULinear,
    PatchMixerTransform,
    PixelScaling,
    RLULinear,
    ShiftTransform,
    SqueezeTransform,
)

LINEAR_BLOCKS = {"lu": LULinear, "rlu": RLULinear, None: None}
CONDITIONERS = {"residual": ResidualMLP, "mlp": MLP}
POSITIONS = {"sinusoidal": sinusoidal_positions, "learned": learned_positions, None: None}
BASES: dict[str, Callable[[Sequence[int]], Distribution]] = {
    "normal": DiagonalNormal,
    "standard_normal": partial(DiagonalNormal, learnable=False),
    "student_t": StudentT,
    "cauchy": partial(StudentT, degrees_of_freedom=1.0),
    "mixture": NormalMixture,
}
ROW_FLOWS = ("affine", "additive", "maf")
NORMS = ("actnorm", "batchnorm")

PatchSizes = Union[int, tuple[int, int], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class MixerFlowArchitecture:
    """What a MixerFlow is made of; the defaults are the paper's coupling model.

    Args:
        image_shape: (C, H, W).
        patch_size: p, or (height, width), or a list of (height, width), one for each layer.
        levels: number of pixel values.
        num_layers: mixer layers.
        num_flow_layers: flow layers (linear block, row flow, ActNorm) in each channel flow and in
            each patch flow.
        channel_flow: the row flow of each flow layer of the channel flows: "affine" or
            "additive" coupling, "maf", or a factory ``features -> transform``.
        patch_flow: the same for the patch flows.
        linear: linear block, "lu", "rlu" or None; with None the parts of a coupling alternate.
        hidden_features: width of the conditioners.
        num_blocks: residual blocks of a conditioner (of "residual" and "maf"), or its hidden
            layers beyond the first ("mlp").
        conditioner: "residual" or "mlp", or a factory ``(in_features, out_features) -> network``.
        scale: scale function of affine couplings, see ``AffineCoupling``.
        norm: between the flows, "actnorm" (before the first linear block after each
            transposition) or "batchnorm" (nflows', after each flow: the author's earlier variant).
        shift: s of the shift layers, or (height, width), or None for no shift layers.
        shift_period: layers 0, k, 2k, ... are shift layers.
        layout: "patch", "band", "stripe" or "dilated", or a list with one for each layer.
        squeeze: factor of the squeeze before the mixer layers, 1 for none; ``patch_size`` and
            ``shift`` then count pixels of the squeezed image.
        conv1x1: whether an invertible 1x1 convolution over the channels comes first.
        logit: alpha of the logit of pixels, see ``LogitTransform``; None for a linear scale.
        base: "normal" (learnable diagonal), "standard_normal", "student_t", "cauchy", "mixture",
            or a factory ``shape -> distribution``.
        context_features: length of the context that every conditioner takes; None for none.
        positions: "sinusoidal" or "learned" positional context of every conditioner, or None.
        position_features: length of the positional context.

    Raises:
        ValueError: if a choice is unknown or a size does not fit another.

    References:
        MixerFlow, Sections 4, 8 and 10; Table 8.

    Example:
        >>> MixerFlowArchitecture((3, 32, 32), 4).num_layers
        30
    """

    image_shape: tuple[int, int, int]
    patch_size: PatchSizes
    levels: int = 256
    num_layers: int = 30
    num_flow_layers: int = 4
    channel_flow: str | Callable[[int], Transform] = "affine"
    patch_flow: str | Callable[[int], Transform] = "affine"
    linear: str | None = "lu"
    hidden_features: int = 128
    num_blocks: int = 1
    conditioner: str | Callable[[int, int], nn.Module] = "residual"
    scale: str = "exp"
    norm: str = "actnorm"
    shift: int | tuple[int, int] | None = 1
    shift_period: int = 4
    layout: str | Sequence[str] = "patch"
    squeeze: int = 1
    conv1x1: bool = True
    logit: float | None = None
    base: str | Callable[[Sequence[int]], Distribution] = "normal"
    context_features: int | None = None
    positions: str | None = None
    position_features: int = 16

    def __post_init__(self) -> None:
        owner = "mixerflow"
        check_image_shape(self.image_shape, owner)
        for name in ("num_layers", "num_flow_layers", "hidden_features", "num_blocks"):
            check_positive(owner, name, getattr(self, name))
        for name in ("shift_period", "squeeze", "position_features"):
            check_positive(owner, name, getattr(self, name))
        for name, choices in [
            ("channel_flow", ROW_FLOWS),
            ("patch_flow", ROW_FLOWS),
            ("linear", tuple(LINEAR_BLOCKS)),
            ("conditioner", tuple(CONDITIONERS)),
            ("norm", NORMS),
            ("base", tuple(BASES)),
            ("positions", tuple(POSITIONS)),
        ]:
            value = getattr(self, name)
            if name in ("linear", "norm", "positions") or not callable(value):
                check_choice(owner, name, value, choices)
        for name in ("patch_size", "layout"):
            per_layer = self._per_layer(name)
            if len(per_layer) != self.num_layers:
                raise mismatch(
                    owner,
                    f"one {name} for each of {self.num_layers} layers",
                    f"{len(per_layer)}",
                    "give one for all, or a list of that length",
                )
        if self.linear == "rlu" and self.shift is not None and self.num_flow_layers % 2:
            raise mismatch(
                owner,
                "an even number of RLU flow layers before a shift",
                self.num_flow_layers,
                "an odd number leaves positions reversed, so that the shifted grid joins pixels "
                "that are not neighbours; make num_flow_layers even, or pass linear='lu'",
            )

    def _per_layer(self, name: str) -> list:
        value = getattr(self, name)
        alone = isinstance(value, (int, str)) or (len(value) > 0 and isinstance(value[0], int))
        return [value] * self.num_layers if alone else list(value)


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
        arguments = {**PRESETS[preset].architecture, **arguments}
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
    shape = (channels * a.squeeze**2, height // a.squeeze, width // a.squeeze)
    layers = zip(a._per_layer("patch_size"), a._per_layer("layout"))
    for index, (patch_size, layout) in enumerate(layers):
        mixer = partial(
            PatchMixerTransform,
            patch_size=patch_size,
            channel_flow=partial(_mixing_flow, a, a.channel_flow),
            patch_flow=partial(_mixing_flow, a, a.patch_flow),
            layout=layout,
            positions=a.positions and partial(_positions, a),
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
    if conditioner == "residual":
        conditioner = partial(
            ResidualMLP,
            hidden_features=a.hidden_features,
            num_blocks=a.num_blocks,
            context_features=context_features,
        )
    elif conditioner == "mlp":
        conditioner = partial(
            MLP,
            hidden_features=a.hidden_features,
            num_layers=1 + a.num_blocks,
            context_features=context_features,
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


def _positions(a: MixerFlowArchitecture, rows: int) -> Tensor:
    return POSITIONS[a.positions](rows, a.position_features)
