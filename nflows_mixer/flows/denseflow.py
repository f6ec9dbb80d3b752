"""DenseFlow: the builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import check_choice, check_image_shape, check_positive, mismatch
from nflows_mixer.core.factory import UNSET, Unset, named_keywords
from nflows_mixer.distributions import BaseDistribution, DiagonalNormal, ProductDistribution
from nflows_mixer.flows.builder import Spec, specify
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.pixels import (
    NOISE_CHANNELS,
    DequantizationLike,
    check_dequantization,
    noise_networks,
)
from nflows_mixer.flows.presets import DENSEFLOW_PRESETS
from nflows_mixer.nn import DenseAttentionConditioner
from nflows_mixer.transforms import (
    AffineCoupling,
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    GlowStep,
    LearnedAugmentation,
    MultiScaleTransform,
    PixelScaling,
    ReversibleCompositeTransform,
    SqueezeAndSplit,
    SqueezeTransform,
)
from nflows_mixer.transforms.coupling import LOG_SCALES
from nflows_mixer.transforms.dense_flow_block import PRECONDITIONING
from nflows_mixer.transforms.reversible import MEMORY

OWNER = "denseflow"

PriorFactory = Callable[[tuple[int, ...]], BaseDistribution]


def denseflow(
    preset: str | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    levels: int | None | Unset = UNSET,
    units: Sequence[int] | None = None,
    modules: Sequence[int] | None = None,
    growth: int | None = None,
    augmentation: Literal["units", "input"] | None = None,
    preconditioning: Literal["block", "all", "previous", "learned"] | None | Unset = UNSET,
    conditioner: Callable[[int, int], nn.Module] | None = None,
    norm: Unset | Literal["layer", "batch"] | None = UNSET,
    scale: Literal["exp", "tanh", "sigmoid", "softplus"] | None = None,
    swap: bool | None = None,
    dequantization: DequantizationLike | None = None,
    noise_channels: int | None = None,
    base: PriorFactory | None = None,
    context_features: int | None = None,
    num_classes: int | None = None,
    compile: bool = False,
    memory: Literal["full", "checkpoint", "constant"] = "full",
) -> ImageFlow:
    """Build a DenseFlow from a preset, from arguments, or from a preset with some of them changed.

    What is not given is the preset's, and without one DenseFlow-74-10's as published, but for
    the tokens of its attention and its norm.

    Args:
        preset: "denseflow-74-10", "denseflow-45-6", "vflow", ...: see ``DENSEFLOW_PRESETS``.
        image_shape: (C, H, W); H and W are multiples of 2 to the number of blocks.
        levels, num_classes: as ``mixerflow``.
        units: of each block. Each block but the first begins with a squeeze, of whose channels
            half are dropped.
        modules: glow-like modules in each unit, block by block.
        growth: channels of noise behind each unit but the last of a block; 0 for none. Some block
            has to have two units.
        augmentation: where noise is appended: "units", as above, or "input", ``growth`` channels
            to the squeezed image alone.
        preconditioning: what the noise is computed from: of "units" the representations of this
            "block" (as published), of "all" blocks (as the paper says), or of the "previous" unit
            alone; of "input" a "learned" q(e | x), as VFlow; None for white noise, for either.
        conditioner: factory of the couplings' networks, ``(in_channels, out_channels) ->
            network``: ``DenseAttentionConditioner``, the default, with keywords by ``partial``, or
            ``ConvConditioner``, which is Glow's. It is also given ``context_features`` and ``norm``
            where its signature names them.
        norm: of the conditioners, "layer", "batch" or None; their own default where not given.
        scale: of the modules' couplings, see ``AffineCoupling``; that of noise is "tanh".
        swap: whether modules end with a swap of the halves (as published; not in the paper).
        dequantization: "variational", "variational-small" or "uniform", or a factory, see
            ``Pixels``.
        noise_channels: width of the networks of a "variational" dequantization, and of those of
            q(e | x); 64.
        base: factory of the base of the last representation, ``shape -> distribution``. A normal
            with a mean and a scale for each channel (as published) where not given; those of
            what is dropped are standard normal.
        context_features: length of the context that conditioners and cross-unit networks take;
            None for none.
        compile: whether ``torch.compile`` compiles the couplings' networks, at the first use: one
            for each size, which takes minutes.
        memory: of the backward pass: "full" keeps activations; "checkpoint" computes those of a
            coupling again from its inputs; "constant" rebuilds the inputs, too. See
            ``ReversibleCompositeTransform``. A learned dequantization is computed again in both.

    Returns:
        A flow on uint8 images whose ``log_prob`` is a bound: its transform appends noise. ActNorm
        needs one batch before evaluation: ``flow.initialize(images)``, or one training step.

    Raises:
        ValueError: if a choice is unknown, sizes do not fit, or nothing would read an argument.
        TypeError: if ``image_shape`` is missing.

    References:
        DenseFlow, Sections 2 and 3.1, Table 4.

    Example:
        >>> import torch
        >>> narrow = partial(DenseAttentionConditioner, hidden_channels=8, num_layers=1, growth=8)
        >>> sizes = {"units": (2, 1), "modules": (1, 2), "growth": 2, "conditioner": narrow}
        >>> flow = denseflow(image_shape=(1, 8, 8), levels=17, dequantization="uniform", **sizes)
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> loss = -flow.log_prob(images).mean()
        >>> flow.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    spec, changes = specify(denseflow, DenseFlowSpec, DENSEFLOW_PRESETS, locals())
    read = {"augmentation": spec.growth, "preconditioning": spec.growth}
    read["dequantization"] = spec.levels is not None
    read["norm"] = "norm" in named_keywords(spec.conditioner, positional=2)
    for name, value in changes.items():
        if not read.get(name, True):
            got = f"conditioner={spec.conditioner!r}, growth={spec.growth}, levels={spec.levels}"
            expected = f"what reads {name}={value!r}"
            raise mismatch(OWNER, expected, got, f"leave {name} out")
    return build_denseflow(spec, compile, memory)


