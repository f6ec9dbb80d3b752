"""A step of flow on images: ActNorm, 1x1 convolution, coupling."""

from __future__ import annotations

import torch
from nflows.transforms import Permutation, Transform

from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.nn import DenseAttentionConditioner
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import AffineCoupling, ConditionerLike
from nflows_mixer.transforms.linear import InvertibleConv1x1


class GlowStep(CompositeTransform):
    r"""Glow's step of flow, which with the fused network is DenseFlow's glow-like module.

    .. math:: \mathrm{swap} \circ \mathrm{coupling} \circ \mathrm{conv}_{1 \times 1} \circ
              \mathrm{ActNorm}

    The first half of the channels conditions an affine map of the second.

    Args:
        channels: C.
        conditioner: network of the coupling, or a factory ``(in_channels, out_channels) ->
            network``.
        scale: of the coupling, see ``AffineCoupling``; DenseFlow's is "tanh", of
            :math:`\log s = 2 \tanh(u / 2)`.
        matrix: of the convolution, "full" or "lu", see ``InvertibleConv1x1``.
        swap: whether the halves change places at the end, as in the published DenseFlow models;
            the paper does not mention it.

    Shapes:
        inputs and outputs [B, C, H, W]; context as the conditioner takes it.

    Raises:
        ValueError: if a choice is unknown, or C is below 2.

    References:
        Kingma and Dhariwal, Glow, 2018, Figure 2; DenseFlow, Section 2.2 and Figure 2.

    Example:
        >>> step = GlowStep(12)
        >>> sum(p.numel() for p in step.parameters()) == 12**2 + 75 * 12 + 1_568_840
        True
    """

    def __init__(
        self,
        channels: int,
        conditioner: ConditionerLike = DenseAttentionConditioner,
        scale: str = "tanh",
        matrix: str = "full",
        swap: bool = True,
    ) -> None:
        coupling = AffineCoupling(channels, conditioner, scale)
        parts: list[Transform] = [ActNorm(channels), InvertibleConv1x1(channels, matrix), coupling]
        if swap:
            order = torch.arange(channels).roll(-coupling.conditioning_features)
            parts.append(Permutation(order, dim=1))
        super().__init__(parts)
        self.channels = channels
