"""Between integer pixels and real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nflows_mixer._checks import check_levels, mismatch
from nflows_mixer.transforms.stochastic import StochasticTransform


class UniformDequantization(StochasticTransform):
    r"""Add uniform noise to integer pixels, which makes a density a bound on a probability.

    .. math:: y = x + u, \quad u \sim \mathcal U[0, 1)^D, \qquad
              \log P(x) \ge \mathbb E_u \log p(x + u)

    A stochastic transform: ``logabsdet`` is -log q(u) = 0, and ``inverse`` rounds down. x + u is
    held below x + 1 in the working precision, so that every pixel comes back.

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
        super().__init__()
        check_levels("UniformDequantization", levels)
        self.levels = levels
        # Follows .double() and .to(device), so that the outputs do.
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add ``noise`` in [0, 1], drawn where not given, of the shape of ``inputs``."""
        check_pixels(inputs, "UniformDequantization")
        pixels = inputs.to(self._like.dtype)
        outputs = add_below_one(pixels, self.noise_for(inputs, noise, pixels.dtype))
        return outputs, outputs.new_zeros(outputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Round down to uint8 pixels, and clamp to the levels there are."""
        return round_down(inputs, self.levels), inputs.new_zeros(inputs.shape[0])

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """One number for each pixel."""
        return tuple(input_shape)


def check_pixels(inputs: Tensor, owner: str) -> None:
    """Raise unless ``inputs`` are integers.

    Example:
        >>> check_pixels(torch.zeros(2, dtype=torch.uint8), "dequantization")
    """
    if inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool:
        advice = "values that are already real need no noise"
        raise mismatch(owner, "integer pixels", inputs.dtype, advice)


def add_below_one(pixels: Tensor, noise: Tensor) -> Tensor:
    """Return x + u for pixels x and noise u in [0, 1], held below x + 1 in this precision.

    Example:
        >>> add_below_one(torch.tensor(255.0), torch.tensor(1 - 2**-24)).floor()
        tensor(255.)
    """
    return torch.minimum(pixels + noise, torch.nextafter(pixels + 1, pixels))


def round_down(values: Tensor, levels: int) -> Tensor:
    """Return the uint8 pixels 0 ... levels - 1 of real ones.

    Example:
        >>> round_down(torch.tensor([-0.1, 3.9, 16.9]), 4)
        tensor([0, 3, 3], dtype=torch.uint8)
    """
    return values.floor().clamp(0, levels - 1).to(torch.uint8)
