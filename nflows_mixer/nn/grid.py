"""Convolutions as conditioners of rows: over the grid that a row was flattened from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from nflows_mixer._checks import mismatch
from nflows_mixer.nn.dense_block import ConvConditioner


class GridConditioner(nn.Module):
    r"""Convolutions over the grid of a row, from the positions that condition to those that move.

    .. math:: f(x) = \mathrm{conv}(\text{grid of } x,\ \text{grid of } [\text{conditions}])
              \text{ at the positions that move}

    In a patch flow a row is one number of each patch, and the grid that of the patches; in a
    channel flow it is the pixels of a patch, with their colors as channels. The positions that
    move are zeros, and a second map says which they are. A convolution of whole patches, with
    their numbers as channels, is ``GlowSteps(squeeze=p)``.

    Args:
        in_features: a, numbers that condition.
        out_features: m b, parameters for each of the b that move.
        axes: sizes that a row was flattened from, (h, w) or (h, w, C). A coupling gives its own,
            and ``mixerflow`` gives couplings theirs.
        positions: places in the row of what conditions, and of what moves. A coupling gives its
            own.
        hidden_features: width of the convolutions, see ``ConvConditioner``.
        context_features: length of a context; None takes none.

    Shapes:
        [N, a], context [N, F] -> [N, m b].

    Raises:
        ValueError: if the axes are those of no grid, or sizes do not fit.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 3.4; MixerFlow, Section 7
        (convolutions as future work).

    Example:
        >>> from functools import partial
        >>> from nflows_mixer.transforms import AffineCoupling
        >>> network = partial(GridConditioner, hidden_features=8)
        >>> coupling = AffineCoupling(16, network, mask="checkerboard", axes=(4, 4))
        >>> coupling(torch.randn(5, 16))[0].shape
        torch.Size([5, 16])
    """

    fixed: Tensor
    moved: Tensor
    conditions: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axes: Sequence[int],
        positions: tuple[Tensor, Tensor],
        hidden_features: int = 64,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        if len(axes) not in (2, 3):
            advice = "give the coupling axes; beside a mask of mixerflow rows have none, give it "
            advice += "to the couplings, as in partial(AffineCoupling, mask=...)"
            raise mismatch("GridConditioner", "axes (h, w) or (h, w, C)", tuple(axes), advice)
        fixed, moved = positions
        if (math.prod(axes), in_features) != (len(fixed) + len(moved), len(fixed)):
            expected = f"{in_features} of {math.prod(axes)} positions that condition"
            got = f"{len(fixed)} of {len(fixed) + len(moved)}"
            raise mismatch("GridConditioner", expected, got, "give those of the coupling")
        if out_features % len(moved):
            expected = f"as many parameters for each of {len(moved)} numbers"
            raise mismatch("GridConditioner", expected, out_features, "give a multiple")
        self.height, self.width, channels = (*axes, 1)[:3]
        self.parameters_per_feature = out_features // len(moved)
        self.register_buffer("fixed", fixed)
        self.register_buffer("moved", moved)
        conditions = torch.zeros(1, math.prod(axes)).index_fill(1, fixed, 1.0)
        self.register_buffer("conditions", self._grid(conditions))
        outputs = self.parameters_per_feature * channels
        self.network = ConvConditioner(2 * channels, outputs, hidden_features, context_features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map rows [N, a]."""
        rows = inputs.new_zeros(len(inputs), self.conditions.numel())
        images = self._grid(rows.index_copy(1, self.fixed, inputs))
        conditions = repeat(self.conditions, "1 c h w -> n c h w", n=len(inputs)).to(images)
        outputs = self.network(torch.cat((images, conditions), 1), context)
        rows = rearrange(outputs, "n (m c) h w -> n m (h w c)", m=self.parameters_per_feature)
        return rows.index_select(2, self.moved).flatten(1)

    def _grid(self, rows: Tensor) -> Tensor:
        """Rows as images: positions in their order, channels last in it."""
        return rearrange(rows, "n (h w c) -> n c h w", h=self.height, w=self.width)
