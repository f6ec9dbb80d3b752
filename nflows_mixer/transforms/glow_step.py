"""Glow's step of flow on images: ActNorm, 1x1 convolution, coupling."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from nflows.transforms import Permutation, Transform
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer._checks import check_channels
from nflows_mixer._modes import running_statistics, without_autocast
from nflows_mixer.core.composite import CompositeTransform, run_chain
from nflows_mixer.core.factory import UNSET, Unset
from nflows_mixer.nn import DenseAttentionConditioner
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import AffineCoupling, ConditionerLike
from nflows_mixer.transforms.flow_layer import is_untouched
from nflows_mixer.transforms.linear import InvertibleConv1x1, fold


class GlowStep(CompositeTransform):
    r"""Glow's step of flow, which with the fused network is DenseFlow's glow-like module.

    .. math:: \mathrm{swap} \circ \mathrm{coupling} \circ \mathrm{conv}_{1 \times 1} \circ
              \mathrm{ActNorm}

    One half of the channels conditions an affine map of the other.

    Args:
        channels: C.
        conditioner: network of the coupling, or a factory ``(in_channels, out_channels) ->
            network``.
        scale: of the coupling, see ``AffineCoupling``; DenseFlow's is "tanh", of
            :math:`\log s = 2 \tanh(u / 2)`.
        matrix: of the convolution, "full" or "lu", see ``InvertibleConv1x1``.
        context_features: length of the context, for the factory of the network.
        norm: of the network, for its factory.
        swap: whether the halves change places at the end, as in the published DenseFlow models;
            the paper does not mention it.
        conditioning: which half of the channels conditions the other, "first" or "second".

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
        *,
        context_features: int | None = None,
        norm: str | None | Unset = UNSET,
        conditioning: str = "first",
    ) -> None:
        coupling = AffineCoupling(
            channels,
            conditioner,
            scale,
            conditioning,
            context_features=context_features,
            norm=norm,
        )
        parts: list[Transform] = [ActNorm(channels), InvertibleConv1x1(channels, matrix), coupling]
        if swap:
            order = torch.arange(channels).roll(-coupling.conditioning_features)
            parts.append(Permutation(order, dim=1))
        super().__init__(parts)
        self.channels = coupling.features

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images, ActNorm and convolution as one map of the channels."""
        check_channels(inputs, self.channels, "GlowStep")
        actnorm: Any = self._transforms[0]
        if self.training and not actnorm.initialized:
            actnorm.initialize(inputs)
        if not self._folds():
            return super().forward(inputs, context)
        return run_chain([(self._map_channels, False), *self.chain()[2:]], inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images back, in evaluation mode."""
        check_channels(inputs, self.channels, "GlowStep")
        if not self._folds():
            return super().inverse(inputs, context)
        with running_statistics(self):
            chain = [(part.inverse, passes) for part, passes in self.chain()[:1:-1]]
            back = partial(self._map_channels, inverse=True)
            return run_chain([*chain, (back, False)], inputs, context)

    # In constant memory its parts are rebuilt one by one, in the order in which they stand.
    chain = CompositeTransform.chain

    def _folds(self) -> bool:
        actnorm, convolution = self._transforms[:2]
        if torch.compiler.is_compiling() or not actnorm.initialized:
            return False
        return is_untouched(actnorm, "affine_maps") and is_untouched(convolution, "inverse")

    def _map_channels(
        self, images: Tensor, context: Tensor | None, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """ActNorm and convolution, or both undone, as one map."""
        actnorm, convolution = self._transforms[:2]
        with without_autocast(images):
            maps = fold([[actnorm], [convolution.linear]])
            (weight,), (bias,), (logabsdet,) = maps.inverse() if inverse else maps
            outputs = F.linear(images.movedim(1, -1), weight, bias).movedim(-1, 1)
        return outputs, (images.shape[2:].numel() * logabsdet).expand(len(images))
