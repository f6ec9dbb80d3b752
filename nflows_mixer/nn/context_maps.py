"""Context beside feature maps."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from nflows_mixer._checks import mismatch


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
