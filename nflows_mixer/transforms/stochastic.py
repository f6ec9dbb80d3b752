"""Transforms that draw noise on the way from data to latents: their base, and dequantization."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import check_levels, mismatch
from nflows_mixer.core.context import stochastic_part


class StochasticTransform(Transform):
    r"""Abstract: a transform whose forward draws noise, and whose inverse drops it again.

    .. math:: \log p(x) \ge \mathbb E_{e \sim q} \big[\log p(f(x, e)) + \mathrm{logabsdet}\big],
              \qquad \mathrm{logabsdet} = \log|\det J_f(x, e)| - \log q(e \mid x)

    ``forward`` takes the noise as a third argument, and draws it where it is not given, so that
    tests, importance weights and resumed runs may give it. ``inverse`` is deterministic; its
    log-det leaves out what was dropped. So ``log_prob`` of a flow with such a part is a bound, and
    nflows' ``sample_and_log_prob``, which takes the log-det of the inverse, is wrong for it.

    References:
        DenseFlow, Equations 5 to 9; Nielsen et al., SurVAE flows, 2020.

    Example:
        >>> from nflows_mixer.transforms import UniformDequantization
        >>> dequantize = UniformDequantization(256)
        >>> dequantize.noise_kind, dequantize.noise_shape((3, 8, 8))
        ('uniform', (3, 8, 8))
    """

    stochastic_forward = True
    noise_kind = "normal"
    """Distribution of the noise: "normal", N(0, 1), or "uniform", in [0, 1)."""

    @abstractmethod
    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the noise of one input of shape ``input_shape``, such as (C, H, W)."""

    def noise_for(self, inputs: Tensor, noise: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the noise that ``forward`` was given, or draw some, in this dtype.

        Raises:
            ValueError: if noise of another shape was given.
        """
        shape = (inputs.shape[0], *self.noise_shape(inputs.shape[1:]))
        if noise is None:
            draw = torch.rand if self.noise_kind == "uniform" else torch.randn
            return draw(shape, dtype=dtype, device=inputs.device)
        if tuple(noise.shape) != shape:
            raise mismatch(
                type(self).__name__,
                f"{self.noise_kind} noise of shape {list(shape)}",
                list(noise.shape),
                "draw as much as noise_shape says",
            )
        return noise.to(dtype)


def cut(rows: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Rows [B, N] as pieces of these shapes, ``[B, *shape]`` each."""
    pieces = rows.split([math.prod(shape) for shape in shapes], dim=1)
    return [piece.reshape(len(rows), *shape) for piece, shape in zip(pieces, shapes)]


def check_noise_is_passed(transform: Transform, owner: str) -> None:
    """Raise if a part of a transform draws noise that nobody could give it.

    A composite hands no noise on: such a part would draw its own even where noise was given. A
    transform that is stochastic itself answers for its parts.

    Raises:
        ValueError: if a part is stochastic and the transform is not.

    Example:
        >>> from nflows_mixer.transforms import LULinear
        >>> check_noise_is_passed(LULinear(3), "example")
    """
    if getattr(transform, "stochastic_forward", False):
        return
    if (part := stochastic_part(transform)) is not None:
        got = f"{part} of a {type(transform).__name__}"
        advice = "put it into a MultiScaleTransform, which hands noise to its parts"
        raise mismatch(owner, "parts that are given their noise", got, advice)


class Dequantization(StochasticTransform):
    """Abstract: integer pixels 0 ... levels - 1 and noise in [0, 1] make real ones.

    x + u is held below x + 1 in the working precision, so that ``inverse``, which rounds down,
    gives every pixel back.

    Args:
        levels: number of pixel values, 2 to 256.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = check_levels(type(self).__name__, levels)
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
        outputs = self._add(pixels, self.noise_for(inputs, noise, pixels.dtype))
        return outputs, outputs.new_zeros(outputs.shape[0])

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """One number for each pixel."""
        return tuple(input_shape)
