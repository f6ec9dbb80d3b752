"""Between integer pixels and real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nflows_mixer._checks import check_levels, mismatch
from nflows_mixer.transforms.stochastic import StochasticTransform


class Dequantization(StochasticTransform):
    """Abstract: integer pixels 0 ... levels - 1 and noise in [0, 1] make real ones.

    x + u is held below x + 1 in the working precision, so that ``inverse``, which rounds down,
    gives every pixel back.

    Args:
        levels: number of pixel values, 2 to 256.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        check_levels(type(self).__name__, levels)
        self.levels = levels
        # Follows .double() and .to(device), so that the outputs do.
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Round down to uint8 pixels, and clamp to the levels there are."""
        pixels = inputs.floor().clamp(0, self.levels - 1).to(torch.uint8)
        return pixels, inputs.new_zeros(inputs.shape[0])

    def _pixels(self, inputs: Tensor) -> Tensor:
        """Integer inputs in the dtype of the module."""
        if inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool:
            advice = "values that are already real need no noise"
            raise mismatch(type(self).__name__, "integer pixels", inputs.dtype, advice)
        return inputs.to(self._like.dtype)

    @staticmethod
    def _add(pixels: Tensor, noise: Tensor) -> Tensor:
        return torch.minimum(pixels + noise, torch.nextafter(pixels + 1, pixels))


class UniformDequantization(Dequantization):
    r"""Add uniform noise to integer pixels, which makes a density a bound on a probability.

    .. math:: y = x + u, \quad u \sim \mathcal U[0, 1)^D, \qquad
              \log P(x) \ge \mathbb E_u \log p(x + u)

    A stochastic transform: ``logabsdet`` is -log q(u) = 0, and ``inverse`` rounds down; every pixel
    comes back.

    Args:
        levels: number of pixel values, 0 ... levels - 1; 256 for 8 bits, 17 for scikit-learn's
            digits.

    Shapes:
        inputs [B, ...] of an integer dtype, outputs [B, ...] in [0, levels) of the module's dtype.

    Raises:
        ValueError: if ``levels`` is not between 2 and 256, inputs are not integers, or the noise
            has another shape.

    References:
        Theis et al., A note on the evaluation of generative models, 2016, Section 3.1;
        MixerFlow, Section 5.

    Example:
        >>> dequantize = UniformDequantization(levels=256)
        >>> pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
        >>> values, logabsdet = dequantize(pixels, noise=torch.tensor([[0.5, 0.25]]))
        >>> values.tolist(), dequantize.inverse(values)[0].tolist()
        ([[0.5, 255.25]], [[0, 255]])
    """

    noise_kind = "uniform"

    def __init__(self, levels: int = 256) -> None:
        super().__init__(levels)

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add ``noise`` in [0, 1], drawn where not given, of the shape of ``inputs``."""
        pixels = self._pixels(inputs)
        if noise is None:
            noise = torch.rand(pixels.shape, dtype=pixels.dtype, device=pixels.device)
        else:
            noise = self.noise_for(inputs, noise, pixels.dtype)
        outputs = self._add(pixels, noise)
        return outputs, outputs.new_zeros(outputs.shape[0])

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """One number for each pixel."""
        return tuple(input_shape)
