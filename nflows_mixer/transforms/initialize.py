"""What is set from a first batch in a whole module: ActNorms, and linear blocks that whiten it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import mismatch
from nflows_mixer._distributed import all_reduce_sum
from nflows_mixer._modes import in_mode
from nflows_mixer.nn.norm import scratch_buffers
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.linear import FullLinear, LULinear

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def initialize(
    module: Module,
    inputs: Tensor,
    context: Tensor | None = None,
    *,
    whiten: bool = False,
    **others: Any,
) -> Module:
    r"""Initialize every ActNorm of a flow or transform that is not yet, from one batch.

    One forward pass in training mode, which is what the first step of training does. Nothing else
    changes: not the mode, not the running statistics of a BatchNorm, no parameter.

    With ``whiten`` each linear block is set in the same pass, too, so that the batch leaves it with
    mean 0 and covariance I, in the way that moves it least:

    .. math:: W = \sum_i s_i v_i v_i^\top, \quad b = -W \mu, \qquad
              s_i = \begin{cases} \lambda_i^{-1/2} &
              \lambda_i > \bar\lambda \min(D / N, 1 / 2) \\
              \bar\lambda_+^{-1/2} & \text{otherwise} \end{cases}

    for N rows of D features, with eigenvectors :math:`v_i` and eigenvalues of their covariance,
    :math:`\bar\lambda` on the average and :math:`\bar\lambda_+` on that of the first case. So
    blocks behind each other do not stretch again and again what the batch says little about. A flow
    whose couplings start at the identity then starts as a normal distribution with the correlations
    of neighbors and of patches, and training begins there. A flow of which an ActNorm is
    initialized has been trained, and its linear blocks stay as they are.

    Args:
        module: a flow or transform of nflows; of an ``ImageFlow`` the inputs are its uint8 images.
        inputs: a batch of data.
        context: as it is given to the module.
        whiten: whether ``LULinear``, ``RLULinear``, ``FullLinear`` and ``InvertibleConv1x1`` are
            set, too; they are taken to be as they were built.
        others: what else its ``log_prob`` or ``forward`` takes, such as ``noise``.

    Returns:
        The module.

    Raises:
        TypeError: if it is neither.
        ValueError: if the batch is empty or not finite, or there is nothing that ``whiten`` would
            set.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3.1. Kessy et al., Optimal whitening and
        decorrelation, 2018 (ZCA).

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
    norms = [part.initialized for part in _actnorms(module)]
    blocks = _blocks(module) if whiten else []
    if whiten and not blocks:
        advice = "leave whiten out"
        raise mismatch("initialize", "linear blocks that whiten", "none", advice)
    if any(norms):
        blocks = []
    if blocks or not all(norms):
        with in_mode(module, training=True), scratch_buffers(module, keep=(ActNorm,)):
            with _whitening(blocks):
                if isinstance(module, Flow):
                    module.log_prob(inputs, context, **others)
                else:
                    module(inputs, context, **others)
    return module


def _blocks(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, (LULinear, FullLinear))]


@contextmanager
def _whitening(blocks: Sequence[Any]) -> Iterator[None]:
    """Let each linear block be set from what it is called with first."""
    waiting = set(blocks)

    def before_call(block: Any, arguments: tuple[Tensor, ...]) -> None:
        # A composite may make two passes, the first of them for its ActNorms.
        if block in waiting:
            waiting.remove(block)
            _whiten_rows(block, arguments[0])

    # What has a hook is called as it is, and not folded into its neighbors.
    hooks = [block.register_forward_pre_hook(before_call) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _whiten_rows(block: Any, rows: Tensor) -> None:
    rows = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
    features = rows.shape[1]
    count = all_reduce_sum(rows.new_tensor(len(rows)))
    mean = all_reduce_sum(rows.sum(0)) / count
    centred = rows - mean
    covariance = all_reduce_sum(centred.mT @ centred) / count
    if not torch.isfinite(covariance).all():
        advice = "look at the data, and at the transforms before this one"
        raise mismatch("initialize", "a finite covariance of rows to whiten", "none", advice)
    values, vectors = torch.linalg.eigh(covariance)
    average = values.mean()
    # Below this, what varies is rounding error.
    if average > (32 * torch.finfo(rows.dtype).eps * mean.abs().max()) ** 2 + 1e-24:
        known = values > average * (features / count).clamp_max(0.5)
        scales = values.where(known, values[known].mean()).rsqrt()
        weight = (vectors * scales) @ vectors.mT
        block.start_at(weight, -(weight @ mean))


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
