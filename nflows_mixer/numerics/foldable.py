"""Whether a masked flow of nflows is what its class says, so that its weights tell all of it."""

from __future__ import annotations

from typing import Any

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from nflows.transforms.made import (
    MADE,
    MaskedFeedforwardBlock,
    MaskedLinear,
    MaskedResidualBlock,
)
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer.nn.batch_norm import BatchNorm1d
from nflows_mixer.numerics.masked_inverse import degrees_of

NFLOWS_EPSILON = 1e-3
"""What the scale of nflows' masked affine transform, softplus(u) + epsilon, stays above."""


def nflows_scale(u: Tensor) -> Tensor:
    """That scale."""
    return F.softplus(u) + NFLOWS_EPSILON


def nflows_log_scale(u: Tensor) -> Tensor:
    """Its logarithm."""
    return nflows_scale(u).log()


_NORMS = (nn.BatchNorm1d, BatchNorm1d)
_PARTS = {
    MaskedAffineAutoregressiveTransform,
    MADE,
    MaskedLinear,
    MaskedResidualBlock,
    MaskedFeedforwardBlock,
    nn.Linear,
    nn.Dropout,
    nn.ModuleList,
    *_NORMS,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_not_foldable(flow: Any) -> str | None:
    """Return what keeps a flow from being computed by its weights alone; None if nothing does.

    It has to be a ``MaskedAffineAutoregressiveTransform`` of nflows with nflows' own parts, masks
    that follow from degrees, an elementwise activation, no hooks and no replaced methods.

    Args:
        flow: any object.

    Example:
        >>> from nflows.transforms import LULinear
        >>> why_not_foldable(MaskedAffineAutoregressiveTransform(4, 8))
        >>> why_not_foldable(LULinear(4))
        'LULinear'
    """
    if type(flow) is not MaskedAffineAutoregressiveTransform:
        return type(flow).__name__
    if flow._epsilon != NFLOWS_EPSILON:
        return f"a scale of softplus(u) + {flow._epsilon:g}"
    network = flow.autoregressive_net
    activation = getattr(network, "activation", None)
    inside = set(activation.modules()) if isinstance(activation, nn.Module) else set()
    for part in flow.modules():
        name = type(part).__name__
        if any(getattr(part, hooks) for hooks in _HOOKS):
            return f"{name} with hooks"
        if part in inside:
            continue
        if type(part) not in _PARTS:
            return f"{name} in it"
        if replaced := [key for key in vars(part) if callable(getattr(type(part), key, None))]:
            return f"{name} with a {replaced[0]} of its own"
        if isinstance(part, _NORMS) and not (part.affine and part.track_running_stats):
            return "BatchNorm1d without weights or running statistics"
        if getattr(part, "activation", activation) is not activation:
            return "blocks with activations of their own"
    try:
        if not _follow_from_degrees(network):
            return "masks that do not follow from degrees"
    except AttributeError:
        return "layers without masks"
    if not _is_elementwise(activation, network.initial_layer.weight):
        return "an activation that is not elementwise"
    return None


def _follow_from_degrees(network: Any) -> bool:
    """Whether every mask is that of the degrees which its layer says it has."""
    first, final = network.initial_layer, network.final_layer
    per_feature = final.out_features // first.in_features
    degrees = torch.arange(1, first.in_features + 1)
    layers = [(first, torch.tensor(degrees_of(first)))]
    agree = True
    for block in network.blocks:
        linear = block.linear_layers if network.use_residual_blocks else [block.linear]
        layers += [(layer, torch.tensor(degrees_of(layer))) for layer in linear]
        if network.use_residual_blocks:
            # The block adds its inputs to its outputs, unit by unit.
            agree &= bool((layers[-3][1] <= layers[-1][1]).all())
    layers.append((final, torch.arange(final.out_features) // per_feature))
    for layer, ours in layers:
        mask = degrees <= ours[:, None]
        agree &= torch.equal(layer.mask, mask.to(layer.mask))
        degrees = ours
    return agree


def _is_elementwise(activation: Any, like: Tensor) -> bool:
    """Whether it does the same to numbers in a matrix as to numbers in a column."""
    numbers = torch.linspace(-2, 2, 6, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        try:
            column, matrix = activation(numbers[:, None]), activation(numbers.unflatten(0, (2, 3)))
        except Exception:
            # Whatever it needs, it is more than an element.
            return False
    return column.shape == (6, 1) and torch.allclose(column, matrix.flatten()[:, None])
