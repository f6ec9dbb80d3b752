"""Means over the images of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from nflows_mixer._distributed import all_reduce_max, all_reduce_sum, world_size


class FigureSums:
    r"""Means of figures over the images of all processes, each of which is counted once.

    .. math:: \bar f = \frac{\sum_r \sum_{n=1}^{N_r} f_{rn}}{\sum_r N_r}

    Sums are kept in float64, and exchanged at the end alone: processes may have other numbers of
    batches.

    Example:
        >>> sums = FigureSums()
        >>> for bits in ([1.0, 2.0], [6.0]):
        ...     sums.add({"bits_per_dim": torch.tensor(bits)})
        >>> means, worst, count = sums.reduced(torch.device("cpu"))
        >>> means["bits_per_dim"].item(), worst.item(), count.item()
        (3.0, 6.0, 3.0)
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.count = 0
        """Images of this process so far."""
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._worst = torch.tensor(-torch.inf, dtype=torch.float64)

    def add(self, figures: dict[str, Tensor]) -> None:
        """Count the figures of a batch.

        Args:
            figures: each [B], the same names in every batch; of the first the largest is kept.
        """
        self.names = tuple(figures)
        values = torch.stack(list(figures.values())).cpu().double()
        self._sums = values.sum(1) + (self._sums if self.count else 0)
        self._worst = torch.maximum(self._worst, values[0].max())
        self.count += values.shape[1]

    def reduced(self, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the means, the largest value of the first figure, and the number of images.

        Every process has to call it.

        Args:
            device: what the processes exchange numbers on.
        """
        own = torch.cat([self._sums, self._sums.new_tensor([self.count]), self._worst[None]])
        if world_size() > 1:  # alone they stay where they are: not every device has float64
            own = own.to(device)
        *totals, count = all_reduce_sum(own[:-1])
        means = {name: total / count for name, total in zip(self.names, totals)}
        return means, all_reduce_max(own[-1]), count
