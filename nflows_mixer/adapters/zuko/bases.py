"""Bases of nflows inside zuko."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.distributions.base import Distribution
from torch import Size, Tensor
from torch.distributions import Distribution as TorchDistribution
from zuko.lazy import LazyDistribution

from nflows_mixer._modes import in_own_precision
from nflows_mixer.core.context import takes_context


class LazyNflowsBase(LazyDistribution):
    """A lazy distribution of zuko that is a base of nflows; ``to_zuko`` builds it.

    Args:
        base: distribution of nflows.
        shape: of one latent.

    Example:
        >>> from nflows_mixer.distributions import DiagonalNormal
        >>> LazyNflowsBase(DiagonalNormal(3), (3,))().rsample((2,)).requires_grad
        True
    """

    def __init__(self, base: Distribution, shape: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.shape = Size(shape)

    def forward(self, c: Tensor | None = None) -> NflowsBase:
        """Build the distribution given a context [..., context_features]."""
        return NflowsBase(self, in_own_precision(self, c) if takes_context(self.base) else None)


class NflowsBase(TorchDistribution):
    """What ``LazyNflowsBase`` builds: a distribution of torch, over any batch shape.

    Args:
        lazy: where it comes from.
        context: [..., context_features], or None.
        batch_shape: of the distribution; that of the context where None.

    Example:
        >>> import torch
        >>> from nflows.distributions import StandardNormal
        >>> built = NflowsBase(LazyNflowsBase(StandardNormal([3]), (3,)), None)
        >>> built.expand((4,)).log_prob(torch.zeros(2, 4, 3)).shape
        torch.Size([2, 4])
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self, lazy: LazyNflowsBase, context: Tensor | None, batch_shape: Size | None = None
    ) -> None:
        if batch_shape is None:
            batch_shape = Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, lazy.shape, validate_args=False)
        self.lazy = lazy
        self.context = context

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples have gradients of the parameters."""
        base = self.lazy.base
        known = (StandardNormal, ConditionalDiagonalNormal)
        return getattr(base, "has_rsample", isinstance(base, known))

    def expand(self, batch_shape: Any, _instance: Any = None) -> NflowsBase:
        """The same over a larger batch."""
        return NflowsBase(self.lazy, self.context, Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities of [..., *event_shape], of the batch's shape."""
        batch = value.shape[: value.dim() - len(self.event_shape)]
        batch = torch.broadcast_shapes(batch, self.batch_shape)
        rows = as_rows(value, batch, self.event_shape)
        context = self.context
        if context is not None:
            context = as_rows(context, batch, context.shape[-1:])
        return self.lazy.base.log_prob(rows, context).reshape(batch)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw [*sample_shape, *batch_shape, *event_shape], with gradients where there are some."""
        base = self.lazy.base
        return self._drawn(getattr(base, "rsample", base.sample), sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            if self.has_rsample:
                return self.rsample(sample_shape)
            return self._drawn(self.lazy.base.sample, sample_shape)

    def _drawn(self, draw: Callable[[int], Tensor], sample_shape: Any) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        context = self.context
        if context is None:
            return draw(batch.numel()).reshape(shape)
        rows = as_rows(context, batch, context.shape[-1:])
        return self.lazy.base.sample(1, rows).reshape(shape)


def as_rows(tensor: Tensor, batch: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Expand a tensor over a whole batch, and flatten that: ``[N, *shape]``.

    Args:
        tensor: ``[..., *shape]``, broadcast against the batch.
        batch: its shape.
        shape: of one row.

    Example:
        >>> as_rows(torch.zeros(2, 1, 3), (2, 4), (3,)).shape
        torch.Size([8, 3])
    """
    return tensor.expand(*batch, *shape).reshape(-1, *shape)
