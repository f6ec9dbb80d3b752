"""Transformer blocks, and the vision transformer that conditions couplings of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import as_pair, check_sizes, mismatch
from nflows_mixer.nn.conditioner import check_context_features, zero_linear
from nflows_mixer.nn.context import sinusoidal_positions

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of the tokens that a causal block has seen, [B, heads, T, features] each."""


class TransformerBlock(nn.Module):
    r"""Pre-norm transformer block.

    .. math:: h' = h + \mathrm{attention}(\mathrm{LN}(h)), \qquad
              y = h' + W_2\, \mathrm{GELU}(W_1 \mathrm{LN}(h'))

    Args:
        features: width.
        num_heads: of the attention.
        causal: whether a token attends to itself and those before it alone.
        rotary: whether queries and keys are turned by their place, see ``rotate``.

    Shapes:
        [B, T, features] -> [B, T, features].

    Raises:
        ValueError: if the heads do not divide the width, or the width of a head is odd beside
            ``rotary``.

    References:
        Vaswani et al., Attention is all you need, 2017; Dosovitskiy et al., An image is worth
        16x16 words, 2021 (norm before attention).

    Example:
        >>> import torch
        >>> TransformerBlock(32, 4)(torch.randn(2, 9, 32)).shape
        torch.Size([2, 9, 32])
    """

    def __init__(
        self, features: int, num_heads: int, causal: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        sizes = {"features": features, "num_heads": num_heads}
        features, num_heads = check_sizes("TransformerBlock", **sizes)
        if features % num_heads:
            expected, advice = f"heads that divide the width {features}", "choose another number"
            raise mismatch("TransformerBlock", expected, num_heads, advice)
        if rotary and features // num_heads % 2:
            got, advice = features // num_heads, "choose another number of heads"
            raise mismatch("TransformerBlock", "an even width of each head", got, advice)
        self.num_heads, self.causal, self.rotary = num_heads, causal, rotary
        self.norm1 = nn.LayerNorm(features)
        self.attend = nn.Linear(features, 3 * features)
        self.project = nn.Linear(features, features)
        self.norm2 = nn.LayerNorm(features)
        self.expand = nn.Linear(features, 4 * features)
        self.contract = nn.Linear(4 * features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T, features]."""
        query, key, value = self._attended(tokens, 0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self._behind(tokens, mixed)

    def extend(self, tokens: Tensor, before: KeysValues) -> tuple[Tensor, KeysValues]:
        """Map further tokens [B, S, features] of a causal block.

        Args:
            tokens: those behind the ones that are in the cache.
            before: keys and values of these, [B, heads, T, features / heads] each.

        Returns:
            What ``forward`` would return of these S, and keys and values of all T + S.
        """
        known = before[0].shape[2]
        query, *own = self._attended(tokens, known)
        key, value = (torch.cat(pair, dim=2) for pair in zip(before, own))
        # One token sees all that is there.
        seen = None
        if len(tokens[0]) > 1:
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
            seen = seen.tril(known)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self._behind(tokens, mixed), (key, value)

    def no_tokens(self, batch: int) -> KeysValues:
        """Keys and values of no token, where ``extend`` begins."""
        features = self.project.in_features // self.num_heads
        empty = self.project.weight.new_empty(batch, self.num_heads, 0, features)
        return empty, empty

    def _attended(self, tokens: Tensor, first: int) -> Tensor:
        """Queries, keys and values, [3, B, heads, T, features / heads]."""
        attended = rearrange(
            self.attend(self.norm1(tokens)), "b t (n h f) -> n b h t f", n=3, h=self.num_heads
        )
        if not self.rotary:
            return attended
        query, key, value = attended
        return torch.stack([rotate(query, first), rotate(key, first), value])

    def _behind(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """What follows the attention."""
        tokens = tokens + self.project(rearrange(mixed, "b h t f -> b t (h f)"))
        return tokens + self.contract(F.gelu(self.expand(self.norm2(tokens))))


def rotate(values: Tensor, first: int) -> Tensor:
    r"""Turn pairs of features by angles of the token's place, so that products see distances alone.

    .. math:: (a, b)_t \mapsto (a \cos \omega t - b \sin \omega t,\
              a \sin \omega t + b \cos \omega t)

    with wavelengths as in ``sinusoidal_positions``.

    Args:
        values: queries or keys [B, heads, T, features], of an even number of features.
        first: place of the first token.

    References:
        Su et al., RoFormer: enhanced transformer with rotary position embedding, 2021.

    Example:
        >>> rotate(torch.ones(1, 1, 1, 2), first=0).tolist()
        [[[[1.0, 1.0]]]]
    """
    angles = sinusoidal_positions(first + values.shape[2], values.shape[3])[first:].to(values)
    sine, cosine = angles[:, ::2], angles[:, 1::2]
    one, other = values[..., ::2], values[..., 1::2]
    turned = one * cosine - other * sine, one * sine + other * cosine
    return torch.stack(turned, dim=-1).flatten(-2)


class VisionTransformer(nn.Module):
    r"""Transformer over tokens of which each attends to all: a vision transformer.

    .. math:: h_t = W_0 x_t + e_t + V y, \qquad
              f(x, y) = W_1\, \mathrm{LN}(\mathrm{block}_n \circ \dots \circ \mathrm{block}_1(h))

    Each token learns its position :math:`e_t`. The last layer starts at zero.

    Args:
        num_tokens: T.
        token_features: numbers of a token.
        out_features: numbers of an answer.
        hidden_features: width.
        num_blocks: transformer blocks, n.
        num_heads: of their attention.
        context_features: length of the context y; None takes none.
        answered: how many of the tokens, the first ones, have an answer; all where None.

    Shapes:
        [B, T, token_features] -> [B, answered, out_features]; context [B, F].

    Raises:
        ValueError: if sizes do not fit, or the tokens or the context have another shape.

    References:
        Dosovitskiy et al., An image is worth 16x16 words, 2021.

    Example:
        >>> network = VisionTransformer(9, token_features=4, out_features=8, hidden_features=32)
        >>> network(torch.randn(5, 9, 4)).shape
        torch.Size([5, 9, 8])
    """

    def __init__(
        self,
        num_tokens: int,
        token_features: int,
        out_features: int,
        hidden_features: int = 64,
        num_blocks: int = 1,
        num_heads: int = 4,
        context_features: int | None = None,
        answered: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_tokens": num_tokens, "token_features": token_features}
        sizes |= {"hidden_features": hidden_features, "num_blocks": num_blocks}
        check_sizes("VisionTransformer", **sizes, out_features=out_features)
        self.token_features, self.context_features = token_features, context_features
        self.answered = num_tokens if answered is None else answered
        self.embed = nn.Linear(token_features, hidden_features)
        positions = hidden_features**-0.5 * torch.randn(num_tokens, hidden_features)
        self.positions = nn.Parameter(positions)
        self.condition = (
            None if context_features is None else nn.Linear(context_features, hidden_features)
        )
        self.blocks = nn.Sequential(
            *(TransformerBlock(hidden_features, num_heads) for _ in range(num_blocks))
        )
        self.norm = nn.LayerNorm(hidden_features)
        self.final = zero_linear(hidden_features, out_features)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Map tokens [B, T, token_features]."""
        expected = len(self.positions), self.token_features
        if tokens.shape[1:] != expected:
            advice = "build it for these tokens"
            got = list(tokens.shape[1:])
            raise mismatch("VisionTransformer", f"tokens {list(expected)}", got, advice)
        hidden = self.embed(tokens) + self.positions
        check_context_features(context, self.context_features)
        if self.condition is not None:
            assert context is not None
            hidden = hidden + self.condition(context.to(hidden.dtype)).unsqueeze(1)
        return self.final(self.norm(self.blocks(hidden)[:, : self.answered]))


class TransformerConditioner(nn.Module):
    r"""Vision transformer from the tokens that condition to the parameters of those that move.

    Token t of those that condition answers for token t of those that move. In a patch flow a row is
    one number of each patch, hence a token is one number; a coupling of the whole matrix [B, P, c]
    has the patches themselves as tokens (``token_features=c``).

    Args:
        in_features: a, tokens that condition.
        out_features: m b, parameters for each number of the b tokens that move.
        hidden_features, num_blocks, num_heads, context_features: see ``VisionTransformer``.
        token_features: numbers of a token, c.
        moved_features: b, at most a; a where not given. A coupling gives its own.

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
        moved = in_features if moved_features is None else moved_features
        if moved > in_features or out_features % moved:
            expected = f"at most {in_features} moved tokens, whose number divides {out_features}"
            advice = "let the larger part condition"
            raise mismatch("TransformerConditioner", expected, moved, advice)
        self.context_features, self.token_features = context_features, token_features
        answers = out_features // moved * token_features
        sizes = in_features, token_features, answers, hidden_features, num_blocks, num_heads
        self.network = VisionTransformer(*sizes, context_features, moved)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map tokens [N, a] or [B, a, c]."""
        tokens = inputs.unsqueeze(-1) if inputs.dim() == 2 else inputs
        answers = self.network(tokens, context)
        outputs = rearrange(answers, "b t (m c) -> b (m t) c", c=self.token_features)
        return outputs.squeeze(-1) if inputs.dim() == 2 else outputs


class ImageTransformerConditioner(nn.Module):
    r"""Vision transformer over the positions of an image, of which some channels condition others.

    Args:
        in_channels: of the image that conditions.
        out_channels: parameters of each position.
        image_size: (H, W), whose H W positions are the tokens.
        hidden_features, num_blocks, num_heads, context_features: see ``VisionTransformer``.

    Shapes:
        [B, in_channels, H, W] -> [B, out_channels, H, W]; context [B, F].

    Raises:
        ValueError: if sizes do not fit, or inputs or the context have another shape.

    References:
        Kolesnikov et al., Jet: a modern transformer-based normalizing flow, 2024, Section 3.

    Example:
        >>> network = ImageTransformerConditioner(8, 16, image_size=(2, 3), hidden_features=32)
        >>> network(torch.randn(5, 8, 2, 3)).shape
        torch.Size([5, 16, 2, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: Sequence[int],
        hidden_features: int = 64,
        num_blocks: int = 1,
        num_heads: int = 4,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        self.height, self.width = as_pair(image_size, "ImageTransformerConditioner", "image_size")
        self.context_features = context_features
        sizes = in_channels, out_channels, hidden_features, num_blocks, num_heads
        self.network = VisionTransformer(self.height * self.width, *sizes, context_features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images [B, in_channels, H, W]."""
        answers = self.network(rearrange(inputs, "b c h w -> b (h w) c"), context)
        return rearrange(answers, "b (h w) c -> b c h w", h=self.height)
