"""From pixel values to the range that a model works in."""

from __future__ import annotations

import math

import torch
from nflows.transforms import Transform
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer._checks import check_levels, mismatch


class PixelScaling(Transform):
    r"""Map dequantized pixels from [0, levels) to [low, high).

    .. math:: y = \mathrm{low} + \frac{\mathrm{high} - \mathrm{low}}{\mathrm{levels}}\, x, \qquad
              \log|\det J| = D \log \frac{\mathrm{high} - \mathrm{low}}{\mathrm{levels}}

    Args:
        levels: number of pixel values.
        low: smallest value after scaling.
        high: end of the range after scaling.

    Shapes:
        inputs and outputs [B, ...].

    Raises:
        ValueError: if ``high`` is not above ``low``, or ``levels`` is not between 2 and 256.

    Example:
        >>> PixelScaling(256)(torch.tensor([[0.0, 128.0]]))
        (tensor([[-0.5000,  0.0000]]), tensor([-11.0904]))
    """

    def __init__(self, levels: int = 256, low: float = -0.5, high: float = 0.5) -> None:
        super().__init__()
        levels = check_levels("PixelScaling", levels)
        if not high > low:
            raise mismatch("PixelScaling", "low < high", (low, high), "exchange them")
        self.low = low
        self.scale = (high - low) / levels

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixel values to the model's range."""
        return self.low + self.scale * inputs, self._logabsdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The model's range to pixel values."""
        return (inputs - self.low) / self.scale, -self._logabsdet(inputs)

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        total = math.prod(inputs.shape[1:]) * math.log(self.scale)
        return inputs.new_full((inputs.shape[0],), total)


class LogitTransform(Transform):
    r"""Logit of values in [0, 1], drawn in from the ends by alpha.

    .. math:: v = \alpha + (1 - 2 \alpha)\, x, \qquad y = \log \frac{v}{1 - v}, \qquad
              \log|\det J| = \sum \log(1 - 2\alpha) - \log v - \log(1 - v)

    Args:
        alpha: between 0 and 1/2; 0.05 is usual for natural images, 1e-6 for MNIST.

    Shapes:
        inputs and outputs [B, ...].

    Raises:
        ValueError: if ``alpha`` is not between 0 and 1/2.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 4.1; Papamakarios et al.,
        Masked autoregressive flow for density estimation, 2017, Section 4.3.

    Example:
        >>> LogitTransform()(torch.tensor([[0.5]]))
        (tensor([[0.]]), tensor([1.2809]))
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise mismatch("LogitTransform", "0 < alpha < 0.5", alpha, "0.05 is the default")
        self.alpha = alpha

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values in [0, 1] to the real line."""
        values = self.alpha + (1 - 2 * self.alpha) * inputs
        outputs = values.log() - (-values).log1p()
        return outputs, self._logabsdet(outputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The real line to values from -alpha / (1 - 2 alpha) to 1 + alpha / (1 - 2 alpha)."""
        values = torch.sigmoid(inputs)
        return (values - self.alpha) / (1 - 2 * self.alpha), -self._logabsdet(inputs)

    def _logabsdet(self, logits: Tensor) -> Tensor:
        # -log v - log(1 - v) in terms of the logit, where it does not cancel.
        terms = F.softplus(logits) + F.softplus(-logits) + math.log(1 - 2 * self.alpha)
        return terms.flatten(1).sum(1)
