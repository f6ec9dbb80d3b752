"""Coupling network that joins local correlations with the context of the whole image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import mismatch
from nflows_mixer.nn.conditioner import concat_context
from nflows_mixer.nn.dense_block import DenseBlock, zero_convolution
from nflows_mixer.nn.norm import make_norm
from nflows_mixer.nn.nystrom import NystromAttention


class DenseAttentionConditioner(nn.Module):
    r"""DenseFlow's coupling network: a dense block and Nystrom attention side by side.

    .. math:: h = \mathrm{conv}_{1 \times 1}(x), \quad
              f(x) = \mathrm{conv}_{1 \times 1}\big(\mathrm{conv}_{1 \times 1}(\mathrm{relu}(
              \mathrm{norm}([\mathrm{dense}(h), \mathrm{attention}(h)])))\big)

    The dense block sees 3x3 neighbors, attention all positions. The last convolution starts at
    zero. At the defaults it has 1,568,840 parameters, 48 more for each channel that it reads, and
    49 for each that it writes. The norm of the paper is "batch".

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        hidden_channels: channels of h and of each branch.
        num_layers: layers of the dense block.
        growth: channels that each of them adds.
        dense: whether the dense block is there.
        attention: whether the attention is there.
        attention_channels: width of the attention, between two 1x1 convolutions.
        heads: attention heads.
        landmarks: see ``NystromAttention``.
        tokens: see ``NystromAttention``.
        context_features: channels of a context; None for none.
        norm: "layer" (over the channels of each pixel), "batch" or None.

    Shapes: as ``ConvConditioner``.

    Raises:
        ValueError: as ``ConvConditioner``, or if both branches are switched off, a size does not
            fit, or the norm is unknown.

    References:
        DenseFlow, Section 2.2 and Figure 2.

    Example:
        >>> net = DenseAttentionConditioner(6, 12)
        >>> sum(p.numel() for p in net.parameters()) - 48 * 6 - 49 * 12
        1568840
    """

    image_shape = None  # of any size

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
        norm: str | None = "layer",
    ) -> None:
        super().__init__()
        owner = "DenseAttentionConditioner"
        if not (dense or attention):
            raise mismatch(owner, "a dense block or attention", "neither", "leave one of them on")
        if attention and attention_channels % heads:
            expected = f"attention_channels that {heads} heads divide"
            advice = "each head has an equal part of the channels"
            raise mismatch(owner, expected, attention_channels, advice)
        self.context_features = context_features
        self.initial = nn.Conv2d(in_channels + (context_features or 0), hidden_channels, 1)
        self.branches = nn.ModuleList()
        if dense:
            self.branches.append(DenseBlock(hidden_channels, hidden_channels, num_layers, growth))
        if attention:
            width = attention_channels // heads
            attend = NystromAttention(attention_channels, heads, width, landmarks, tokens=tokens)
            narrow = nn.Conv2d(hidden_channels, attention_channels, 1)
            widen = nn.Conv2d(attention_channels, hidden_channels, 1)
            self.branches.append(nn.Sequential(narrow, attend, widen))
        joined = len(self.branches) * hidden_channels
        self.norm = make_norm(norm, joined, owner, images=True)
        self.blend = nn.Conv2d(joined, hidden_channels, 1)
        self.final = zero_convolution(hidden_channels, out_channels)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images [B, C, H, W]."""
        owner = "DenseAttentionConditioner"
        features = self.initial(concat_context(inputs, context, self.context_features or 0, owner))
        branches = torch.cat([branch(features) for branch in self.branches], dim=1)
        return self.final(self.blend(F.relu(self.norm(branches))))
