"""What flows on images know of the noise that they draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from nflows.distributions.base import Distribution
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import mismatch
from nflows_mixer.flows.dequantized_flow import CheckedFlow
from nflows_mixer.noise import mixed_noise
from nflows_mixer.transforms.dequantize import UniformDequantization
from nflows_mixer.transforms.stochastic import check_noise_is_passed
from nflows_mixer.transforms.variational import VariationalDequantization


class NoisyFlow(CheckedFlow):
    """A flow with a dequantisation, whose transform may draw noise, too.

    Abstract: use ``ImageFlow``, whose arguments these are.

    Args:
        transform: from real pixels to the base's shape.
        image_shape: (C, H, W).
        distribution: base; ``DiagonalNormal(image_shape)`` where None.
        context_features: length of the context that has to be given; None where there is none.
        embedding_net: encoder of the context, as for nflows' flows.
        dequantization: from integer pixels to real ones.

    Raises:
        TypeError: if the dequantisation is none.
        ValueError: if a part of the transform draws noise that cannot be given to it.
    """

    def __init__(
        self,
        transform: Transform,
        image_shape: Sequence[int],
        distribution: Distribution | None,
        context_features: int | None,
        embedding_net: nn.Module | None,
        dequantization: UniformDequantization | VariationalDequantization,
    ) -> None:
        super().__init__(transform, image_shape, distribution, context_features, embedding_net)
        check_noise_is_passed(self._transform, type(self).__name__)
        if not isinstance(dequantization, (UniformDequantization, VariationalDequantization)):
            raise TypeError(
                f"{type(self).__name__}: expected a UniformDequantization or "
                f"VariationalDequantization, got {dequantization!r}; build one, or call mixerflow "
                "or denseflow with its name"
            )
        self.dequantization = dequantization

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that ``log_prob`` takes for one image.

        That of the dequantisation; if the transform draws noise, too, one row with both, flat.
        """
        shapes = [shape for _, shape in self._noises]
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    def draw_noise(
        self, seed: int, step: int, index: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """All noise of these images, as a function of (seed, step, index): see ``uniform_noise``.

        Args:
            seed: of the run.
            step: of the training, or number of the draw.
            index: of each image, integers [B].
            dtype: of the noise, float32 or float64.

        Returns:
            [B, *noise_shape], on the device of ``index``.
        """
        row = mixed_noise(seed, step, index, self._noises, dtype)
        return row.reshape(-1, *self.noise_shape)

    @property
    def _is_stochastic(self) -> bool:
        return getattr(self._transform, "stochastic_forward", False)

    @property
    def _noises(self) -> list[tuple[str, tuple[int, ...]]]:
        """Kind and shape of the noise of each part that draws some, of one image."""
        parts: list[Any] = [self.dequantization]
        parts += [self._transform] if self._is_stochastic else []
        return [(part.noise_kind, part.noise_shape(self.image_shape)) for part in parts]

    def _median_noise(self, inputs: Tensor) -> Tensor:
        medians = [
            torch.full((len(inputs), math.prod(shape)), 0.0 if kind == "normal" else 0.5)
            for kind, shape in self._noises
        ]
        return torch.cat(medians, dim=1).reshape(-1, *self.noise_shape).to(inputs.device)

    def _split_noise(self, noise: Tensor | None, batch: int) -> tuple[Tensor | None, list[Tensor]]:
        """Noise of the dequantisation, and that of the transform if it takes some."""
        if noise is None or not self._is_stochastic:
            return noise, []
        if tuple(noise.shape) != (batch, *self.noise_shape):
            raise mismatch(
                "ImageFlow",
                f"noise of shape {[batch, *self.noise_shape]}",
                list(noise.shape),
                "draw it with flow.draw_noise(seed, step, index)",
            )
        (_, shape), (_, others) = self._noises
        own, rest = noise.split([math.prod(shape), math.prod(others)], dim=1)
        return own.reshape(batch, *shape), [rest.reshape(batch, *others)]
