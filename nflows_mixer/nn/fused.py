"""Coupling network that fuses local correlations with the context of the whole image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import mismatch
from nflows_mixer.nn.batch_norm import BatchNorm2d
from nflows_mixer.nn.dense_block import DenseBlock, zero_convolution
from nflows_mixer.nn.maps import with_context_maps
from nflows_mixer.nn.nystrom import NystromAttention


class FusedConditioner(nn.Module):
    r"""DenseFlow's coupling network: a dense block and Nystrom attention side by side.

    .. math:: h = \mathrm{conv}_{1 \times 1}(x), \quad
              f(x) = \mathrm{conv}_{1 \times 1}\big(\mathrm{conv}_{1 \times 1}(\mathrm{relu}(
              \mathrm{BN}([\mathrm{dense}(h), \mathrm{attention}(h)])))\big)

    The dense block sees 3x3 neighbours, attention all positions. The last convolution starts at
    zero. At the defaults it has 1,568,840 parameters, 48 more for each channel that it reads, and
    49 for each that it writes.

    Args:
        in_channels: of x.
        out_channels: of the output.
        hidden_channels: of h and of each branch.
        num_layers: of the dense block.
        growth: of the dense block.
        dense: whether the dense block is there.
        attention: whether the attention is there.
        attention_channels: that it works in, between two 1x1 convolutions.
        heads: of the attention.
        landmarks: of the attention.
        tokens: of the attention, see ``NystromAttention``.
        context_features: channels of a context; None for none.

    Shapes:
        [B, in_channels, H, W], context [B, K] or [B, K, H, W] -> [B, out_channels, H, W].

    Raises:
        ValueError: if both branches are switched off, a size does not fit, or the context has
            another shape.

    References:
        DenseFlow, Section 2.2 and Figure 2.

    Example:
        >>> net = FusedConditioner(6, 12)
        >>> sum(p.numel() for p in net.parameters()) - 48 * 6 - 49 * 12
        1568840
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 48,
        num_layers: int = 7,
        growth: int = 64,
        dense: bool = True,
        attention: bool = True,
        attention_channels: int = 24,
        heads: int = 1,
        landmarks: int = 4,
        tokens: str = "positions",
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        if not (dense or attention):
            advice = "leave one of them on"
            raise mismatch("FusedConditioner", "a dense block or attention", "neither", advice)
        if attention and attention_channels % heads:
            advice = "each head has an equal part of the channels"
            expected = f"attention_channels that {heads} heads divide"
            raise mismatch("FusedConditioner", expected, attention_channels, advice)
        self.context_features = context_features
        self.initial = nn.Conv2d(in_channels + (context_features or 0), hidden_channels, 1)
        branches: list[nn.Module] = []
        if dense:
            branches.append(DenseBlock(hidden_channels, hidden_channels, num_layers, growth))
        if attention:
            attend = NystromAttention(
                attention_channels,
                heads,
                attention_channels // heads,
                landmarks=landmarks,
                tokens=tokens,
            )
            narrow = nn.Conv2d(hidden_channels, attention_channels, 1)
            widen = nn.Conv2d(attention_channels, hidden_channels, 1)
            branches.append(nn.Sequential(narrow, attend, widen))
        self.branches = nn.ModuleList(branches)
        joined = len(branches) * hidden_channels
        self.norm = BatchNorm2d(joined)
        self.blend = nn.Conv2d(joined, hidden_channels, 1)
        self.final = zero_convolution(hidden_channels, out_channels)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images [B, C, H, W]."""
        joined = with_context_maps(inputs, context, self.context_features or 0, "FusedConditioner")
        features = self.initial(joined)
        branches = torch.cat([branch(features) for branch in self.branches], dim=1)
        return self.final(self.blend(F.relu(self.norm(branches))))
