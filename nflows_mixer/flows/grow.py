"""Deeper flows from trained ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows.architecture import encoded
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixer_layers import build_mixerflow
from nflows_mixer.flows.mixerflow_spec import MixerFlowSpec, per_layer
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.linear import FullLinear


@torch.no_grad()
def grow(flow: ImageFlow, num_layers: int, **changes: Any) -> ImageFlow:
    """Return a deeper flow that is, to begin with, the same map: its new layers are the identity.

    The layers that were there come first (next to the data) and keep their parameters; those
    behind them start with linear blocks and ActNorm at the identity, and couplings at zero.

    Args:
        flow: what ``mixerflow`` built, trained or not.
        num_layers: mixer layers of the new flow, more than it has.
        **changes: ``patch_size`` or ``shift``, where they list one entry for each layer, in their
            new length.

    Returns:
        A new flow, on the device and of the dtype of ``flow``, which keeps its own parameters.

    Raises:
        ValueError: if ``flow`` was not built by ``mixerflow``, has several scales, is not to become
            deeper, or the new layers are not the identity (a factory's flow that starts elsewhere,
            RLU blocks that do not cancel).

    References:
        MixerFlow, Section 4, "Identity initialization", and Section 8 (growing by layers).

    Example:
        >>> from nflows_mixer import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, shift=None, num_layers=1)
        >>> flow = flow.initialize(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8))
        >>> deeper = grow(flow, num_layers=2)
        >>> images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
        >>> (deeper.transform_to_noise(images) - flow.transform_to_noise(images)).abs().max().item()
        0.0
    """
    if flow.architecture is None or flow.architecture.builder != "mixerflow":
        got = "one put together by hand" if flow.architecture is None else "one of denseflow's"
        raise mismatch("grow", "a flow that mixerflow built", got, "add layers by hand")
    before = flow.architecture.arguments
    if not isinstance(before["num_layers"], int) or not isinstance(num_layers, int):
        got = f"{before['num_layers']} and {num_layers} layers"
        raise mismatch("grow", "flows of one scale", got, "build and train another flow")
    if num_layers <= before["num_layers"]:
        raise mismatch("grow", f"more than {before['num_layers']} layers", num_layers, "add some")
    if unknown := sorted(set(changes) - {"patch_size", "shift"}):
        expected = "patch_size or shift, one for each layer, as the only changes"
        raise mismatch("grow", expected, ", ".join(unknown), "build another flow for these")
    whole = flow._transform
    spec = MixerFlowSpec(**{**before, **changes, "num_layers": num_layers})
    for name in ("patch_size", "shift"):
        old, new = (
            [encoded(value) for value in per_layer(name, known[name], known["num_layers"])]
            for known in (before, vars(spec))
        )
        if old != new[: len(old)]:
            raise mismatch("grow", f"{name} of the old layers first, {old}", new, "add to it")
    with torch.random.fork_rng(devices=[]):
        compiled = any(getattr(part, "compiled", None) is not None for part in whole.modules())
        deeper = build_mixerflow(spec, compiled, getattr(whole, "memory", "full"))
    example = next(flow.parameters())
    deeper.to(device=example.device, dtype=example.dtype)
    result = deeper.load_state_dict(flow.state_dict(), strict=False)
    for name, part in deeper.named_modules():
        if isinstance(part, ActNorm) and f"{name}.log_scale" in result.missing_keys:
            part.initialize_identity()
        if isinstance(part, FullLinear) and f"{name}.matrix" in result.missing_keys:
            nn.init.eye_(part.matrix)
    _check_identity(flow, deeper, spec)
    return deeper.train(flow.training)


def _check_identity(flow: ImageFlow, deeper: ImageFlow, spec: MixerFlowSpec) -> None:
    layers = deeper._transform._transforms[len(flow._transform._transforms) :]
    shape = spec.pixels.shape(flow.image_shape)
    latents = torch.randn(16, *shape).to(next(flow.parameters()))
    context = None if spec.features is None else torch.randn(16, spec.features).to(latents)
    with in_mode(deeper, training=False):
        outputs, total = CompositeTransform(layers)(latents, context)
    error = (outputs - latents).abs().max() + total.abs().max()
    if not error < 1e-3:
        raise mismatch(
            "grow",
            "new layers that are the identity",
            f"some that move a standard normal by up to {error.item():.2g}",
            "give flows that start at the identity, and an even number of reversals",
        )
