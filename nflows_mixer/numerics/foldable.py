"""Whether a masked flow of nflows is what its class says, so that its weights tell all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

from nflows_mixer.nn.batch_norm import BatchNorm1d
from nflows_mixer.numerics.masked_inverse import degrees_of

NFLOWS_EPSILON = 1e-3
"""What the scale of nflows' masked affine transform, softplus(u) + epsilon, stays above."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def obstacle(flow: Any) -> str | None:
    """Return what keeps a flow from being computed by its weights alone; None if nothing does.

    It has to be a ``MaskedAffineAutoregressiveTransform`` of nflows with nflows' own parts, masks
    that follow from degrees, an elementwise activation, no hooks and no replaced methods.

    Args:
        flow: any object.

    Example:
        >>> from nflows.transforms import LULinear
        >>> obstacle(MaskedAffineAutoregressiveTransform(4, 8))
        >>> obstacle(LULinear(4))
        'LULinear'
    """
    if type(flow) is not MaskedAffineAutoregressiveTransform:
        return type(flow).__name__
    if flow._epsilon != NFLOWS_EPSILON:
        return f"a scale of softplus(u) + {flow._epsilon:g}"
    network = flow.autoregressive_net
    for part, kinds in [(flow, (type(flow),)), *_parts(network)]:
        name = type(part).__name__
        if type(part) not in kinds:
            return f"{name} in the place of {kinds[0].__name__}"
        if replaced := [key for key in vars(part) if callable(getattr(type(part), key, None))]:
            return f"{name} with a {replaced[0]} of its own"
    for part in network.modules():
        if any(getattr(part, hooks) for hooks in _HOOKS):
            return f"{type(part).__name__} with hooks"
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d)]
    if not all(norm.affine and norm.track_running_stats for norm in norms):
        return "BatchNorm1d without weights or running statistics"
    if any(block.activation is not network.activation for block in network.blocks):
        return "blocks with activations of their own"
    if not _follow_from_degrees(network):
        return "masks that do not follow from degrees"
    if not _is_elementwise(network.activation, network.initial_layer.weight):
        return "an activation that is not elementwise"
    return None


def _parts(network: Any) -> Iterator[tuple[nn.Module, tuple[type, ...]]]:
    """Yield the parts of a MADE, each with the classes that it may be of."""
    norm = (nn.BatchNorm1d, BatchNorm1d)
    yield network, (MADE,)
    if type(network) is not MADE:
        return
    yield network.initial_layer, (MaskedLinear,)
    yield network.final_layer, (MaskedLinear,)
    residual = network.use_residual_blocks
    for block in network.blocks:
        yield block, (MaskedResidualBlock if residual else MaskedFeedforwardBlock,)
        for layer in block.linear_layers if residual else [block.linear]:
            yield layer, (MaskedLinear,)
        if residual and block.use_batch_norm:
            for layer in block.batch_norm_layers:
                yield layer, norm
        elif not residual and block.batch_norm is not None:
            yield block.batch_norm, norm
        yield block.dropout, (nn.Dropout,)
    for part in [network, *network.blocks]:
        if hasattr(part, "context_layer"):
            yield part.context_layer, (nn.Linear,)


def _follow_from_degrees(network: Any) -> bool:
    """Whether every mask is that of the degrees which its layer says it has."""
    first, final = network.initial_layer, network.final_layer
    per_feature = final.out_features // first.in_features
    outputs = [index // per_feature for index in range(final.out_features)]
    hidden = degrees_of(first)
    agree = _is_mask(first, range(1, first.in_features + 1), hidden)
    for block in network.blocks:
        before = hidden
        for layer in block.linear_layers if network.use_residual_blocks else [block.linear]:
            agree = agree and _is_mask(layer, hidden, degrees_of(layer))
            hidden = degrees_of(layer)
        if network.use_residual_blocks:
            # The block adds its inputs to its outputs, unit by unit.
            agree = agree and all(low <= high for low, high in zip(before, hidden))
    return agree and _is_mask(final, hidden, outputs)


def _is_mask(layer: Any, in_degrees: Sequence[int], degrees: Sequence[int]) -> bool:
    mask = layer.mask
    below = torch.tensor(in_degrees) <= torch.tensor(degrees)[:, None]
    return torch.equal(mask, below.to(mask))


def _is_elementwise(activation: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Whether it does the same to numbers in a matrix as to numbers in a column."""
    numbers = torch.linspace(-2, 2, 6, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        try:
            column, matrix = activation(numbers[:, None]), activation(numbers.unflatten(0, (2, 3)))
        except Exception:
            # Whatever it needs, it is more than an element.
            return False
    return column.shape == (6, 1) and torch.allclose(column, matrix.flatten()[:, None])
