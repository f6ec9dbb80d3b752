"""Dequantization by noise that is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as checkpointed

from nflows_mixer._checks import check_event, check_image_shape, mismatch
from nflows_mixer.core.as_transform import adapted
from nflows_mixer.distributions import standard_normal_log_prob
from nflows_mixer.nn import DenseEncoder
from nflows_mixer.transforms.conditional_noise import ConditionalNoise
from nflows_mixer.transforms.dequantize import Dequantization

NEARLY_UNIFORM = partial(ConditionalNoise, scale=1.7)
"""Noise whose sigmoid is nearly uniform before training."""


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
        noise: Callable[[int, int], nn.Module] = NEARLY_UNIFORM,
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
