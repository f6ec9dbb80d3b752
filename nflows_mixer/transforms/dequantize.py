"""Between integer pixels and real ones."""

from __future__ import annotations

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import check_levels, mismatch


class UniformDequantization(Transform):
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

    stochastic_forward = True

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
        if inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool:
            raise mismatch(
                "UniformDequantization",
                "integer pixels",
                inputs.dtype,
                "values that are already real need no noise",
            )
        pixels = inputs.to(self._like.dtype)
        if noise is None:
            noise = torch.rand_like(pixels)
        elif noise.shape != inputs.shape:
            raise mismatch(
                "UniformDequantization",
                f"noise of shape {list(inputs.shape)}",
                list(noise.shape),
                "draw one number for each pixel",
            )
        below_next = torch.nextafter(pixels + 1, pixels)
        outputs = torch.minimum(pixels + noise.to(pixels.dtype), below_next)
        return outputs, outputs.new_zeros(outputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Round down to uint8 pixels, and clamp to the levels there are."""
        pixels = inputs.floor().clamp(0, self.levels - 1).to(torch.uint8)
        return pixels, inputs.new_zeros(inputs.shape[0])
