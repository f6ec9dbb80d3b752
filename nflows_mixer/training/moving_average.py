"""The exponential moving average of a flow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nflows_mixer._checks import mismatch


def moving_average(flow: nn.Module, decay: float) -> AveragedModel:
    r"""Return torch's average of a flow, which follows its parameters and buffers.

    .. math:: \bar\theta \leftarrow \mathrm{decay} \cdot \bar\theta
              + (1 - \mathrm{decay})\, \theta

    The first update copies. Buffers of integers (ActNorm's state, counters) are always copied:
    rounded averages of them would mean nothing.

    Args:
        flow: what is trained; call ``update_parameters(flow)`` after each step.
        decay: 0.999, or nearer to 1 for long runs.

    Raises:
        ValueError: if the decay is not between 0 and 1.

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> average = moving_average(net, decay=0.75)
        >>> for value in (0.0, 4.0):
        ...     _ = nn.init.constant_(net.weight, value)
        ...     average.update_parameters(net)
        >>> average.module.weight.item()
        1.0
    """
    if not 0 < decay < 1:
        raise mismatch("moving_average", "0 < decay < 1", decay, "0.999 is usual")
    # No function within this one: what has it is pickled, and sent to processes.
    average = AveragedModel(flow, multi_avg_fn=partial(_update, decay), use_buffers=True)
    # Nothing trains the copy; a distributed run would wait for its gradients.
    average.requires_grad_(False)
    return average


def _update(decay: float, averages: Sequence[Tensor], values: Sequence[Tensor], count: Any) -> None:
    if averages[0].is_floating_point():  # torch groups them by dtype
        return get_ema_multi_avg_fn(decay)(averages, values, count)
    for average, value in zip(averages, values):
        average.copy_(value)
