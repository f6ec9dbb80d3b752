"""Transforms that append channels of noise to an image, and cut them off again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import (
    check_channels,
    check_choice,
    check_outputs,
    check_positive,
    check_sizes,
)
from nflows_mixer.core.as_transform import adapted
from nflows_mixer.distributions import standard_normal_log_prob
from nflows_mixer.nn import CrossUnitNetwork
from nflows_mixer.nn.conditioner import concat_context
from nflows_mixer.transforms.coupling import LOG_SCALES, ConditionerLike
from nflows_mixer.transforms.stochastic import StochasticTransform


class _Augmentation(StochasticTransform):
    """Appends channels of noise, and cuts them off again."""

    def __init__(self, channels: int, noise_channels: int) -> None:
        super().__init__()
        sizes = {"channels": channels, "noise_channels": noise_channels}
        self.channels, self.noise_channels = check_sizes(type(self).__name__, **sizes)

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
