"""Between vectors and images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import check_event, check_positive, mismatch
from nflows_mixer.core.composite import no_volume_change


class ReshapeTransform(Transform):
    r"""Give each input another shape, in row-major order; :math:`\log|\det| = 0`.

    Libraries whose flows are of vectors (sbi, lampe, pyro) run one on images by
    ``ReshapeTransform((64,), (1, 8, 8))`` before it, and its inverse behind it.

    Args:
        input_shape: of one input, such as (D,).
        output_shape: of one output, such as (C, H, W).

    Shapes:
        inputs ``[B, *input_shape]``, outputs ``[B, *output_shape]``.

    Raises:
        ValueError: if the two have different numbers of elements, or inputs have another shape.

    Example:
        >>> import torch
        >>> reshape = ReshapeTransform((4,), (1, 2, 2))
        >>> outputs, logabsdet = reshape(torch.arange(4.0)[None])
        >>> outputs.tolist(), logabsdet.tolist()
        ([[[[0.0, 1.0], [2.0, 3.0]]]], [0.0])
    """

    rearranges = True

    def __init__(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
        super().__init__()
        owner = "ReshapeTransform"
        for size in (*input_shape, *output_shape):
            check_positive(owner, "each size", size)
        self.shapes = tuple(map(int, input_shape)), tuple(map(int, output_shape))
        self.input_shape = self.shapes[0]
        first, second = map(math.prod, self.shapes)
        if first != second:
            expected, got = f"two shapes of {first} elements", f"one of {second}"
            raise mismatch(owner, expected, got, "give the shapes of one input and one output")

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one output."""
        return self.shapes[1]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """To the shape of outputs."""
        return self._reshaped(inputs, *self.shapes)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Back to the shape of inputs."""
        return self._reshaped(inputs, *self.shapes[::-1])

    @staticmethod
    def _reshaped(
        values: Tensor, old: tuple[int, ...], new: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        check_event(values, old, "ReshapeTransform", "build it for these")
        return values.reshape(-1, *new), no_volume_change(values)
