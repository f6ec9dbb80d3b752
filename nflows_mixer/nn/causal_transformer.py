"""Transformer whose answer for a token depends on the tokens before it alone."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_choice, check_event, check_sizes, mismatch
from nflows_mixer.nn.conditioner import check_context_features, zero_linear
from nflows_mixer.nn.transformer import KeysValues, TransformerBlock

POSITIONS = ("learned", "rotary")


class CausalTransformer(nn.Module):
    r"""Transformer that answers for each token from those before it.

    .. math:: h_t = W_0 x_t + e_t + V y, \qquad
              o = W_1\, (\mathrm{block}_n \circ \dots \circ \mathrm{block}_1)(h) + b_1, \qquad
              f_0 = 0, \quad f_t = o_{t - 1}

    In blocks a token attends to itself and those before it, and answers go to the next token; or,
    with a learned start token, :math:`f_t = o_t` of :math:`(h_{\mathrm{start}}, h_0, \dots)`, so
    that the first has an answer, too. The last layer starts at zero. There is no LayerNorm before
    it.

    Args:
        num_tokens: T, at least 2.
        token_features: c.
        out_features: numbers of an answer.
        hidden_features: width.
        num_blocks: transformer blocks, n.
        num_heads: of their attention; one for 64 numbers of the width where not given.
        context_features: length of the context y; None takes none.
        positions: "learned", a vector e for each token; or "rotary", see ``rotate``.
        start_token: whether there is a start token.

    Shapes:
        [B, T, c] -> [B, T, out_features]; context [B, F].

    Raises:
        ValueError: if sizes do not fit, the positions are unknown, or the context has another
            shape.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024, Section 3 (TarFlow); Gu
        et al., STARFlow, 2025 (start token, rotary positions).

    Example:
        >>> network = CausalTransformer(9, 4, out_features=8, hidden_features=32)
        >>> network(torch.randn(5, 9, 4)).shape
        torch.Size([5, 9, 8])
    """

    def __init__(
        self,
        num_tokens: int,
        token_features: int,
        out_features: int,
        hidden_features: int = 128,
        num_blocks: int = 4,
        num_heads: int | None = None,
        context_features: int | None = None,
        positions: str = "learned",
        start_token: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"num_tokens": num_tokens, "token_features": token_features}
        sizes |= {"out_features": out_features, "num_blocks": num_blocks}
        check_sizes("CausalTransformer", **sizes)
        check_choice("CausalTransformer", "positions", positions, POSITIONS)
        if num_tokens < 2:
            advice = "use smaller patches: of one there is nothing before it"
            raise mismatch("CausalTransformer", "two tokens or more", num_tokens, advice)
        self.num_tokens, self.token_features = num_tokens, token_features
        self.context_features = context_features
        heads = max(1, hidden_features // 64) if num_heads is None else num_heads
        rotary = positions == "rotary"
        self.embed = nn.Linear(token_features, hidden_features)
        self.positions = None if rotary else _small(num_tokens, hidden_features)
        self.start = _small(hidden_features) if start_token else None
        self.condition: nn.Linear | None = None
        if context_features is not None:
            self.condition = nn.Linear(context_features, hidden_features, bias=False)
            nn.init.normal_(self.condition.weight, std=0.01)
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_features, heads, causal=True, rotary=rotary)
            for _ in range(num_blocks)
        )
        self.final = zero_linear(hidden_features, out_features)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Answers for tokens [B, T, c]."""
        shape = (self.num_tokens, self.token_features)
        check_event(tokens, shape, "CausalTransformer", "pass tokens of that shape")
        hidden = self.hidden(tokens[:, :-1], context, first=True)
        for block in self.blocks:
            hidden = block(hidden)
        answers = self.final(hidden)
        return answers if self.start is not None else nn.functional.pad(answers, (0, 0, 1, 0))

    def hidden(self, tokens: Tensor, context: Tensor | None, first: bool, place: int = 0) -> Tensor:
        """What the first block sees of tokens [B, S, c], the start token before them.

        Args:
            tokens: from ``place`` on.
            context: [B, F], or None.
            first: whether they begin with the first one, which the start token comes before.
            place: of the first of them.
        """
        hidden = self.embed(tokens)
        if self.positions is not None:
            hidden = hidden + self.positions[place : place + tokens.shape[1]]
        if first and self.start is not None:
            start = self.start.expand(len(tokens), 1, -1).to(hidden.dtype)
            hidden = torch.cat([start, hidden], dim=1)
        check_context_features(context, self.context_features)
        if self.condition is not None:
            assert context is not None
            hidden = hidden + self.condition(context.to(hidden.dtype)).unsqueeze(1)
        return hidden

    def extend(self, hidden: Tensor, before: list[KeysValues]) -> tuple[Tensor, list[KeysValues]]:
        """Answers of further entries of the sequence, and the keys and values of all.

        Args:
            hidden: what ``hidden`` returned of them, [B, S, width].
            before: of each block, those of the entries before, see ``no_tokens``.
        """
        caches = []
        for block, cache in zip(self.blocks, before):
            hidden, cache = cast(TransformerBlock, block).extend(hidden, cache)
            caches.append(cache)
        return self.final(hidden), caches

    def no_tokens(self, batch: int) -> list[KeysValues]:
        """Keys and values of an empty sequence, of each block."""
        return [cast(TransformerBlock, block).no_tokens(batch) for block in self.blocks]


def _small(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.01 * torch.randn(*shape))
