"""The flow layer: the unit of which channel and patch flows are made."""

from __future__ import annotations

from torch import Tensor

from nflows_mixer._checks import ROWS_ADVICE, check_event
from nflows_mixer.core.as_transform import FlowLike, as_transform
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import AffineCoupling
from nflows_mixer.transforms.folded import FoldedCompositeTransform
from nflows_mixer.transforms.linear import LULinear


class FlowLayer(FoldedCompositeTransform):
    r"""Linear block, row flow, ActNorm: one flow layer of rows.

    .. math:: \mathrm{norm} \circ \mathrm{flow} \circ \mathrm{linear}

    Each of the three is a transform of rows, a factory ``features -> transform``, or None to leave
    it out. With the defaults the layer starts at the identity, ActNorm's data-dependent scaling
    apart.

    Args:
        features: row length D.
        linear: the linear block, such as ``LULinear`` or ``RLULinear``.
        flow: a coupling, or any other flow on rows.
        norm: the normalisation.

    Shapes:
        inputs and outputs [N, D]; context [N, F] goes to the parts that take one.

    Raises:
        TypeError: if a part is no nflows transform and no factory of one.
        ValueError: if a part is for rows of another length.

    References:
        MixerFlow, Section 4 and Figure 4.

    Example:
        >>> import torch
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> layer = FlowLayer(16, flow=lambda d: MaskedAffineAutoregressiveTransform(d, 64))
        >>> layer(torch.randn(20, 16))[1].shape
        torch.Size([20])
    """

    def __init__(
        self,
        features: int,
        linear: FlowLike | None = LULinear,
        flow: FlowLike | None = AffineCoupling,
        norm: FlowLike | None = ActNorm,
    ) -> None:
        given = {"linear": linear, "flow": flow, "norm": norm}
        super().__init__(
            as_transform(part, features, f"FlowLayer.{name}")
            for name, part in given.items()
            if part is not None
        )
        self.features = features

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D]."""
        check_event(inputs, (self.features,), "FlowLayer", ROWS_ADVICE)
        return super().forward(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back."""
        check_event(inputs, (self.features,), "FlowLayer", ROWS_ADVICE)
        return super().inverse(inputs, context)

    # What checks rows folds a whole layer, and whoever folds more has checked them.
    forward.is_chain = inverse.is_chain = True  # type: ignore[attr-defined]
