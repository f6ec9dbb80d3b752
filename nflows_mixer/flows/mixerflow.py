"""MixerFlow: the builder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal, Union

from nflows.distributions.base import Distribution
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from torch import Tensor, distributions, nn

from nflows_mixer._checks import check_choice, check_image_shape, check_positive, mismatch
from nflows_mixer.core.as_transform import as_transform, built
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.core.factory import UNSET, Unset, call_factory, named_keywords
from nflows_mixer.distributions import DiagonalNormal, ProductDistribution, as_base
from nflows_mixer.flows.builder import Spec, specify
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.flows.presets import MIXERFLOW_PRESETS
from nflows_mixer.nn.dense_block import zero_convolution
from nflows_mixer.transforms import (
    ActNorm,
    AffineAutoregressive,
    AffineCoupling,
    FlowLayer,
    InvertibleConv1x1,
    LULinear,
    MultiScaleTransform,
    PatchMixerTransform,
    PatchTransform,
    ReversibleCompositeTransform,
    RLULinear,
    ShiftTransform,
    SqueezeAndSplit,
    SqueezeTransform,
)
from nflows_mixer.transforms.reversible import MEMORY

OWNER = "mixerflow"
SHIFT_PERIOD = 4
NETWORK = ("conditioner", "norm", "hidden_features")
"""Arguments of the networks of row flows."""

RowFlowFactory = Callable[..., Union[Transform, nn.Module]]
"""Row length -> flow: a class such as ``zuko.flows.NSF``, a function, a ``functools.partial``."""
PatchSize = Union[int, Sequence[int], Callable[[tuple[int, int, int]], PatchTransform]]
"""p, (height, width), or image shape -> patches."""
Shift = Union[int, Sequence[int], None]
LocalFlow = Callable[[tuple[int, int, int]], Transform]
"""Image shape -> a transform that keeps it, such as ``GlowSteps``."""
ReadyBase = Union[Distribution, distributions.Distribution, nn.Module]
Base = Union[ReadyBase, Callable[[tuple[int, ...]], ReadyBase]]
"""A distribution of nflows, torch, zuko or normflows, or a factory of one: shape -> base."""


def mixerflow(
    preset: str | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    patch_size: PatchSize | Sequence[PatchSize] | None = None,
    levels: int | None | Unset = UNSET,
    num_layers: int | Sequence[int] | None = None,
    num_flow_layers: int | None = None,
    channel_flow: RowFlowFactory | None = None,
    patch_flow: RowFlowFactory | None = None,
    linear: Unset | RowFlowFactory | None = UNSET,
    conditioner: Callable[[int, int], nn.Module] | None = None,
    hidden_features: int | None = None,
    norm: Unset | Literal["layer", "batch"] | None = UNSET,
    shift: Shift | Sequence[Shift] | Unset = UNSET,
    mask: str | Sequence[str] | None = None,
    alternate: bool | None = None,
    local_flow: LocalFlow | Sequence[LocalFlow | None] | None = None,
    base: Base | None = None,
    context_features: int | None = None,
    num_classes: int | None = None,
    positions: Callable[[int], Tensor] | None = None,
    pixels: Pixels | None = None,
    compile: bool = False,
    memory: Literal["full", "checkpoint", "constant"] = "full",
) -> ImageFlow:
    """Build a MixerFlow from a preset, from arguments, or from a preset with some of them changed.

    What is not given is the preset's, and without one the paper's coupling model.

    Factories of flows and linear blocks are called with the row length, and with those of these
    that their signatures name: ``axes``, the sizes that a row was flattened from, (p_h, p_w, C) of
    a patch or (n_h, n_w) of the grid; ``index``, the flow layers before; ``context_features``, of
    context and positions together; ``norm``, ``hidden_features`` and ``conditioner`` where given;
    ``conditioning``, "first" and "second" in turn where halves alternate.
    Keywords that ``functools.partial`` has bound stay as they are.

    Args:
        preset: "cifar10", "imagenet32", "galaxy32", "imagenet64", "animefaces" or "mnist": the
            columns of the paper's Table 8, see ``MIXERFLOW_PRESETS``.
        image_shape: (C, H, W).
        patch_size: p, (height, width), or a factory such as ``partial(PatchTransform,
            patch_size=4, layout="stripe")``; or a list with one of these for each layer.
        levels: number of pixel values, 256 where not given; None for real images, which are
            neither dequantized nor scaled.
        num_layers: mixer layers; 30. Or a list with the layers of each scale: after each but the
            last, squares of 2 x 2 pixels become channels, and half of these are latents, normal
            with a mean and scale that are learned of the other half. Where another argument is a
            list for all layers, those of all scales follow each other.
        num_flow_layers: flow layers in each channel flow and in each patch flow; 4.
        channel_flow: factory of the row flow in each flow layer of the channel flows; a class or
            function such as ``AffineCoupling``, the default, ``zuko.flows.NSF``, ``identity_maf``
            or ``partial(RationalQuadraticCoupling, num_bins=4)``.
        patch_flow: the same for the patch flows.
        linear: factory of linear blocks: ``LULinear``, the default, ``RLULinear``, for long rows
            ``ButterflyLinear`` or ``KroneckerLinear``; None for none.
        conditioner: factory of the couplings' networks, ``(in_features, out_features) -> network``.
        hidden_features: width of the networks; their own default, 128, where not given.
        norm: of the conditioners, "layer", "batch" or None. Where not given their own default,
            LayerNorm, and none in masked networks.
        shift: s of the shift layers, or (height, width), which are layers 0, 4, 8, ...; None for
            no shift layers; or a list with one entry for each layer. 1 where not given.
        mask: which half of a row conditions, as the order of patches and of the pixels in them:
            "halves" (the default), "checkerboard", "rows", "columns" or "random", see
            ``mask_order``; or a list with one for each layer.
        alternate: whether the halves condition each other in turn, from flow layer to flow layer.
            By default where there is no linear block, which would exchange them; the paper does
            not say, and with linear blocks its first half always conditions here.
        local_flow: factory of transforms of images, such as ``partial(GlowSteps, num_steps=3)``,
            one before each mixer layer; or a list with one entry (or None) for each layer, before
            which it stands, and one more for behind the last. They are given those of
            ``context_features``, ``norm`` and ``index``, the layer, that their signature names.
        base: a factory ``shape -> distribution``, ``DiagonalNormal`` where not given, or a
            distribution of nflows, torch, zuko or normflows, see ``as_base``. With several scales a
            factory makes one for each piece of the latents, of ``nflows_mixer.distributions``.
        context_features: length of the context, [B, context_features]; None for none.
        num_classes: of class labels, given as context in the place of vectors: integers [B], of
            which each has a learned vector of ``context_features`` (16 where that is None).
        positions: factory of positional context, ``rows -> [rows, F]``, such as
            ``partial(learned_positions, features=16)``; None for none.
        pixels: what stands between pixels and mixer layers, see ``Pixels``.
        compile: whether ``torch.compile`` compiles the flow layers, at the first use: a function
            for each row length, shared by all layers.
        memory: of the backward pass. "full" keeps activations; "constant" rebuilds them through
            inverses, so that memory does not grow with depth; "checkpoint" computes those of a
            layer again from its inputs, and so does "constant" under autocast. See
            ``ReversibleCompositeTransform``.

    Returns:
        A flow on uint8 images, or on real ones, whose log-density ``log_prob`` is; at the identity
        but for the scaling of pixels. ActNorm needs one batch before evaluation:
        ``flow.initialize(images)``, or one training step.

    Raises:
        ValueError: if a choice is unknown, sizes do not fit, or nothing would read an argument.
        TypeError: if ``image_shape`` or ``patch_size`` is missing, or a flow is no transform.

    References:
        MixerFlow, Sections 4, 8 and 10; Table 8.

    Example:
        >>> import torch
        >>> flow = mixerflow("cifar10")
        >>> sum(p.numel() for p in flow.parameters())
        11343833
        >>> small = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=2)
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> loss = -small.log_prob(images).mean()
    """
    spec, changes = specify(mixerflow, MixerFlowSpec, MIXERFLOW_PRESETS, locals())
    flows = spec.channel_flow, spec.patch_flow
    local = [flow for flow in spec.local_flows() if flow is not None]
    for name in (*NETWORK, "alternate"):
        if name not in changes or changes[name] is False:
            continue
        keyword = "conditioning" if name == "alternate" else name
        readers = [*flows, *local] if name == "norm" else flows
        if not any(_reads(flow, keyword, spec.conditioner) for flow in readers):
            raise mismatch(
                OWNER,
                f"a factory that takes {keyword}, to read the {name} given",
                ", ".join(getattr(flow, "__name__", repr(flow)) for flow in flows),
                f"leave {name} out, or give the factory its own by functools.partial",
            )
    return build_mixerflow(spec, compile, memory)


def _reads(flow: Callable[..., Any], name: str, conditioner: Any) -> bool:
    """Whether a factory of flows, or of their networks, takes an argument of this name."""
    keywords = named_keywords(flow)
    if name not in keywords:
        return False
    parameters = inspect.signature(flow).parameters
    if name in ("conditioner", "conditioning") or "conditioner" not in parameters:
        return True
    # A coupling hands the others on to its network.
    own = parameters["conditioner"].default
    network = conditioner if conditioner is not None and "conditioner" in keywords else own
    return not callable(network) or name in named_keywords(network, positional=2)


@dataclass(frozen=True)
class MixerFlowSpec(Spec):
    """The arguments of ``mixerflow`` that describe the flow, with their defaults, checked."""

    image_shape: tuple[int, int, int]
    patch_size: Any
    levels: int | None = 256
    num_layers: Any = 30
    num_flow_layers: int = 4
    channel_flow: RowFlowFactory = AffineCoupling
    patch_flow: RowFlowFactory = AffineCoupling
    linear: RowFlowFactory | None = LULinear
    conditioner: Callable[..., nn.Module] | None = None
    hidden_features: int | None = None
    norm: str | None | Unset = UNSET
    shift: Any = 1
    mask: Any = "halves"
    alternate: bool | None = None
    local_flow: Any = None
    base: Base = DiagonalNormal
    context_features: int | None = None
    num_classes: int | None = None
    positions: Callable[[int], Tensor] | None = None
    pixels: Pixels = Pixels()

    def __post_init__(self) -> None:
        factories = ["channel_flow", "patch_flow", "linear", "conditioner", "positions", "base"]
        if _is_ready(self.base):
            factories.remove("base")
        self.check(OWNER, ("num_flow_layers", "hidden_features"), factories)
        if not self.scales:
            advice = "give one number, or one for each scale"
            raise mismatch(OWNER, "num_layers of at least one scale", self.num_layers, advice)
        for count in self.scales:
            check_positive(OWNER, "num_layers", count)
        masks = [self.mask] if isinstance(self.mask, str) else list(self.mask)
        reordered = any(mask != "halves" for mask in masks)
        if reordered and self.linear is not None and "axes" in named_keywords(self.linear):
            got = f"{getattr(self.linear, '__name__', self.linear)} beside mask={self.mask!r}"
            advice = "give couplings the mask, as in channel_flow=partial(AffineCoupling, mask=...)"
            raise mismatch(OWNER, "rows in their order for a linear block of axes", got, advice)
        if not isinstance(self.pixels, Pixels):
            raise mismatch(OWNER, "pixels as Pixels(...)", repr(self.pixels), "build one")

    @property
    def scales(self) -> list[int]:
        """Mixer layers of each scale."""
        given = self.num_layers
        return list(given) if isinstance(given, Sequence) else [given]

    def patches(self) -> list[Callable[[tuple[int, int, int]], PatchTransform]]:
        """A factory of the patches of each layer."""
        sizes = per_layer("patch_size", self.patch_size, sum(self.scales))
        masks = per_layer("mask", self.mask, sum(self.scales))
        return [
            partial(call_factory, cut, mask=mask, seed=index)
            if callable(cut)
            else partial(PatchTransform, patch_size=cut, mask=mask, seed=index)
            for index, (cut, mask) in enumerate(zip(sizes, masks))
        ]

    def local_flows(self) -> list[LocalFlow | None]:
        """The local flow before each layer, and that behind the last one; None for none."""
        count = sum(self.scales)
        if self.local_flow is None or callable(self.local_flow):
            return [self.local_flow] * count + [None]
        given = list(self.local_flow)
        if len(given) not in (count, count + 1):
            expected = f"one local_flow for all, or a list of {count} or {count + 1} entries"
            advice = "give one for each layer, and perhaps one for behind the last"
            raise mismatch(OWNER, expected, f"{len(given)}", advice)
        return given + [None] * (count + 1 - len(given))

    def shifts(self) -> list[Shift]:
        """The shift of each layer, None where it is none."""
        of_each = per_layer("shift", self.shift, sum(self.scales))
        if of_each and _is_one(self.shift):
            return [s if i % SHIFT_PERIOD == 0 else None for i, s in enumerate(of_each)]
        return of_each


def per_layer(name: str, value: Any, num_layers: int) -> list[Any]:
    """Return an argument as a list with one entry for each layer.

    Two integers are a pair, and no list of two.

    Args:
        name: of the argument, for the error.
        value: what was given.
        num_layers: mixer layers.

    Raises:
        ValueError: if it is neither one for all layers nor a list of that length.

    Example:
        >>> per_layer("patch_size", [2, (2, 4), 4], 3)
        [2, (2, 4), 4]
    """
    if _is_one(value):
        return [value] * num_layers
    if not isinstance(value, Sequence):
        raise mismatch(OWNER, f"{name} for all layers, or a list", repr(value), "give one")
    if len(value) != num_layers:
        expected = f"one {name} for each of {num_layers} layers"
        advice = "give one for all, or a list of that length"
        raise mismatch(OWNER, expected, f"{len(value)}", advice)
    return list(value)


def _is_one(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value) == 2 and all(isinstance(size, Integral) for size in value)
    return value is None or isinstance(value, (Integral, str)) or callable(value)


def _is_ready(base: Any) -> bool:
    return isinstance(base, (Distribution, distributions.Distribution, nn.Module))


def build_mixerflow(spec: MixerFlowSpec, compile: bool, memory: str) -> ImageFlow:
    """Build what ``mixerflow`` builds.

    Args:
        spec: what it is made of.
        compile: as in ``mixerflow``.
        memory: as in ``mixerflow``.

    Example:
        >>> spec = MixerFlowSpec((1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> build_mixerflow(spec, compile=False, memory="full").image_shape
        (1, 4, 4)
    """
    check_choice(OWNER, "memory", memory, MEMORY)
    image_shape = check_image_shape(spec.image_shape, OWNER)
    shape = spec.pixels.shape(image_shape)
    parts = spec.pixels.transforms(image_shape, spec.levels)
    layers = _layers(spec)
    several = len(spec.scales) > 1
    chains: list[Transform] = []
    for scale, count in enumerate(spec.scales):
        parts += [part for _, layer in zip(range(count), layers) for part in layer(shape)]
        last = scale == len(spec.scales) - 1
        if last:
            parts += next(layers)(shape)
        chains.append(ReversibleCompositeTransform(parts, memory=memory, compile=compile))
        parts = []
        if not last:
            chains += _split(shape)
            shape = (2 * shape[0], shape[1] // 2, shape[2] // 2)
    transform = MultiScaleTransform(chains, image_shape) if several else chains[0]
    base = _base(spec, transform.latent_shapes if several else None, shape)
    dequantization = spec.pixels.dequantization, spec.pixels.noise_channels
    advice = (
        f"build the flow that was given for a context of {spec.features} features, as in "
        f"partial(zuko.flows.NSF, context={spec.features})"
    )
    return spec.assemble(OWNER, transform, base, *dequantization, memory, FlowLayer, advice)


def _layers(spec: MixerFlowSpec) -> Iterator[Callable[[tuple[int, int, int]], list[Transform]]]:
    """What stands at each layer, for images of a shape, and behind the last one."""
    *before, behind = spec.local_flows()

    def at(index: int, shape: tuple[int, int, int]) -> list[Transform]:
        cut, shift = spec.patches()[index], spec.shifts()[index]
        mixer = partial(_mixer, spec, index, cut)
        if shift is None:
            layer: Transform = mixer(shape)
        else:
            layer = ShiftTransform(shape, cut(shape).patch_size, shift, mixer)
        return [*_local(spec, before[index], index, shape), layer]

    for index in range(len(before)):
        yield partial(at, index)
    yield partial(_local, spec, behind, len(before))


def _split(shape: tuple[int, int, int]) -> list[Transform]:
    """Half the resolution, and half of the channels a latent with a learned conditional normal."""
    channels = 4 * shape[0]
    prior = partial(zero_convolution, kernel_size=3)
    return [
        SqueezeTransform(2),
        InvertibleConv1x1(channels),
        AffineCoupling(channels, prior),
        SqueezeAndSplit(1),
    ]


def _base(
    spec: MixerFlowSpec, pieces: Mapping[str, tuple[int, ...]] | None, shape: tuple[int, ...]
) -> Distribution:
    """The base, of one shape or of the pieces of several scales."""
    made: Any = spec.base
    if pieces is None:
        made = made if _is_ready(made) else made(shape)
    elif _is_ready(made):
        shape = (sum(map(math.prod, pieces.values())),)
    else:
        owner = f"{OWNER}.base"
        return ProductDistribution({k: as_base(made(v), v, owner) for k, v in pieces.items()})
    return as_base(made, shape, f"{OWNER}.base")


def _local(
    spec: MixerFlowSpec, local_flow: LocalFlow | None, index: int, shape: tuple[int, int, int]
) -> list[Transform]:
    """The local flow before mixer layer ``index``, or none."""
    if local_flow is None:
        return []
    offered: dict[str, Any] = {"index": index, **spec.offered_norm}
    if spec.features is not None:
        offered["context_features"] = spec.features
    return [built(local_flow, shape, f"{OWNER}.local_flow", **offered)]


def _mixer(
    spec: MixerFlowSpec,
    index: int,
    cut: Callable[[tuple[int, int, int]], PatchTransform],
    shape: tuple[int, int, int],
) -> PatchMixerTransform:
    """Return mixer layer ``index``, for images of this shape."""
    patches = cut(shape)
    channels, height, width = shape
    patch_height, patch_width = patches.patch_size
    grid = (height // patch_height, width // patch_width)
    channel_axes = (patch_height, patch_width, channels)
    return PatchMixerTransform(
        shape,
        patches,
        channel_flow=partial(_mixing_flow, spec, "channel_flow", index, channel_axes),
        patch_flow=partial(_mixing_flow, spec, "patch_flow", index, grid),
        positions=spec.positions,
    )


def _mixing_flow(
    spec: MixerFlowSpec, name: str, layer: int, axes: tuple[int, ...], features: int
) -> Transform:
    """Return the channel or patch flow of mixer layer ``layer``, for rows of this length."""
    context = spec.features or 0
    if spec.positions is not None:
        context += spec.positions(1).shape[-1]
    offered: dict[str, Any] = {
        "axes": axes,
        "context_features": context or None,
        "conditioner": spec.conditioner,
        "hidden_features": spec.hidden_features,
    }
    offered = {keyword: value for keyword, value in offered.items() if value is not None}
    offered |= spec.offered_norm
    flow_factory = getattr(spec, name)
    # One of the two flows may read what the other does not.
    unread = {keyword for keyword in NETWORK if not _reads(flow_factory, keyword, spec.conditioner)}
    parts: list[Transform] = []
    for index in range(spec.num_flow_layers):
        offered["index"] = layer * spec.num_flow_layers + index
        # Without a linear block nothing else exchanges the parts of a coupling.
        if spec.linear is None if spec.alternate is None else spec.alternate:
            offered["conditioning"] = "second" if offered["index"] % 2 else "first"
        linear = None
        if spec.linear is not None:
            linear = as_transform(spec.linear, features, f"{OWNER}.linear", **offered)
        given = {keyword: value for keyword, value in offered.items() if keyword not in unread}
        row_flow = as_transform(flow_factory, features, f"{OWNER}.{name}", **given)
        parts.append(FlowLayer(features, linear=linear, flow=row_flow))
    flow = CompositeTransform([*parts, ActNorm(features)])
    _check_mixing(spec, flow)
    return flow


def _check_mixing(spec: MixerFlowSpec, flow: Transform) -> None:
    """Raise where the order of features makes no sense."""
    reversals = sum(isinstance(module, RLULinear) for module in flow.modules())
    if any(shift is not None for shift in spec.shifts()) and reversals % 2:
        raise mismatch(
            OWNER,
            "an even number of RLU flow layers before a shift",
            reversals,
            "an odd number leaves positions reversed, so that the shifted grid joins pixels that "
            "are not neighbours; make num_flow_layers even, or pass linear=LULinear",
        )
    masked = (MaskedAffineAutoregressiveTransform, AffineAutoregressive)
    if spec.linear is None and any(isinstance(part, masked) for part in flow.modules()):
        raise mismatch(
            OWNER,
            "a linear block between autoregressive flows, to turn their order",
            "linear=None",
            "pass linear=RLULinear",
        )
