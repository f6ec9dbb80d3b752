"""TarFlow: the builder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import check_choice, check_positive, mismatch
from nflows_mixer.core.factory import UNSET, Unset
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows.builder import specify
from nflows_mixer.flows.chain import LINEAR, ChainSpec
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow_spec import Base
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.flows.presets import TARFLOW_PRESETS
from nflows_mixer.nn import OneHotClasses
from nflows_mixer.nn.causal_transformer import POSITIONS
from nflows_mixer.transforms import CausalPatchTransform, causal_patch_flow
from nflows_mixer.transforms.coupling import LOG_SCALES

OWNER = "tarflow"
MEMORY = ("full", "checkpoint")


def tarflow(
    preset: str | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    patch_size: int | Sequence[int] | None = None,
    levels: int | None | Unset = UNSET,
    num_blocks: int | None = None,
    num_layers: int | Sequence[int] | None = None,
    hidden_features: int | None = None,
    num_heads: int | None = None,
    actnorm: bool | None = None,
    scale: Literal["exp", "tanh", "sigmoid", "softplus"] | None = None,
    soft_clip: float | None | Unset = UNSET,
    positions: Literal["learned", "rotary"] | None = None,
    start_token: bool | None = None,
    mask: str | None = None,
    segment: int | None | Unset = UNSET,
    base: Base | None = None,
    context_features: int | None = None,
    num_classes: int | None = None,
    pixels: Pixels | None | Unset = UNSET,
    compile: bool = False,
    memory: Literal["full", "checkpoint"] = "full",
) -> ImageFlow:
    """Build a TarFlow from a preset, from arguments, or from a preset with some of them changed.

    Causal transformers over the patches of an image, whose order is turned around from block to
    block. What is not given is the preset's, and without one that of the paper's smallest model.

    Args:
        preset: "tarflow-mnist" or "tarflow-imagenet64", see ``TARFLOW_PRESETS``.
        image_shape: (C, H, W).
        patch_size: p, or (height, width); 4.
        levels: as ``mixerflow``.
        num_blocks: autoregressive maps, each with a transformer of its own; 4.
        num_layers: transformer blocks in each, or a list with one number for each; 4.
        hidden_features: width; 128.
        num_heads: of the attention; one for 64 numbers of the width where not given.
        actnorm: whether an ActNorm of all activations is before each block, which is set from the
            first batch; not so as published.
        scale, soft_clip, positions, start_token: see ``CausalPatchTransform``.
        mask: order of the patches, see ``mask_order``.
        segment: patches that the inverse solves for together, see ``CausalPatchTransform``.
        base: as ``mixerflow``; a standard normal where not given.
        context_features: length of the context, which each block takes; None for none.
        num_classes: of class labels, given as context: integers [B]. Each block has a vector for
            each class, and takes the mean of these for the label -1, no label.
        pixels: what stands before the patches, see ``Pixels``; None for a linear scale alone,
            which is also what is there where there is no preset.
        compile: whether ``torch.compile`` compiles the transformers, at the first use.
        memory: of the backward pass: "full" keeps activations; "checkpoint" computes those of a
            block again from its inputs. There is no "constant": the inverse of a block goes patch
            by patch, and costs many times what it would save.

    Returns:
        A flow on uint8 images, or on real ones, whose log-density ``log_prob`` is; at the identity
        but for the scaling of pixels.

    Raises:
        ValueError: if a choice is unknown, sizes do not fit, or nothing would read an argument.
        TypeError: if ``image_shape`` is missing.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024.

    Example:
        >>> import torch
        >>> flow = tarflow("tarflow-mnist", num_classes=10)
        >>> sum(p.numel() for p in flow.parameters())
        3227776
        >>> small = tarflow(image_shape=(1, 8, 8), patch_size=2, levels=17, hidden_features=32)
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> loss = -small.log_prob(images).mean()
    """
    spec, _ = specify(tarflow, TarFlowSpec, TARFLOW_PRESETS, locals())
    return build_tarflow(spec, compile, memory)


@dataclass(frozen=True)
class TarFlowSpec(ChainSpec):
    """The arguments of ``tarflow`` that describe the flow, with their defaults, checked."""

    image_shape: tuple[int, int, int]
    patch_size: int | Sequence[int] = 4
    levels: int | None = 256
    num_blocks: int = 4
    num_layers: int | Sequence[int] = 4
    hidden_features: int = 128
    num_heads: int | None = None
    actnorm: bool = False
    scale: str = "exp"
    soft_clip: float | None = None
    positions: str = "learned"
    start_token: bool = False
    mask: str = "halves"
    segment: int | None = 1
    base: Base = partial(DiagonalNormal, learnable=False)
    context_features: int | None = None
    num_classes: int | None = None
    pixels: Pixels = LINEAR

    def __post_init__(self) -> None:
        self.check(OWNER, ("num_blocks", "hidden_features", "num_heads"), ())
        check_choice(OWNER, "scale", self.scale, tuple(LOG_SCALES))
        check_choice(OWNER, "positions", self.positions, POSITIONS)
        self.check_ends(OWNER)
        if self.num_classes is not None and self.context_features is not None:
            got, advice = "both", "leave context_features out: each block has vectors of its own"
            raise mismatch(OWNER, "num_classes or context_features", got, advice)
        if not isinstance(self.num_layers, int) and len(self.num_layers) != self.num_blocks:
            expected = f"one number, or one for each of {self.num_blocks} blocks"
            raise mismatch(OWNER, f"num_layers as {expected}", self.num_layers, "give as many")
        for layers in self.layers:
            check_positive(OWNER, "num_layers", layers)

    @property
    def layers(self) -> Sequence[int]:
        """Transformer blocks of each block."""
        count = self.num_layers
        return [count] * self.num_blocks if isinstance(count, int) else count

    @property
    def features(self) -> int | None:
        """Length of the context that blocks see: of labels a unit vector."""
        return self.context_features if self.num_classes is None else self.num_classes

    def embedding(self, classes: int) -> nn.Module:
        """Return what makes a context of labels."""
        return OneHotClasses(classes)


def build_tarflow(spec: TarFlowSpec, compile: bool, memory: str) -> ImageFlow:
    """Build what ``tarflow`` builds.

    Args:
        spec: what it is made of.
        compile: as in ``tarflow``.
        memory: as in ``tarflow``.
    """
    check_choice(OWNER, "memory", memory, MEMORY)

    def maps(shape: tuple[int, int, int]) -> Iterator[Transform]:
        for index, layers in enumerate(spec.layers):
            yield causal_patch_flow(
                shape,
                spec.patch_size,
                spec.hidden_features,
                layers,
                spec.num_heads,
                spec.actnorm,
                spec.scale,
                spec.soft_clip,
                spec.positions,
                spec.start_token,
                spec.segment,
                mask=spec.mask,
                index=index,
                context_features=spec.features,
            )

    blocks = CausalPatchTransform
    return spec.build(OWNER, maps, blocks, lambda part: part.network, compile, memory)
