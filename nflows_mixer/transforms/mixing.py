"""A flow on rows, applied to every row or column of a matrix; and the mixer layer made of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from einops import rearrange, reduce, repeat
from nflows.transforms import InverseTransform, Transform
from torch import Tensor, nn

from nflows_mixer._checks import check_context, mismatch, wrong_event
from nflows_mixer._modes import EVALUATING, running_statistics, widened
from nflows_mixer.core.as_transform import FlowLike, adapted, as_transform
from nflows_mixer.core.composite import CompositeTransform, Passage
from nflows_mixer.core.context import row_lengths, takes_context
from nflows_mixer.core.probe import check_usable
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.patches import PatchTransform


class RowsTransform(Transform):
    r"""Base of transforms of rows that are cut out of something larger, and put back.

    .. math:: \log|\det J| = \sum_{\text{rows}} \log|\det J_f|

    A subclass says by ``passage(inputs)`` what the rows are, see ``core.composite.Passage``.

    Args:
        transform: f, of rows.
        positions: a table of one vector per row, handed to f as context; None for none.

    Raises:
        ValueError: if there are positions, and f takes no context.
    """

    def __init__(self, transform: Transform, positions: Tensor | None = None) -> None:
        super().__init__()
        self.transform = transform
        if isinstance(positions, nn.Parameter):
            self.positions = positions
        else:
            self.register_buffer("positions", positions)
        self._passes_context = takes_context(self.transform)
        self._lengths = row_lengths(self.transform)
        if positions is not None and not self._passes_context:
            raise mismatch(
                type(self).__name__,
                "a transform that takes context, to be given positions",
                type(transform).__name__,
                "build it with context_features, or leave positions out",
            )

    @abstractmethod
    def passage(self, inputs: Tensor) -> Passage:
        """Rows out of the inputs, and back."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every row forward."""
        return self._map_rows(self.transform, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every row back, with running statistics even in training mode."""
        with nullcontext() if EVALUATING.get() else running_statistics(self.transform):
            return self._map_rows(inverse_of(self.transform), widened(self, inputs), context)

    def _map_rows(self, function, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        _, enter, leave, row_context, count = self.passage(inputs)
        rows = enter(inputs)
        for length in self._lengths:
            if rows.shape[1:] != (length,):
                raise wrong_event(
                    rows, (length,), type(self).__name__, "build its flow for these rows"
                )
        outputs, logabsdet = function(rows, row_context(context))
        if outputs.shape != rows.shape:
            raise mismatch(
                type(self).__name__,
                f"a transform that keeps rows of shape {list(rows.shape)}",
                f"{list(outputs.shape)} from {type(self.transform).__name__}",
                "a channel or patch flow maps rows to rows of the same length",
            )
        # A log-det of half precision would lose the sum over a whole image.
        logabsdet = logabsdet.to(torch.promote_types(logabsdet.dtype, torch.float32))
        # Under autocast a transform of another library may answer in half precision.
        matrix = leave(outputs.to(inputs.dtype), inputs)
        return matrix, reduce(logabsdet, "(b rows) -> b", "sum", b=len(inputs), rows=count)

    def _row_context(self, context: Tensor | None, batch: int, rows: int) -> Tensor | None:
        if not self._passes_context:
            return None
        parts = []
        if context is not None:
            check_context(context, batch, type(self).__name__)
            parts.append(repeat(context, "b f -> (b rows) f", rows=rows))
        if self.positions is not None:
            if len(self.positions) != rows:
                raise mismatch(
                    type(self).__name__,
                    f"one position for each of {rows} rows",
                    f"{len(self.positions)} positions",
                    "build the table for this number of rows",
                )
            parts.append(repeat(self.positions, "rows f -> (b rows) f", b=batch))
        return torch.cat(parts, dim=1) if parts else None


class _MixingTransform(RowsTransform):
    """Rows cut out of a matrix by an einops pattern, and put back by the same."""

    _rows: str
    _row_axis: int

    image_shape = None  # of any size

    def __init__(self, transform: Transform | nn.Module, positions: Tensor | None = None) -> None:
        flow = adapted(transform, type(self).__name__)
        check_usable(flow, type(self).__name__)
        super().__init__(flow, positions)

    def passage(self, inputs: Tensor) -> Passage:
        """Rows out of a matrix, and back."""
        if inputs.dim() != 3:
            raise mismatch(
                type(self).__name__,
                "matrices of shape [B, patches, channels]",
                list(inputs.shape),
                "put PatchTransform before it",
            )
        batch, count = inputs.shape[0], inputs.shape[self._row_axis]
        sizes = dict(zip("bpc", inputs.shape))
        return Passage(
            self.transform,
            lambda matrix: rearrange(matrix, f"b p c -> {self._rows}"),
            lambda rows, matrix: rearrange(rows, f"{self._rows} -> b p c", **sizes),
            lambda context: self._row_context(context, batch, count),
            count,
        )


class ChannelMixingTransform(_MixingTransform):
    r"""Apply the same row transform to every row of a matrix: it mixes channels within a patch.

    .. math:: Y_{p,:} = f(X_{p,:}), \qquad
              \log|\det J| = \sum_p \log|\det J_f(X_{p,:})|

    Args:
        transform: any flow of rows [N, c], of nflows, zuko or normflows; its rows are all patches
            of all images.
        positions: a table [P, F] of one vector per row (a buffer, or learned if it is an
            ``nn.Parameter``), handed to ``transform`` as context, behind the user's own.

    Shapes:
        inputs and outputs [B, P, c]; context [B, F] is repeated for each row of its image where
        ``transform`` takes one (see ``core.takes_context``), and withheld where not.

    Raises:
        ValueError: if inputs are no matrices, the context is not one row per image, or the
            transform changes the shape of its rows.

    References:
        MixerFlow, Section 4, "channel-mixing flows".

    Example:
        >>> from nflows.transforms import ReversePermutation
        >>> matrix = torch.arange(6.0).reshape(1, 2, 3)
        >>> ChannelMixingTransform(ReversePermutation(3))(matrix)[0].tolist()
        [[[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]]]
    """

    _rows, _row_axis = "(b p) c", 1


class PatchMixingTransform(_MixingTransform):
    r"""Apply the same row transform to every column of a matrix: it mixes patches.

    .. math:: Y_{:,k} = f(X_{:,k}), \qquad
              \log|\det J| = \sum_k \log|\det J_f(X_{:,k})|

    The transposed ``ChannelMixingTransform``: arguments, shapes and errors are the same, with
    ``transform`` one of rows [N, P] and ``positions`` [c, F].

    References:
        MixerFlow, Section 4, "patch-mixing flows".

    Example:
        >>> from nflows.transforms import ReversePermutation
        >>> matrix = torch.arange(6.0).reshape(1, 2, 3)
        >>> PatchMixingTransform(ReversePermutation(2))(matrix)[0].tolist()
        [[[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]]]
    """

    _rows, _row_axis = "(b c) p", 2


class PatchMixerTransform(CompositeTransform):
    r"""A mixer layer: cut into patches, channel flow on rows, patch flow on columns, reassemble.

    .. math:: \mathrm{patches}^{-1} \circ \mathrm{columns}(f_\mathrm{patch}) \circ
              \mathrm{rows}(f_\mathrm{channel}) \circ \mathrm{patches}

    Args:
        image_shape: (C, H, W).
        patch_size: p, or (height, width), or a ready ``PatchTransform`` of this shape.
        channel_flow: transform of rows of length p_h * p_w * C, or a factory of one,
            ``features -> transform``.
        patch_flow: transform of rows of length n_patches, or a factory of one.
        layout: see ``PatchTransform``.
        mask: the order in which rows and columns come to their flows, see ``PatchTransform``.
        positions: ``rows -> [rows, F]``, the positional context of the flows; None gives none.

    Shapes:
        inputs and outputs [B, C, H, W]; context [B, F].

    Raises:
        TypeError: if a flow is no nflows transform and no factory of one.
        ValueError: if a patch does not divide the image, or a flow has another length.

    References:
        MixerFlow, Section 4 and Figure 4.

    Example:
        >>> import torch
        >>> from nflows.transforms import LULinear, MaskedAffineAutoregressiveTransform
        >>> layer = PatchMixerTransform(
        ...     image_shape=(3, 8, 8),
        ...     patch_size=4,
        ...     channel_flow=lambda features: MaskedAffineAutoregressiveTransform(features, 64),
        ...     patch_flow=lambda features: LULinear(features, identity_init=True),
        ... )
        >>> images, logabsdet = layer(torch.rand(5, 3, 8, 8))
        >>> images.shape, logabsdet.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int] | PatchTransform,
        channel_flow: FlowLike,
        patch_flow: FlowLike,
        layout: str = "patch",
        positions: Callable[[int], Tensor] | None = None,
        mask: str = "halves",
    ) -> None:
        patches = patch_size
        if not isinstance(patches, PatchTransform):
            patches = PatchTransform(image_shape, patches, layout, mask)
        channel = as_transform(channel_flow, patches.channels, "PatchMixerTransform.channel_flow")
        patch = as_transform(patch_flow, patches.n_patches, "PatchMixerTransform.patch_flow")
        super().__init__(
            [
                patches,
                ChannelMixingTransform(
                    channel, _table(positions, patches.n_patches, patches.patch_order)
                ),
                PatchMixingTransform(
                    patch, _table(positions, patches.channels, patches.channel_order)
                ),
                InverseTransform(patches),
            ]
        )
        self.image_shape = patches.image_shape


def _table(
    positions: Callable[[int], Tensor] | None, rows: int, order: Tensor | None
) -> Tensor | None:
    """Positional context of rows that come in an order; learned positions are in that order."""
    table = None if positions is None else positions(rows)
    if table is None or order is None or isinstance(table, nn.Parameter):
        return table
    return table[order]
