"""What a MixerFlow is made of, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Union

from nflows.distributions.base import Distribution
from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import (
    check_choice,
    check_image_shape,
    check_levels,
    check_positive,
    mismatch,
)
from nflows_mixer.distributions import DiagonalNormal, NormalMixture, StudentT
from nflows_mixer.flows.dequantization import CHANNELS, check_dequantization
from nflows_mixer.nn import MLP, ResidualMLP, learned_positions, sinusoidal_positions
from nflows_mixer.transforms import ButterflyLinear, KroneckerLinear, LULinear, RLULinear
from nflows_mixer.transforms.coupling import LOG_SCALES

LINEAR_BLOCKS: dict[str | None, Callable[[int, tuple[int, ...]], Transform] | None] = {
    "lu": lambda features, axes: LULinear(features),
    "rlu": lambda features, axes: RLULinear(features),
    # Two stages; the last axis of a channel flow's rows, the colours, stays with the one before.
    "butterfly": lambda features, axes: ButterflyLinear(features, (axes[0], math.prod(axes[1:]))),
    "kronecker": lambda features, axes: KroneckerLinear(features, axes),
    None: None,
}
"""Name -> ((row length, the sizes of the axes that a row was flattened from) -> linear block)."""
CONDITIONERS = {"residual": ResidualMLP, "mlp": MLP}
POSITIONS = {"sinusoidal": sinusoidal_positions, "learned": learned_positions}
BASES: dict[str, Callable[[Sequence[int]], Distribution]] = {
    "normal": DiagonalNormal,
    "standard_normal": partial(DiagonalNormal, learnable=False),
    "student_t": StudentT,
    "cauchy": partial(StudentT, degrees_of_freedom=1.0),
    "mixture": NormalMixture,
}
ROW_FLOWS = ("affine", "additive", "spline", "maf", "residual")
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
        channel_flow: the row flow of each flow layer of the channel flows: "affine", "additive"
            or "spline" coupling, "maf", "residual", or a factory: ``features -> flow``, a class
            such as ``zuko.flows.NSF``, with keyword arguments by ``functools.partial``.
        patch_flow: the same for the patch flows.
        linear: linear block, "lu" or "rlu"; for long rows, of large patches or many of them,
            "butterfly" or "kronecker", whose factors are the axes of a patch and of the grid; or
            None, with which the parts of a coupling alternate.
        hidden_features: width of the conditioners, and of the networks of residual flows; of
            those that are named here, as factories have their own.
        num_blocks: residual blocks of a conditioner (of "residual" and "maf"), or its hidden
            layers beyond the first ("mlp", and residual flows).
        conditioner: "residual" or "mlp", or a factory ``(in_features, out_features) -> network``.
        scale: scale function of affine couplings, see ``AffineCoupling``.
        num_bins: bins of spline couplings, see ``RationalQuadraticCoupling``.
        tail_bound: where the tails of spline couplings begin.
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
            or a distribution of the (squeezed) image shape, or a factory
            ``shape -> distribution``.
        context_features: length of the context that every conditioner takes; None for none.
        num_classes: of class labels, given as context in the place of vectors: integers [B], of
            which each has a learned vector of ``context_features`` (16 where that is None).
        positions: "sinusoidal" or "learned" positional context of every conditioner, or None.
        position_features: length of the positional context.
        dequantization: "uniform", or "variational" with learned noise.
        dequantization_channels: width of the networks of a variational dequantisation.

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
    channel_flow: str | Callable[[int], Transform | nn.Module] = "affine"
    patch_flow: str | Callable[[int], Transform | nn.Module] = "affine"
    linear: str | None = "lu"
    hidden_features: int = 128
    num_blocks: int = 1
    conditioner: str | Callable[[int, int], nn.Module] = "residual"
    scale: str = "exp"
    num_bins: int = 8
    tail_bound: float = 3.0
    norm: str = "actnorm"
    shift: int | tuple[int, int] | None = 1
    shift_period: int = 4
    layout: str | Sequence[str] = "patch"
    squeeze: int = 1
    conv1x1: bool = True
    logit: float | None = None
    base: str | Distribution | Callable[[Sequence[int]], Distribution] = "normal"
    context_features: int | None = None
    num_classes: int | None = None
    positions: str | None = None
    position_features: int = 16
    dequantization: str = "uniform"
    dequantization_channels: int = CHANNELS

    def __post_init__(self) -> None:
        owner = "mixerflow"
        _, *sizes = check_image_shape(self.image_shape, owner)
        check_levels(owner, self.levels)
        for name in ("num_layers", "num_flow_layers", "hidden_features", "num_blocks"):
            check_positive(owner, name, getattr(self, name))
        for name in ("shift_period", "squeeze", "position_features", "num_bins"):
            check_positive(owner, name, getattr(self, name))
        for name in ("context_features", "num_classes"):
            if getattr(self, name) is not None:
                check_positive(owner, name, getattr(self, name))
        for name, choices in [
            ("channel_flow", ROW_FLOWS),
            ("patch_flow", ROW_FLOWS),
            ("linear", tuple(LINEAR_BLOCKS)),
            ("conditioner", tuple(CONDITIONERS)),
            ("scale", tuple(LOG_SCALES)),
            ("norm", NORMS),
            ("base", tuple(BASES)),
            ("positions", (*POSITIONS, None)),
        ]:
            value = getattr(self, name)
            if isinstance(value, nn.Module) and name != "base":
                raise mismatch(
                    owner,
                    f"{name} as a name or a factory",
                    f"a ready {type(value).__name__}",
                    "all layers would share it: pass `lambda features: ...`",
                )
            if name in ("linear", "scale", "norm", "positions") or not callable(value):
                check_choice(owner, name, value, choices)
        if any(size % self.squeeze for size in sizes):
            raise mismatch(
                owner, f"a squeeze that divides {tuple(sizes)}", self.squeeze, "1 leaves it out"
            )
        check_dequantization(owner, self.dequantization, self.dequantization_channels)
        self._check_combinations(owner)
        for name in ("patch_size", "layout"):
            per_layer = self.per_layer(name)
            if len(per_layer) != self.num_layers:
                raise mismatch(
                    owner,
                    f"one {name} for each of {self.num_layers} layers",
                    f"{len(per_layer)}",
                    "give one for all, or a list of that length",
                )

    def _check_combinations(self, owner: str) -> None:
        """Refuse options that this architecture would not read."""
        flows = {self.channel_flow, self.patch_flow}
        readers = {
            "scale": {"affine"},
            "num_bins": {"spline"},
            "tail_bound": {"spline"},
            "conditioner": {"affine", "additive", "spline"},
        }
        for name, kinds in readers.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and not flows & kinds:
                raise mismatch(
                    owner,
                    f"a channel or patch flow among {sorted(kinds)} to read {name}={value!r}",
                    f"channel_flow={self.channel_flow!r}, patch_flow={self.patch_flow!r}",
                    f"leave {name} out, or build your factory with it",
                )
        for name, master in [("shift_period", "shift"), ("position_features", "positions")]:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default and getattr(self, master) is None:
                raise mismatch(
                    owner, f"{master} beside {name}={value}", f"{master}=None", f"give {master} too"
                )
        if self.linear is None and "maf" in flows:
            raise mismatch(
                owner,
                "a linear block between autoregressive flows, to turn their order",
                "linear=None",
                "pass linear='rlu'",
            )

    @property
    def embedded_features(self) -> int | None:
        """Length of the context that the conditioners see, of labels that of their vectors."""
        if self.num_classes is not None and self.context_features is None:
            return 16
        return self.context_features

    def per_layer(self, name: str) -> list:
        """Return ``patch_size`` or ``layout`` as a list with one entry for each layer."""
        value = getattr(self, name)
        if not isinstance(value, (str, Integral, Sequence)):
            raise mismatch(
                "mixerflow", f"{name} for all layers, or a list", repr(value), "give one"
            )
        one_pair = isinstance(value, Sequence) and isinstance((*value, None)[0], Integral)
        if isinstance(value, (str, Integral)) or one_pair:
            return [value] * self.num_layers
        return list(value)
