"""Updates that are left out where the gradient leaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from nflows_mixer._modes import batch_norms

MOST_SKIPPED = 10
"""Updates that are left out in a row, at most, before a run stops."""


class SkippedUpdates:
    r"""Leaves out updates whose gradient is too large, and counts them.

    .. math:: \text{an update is made where } \lVert g \rVert \le c
              \text{ and the loss and } g \text{ are finite}

    Args:
        limit: c, of the norm before it is clipped; None for one that leaves out none.

    References:
        Child, Very deep VAEs, 2021, Section 4.

    Example:
        >>> skipped = SkippedUpdates(100.0)
        >>> norms = torch.tensor([3.0, 400.0, torch.nan])
        >>> skipped.follows(norms, torch.ones(3)).tolist()
        [True, False, False]
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.total = self.in_a_row = 0
        self._statistics: list[tuple[Tensor, Tensor]] = []  # buffers, and what they were

    def begin_step(self, flow: nn.Module) -> None:
        """Keep the running statistics, which the forward pass of a step moves."""
        if self.limit is not None:
            buffers = [buffer for norm in batch_norms(flow) for buffer in norm.buffers()]
            self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def follows(self, norm: Tensor, loss: Tensor) -> Tensor:
        """Whether an update with a gradient of this norm is to be made, a boolean of its shape."""
        return torch.isfinite(norm + loss) & (norm <= (self.limit or math.inf))

    @property
    def allowed(self) -> bool:
        """Whether one more may be left out."""
        return self.limit is not None and self.in_a_row < MOST_SKIPPED

    def make(self) -> None:
        """Count an update that is made."""
        self.in_a_row = 0

    def leave_out(self, optimizer: Optimizer, step: int, norm: float) -> None:
        """Leave out the update of this step: its gradients, and the statistics of its batch.

        Args:
            optimizer: whose gradients are dropped.
            step: for the warning, as the next.
            norm: of the gradient.
        """
        self.in_a_row += 1
        self.total += 1
        rank_zero_warn(
            f"step {step}: the gradient's norm is {norm:g}, above gradient_skip={self.limit:g} or "
            "not finite; this update is left out"
        )
        # Not zeros: those would still move what has momentum.
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in self._statistics:
            buffer.copy_(before)

    def state(self) -> list[int]:
        """Both counts, for a checkpoint."""
        return [self.total, self.in_a_row]

    def load(self, counts: Sequence[int]) -> None:
        """Go on with the counts of a checkpoint."""
        self.total, self.in_a_row = counts
