"""Noise that is learned: a small flow that makes noise of noise, and dequantization by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as checkpointed

from nflows_mixer._checks import check_event, check_image_shape, check_positive, mismatch
from nflows_mixer.core.as_transform import adapted
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.distributions import standard_normal_log_prob
from nflows_mixer.nn import ConvConditioner, DenseConditioner, DenseEncoder
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import AffineCoupling
from nflows_mixer.transforms.linear import InvertibleConv1x1
from nflows_mixer.transforms.stochastic import Dequantization


class ConditionalNoise(CompositeTransform):
    r"""Conditional coupling flow on noise maps, from a Gaussian that is learned per channel.

    .. math:: f = \mathrm{conv}_{1 \times 1} \circ \prod_{i = 1}^{n}
              (\mathrm{coupling}_i(\cdot\,; c) \circ \mathrm{conv}_{1 \times 1}) \circ
              (m + e^s \odot \cdot)

    Runs from white noise to what is to be added to, or joined to, an image; the context c are
    features of that image. At its start it is an orthogonal map of the channels, scaled.

    Args:
        channels: K, channels of the noise.
        context_features: channels of c.
        num_steps: n.
        scale: :math:`e^s` at the start.
        conditioner: factory ``(in_channels, out_channels, context_features=...) -> network`` of
            the couplings.

    Shapes:
        inputs and outputs [B, K, H, W], context [B, context_features, H, W].

    References:
        Ho et al., Flow++, 2019, Section 3.1; DenseFlow, Section 3.1.

    Example:
        >>> import torch
        >>> noise = ConditionalNoise(12, context_features=64)
        >>> noise(torch.randn(2, 12, 4, 4), torch.randn(2, 64, 4, 4))[0].shape
        torch.Size([2, 12, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        context_features: int = 64,
        num_steps: int = 4,
        scale: float = 1.0,
        conditioner: Callable[..., nn.Module] = DenseConditioner,
    ) -> None:
        check_positive("ConditionalNoise", "num_steps", num_steps)
        conditioner = partial(conditioner, context_features=context_features)
        gaussian = ActNorm(channels)
        # A Gaussian that is learned, not one that is set from the first noise.
        gaussian.initialize_identity()
        nn.init.constant_(gaussian.log_scale, math.log(scale))
        parts: list = [gaussian]
        for _ in range(num_steps):
            parts.append(InvertibleConv1x1(channels, "full"))
            parts.append(AffineCoupling(channels, conditioner, "tanh"))
        super().__init__([*parts, InvertibleConv1x1(channels, "full")])
        self.channels = gaussian.shape[0]


def nearly_uniform_noise(
    channels: int,
    context_features: int = 64,
    num_steps: int = 4,
    conditioner: Callable[..., nn.Module] = DenseConditioner,
) -> ConditionalNoise:
    """Return noise whose sigmoid is nearly uniform before training; its scale is 1.7 there.

    Args:
        channels, context_features, num_steps, conditioner: as ``ConditionalNoise``.

    Example:
        >>> nearly_uniform_noise(4, 8).channels
        4
    """
    return ConditionalNoise(channels, context_features, num_steps, 1.7, conditioner)


class VariationalDequantization(Dequantization):
    r"""Add noise to integer pixels that a conditional flow makes: a tighter bound.

    .. math:: y = x + u, \quad u = \sigma(\mathrm{unsqueeze}(f(\varepsilon;\ \phi(x)))), \quad
              \varepsilon \sim \mathcal N(0, I), \qquad
              \mathrm{logabsdet} = -\log q(u \mid x) = \log|\det J_f| + \sum \log \sigma' -
              \log \mathcal N(\varepsilon; 0, I)

    f is a ``ConditionalNoise`` on squeezed noise, :math:`\phi` a ``DenseEncoder`` of the image in
    [-1, 1]. ``inverse`` rounds down; every pixel comes back. For 3 channels it has 2,395,784
    parameters at the defaults.

    Args:
        image_shape: (C, H, W), with even H and W.
        levels: number of pixel values, 0 ... levels - 1.
        noise: factory ``(channels, context_features) -> transform`` for f. The default starts
            with a scale of 1.7, where u is nearly uniform.
        encoder: factory ``(in_channels, out_channels) -> network`` for :math:`\phi`, which halves
            the resolution.
        context_features: channels of :math:`\phi(x)`.
        checkpoint: whether activations are not kept for the backward pass, but computed again.

    Shapes:
        inputs uint8 [B, C, H, W], noise [B, 4 C, H / 2, W / 2], outputs [B, C, H, W] in
        [0, levels).

    Raises:
        ValueError: if the image has an odd size, inputs are no integers or of another shape, or
            the noise has another shape.

    References:
        Ho et al., Flow++, 2019, Section 3.1; DenseFlow, Section 3.1.

    Example:
        >>> dequantize = VariationalDequantization((3, 8, 8))
        >>> pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> values, logabsdet = dequantize(pixels)
        >>> torch.equal(dequantize.inverse(values)[0], pixels)
        True
    """

    takes_context = False

    def __init__(
        self,
        image_shape: Sequence[int],
        levels: int = 256,
        noise: Callable[[int, int], nn.Module] = nearly_uniform_noise,
        encoder: Callable[[int, int], nn.Module] = DenseEncoder,
        context_features: int = 64,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(levels)
        owner = "VariationalDequantization"
        self.image_shape = check_image_shape(image_shape, owner)
        channels, height, width = self.image_shape
        if height % 2 or width % 2:
            advice = "pad the images, or dequantize uniformly"
            raise mismatch(owner, "an even height and width", (height, width), advice)
        self.encoder = encoder(channels, context_features)
        self.noise = adapted(noise(4 * channels, context_features), owner)
        self.checkpoint = checkpoint

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add what becomes of ``noise``, standard normal, drawn where not given."""
        pixels = self._pixels(inputs)
        owner, advice = "VariationalDequantization", "build it for these images"
        check_event(inputs, self.image_shape, owner, advice)
        noise = self.noise_for(inputs, noise, pixels.dtype)
        if self.checkpoint and torch.is_grad_enabled():
            made, logabsdet = checkpointed(self._make, pixels, noise, use_reentrant=False)
        else:
            made, logabsdet = self._make(pixels, noise)
        logits = rearrange(made, "b (c s t) h w -> b c (h s) (w t)", s=2, t=2)
        of_sigmoid = -(F.softplus(logits) + F.softplus(-logits)).flatten(1).sum(1)
        total = logabsdet + of_sigmoid - standard_normal_log_prob(noise)
        return self._add(pixels, logits.sigmoid()), total

    def _make(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(2 * pixels / (self.levels - 1) - 1).to(pixels.dtype)
        return self.noise(noise, features)

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Four channels at half the resolution for each channel of the image [C, H, W]."""
        channels, height, width = input_shape
        return 4 * channels, height // 2, width // 2


def small_variational(
    image_shape: Sequence[int], levels: int = 256, checkpoint: bool = False
) -> VariationalDequantization:
    """Return dequantization by learned noise of small networks, for images on a background.

    On a background uniform noise costs a flow of affine couplings a quarter of a bit for each
    value, what a normal density lacks to a uniform one: log2(2 pi e / 12) / 2. Under a logit of a
    small alpha the sigmoid of normal noise far below 0 is nearly normal again. For images of one
    channel it has 10,942 parameters.

    Args:
        image_shape, levels, checkpoint: as ``VariationalDequantization``.

    Raises:
        ValueError: if the height or the width is odd.

    Example:
        >>> dequantize = small_variational((1, 8, 8))
        >>> sum(p.numel() for p in dequantize.parameters())
        10942
    """
    coupling = partial(ConvConditioner, hidden_channels=24)
    encoder = partial(DenseEncoder, hidden_channels=8, num_layers=1, growth=8)
    noise = partial(nearly_uniform_noise, num_steps=2, conditioner=coupling)
    return VariationalDequantization(image_shape, levels, noise, encoder, 12, checkpoint)
