"""ActNorms of a whole module, set before it is used."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._modes import in_mode
from nflows_mixer.nn.norm import scratch_buffers
from nflows_mixer.transforms.actnorm import ActNorm

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def initialize(
    module: Module, inputs: Tensor, context: Tensor | None = None, **others: Any
) -> Module:
    """Initialize every ActNorm of a flow or transform that is not yet, from one batch.

    One forward pass in training mode, which is what the first step of training does. Nothing else
    changes: not the mode, not the running statistics of a BatchNorm, no parameter.

    Args:
        module: a flow or transform of nflows; of an ``ImageFlow`` the inputs are its uint8 images.
        inputs: a batch of data.
        context: as it is given to the module.
        others: what else its ``log_prob`` or ``forward`` takes, such as ``noise``.

    Returns:
        The module.

    Raises:
        TypeError: if it is neither.
        ValueError: if the batch is empty or not finite.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3.1.

    Example:
        >>> from nflows.distributions import StandardNormal
        >>> from nflows_mixer.transforms import FlowLayer
        >>> flow = initialize(Flow(FlowLayer(4), StandardNormal([4])), 3 * torch.randn(1000, 4) + 5)
        >>> bool(flow.transform_to_noise(torch.full((1, 4), 5.0)).abs().max() < 0.2)
        True
    """
    if not isinstance(module, (Flow, Transform)):
        raise TypeError(
            f"initialize: expected an nflows Flow or Transform, got {type(module).__name__}; "
            "initialize the transform inside of it"
        )
    if not all(part.initialized for part in _actnorms(module)):
        with in_mode(module, training=True), scratch_buffers(module, keep=(ActNorm,)):
            if isinstance(module, Flow):
                module.log_prob(inputs, context, **others)
            else:
                module(inputs, context, **others)
    return module


def initialize_identity(module: Module) -> Module:
    """Set every ActNorm that is not initialized to the identity, where there are no data.

    So does reverse Kullback-Leibler divergence, which draws samples before it has seen any data.

    Args:
        module: any module.

    Returns:
        The module.

    Example:
        >>> from nflows_mixer.transforms import FlowLayer
        >>> layer = initialize_identity(FlowLayer(4))
        >>> layer.inverse(torch.ones(1, 4))[0].tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    for norm in _actnorms(module):
        if not norm.initialized:
            norm.initialize_identity()
    return module


def _actnorms(module: nn.Module) -> list[ActNorm]:
    return [part for part in module.modules() if isinstance(part, ActNorm)]
