"""A MixerFlow, put together as its spec says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nflows.distributions.base import Distribution
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform

from nflows_mixer._checks import check_choice, check_image_shape, mismatch
from nflows_mixer.core.as_transform import as_transform, built
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.core.factory import UNSET, named_keywords, reads
from nflows_mixer.distributions import ProductDistribution, as_base
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow_spec import (
    NETWORK,
    OWNER,
    LocalFlow,
    MixerFlowSpec,
    is_ready,
)
from nflows_mixer.nn.dense_block import PriorConvolution
from nflows_mixer.transforms import (
    ActNorm,
    AffineAutoregressive,
    AffineCoupling,
    FlowLayer,
    InvertibleConv1x1,
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
            chains += _split(shape, spec.features)
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
    patches, shifts = spec.patches(), spec.shifts()

    def at(index: int, shape: tuple[int, int, int]) -> list[Transform]:
        cut, shift = patches[index], shifts[index]
        mixer = partial(_mixer, spec, index, cut)
        if shift is None:
            layer: Transform = mixer(shape)
        else:
            layer = ShiftTransform(shape, cut(shape).patch_size, shift, mixer)
        return [*_local(spec, before[index], index, shape), layer]

    for index in range(len(before)):
        yield partial(at, index)
    yield partial(_local, spec, behind, len(before))


def _split(shape: tuple[int, int, int], context_features: int | None) -> list[Transform]:
    """Half the resolution, and half of the channels a latent with a learned conditional normal."""
    channels = 4 * shape[0]
    return [
        SqueezeTransform(2),
        InvertibleConv1x1(channels),
        AffineCoupling(channels, PriorConvolution, "tanh", context_features=context_features),
        SqueezeAndSplit(1),
    ]


def _base(
    spec: MixerFlowSpec, pieces: Mapping[str, tuple[int, ...]] | None, shape: tuple[int, ...]
) -> Distribution:
    """The base, of one shape or of the pieces of several scales."""
    made: Any = spec.base
    if pieces is None:
        made = made if is_ready(made) else made(shape)
    elif is_ready(made):
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
    context = UNSET if spec.features is None else spec.features
    owner = f"{OWNER}.local_flow"
    return [built(local_flow, shape, owner, index=index, context_features=context)]


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
        channel_flow=partial(_mixing_flow, spec, "channel_flow", index, patches.mask, channel_axes),
        patch_flow=partial(_mixing_flow, spec, "patch_flow", index, patches.mask, grid),
        positions=spec.positions,
    )


def _mixing_flow(
    spec: MixerFlowSpec, name: str, layer: int, mask: str, axes: tuple[int, ...], features: int
) -> Transform:
    """Return the channel or patch flow of mixer layer ``layer``, for rows of this length."""
    context = spec.features or 0
    if spec.positions is not None:
        context += spec.positions(1).shape[-1]
    offered: dict[str, Any] = {
        # In another order a row is no grid.
        "axes": axes if mask == "halves" else None,
        "context_features": context or None,
        "conditioner": spec.conditioner,
        "hidden_features": spec.hidden_features,
    }
    offered = {keyword: value for keyword, value in offered.items() if value is not None}
    offered |= spec.offered_norm
    flow_factory = getattr(spec, name)
    if mask != "halves":
        _check_order(spec.linear, flow_factory, mask)
    # One of the two flows may read what the other does not.
    unread = {
        keyword for keyword in NETWORK if not reads(flow_factory, keyword, 1, spec.conditioner)
    }
    parts: list[Transform] = []
    count = spec.flow_layers[name]
    for index in range(count):
        offered["index"] = layer * count + index
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


def _check_order(linear: Any, flow: Any, mask: str) -> None:
    """Raise where a part asks what is where in a row, which a mask has put in another order."""
    advice = "give couplings alone the mask, as in channel_flow=partial(AffineCoupling, mask=...)"
    of_linear = linear is not None and "axes" in named_keywords(linear)
    if of_linear or "mask" in getattr(flow, "keywords", {}):
        part = linear if of_linear else flow.func
        got = f"{getattr(part, '__name__', part)} beside mask={mask!r}"
        raise mismatch(OWNER, "rows in their order for a part that reads axes", got, advice)


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
