"""The residual MLP that conditions MixerFlow's couplings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.nn.batch_norm import BatchNorm1d


class ResidualBlock(nn.Module):
    r"""Pre-activation residual block on rows of features.

    .. math:: h + W_2\, g(\mathrm{BN}(W_1\, g(\mathrm{BN}(h)))), \qquad g = \mathrm{GELU}

    Args:
        features: width.
        batch_norm: whether the two batch normalisations are there.

    References:
        He et al., Identity mappings in deep residual networks, 2016.

    Example:
        >>> ResidualBlock(128)(torch.randn(7, 128)).shape
        torch.Size([7, 128])
    """

    def __init__(self, features: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            BatchNorm1d(features) if batch_norm else nn.Identity(),
            nn.GELU(),
            nn.Linear(features, features),
            BatchNorm1d(features) if batch_norm else nn.Identity(),
            nn.GELU(),
            nn.Linear(features, features),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, features] to [N, features]."""
        return inputs + self.branch(inputs)


class ResidualMLP(nn.Module):
    r"""Residual MLP from the conditioning half of a row to the coupling's parameters.

    .. math:: W_3\, (\mathrm{block}_n \circ \dots \circ \mathrm{block}_1)(W_0 [a, c] + b_0) + b_3

    The last layer starts at zero, so that a coupling starts at the identity.

    Args:
        in_features: length of the conditioning part.
        out_features: number of parameters to give.
        hidden_features: width of the residual stream.
        num_blocks: residual blocks.
        context_features: length of the context, concatenated to the input; None takes no context.
        batch_norm: whether blocks normalise over the batch; batch statistics in training,
            running statistics in evaluation.

    Raises:
        ValueError: if a size is not positive, or the context is missing, unwanted or of another
            length.

    References:
        MixerFlow, Section 4, "Flow layer" and "Identity initialisation".

    Example:
        >>> net = ResidualMLP(24, 48, hidden_features=128)
        >>> sum(p.numel() for p in net.parameters())
        42928
        >>> net(torch.randn(7, 24)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        num_blocks: int = 1,
        context_features: int | None = None,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        for name, size in [("hidden_features", hidden_features), ("num_blocks", num_blocks)]:
            check_positive("ResidualMLP", name, size)
        self.context_features = context_features
        self.initial = nn.Linear(in_features + (context_features or 0), hidden_features)
        self.blocks = nn.Sequential(
            *(ResidualBlock(hidden_features, batch_norm) for _ in range(num_blocks))
        )
        self.final = zero_linear(hidden_features, out_features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_features] (and context [N, context_features]) to [N, out_features]."""
        hidden = self.initial(append_context(inputs, context, self.context_features))
        return self.final(self.blocks(hidden))


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
        ValueError: if the context is missing, unwanted or of another length.

    Example:
        >>> append_context(torch.zeros(2, 3), torch.ones(2, 1), context_features=1).shape
        torch.Size([2, 4])
    """
    got = None if context is None else context.shape[-1]
    if got != context_features:
        raise mismatch(
            "conditioner",
            f"context of {context_features} features",
            f"{got} features",
            "build it with context_features=... and pass that context, or neither",
        )
    return inputs if context is None else torch.cat([inputs, context], dim=1)
