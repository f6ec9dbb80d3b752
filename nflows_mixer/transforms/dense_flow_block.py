"""Noise that is appended to representations, and units of flow that it connects densely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import (
    check_channels,
    check_choice,
    check_outputs,
    check_positive,
    check_sizes,
    mismatch,
)
from nflows_mixer._modes import running_statistics
from nflows_mixer.core.as_transform import adapted, built
from nflows_mixer.core.composite import run_chain
from nflows_mixer.core.context import takes_context
from nflows_mixer.distributions import standard_normal_log_prob
from nflows_mixer.nn import CrossUnitNetwork
from nflows_mixer.nn.conditioner import concat_context
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.coupling import LOG_SCALES, ConditionerLike
from nflows_mixer.transforms.stochastic import StochasticTransform, check_noise_is_passed


class _Augmentation(StochasticTransform):
    """Appends channels of noise, and cuts them off again."""

    def __init__(self, channels: int, noise_channels: int) -> None:
        super().__init__()
        check_sizes(type(self).__name__, channels=channels, noise_channels=noise_channels)
        self.channels = channels
        self.noise_channels = noise_channels

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Noise channels, at the resolution of the input [C, H, W]."""
        return (self.noise_channels, *input_shape[1:])

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one output, for one input [C, H, W]."""
        return (input_shape[0] + self.noise_channels, *input_shape[1:])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cut the noise off [B, C + K, H, W]; nothing is evaluated, and the log-det is 0."""
        check_channels(inputs, self.channels + self.noise_channels, type(self).__name__)
        return inputs[:, : self.channels], inputs.new_zeros(len(inputs))


class CrossUnitCoupling(_Augmentation):
    r"""Append noise, scaled and shifted as earlier representations say.

    .. math:: h(z, e, c) = [z,\ \sigma \odot e + \mu], \quad (u, \mu) = g(c), \quad
              \sigma = e^{s(u)}, \quad e \sim \mathcal N(0, I), \qquad
              \mathrm{logabsdet} = \sum s(u) - \log \mathcal N(e; 0, I)

    c are the representations of earlier units of the flow, which come as the context;
    ``DenseFlowBlock`` keeps them and passes them on. Without a context there is no g and the noise
    is white. The inverse cuts the noise off and does not evaluate g.

    Args:
        channels: C, channels of z.
        noise_channels: K, channels of noise to append.
        context_features: F, channels of c; None for white noise.
        network: network g, or a factory ``(in_channels, out_channels) -> network``; it gives u and
            the shift one behind the other, 2 K channels.
        scale: named scale s of g's first output, see ``AffineCoupling``.

    Shapes:
        inputs [B, C, H, W], context [B, F, H, W] or [B, F], noise [B, K, H, W], outputs
        [B, C + K, H, W].

    Raises:
        ValueError: if inputs, context or noise have another shape, or the scale is unknown.

    References:
        DenseFlow, Section 2.1, Equations 6 to 9.

    Example:
        >>> coupling = CrossUnitCoupling(12, noise_channels=10, context_features=24)
        >>> z, earlier = torch.randn(2, 12, 4, 4), torch.randn(2, 24, 4, 4)
        >>> augmented, logabsdet = coupling(z, earlier)
        >>> augmented.shape, torch.equal(coupling.inverse(augmented)[0], z)
        (torch.Size([2, 22, 4, 4]), True)
    """

    def __init__(
        self,
        channels: int,
        noise_channels: int,
        context_features: int | None = None,
        network: ConditionerLike = CrossUnitNetwork,
        scale: str = "tanh",
    ) -> None:
        super().__init__(channels, noise_channels)
        check_choice("CrossUnitCoupling", "scale", scale, tuple(LOG_SCALES))
        self.context_features = context_features
        self.scale = scale
        self.network: nn.Module | None = None
        if context_features is not None:
            check_positive("CrossUnitCoupling", "context_features", context_features)
            if not isinstance(network, nn.Module):
                network = network(context_features, 2 * noise_channels)
            self.network = network

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append ``noise`` [B, K, H, W], standard normal, drawn where not given."""
        check_channels(inputs, self.channels, "CrossUnitCoupling")
        noise = self.noise_for(inputs, noise, inputs.dtype)
        logabsdet = -standard_normal_log_prob(noise)
        if self.network is None or self.context_features is None:
            return torch.cat((inputs, noise), dim=1), logabsdet
        earlier = concat_context(inputs[:, :0], context, self.context_features, "CrossUnitCoupling")
        parameters = self.network(earlier).to(inputs.dtype)
        shape = len(noise), 2 * self.noise_channels, *noise.shape[2:]
        check_outputs(parameters, shape, "CrossUnitCoupling.network", "parameters")
        unconstrained, shift = parameters.chunk(2, dim=1)
        log_scale = LOG_SCALES[self.scale](unconstrained)
        outputs = torch.cat((inputs, torch.addcmul(shift, noise, log_scale.exp())), dim=1)
        return outputs, logabsdet + log_scale.flatten(1).sum(1)


class LearnedAugmentation(_Augmentation):
    r"""Append noise that a conditional flow makes of white noise: e ~ q(e | x).

    .. math:: h(x, \varepsilon) = [x,\ e], \quad e = f(\varepsilon;\ \phi(x)), \quad
              \varepsilon \sim \mathcal N(0, I), \qquad
              \mathrm{logabsdet} = -\log q(e \mid x) =
              \log|\det J_f| - \log \mathcal N(\varepsilon; 0, I)

    Args:
        channels: C, channels of x.
        noise_channels: K, channels of noise to append.
        noise: f, which maps noise [B, K, H, W] with :math:`\phi(x)` as its context, such as
            ``ConditionalNoise``.
        encoder: network :math:`\phi`, from [B, C, H, W] to features of that resolution.

    Shapes:
        inputs [B, C, H, W], noise [B, K, H, W], outputs [B, C + K, H, W].

    Raises:
        ValueError: if inputs or noise have another shape.

    References:
        Chen et al., VFlow, 2020, Section 3; DenseFlow, Section 4 and Figure 1b.

    Example:
        >>> from nflows_mixer.nn import DenseEncoder
        >>> from nflows_mixer.transforms import ConditionalNoise
        >>> noise = ConditionalNoise(6, context_features=64)
        >>> augment = LearnedAugmentation(12, 6, noise, DenseEncoder(12, stride=1))
        >>> augment(torch.randn(2, 12, 4, 4))[0].shape
        torch.Size([2, 18, 4, 4])
    """

    def __init__(
        self, channels: int, noise_channels: int, noise: Transform, encoder: nn.Module
    ) -> None:
        super().__init__(channels, noise_channels)
        self.noise = adapted(noise, "LearnedAugmentation")
        self.encoder = encoder
        self.takes_context = False

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append what becomes of ``noise`` [B, K, H, W], standard normal, drawn if not given."""
        check_channels(inputs, self.channels, "LearnedAugmentation")
        noise = self.noise_for(inputs, noise, inputs.dtype)
        features = self.encoder(inputs).to(inputs.dtype)
        made, logabsdet = self.noise(noise, features)
        return torch.cat((inputs, made), dim=1), logabsdet - standard_normal_log_prob(noise)


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
