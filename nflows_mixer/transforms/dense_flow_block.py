"""Units of flow that appended noise connects densely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import check_channels, check_choice, check_positive, check_sizes, mismatch
from nflows_mixer._modes import running_statistics
from nflows_mixer.core.as_transform import built
from nflows_mixer.core.composite import run_chain
from nflows_mixer.core.context import takes_context
from nflows_mixer.nn import CrossUnitNetwork
from nflows_mixer.nn.conditioner import concat_context
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.augmentation import CrossUnitCoupling
from nflows_mixer.transforms.stochastic import StochasticTransform, check_noise_is_passed

PRECONDITIONING = ("block", "all", "previous", None)


class DenseFlowBlock(StochasticTransform):
    r"""DenseFlow block: units, and between two of them a cross-unit coupling that appends noise.

    .. math:: z_i = f_i(z_{i - 1}^{\mathrm{aug}}), \qquad
              z_i^{\mathrm{aug}} = \big[z_i,\ \sigma_i \odot e_i + \mu_i\big], \quad
              (\sigma_i, \mu_i) = g_i(z_{<i}), \qquad i = 1, \dots, n, \quad
              z_0^{\mathrm{aug}} = z_0

    and no noise behind the last unit. The block keeps the representations that a later coupling
    reads, and hands them on as its context, with the context of the user behind them:

    ==================  ==================================================================
    preconditioning     what :math:`g_i` reads
    ==================  ==================================================================
    "block"             :math:`z_0, \dots, z_{i - 1}` of this block
    "all"               these, and those of the blocks before, squeezed (see ``run``); of the
                        output of a block, what is kept: it is :math:`z_0` of the next
    "previous"          :math:`z_{i - 1}` alone
    None                nothing: the noise is white
    ==================  ==================================================================

    The paper's :math:`z_{<i}` are all earlier ones; the published models read those of the block.

    Args:
        channels: C, channels of the input.
        num_units: n.
        unit: factory ``channels -> transform`` of a unit: any deterministic transform of images
            that keeps their shape.
        growth: K, channels of noise behind each unit but the last; 0 for none.
        preconditioning: "block", "all", "previous" or None, see above.
        context_features: length of the user's context that the couplings read; None for none.
            Units that take a context get it in any case.
        earlier_channels: how many channels ``run`` is given of blocks before, for "all".
        network: factory ``(in_channels, out_channels) -> network`` of g.

    Shapes:
        inputs [B, C, H, W], outputs [B, C + (n - 1) K, H, W], noise [B, (n - 1) K, H, W], context
        [B, F].

    Raises:
        ValueError: if a size or choice does not fit, or inputs, noise or context have another
            shape.

    References:
        DenseFlow, Sections 2.1 and 2.3, Figures 1c and 3.

    Example:
        >>> from nflows_mixer.transforms import InvertibleConv1x1
        >>> block = DenseFlowBlock(12, num_units=3, unit=InvertibleConv1x1, growth=4)
        >>> images = torch.randn(2, 12, 8, 8)
        >>> outputs, logabsdet = block(images)
        >>> outputs.shape, torch.allclose(block.inverse(outputs)[0], images)
        (torch.Size([2, 20, 8, 8]), True)
    """

    def __init__(
        self,
        channels: int,
        num_units: int,
        unit: Callable[[int], Transform],
        growth: int,
        preconditioning: str | None = "block",
        context_features: int | None = None,
        earlier_channels: int = 0,
        network: Callable[[int, int], nn.Module] = CrossUnitNetwork,
    ) -> None:
        super().__init__()
        owner = "DenseFlowBlock"
        check_sizes(owner, channels=channels, num_units=num_units)
        check_choice(owner, "preconditioning", preconditioning, PRECONDITIONING)
        if growth != 0:
            check_positive(owner, "growth", growth)
        if isinstance(unit, nn.Module):
            advice = "units have other channels: pass `lambda channels: ...`"
            raise mismatch(owner, "a factory of units", type(unit).__name__, advice)
        if context_features and preconditioning is None:
            got = f"context_features={context_features}"
            raise mismatch(owner, "no context for white noise", got, "units get theirs anyway")
        if earlier_channels and preconditioning != "all":
            expected = "preconditioning='all' to read blocks before"
            raise mismatch(owner, expected, repr(preconditioning), "leave earlier_channels out")
        self.channels = channels
        self.growth = growth
        self.preconditioning = preconditioning
        self.context_features = context_features
        self.earlier_channels = earlier_channels
        widths = [channels + growth * i for i in range(num_units)]
        self.units = nn.ModuleList(built(unit, width, owner) for width in widths)
        for made in self.units:
            if getattr(made, "stochastic_forward", False):
                got, advice = type(made).__name__, "append noise by growth, between units"
                raise mismatch(owner, "deterministic units", got, advice)
            check_noise_is_passed(cast(Transform, made), owner)
        self.couplings = nn.ModuleList()
        # Of z_0, z_1, ...: the output of a unit has the channels of its input.
        of_representations = [channels, *widths]
        for i, width in enumerate(widths[:-1] if growth else []):
            read: int | None = None
            if preconditioning is not None:
                first = i if preconditioning == "previous" else 0
                read = earlier_channels + sum(of_representations[first : i + 1])
                read += context_features or 0
            self.couplings.append(CrossUnitCoupling(width, growth, read, network))
        self.stochastic_forward = bool(len(self.couplings))
        self._passes_context = [takes_context(unit) for unit in self.units]
        self.takes_context = any(self._passes_context) or bool(self.context_features)

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map through units and couplings, with ``noise`` standard normal, drawn if not given."""
        outputs, logabsdet, _ = self.run(inputs, context, noise)
        return outputs, logabsdet

    def run(
        self,
        inputs: Tensor,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        earlier: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """``forward``, given the representations of blocks before, and with its own.

        Args:
            inputs: [B, C, H, W].
            context: [B, F].
            noise: [B, (n - 1) K, H, W].
            earlier: those of blocks before, [B, ..., H, W], with ``earlier_channels`` together;
                None for a block that has no couplings to read them.

        Returns:
            Outputs, logabsdet, and the representations that later blocks read: none but where the
            preconditioning is "all".
        """
        check_channels(inputs, self.channels, "DenseFlowBlock")
        earlier = () if earlier is None else earlier
        got = [list(part.shape) for part in earlier]
        if self.couplings and sum(shape[1] for shape in got) != self.earlier_channels:
            expected = f"{self.earlier_channels} channels of representations of blocks before"
            advice = "let a MultiScaleTransform pass them on, built for as many"
            raise mismatch("DenseFlowBlock", expected, got, advice)
        if noise is not None and not self.couplings:
            raise mismatch("DenseFlowBlock", "no noise", list(noise.shape), "it appends none")
        noises: Sequence[Tensor | None] = [None] * len(self.couplings)
        if noise is not None:
            noises = self.noise_for(inputs, noise, inputs.dtype).split(self.growth, dim=1)
        kept = [*earlier, inputs] if self.preconditioning is not None else []
        outputs = inputs
        total = torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
        for i, (unit, passes) in enumerate(zip(self.units, self._passes_context)):
            outputs, logabsdet = unit(outputs, context if passes else None)
            total = total + logabsdet
            if i < len(self.couplings):
                # A method, so that what it makes on the way is free before the next unit.
                outputs, logabsdet, kept = self._augment(i, outputs, kept, context, noises[i])
                total = total + logabsdet
        return outputs, total, kept if self.preconditioning == "all" else []

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map back through the units, and cut the noise off; no coupling is evaluated."""
        channels = self.channels + self.growth * len(self.couplings)
        check_channels(inputs, channels, "DenseFlowBlock")
        chain: list[tuple[Callable, bool]] = []
        for i, unit in reversed(list(enumerate(self.units))):
            if i < len(self.couplings):
                chain.append((cast(CrossUnitCoupling, self.couplings[i]).inverse, False))
            chain.append((inverse_of(cast(Transform, unit)), self._passes_context[i]))
        with running_statistics(self):
            return run_chain(chain, inputs, context)

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Noise channels of all couplings, at the resolution of the input [C, H, W]."""
        return (self.growth * len(self.couplings), *input_shape[1:])

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one output, for one input [C, H, W]."""
        return (input_shape[0] + self.growth * len(self.couplings), *input_shape[1:])

    def _augment(
        self,
        i: int,
        outputs: Tensor,
        kept: list[Tensor],
        context: Tensor | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Append noise to the output of unit i: its outputs, logabsdet, and what is still read."""
        read = None
        if kept:
            features = self.context_features or 0
            read = concat_context(torch.cat(kept, dim=1), context, features, "DenseFlowBlock")
        augmented, logabsdet = self.couplings[i](outputs, read, noise)
        if self.preconditioning != "all" and i + 1 == len(self.couplings):
            return augmented, logabsdet, []
        if self.preconditioning == "previous":
            return augmented, logabsdet, [outputs]
        return augmented, logabsdet, [*kept, outputs] if kept else []
