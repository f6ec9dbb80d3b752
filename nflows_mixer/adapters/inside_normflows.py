"""The class of ``to_normflows``; importing this module imports normflows."""

from __future__ import annotations

from nflows.transforms import Transform
from normflows.flows import Flow
from torch import Tensor

from nflows_mixer.core.context import takes_context
from nflows_mixer.numerics.autoregressive import inverse_of


class NflowsFlow(Flow):
    """A flow of normflows that runs a transform of nflows; ``bridges.to_normflows`` builds it.

    Args:
        transform: nflows transform, data to noise.

    Example:
        >>> import torch
        >>> from nflows_mixer.transforms import LULinear
        >>> NflowsFlow(LULinear(4))(torch.zeros(3, 4))[1].shape
        torch.Size([3])
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self._passes_context = takes_context(transform)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data."""
        return inverse_of(self.transform)(z, context if self._passes_context else None)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise."""
        return self.transform(z, context if self._passes_context else None)
