"""The public base of conditioner networks that are evaluated with weights prepared once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from nflows_mixer._checks import mismatch
from nflows_mixer.nn.norm import track_statistics

Statistics = tuple[Tensor, ...]
"""Mean and unbiased variance of each batch normalization of a network, one after the other."""


class Conditioner(nn.Module):
    r"""A network of rows that says how it is prepared: what a flow layer can evaluate at once.

    .. math:: f(a) = \mathrm{evaluate}(a;\ \mathrm{prepare}(\theta))

    A subclass defines ``evaluate``, a function of tensors and constants alone, so that one
    compilation serves all networks of a size; and, where weights can be computed once for many
    rows, ``prepare``. Any other ``nn.Module`` is a conditioner too, and is called as it is.

    Args:
        context_features: length of the context, appended to the inputs; None takes none.

    Example:
        >>> class Tanh(Conditioner):
        ...     def __init__(self, in_features, out_features):
        ...         super().__init__()
        ...         self.first = nn.Linear(in_features, 16)
        ...         self.last = zero_linear(16, out_features)
        ...
        ...     @staticmethod
        ...     def evaluate(inputs, weights, options):
        ...         weight, bias, last, last_bias = weights
        ...         hidden = torch.tanh(nn.functional.linear(inputs, weight, bias))
        ...         return nn.functional.linear(hidden, last, last_bias), ()
        >>> Tanh(3, 6)(torch.randn(5, 3)).shape
        torch.Size([5, 6])
    """

    def __init__(self, context_features: int | None = None) -> None:
        super().__init__()
        self.context_features = context_features

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_features] (and context [N, context_features]) to [N, out_features]."""
        inputs = append_context(inputs, context, self.context_features)
        (weights,) = self.prepare([self])
        outputs, statistics = self.evaluate(inputs, weights, self.options(inputs))
        if statistics:
            track_statistics([(self.batch_norms(), statistics)])
        return outputs

    @classmethod
    def prepare(cls, networks: Sequence[Any]) -> list[Any]:
        """Weights that ``evaluate`` reads, of each of several networks of this class.

        In ordinary autograd, so that gradients reach the parameters. Tensors, None, and tuples of
        them.

        Args:
            networks: of any sizes.

        Raises:
            ValueError: if parameters have parametrizations, which ``parameters`` looks behind.
        """
        if any(is_parametrized(part) for network in networks for part in network.modules()):
            got, advice = "parametrized ones", "define prepare, which reads them by their names"
            raise mismatch(f"{cls.__name__}.prepare", "plain parameters", got, advice)
        return [tuple(network.parameters()) for network in networks]

    def prepares(self) -> bool:
        """Whether ``prepare`` and ``evaluate`` know all that this network is made of.

        One whose parts somebody has exchanged is called as it is.
        """
        return True

    @staticmethod
    @abstractmethod
    def evaluate(inputs: Tensor, weights: Any, options: tuple) -> tuple[Tensor, Statistics]:
        """Parameters [N, out_features] of rows [N, in_features], context appended.

        Args:
            inputs: rows.
            weights: what ``prepare`` returned.
            options: what ``options`` returned: constants for a compiler.

        Returns:
            The outputs; and, of networks with batch normalization in training mode, mean and
            unbiased variance of each of its ``batch_norms``, which it does not track itself.
        """

    def options(self, inputs: Tensor) -> tuple:
        """Constants that ``evaluate`` takes, as they are now."""
        return ()

    def batch_norms(self) -> list[Any]:
        """Batch normalizations, in the order of the statistics that ``evaluate`` returns."""
        return []


def half_precision(inputs: Tensor) -> torch.dtype | None:
    """Return what autocast would compute products of the inputs in; None where it is off.

    Example:
        >>> half_precision(torch.zeros(1)) is None
        True
    """
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer that starts at zero: the last one of every conditioner.

    Args:
        in_features: length of its input.
        out_features: length of its output.

    Example:
        >>> zero_linear(2, 3)(torch.ones(1, 2)).tolist()
        [[0.0, 0.0, 0.0]]
    """
    linear = nn.Linear(in_features, out_features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def append_context(inputs: Tensor, context: Tensor | None, context_features: int | None) -> Tensor:
    """Concatenate the context to the inputs' features, or raise if it is not what was agreed.

    Args:
        inputs: [N, in_features].
        context: [N, context_features], or None.
        context_features: the agreed length; None for a network without context.

    Raises:
        ValueError: if the context is missing, not expected, or of another length.

    Example:
        >>> append_context(torch.zeros(2, 3), torch.ones(2, 1), context_features=1).shape
        torch.Size([2, 4])
    """
    check_context_features(context, context_features)
    return inputs if context is None else torch.cat([inputs, context.to(inputs.dtype)], dim=1)


def check_context_features(context: Tensor | None, context_features: int | None) -> None:
    """Raise unless the context [N, F] is what was agreed; see ``append_context``.

    Example:
        >>> check_context_features(torch.zeros(2, 3), 3)
    """
    got = None if context is None else context.shape[-1]
    if got != context_features:
        raise mismatch(
            "conditioner",
            f"context of {context_features} features",
            f"{got} features",
            "build it with context_features=... and pass that context, or neither",
        )


def concat_context(features: Tensor, context: Tensor | None, channels: int, owner: str) -> Tensor:
    """Concatenate a context to feature maps, at every position where it is a vector.

    Args:
        features: [B, C, H, W].
        context: [B, K] or [B, K, H, W]; None where K is 0.
        channels: K.
        owner: whose context this is, for the error.

    Returns:
        [B, C + K, H, W].

    Raises:
        ValueError: if the context has another shape, or is missing.

    Example:
        >>> concat_context(torch.zeros(2, 3, 4, 4), torch.ones(2, 5), 5, "example").shape
        torch.Size([2, 8, 4, 4])
    """
    if not channels:
        return features
    batch, _, height, width = features.shape
    if context is not None and context.shape == (batch, channels):
        context = repeat(context, "b k -> b k h w", h=height, w=width)
    if context is None or context.shape != (batch, channels, height, width):
        expected = f"context [{batch}, {channels}] or [{batch}, {channels}, {height}, {width}]"
        got = None if context is None else list(context.shape)
        raise mismatch(owner, expected, got, "pass what the network was built for")
    return torch.cat((features, context.to(features.dtype)), dim=1)
