"""Self-attention over positions at linear cost, by the Nystrom method."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_channels, check_choice, check_sizes
from nflows_mixer._modes import without_autocast


class NystromAttention(nn.Module):
    r"""Self-attention between all positions of feature maps, by a few landmarks.

    .. math:: y = W_o\, A_1 A_2^+ A_3 V, \quad
              A_1 = \mathrm{softmax}(Q \tilde K^\top), \quad
              A_2 = \mathrm{softmax}(\tilde Q \tilde K^\top), \quad
              A_3 = \mathrm{softmax}(\tilde Q K^\top)

    with Q scaled by :math:`d^{-1/2}`, and landmarks :math:`\tilde Q, \tilde K`: means over segments
    of the positions, row by row of the image (segments that overlap, where landmarks do not divide
    positions). The pseudo-inverse :math:`A_2^+` is found by iteration (see ``pseudo_inverse``).
    Time and memory grow linearly with the number of positions. Where there are no more positions
    than landmarks, each is its own landmark, and what is computed is what this then is in the limit
    of many iterations: ordinary attention, :math:`\mathrm{softmax}(Q K^\top) V`.

    Args:
        channels: channels of inputs and outputs.
        heads: attention heads.
        head_channels: d, length of the queries, keys and values of each head.
        landmarks: how many; where there are fewer positions, all of them.
        iterations: steps of the pseudo-inverse.
        tokens: "positions", pixels with all their channels; or "reshaped", which cuts the memory
            of channels, rows, columns into as many rows without a transposition, as the published
            weights of DenseFlow were trained with.

    Shapes:
        inputs and outputs [B, channels, H, W].

    Raises:
        ValueError: if a choice is unknown, or inputs have other channels.

    References:
        Xiong et al., Nystromformer, 2021, Equations 13 and 14; DenseFlow, Section 2.2.

    Example:
        >>> NystromAttention(24)(torch.randn(2, 24, 8, 8)).shape
        torch.Size([2, 24, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        head_channels: int = 24,
        landmarks: int = 4,
        iterations: int = 6,
        tokens: str = "positions",
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "heads": heads, "head_channels": head_channels}
        check_sizes("NystromAttention", **sizes, landmarks=landmarks, iterations=iterations)
        check_choice("NystromAttention", "tokens", tokens, ("positions", "reshaped"))
        self.channels = channels
        self.heads = heads
        self.head_channels = head_channels
        self.landmarks = landmarks
        self.iterations = iterations
        self.tokens = tokens
        self.queries_keys_values = nn.Linear(channels, 3 * heads * head_channels, bias=False)
        self.outputs = nn.Linear(heads * head_channels, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Attend between the positions of [B, C, H, W]."""
        check_channels(features, self.channels, "NystromAttention")
        if self.tokens == "positions":
            tokens = rearrange(features, "b c h w -> b (h w) c")
        else:
            tokens = features.reshape(len(features), -1, self.channels)
        query, key, value = rearrange(
            self.queries_keys_values(tokens),
            "b n (part heads d) -> part b heads n d",
            part=3,
            heads=self.heads,
        ).unbind()
        mixed = rearrange(self._attend(query, key, value), "b heads n d -> b n (heads d)")
        outputs = self.outputs(mixed)
        if self.tokens == "positions":
            return rearrange(outputs, "b (h w) c -> b c h w", h=features.shape[2])
        return outputs.reshape(features.shape)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = query * self.head_channels**-0.5
        if query.shape[2] <= self.landmarks:
            return (query @ key.mT).softmax(-1) @ value
        query_marks, key_marks = self._marks(query), self._marks(key)
        of_tokens = (query @ key_marks.mT).softmax(-1)
        of_marks = (query_marks @ key.mT).softmax(-1)
        between = query_marks @ key_marks.mT
        # Half precision would not converge.
        with without_autocast(between):
            wide = torch.promote_types(between.dtype, torch.float32)
            inverse = pseudo_inverse(between.to(wide).softmax(-1), self.iterations)
        return of_tokens @ (inverse.to(value.dtype) @ (of_marks @ value))

    def _marks(self, rows: Tensor) -> Tensor:
        """Means over segments, [B, heads, landmarks, d]."""
        count = self.landmarks
        if rows.shape[2] % count == 0:
            return rearrange(rows, "b heads (m n) d -> b heads m n d", m=count).mean(3)
        flat = rearrange(rows, "b heads n d -> (b heads) d n")
        pooled = F.adaptive_avg_pool1d(flat, count)
        return rearrange(pooled, "(b heads) d m -> b heads m d", heads=self.heads)


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    r"""Moore-Penrose inverse of square matrices with entries >= 0, by iteration.

    .. math:: Z_0 = \frac{A^\top}{\|A\|_1 \|A\|_\infty}, \qquad
              Z_{j + 1} = \tfrac14 Z_j \big(13 I - A Z_j (15 I - A Z_j (7 I - A Z_j))\big)

    Each matrix has norms of its own, so that a batch is its rows.

    Args:
        matrix: A, [..., n, n].
        iterations: how many; what a small singular value and its inverse make together grows
            3.25-fold with each, towards 1.

    Returns:
        [..., n, n].

    References:
        Razavi et al., A new iterative method for finding approximate inverses, 2014; Xiong et al.,
        Nystromformer, 2021, Equation 11.

    Example:
        >>> pseudo_inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), 8)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    columns = matrix.sum(-2).amax(-1)
    rows = matrix.sum(-1).amax(-1)
    inverse = matrix.mT / (columns * rows)[..., None, None]
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = 0.25 * inverse @ (13 * identity - product @ inner)
    return inverse
