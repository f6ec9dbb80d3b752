"""MixerFlow: the builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from nflows_mixer.core.factory import UNSET, Unset, check_read
from nflows_mixer.flows.builder import specify
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixer_layers import build_mixerflow
from nflows_mixer.flows.mixerflow_spec import (
    NETWORK,
    OWNER,
    Base,
    LocalFlow,
    MixerFlowSpec,
    PatchSize,
    RowFlowFactory,
    Shift,
)
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.flows.presets import MIXERFLOW_PRESETS


def mixerflow(
    preset: str | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    patch_size: PatchSize | Sequence[PatchSize] | None = None,
    levels: int | None | Unset = UNSET,
    num_layers: int | Sequence[int] | None = None,
    num_flow_layers: int | Sequence[int] | None = None,
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
    pixels: Pixels | None | Unset = UNSET,
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
            columns of the paper's Table 8; or, of ours, "cifar10-local", "imagenet64-local",
            "mnist-local", "mnist-maf-local" or "digits-local". See ``MIXERFLOW_PRESETS``.
        image_shape: (C, H, W).
        patch_size: p, (height, width), or a factory such as ``partial(PatchTransform,
            patch_size=4, layout="stripe")``; or a list with one of these for each layer.
        levels: number of pixel values, 256 where not given; None for real images, which are
            neither dequantized nor scaled.
        num_layers: mixer layers; 30. Or a list with the layers of each scale: after each but the
            last, squares of 2 x 2 pixels become channels, and half of these are latents, normal
            with a mean and scale that are learned of the other half. Where another argument is a
            list for all layers, those of all scales follow each other.
        num_flow_layers: flow layers in each channel flow and in each patch flow, or a pair of both
            numbers; 4.
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
            ``context_features`` and ``index``, the layer, that their signature names.
        base: a factory ``shape -> distribution``, ``DiagonalNormal`` where not given, or a
            distribution of nflows, torch, zuko or normflows, see ``as_base``. With several scales a
            factory makes one for each piece of the latents, of ``nflows_mixer.distributions``.
        context_features: length of the context, [B, context_features]; None for none.
        num_classes: of class labels, given as context in the place of vectors: integers [B], of
            which each has a learned vector of ``context_features`` (16 where that is None).
        positions: factory of positional context, ``rows -> [rows, F]``, such as
            ``partial(learned_positions, features=16)``; None for none.
        pixels: what stands between pixels and mixer layers, see ``Pixels``; None for a linear scale
            and the rest of its defaults, which are also those where there is no preset.
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
    given = {name: changes[name] for name in NETWORK if name in changes}
    if changes.get("alternate"):
        given["conditioning"] = "first"
    for name, value in given.items():
        check_read(OWNER, *flows, network=spec.conditioner, **{name: value})
    return build_mixerflow(spec, compile, memory)