@dataclass(frozen=True)
class DenseFlowSpec(Spec):
    """The arguments of ``denseflow`` that describe the flow, with their defaults, checked."""

    image_shape: tuple[int, int, int]
    levels: int | None = 256
    units: Sequence[int] = (6, 4, 1)
    modules: Sequence[int] = (5, 6, 20)
    growth: int = 10
    augmentation: str = "units"
    preconditioning: str | None = "block"
    conditioner: Callable[..., nn.Module] = DenseAttentionConditioner
    norm: str | None | Unset = UNSET
    scale: str = "tanh"
    swap: bool = True
    dequantization: DequantizationLike = "variational"
    noise_channels: int | None = None
    base: PriorFactory = partial(DiagonalNormal, per_channel=True)
    context_features: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        self.check(OWNER, (), ("conditioner", "base"))
        _, height, width = self.image_shape
        for name in ("units", "modules"):
            sizes = getattr(self, name)
            if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not sizes:
                advice = "such as (6, 4, 1)"
                raise mismatch(OWNER, f"{name} as one number for each block", sizes, advice)
            for size in sizes:
                check_positive(OWNER, name, size)
        if len(self.units) != len(self.modules):
            expected = f"modules for each of {len(self.units)} blocks"
            raise mismatch(OWNER, expected, self.modules, "give as many as there are units")
        factor = 2 ** len(self.units)
        if height % factor or width % factor:
            expected = f"a height and width that {factor} divides, for {len(self.units)} blocks"
            raise mismatch(OWNER, expected, (height, width), "use fewer blocks, or pad the images")
        check_choice(OWNER, "augmentation", self.augmentation, ("units", "input"))
        check_choice(OWNER, "scale", self.scale, tuple(LOG_SCALES))
        learned = bool(self.growth) and self.preconditioning == "learned"
        kind = "uniform" if self.levels is None else self.dequantization
        check_dequantization(OWNER, kind, self.noise_channels, read=learned)
        if self.growth != 0:
            check_positive(OWNER, "growth", self.growth)
        places = {"units": PRECONDITIONING, "input": ("learned", None)}
        known = places[self.augmentation] if self.growth else (*PRECONDITIONING, "learned")
        check_choice(OWNER, "preconditioning", self.preconditioning, known)
        if self.growth and self.augmentation == "units" and max(self.units) == 1:
            expected = "a block of two units or more, for noise between them"
            advice = "split a unit in two, or pass growth=0"
            raise mismatch(OWNER, expected, f"units={tuple(self.units)}", advice)


def build_denseflow(spec: DenseFlowSpec, compile: bool, memory: str) -> ImageFlow:
    """Build what ``denseflow`` builds.

    Args:
        spec: what it is made of.
        compile: as in ``denseflow``.
        memory: as in ``denseflow``.
    """
    check_choice(OWNER, "memory", memory, MEMORY)
    composite = partial(ReversibleCompositeTransform, memory=memory, compile=compile)
    shape = check_image_shape(spec.image_shape, OWNER)
    scaling = [] if spec.levels is None else [PixelScaling(spec.levels)]
    parts: list[Transform] = [*scaling, SqueezeTransform(2)]
    channels = 4 * shape[0]
    if spec.growth and spec.augmentation == "input":
        parts.append(_augmentation(spec, channels))
        channels += spec.growth
    growth = spec.growth if spec.augmentation == "units" else 0
    earlier = 0
    for i, (units, modules) in enumerate(zip(spec.units, spec.modules)):
        if i:
            parts.append(SqueezeAndSplit(2))
            channels, earlier = 2 * channels, 4 * earlier
        block = DenseFlowBlock(
            channels,
            units,
            partial(_unit, spec, composite, modules),
            growth,
            spec.preconditioning if growth else None,
            spec.features if growth and spec.preconditioning else None,
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
    priors["final"] = spec.base(transform.latent_shapes["final"])
    base, noise = ProductDistribution(priors), (spec.dequantization, spec.noise_channels)
    advice = "give a conditioner that takes it: a factory that names context_features"
    return spec.assemble(OWNER, transform, base, *noise, memory, GlowStep, advice)


def _augmentation(spec: DenseFlowSpec, channels: int) -> Transform:
    """Return what appends noise to the input alone."""
    if spec.preconditioning is None:
        return CrossUnitCoupling(channels, spec.growth)
    width = spec.noise_channels or NOISE_CHANNELS
    network, encoder = noise_networks(width, stride=1)
    noise = ConditionalNoise(spec.growth, width, conditioner=network)
    return LearnedAugmentation(channels, spec.growth, noise, encoder(channels, width))


def _unit(
    spec: DenseFlowSpec,
    composite: Callable[..., ReversibleCompositeTransform],
    modules: int,
    channels: int,
) -> Transform:
    """Return a unit of glow-like modules."""
    offered: dict[str, Any] = {"context_features": spec.features, **spec.offered_norm}
    read = named_keywords(spec.conditioner, positional=2)
    offered = {name: value for name, value in offered.items() if name in read}
    step = partial(GlowStep, channels, spec.conditioner, spec.scale, swap=spec.swap, **offered)
    unit = composite([step() for _ in range(modules)])
    if unit.compiled is not None:
        for coupling in (part for part in unit.modules() if isinstance(part, AffineCoupling)):
            unit.compiled.attach(coupling.conditioner)
    return unit
