"""Transforms of forks of nflows, and of others that keep to its contract."""

from __future__ import annotations

from typing import Any

from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import libraries_of
from nflows_mixer.core.as_transform import register_adapter
from nflows_mixer.core.context import takes_context


class ForeignTransform(Transform):
    """A module with nflows' ``forward`` and ``inverse`` that is no subclass of its ``Transform``.

    Forks of nflows have a class of that name of their own. ``as_transform`` builds it.

    Args:
        module: (inputs, context=None) -> (outputs, logabsdet), both ways.

    Example:
        >>> import torch
        >>> class Nothing(nn.Module):
        ...     def forward(self, inputs, context=None):
        ...         return inputs, inputs.new_zeros(len(inputs))
        ...
        ...     inverse = forward
        >>> ForeignTransform(Nothing())(torch.ones(1, 2))[0].tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.takes_context = takes_context(module)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise."""
        return self.module(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data."""
        module: Any = self.module
        return module.inverse(inputs, context)


def _is_foreign(flow: object) -> bool:
    return (
        isinstance(flow, nn.Module)
        and not isinstance(flow, Transform)
        and callable(getattr(flow, "inverse", None))
        and not libraries_of(flow) & {"zuko", "normflows"}
    )


register_adapter(_is_foreign, lambda flow, features: ForeignTransform(flow))
