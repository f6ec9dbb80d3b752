"""Jet: the builder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from nflows.transforms import Transform

from nflows_mixer._checks import check_choice
from nflows_mixer.core.factory import UNSET, Unset
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows.builder import specify
from nflows_mixer.flows.chain import LINEAR, ChainSpec
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow_spec import Base
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.flows.presets import JET_PRESETS
from nflows_mixer.transforms import JetCoupling, jet_coupling
from nflows_mixer.transforms.reversible import MEMORY

OWNER = "jet"
SPATIAL = (
    ("checkerboard", "first"),
    ("checkerboard", "second"),
    ("columns", "first"),
    ("rows", "first"),
)
"""Spatial couplings in turn: kind, and which half conditions."""


def jet(
    preset: str | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    patch_size: int | None = None,
    levels: int | None | Unset = UNSET,
    num_couplings: int | None = None,
    channel_couplings: int | None = None,
    hidden_features: int | None = None,
    num_blocks: int | None = None,
    num_heads: int | None = None,
    actnorm: bool | None = None,
    base: Base | None = None,
    context_features: int | None = None,
    num_classes: int | None = None,
    pixels: Pixels | None | Unset = UNSET,
    compile: bool = False,
    memory: Literal["full", "checkpoint", "constant"] = "full",
) -> ImageFlow:
    """Build a Jet from a preset, from arguments, or from a preset with some of them changed.

    Couplings of the patches of an image by vision transformers: a few over the numbers of all
    patches, then one over the patches, and so on. What is not given is the preset's, and without
    one that of the paper's model of 32 couplings.

    Args:
        preset: "jet-imagenet64", see ``JET_PRESETS``.
        image_shape: (C, H, W).
        patch_size: p; 4.
        levels: as ``mixerflow``.
        num_couplings: 32.
        channel_couplings: couplings over the numbers of patches before each over the patches; 4.
        hidden_features: width; 512.
        num_blocks: transformer blocks of each coupling; 2.
        num_heads: of their attention; 8.
        actnorm: whether an ActNorm of all activations is before each coupling, which is set from
            the first batch; not so as published.
        base, context_features, num_classes: as ``mixerflow``; the base is a standard normal where
            not given.
        pixels: as ``tarflow``.
        compile: whether ``torch.compile`` compiles the transformers, at the first use.
        memory: of the backward pass, as ``mixerflow``.

    Returns:
        A flow on uint8 images, or on real ones, whose log-density ``log_prob`` is; at the identity
        but for the scaling of pixels.

    Raises:
        ValueError: if a choice is unknown, sizes do not fit, or nothing would read an argument.
        TypeError: if ``image_shape`` is missing.

    References:
        Kolesnikov et al., Jet: a modern transformer-based normalizing flow, 2024.

    Example:
        >>> import torch
        >>> sizes = {"hidden_features": 32, "num_couplings": 5, "num_blocks": 1, "num_heads": 2}
        >>> flow = jet(image_shape=(1, 8, 8), patch_size=2, levels=17, **sizes)
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> loss = -flow.log_prob(images).mean()
        >>> flow.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    spec, _ = specify(jet, JetSpec, JET_PRESETS, locals())
    return build_jet(spec, compile, memory)


@dataclass(frozen=True)
class JetSpec(ChainSpec):
    """The arguments of ``jet`` that describe the flow, with their defaults, checked."""

    image_shape: tuple[int, int, int]
    patch_size: int = 4
    levels: int | None = 256
    num_couplings: int = 32
    channel_couplings: int = 4
    hidden_features: int = 512
    num_blocks: int = 2
    num_heads: int = 8
    actnorm: bool = False
    base: Base = partial(DiagonalNormal, learnable=False)
    context_features: int | None = None
    num_classes: int | None = None
    pixels: Pixels = LINEAR

    def __post_init__(self) -> None:
        sizes = ("num_couplings", "channel_couplings", "hidden_features", "num_blocks")
        self.check(OWNER, (*sizes, "num_heads", "patch_size"), ())
        self.check_ends(OWNER)

    def kinds(self) -> Iterator[tuple[str, str]]:
        """Kind of each coupling, and which half conditions."""
        period = self.channel_couplings + 1
        for index in range(self.num_couplings):
            turn, place = divmod(index, period)
            spatial = place == self.channel_couplings
            yield SPATIAL[turn % len(SPATIAL)] if spatial else ("channels", "first")


def build_jet(spec: JetSpec, compile: bool, memory: str) -> ImageFlow:
    """Build what ``jet`` builds.

    Args:
        spec: what it is made of.
        compile: as in ``jet``.
        memory: as in ``jet``.
    """
    check_choice(OWNER, "memory", memory, MEMORY)

    def maps(shape: tuple[int, int, int]) -> Iterator[Transform]:
        for index, (kind, conditioning) in enumerate(spec.kinds()):
            yield jet_coupling(
                shape,
                kind,
                spec.patch_size,
                spec.hidden_features,
                spec.num_blocks,
                spec.num_heads,
                spec.actnorm,
                conditioning,
                index,
                spec.features,
            )

    return spec.build(OWNER, maps, JetCoupling, lambda part: part.conditioner, compile, memory)
