"""Deeper flows from trained ones."""

from __future__ import annotations

import dataclasses

import torch

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows.architecture import MixerFlowArchitecture
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow import mixerflow
from nflows_mixer.transforms.actnorm import ActNorm


@torch.no_grad()
def grow(flow: ImageFlow, num_layers: int, **changes) -> ImageFlow:
    """Return a deeper flow that is, to begin with, the same map: its new layers are the identity.

    The layers that were there come first (next to the data) and keep their parameters; those
    behind them start with LU blocks and ActNorm at the identity, and couplings at zero.

    Args:
        flow: what ``mixerflow`` built, trained or not.
        num_layers: mixer layers of the new flow, more than it has.
        **changes: arguments that list one entry for each layer, in their new length.

    Returns:
        A new flow, on the device and of the dtype of ``flow``, which keeps its own parameters.

    Raises:
        ValueError: if ``flow`` was not built by ``mixerflow``, is not to become deeper, or the new
            layers are not the identity (a factory's flow that starts elsewhere, RLU blocks that
            do not cancel).

    References:
        MixerFlow, Section 4, "Identity initialisation", and Section 8 (growing by layers).

    Example:
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, shift=None, num_layers=1)
        >>> flow = flow.initialize(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8))
        >>> deeper = grow(flow, num_layers=2)
        >>> images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
        >>> (deeper.transform_to_noise(images) - flow.transform_to_noise(images)).abs().max().item()
        0.0
    """
    if not isinstance(flow.architecture, MixerFlowArchitecture):
        got = "one put together by hand" if flow.architecture is None else "one of denseflow's"
        raise mismatch("grow", "a flow that mixerflow built", got, "add layers by hand")
    if num_layers <= flow.architecture.num_layers:
        raise mismatch(
            "grow", f"more than {flow.architecture.num_layers} layers", num_layers, "add some"
        )
    if flow.architecture.norm != "actnorm":
        got = f"norm={flow.architecture.norm!r}"
        raise mismatch("grow", "norm='actnorm'", got, "nflows' BatchNorm is no identity to start")
    if unknown := sorted(set(changes) - {"patch_size", "layout"}):
        expected = "patch_size or layout, one for each layer, as the only changes"
        raise mismatch("grow", expected, ", ".join(unknown), "build another flow for these")
    # What is at its default is left out: some may only be given where something reads them.
    arguments = {
        field.name: getattr(flow.architecture, field.name)
        for field in dataclasses.fields(flow.architecture)
        if getattr(flow.architecture, field.name) is not field.default
        and getattr(flow.architecture, field.name) != field.default
    }
    whole = flow._transform
    how = {
        "compile": getattr(whole, "compiled", None) is not None,
        "memory": getattr(whole, "memory", "full"),
    }
    with torch.random.fork_rng(devices=[]):
        deeper = mixerflow(**{**arguments, **changes, **how, "num_layers": num_layers})
    assert isinstance(deeper.architecture, MixerFlowArchitecture)
    for name in ("patch_size", "layout"):
        old, new = flow.architecture.per_layer(name), deeper.architecture.per_layer(name)
        if old != new[: len(old)]:
            raise mismatch("grow", f"{name} of the old layers first, {old}", new, "add to it")
    example = next(flow.parameters())
    deeper.to(device=example.device, dtype=example.dtype)
    result = deeper.load_state_dict(flow.state_dict(), strict=False)
    for name, part in deeper.named_modules():
        if isinstance(part, ActNorm) and f"{name}.log_scale" in result.missing_keys:
            part.initialize_identity()
    _check_identity(flow, deeper, flow.architecture)
    return deeper.train(flow.training)


def _check_identity(flow: ImageFlow, deeper: ImageFlow, spec: MixerFlowArchitecture) -> None:
    layers = deeper._transform._transforms[len(flow._transform._transforms) :]
    example = next(flow.parameters())
    channels, height, width = spec.image_shape
    shape = (channels * spec.squeeze**2, height // spec.squeeze, width // spec.squeeze)
    latents = torch.randn(16, *shape, device=example.device, dtype=example.dtype)
    context = None
    if spec.embedded_features is not None:
        context = torch.randn(16, spec.embedded_features).to(latents)
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
