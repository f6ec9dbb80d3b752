"""Transformer blocks, and the vision transformer that conditions couplings of tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_sizes, mismatch
from nflows_mixer.nn.conditioner import check_context_features, zero_linear


class TransformerBlock(nn.Module):
    r"""Pre-norm transformer block.

    .. math:: h' = h + \mathrm{attention}(\mathrm{LN}(h)), \qquad
              y = h' + W_2\, \mathrm{GELU}(W_1 \mathrm{LN}(h'))

    Args:
        features: width.
        num_heads: of the attention.
        causal: whether a token attends to itself and those before it alone.

    Shapes:
        [B, T, features] -> [B, T, features].

    Raises:
        ValueError: if the heads do not divide the width.

    References:
        Vaswani et al., Attention is all you need, 2017; Dosovitskiy et al., An image is worth
        16x16 words, 2021 (norm before attention).

    Example:
        >>> import torch
        >>> TransformerBlock(32, 4)(torch.randn(2, 9, 32)).shape
        torch.Size([2, 9, 32])
    """

    def __init__(self, features: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        sizes = {"features": features, "num_heads": num_heads}
        features, num_heads = check_sizes("TransformerBlock", **sizes)
        if features % num_heads:
            expected, advice = f"heads that divide the width {features}", "choose another number"
            raise mismatch("TransformerBlock", expected, num_heads, advice)
        self.num_heads, self.causal = num_heads, causal
        self.norm1 = nn.LayerNorm(features)
        self.attend = nn.Linear(features, 3 * features)
        self.project = nn.Linear(features, features)
        self.norm2 = nn.LayerNorm(features)
        self.expand = nn.Linear(features, 4 * features)
        self.contract = nn.Linear(4 * features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T, features]."""
        query, key, value = rearrange(
            self.attend(self.norm1(tokens)), "b t (n h f) -> n b h t f", n=3, h=self.num_heads
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        tokens = tokens + self.project(rearrange(mixed, "b h t f -> b t (h f)"))
        return tokens + self.contract(F.gelu(self.expand(self.norm2(tokens))))


class TransformerConditioner(nn.Module):
    r"""Vision transformer from the tokens that condition to the parameters of those that move.

    .. math:: h_t = W_0 x_t + e_t + V y, \qquad
              f(x, y) = W_3\, \mathrm{LN}(\mathrm{block}_n \circ \dots \circ \mathrm{block}_1(h))

    Token t of those that condition, which learns its position :math:`e_t`, answers for token t of
    those that move. The last layer starts at zero. In a patch flow a row is one number of each
    patch, hence a token is one number; a coupling of the whole matrix [B, P, c] has the patches
    themselves as tokens (``token_features=c``).

    Args:
        in_features: a, tokens that condition.
        out_features: m b, parameters for each number of the b tokens that move.
        hidden_features: width.
        num_blocks: transformer blocks, n.
        num_heads: of their attention.
        token_features: numbers of a token, c.
        moved_features: b, at most a; a where not given. A coupling gives its own.
        context_features: length of the context y; None takes none.

    Shapes:
        [N, a] -> [N, m b] where c is 1, and [B, a, c] -> [B, m b, c] for any c; context [N, F].

    Raises:
        ValueError: if sizes do not fit, or the context has another shape.

    References:
        Kolesnikov et al., Jet: a modern transformer-based normalizing flow, 2024, Section 3;
        MixerFlow, Section 7 (attention as future work).

    Example:
        >>> import torch
        >>> TransformerConditioner(8, 16, hidden_features=32)(torch.randn(5, 8)).shape
        torch.Size([5, 16])
        >>> tokens = TransformerConditioner(8, 16, hidden_features=32, token_features=12)
        >>> tokens(torch.randn(5, 8, 12)).shape
        torch.Size([5, 16, 12])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 64,
        num_blocks: int = 1,
        num_heads: int = 4,
        token_features: int = 1,
        moved_features: int | None = None,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"hidden_features": hidden_features, "num_blocks": num_blocks}
        check_sizes("TransformerConditioner", **sizes, token_features=token_features)
        moved = in_features if moved_features is None else moved_features
        if moved > in_features or out_features % moved:
            expected = f"at most {in_features} moved tokens, whose number divides {out_features}"
            advice = "let the larger part condition"
            raise mismatch("TransformerConditioner", expected, moved, advice)
        self.token_features, self.moved_features = token_features, moved
        self.context_features = context_features
        self.embed = nn.Linear(token_features, hidden_features)
        positions = hidden_features**-0.5 * torch.randn(in_features, hidden_features)
        self.positions = nn.Parameter(positions)
        self.condition = (
            None if context_features is None else nn.Linear(context_features, hidden_features)
        )
        self.blocks = nn.Sequential(
            *(TransformerBlock(hidden_features, num_heads) for _ in range(num_blocks))
        )
        self.norm = nn.LayerNorm(hidden_features)
        self.final = zero_linear(hidden_features, out_features // moved * token_features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map tokens [N, a] or [B, a, c]."""
        tokens = inputs.unsqueeze(-1) if inputs.dim() == 2 else inputs
        expected = len(self.positions), self.token_features
        if tokens.shape[1:] != expected:
            advice = "build it with token_features of theirs"
            raise mismatch(
                "TransformerConditioner", f"tokens {list(expected)}", list(inputs.shape[1:]), advice
            )
        hidden = self.embed(tokens) + self.positions
        check_context_features(context, self.context_features)
        if self.condition is not None:
            hidden = hidden + self.condition(context).unsqueeze(1)
        hidden = self.norm(self.blocks(hidden)[:, : self.moved_features])
        outputs = rearrange(self.final(hidden), "b t (m c) -> b (m t) c", c=self.token_features)
        return outputs.squeeze(-1) if inputs.dim() == 2 else outputs
