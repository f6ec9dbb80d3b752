"""How a wrapper, which only rearranges, hands its inputs to its child and takes the result back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nflows.transforms import Transform
from torch import Tensor


class Passage(NamedTuple):
    r"""What a wrapper does around its child, for one call.

    .. math:: y = \mathrm{leave}(f(\mathrm{enter}(x);\ \mathrm{context}(c)),\ x)

    Both rearrangements only move numbers, so that they serve outputs, inputs and gradients alike.
    A wrapper returns it from a method ``passage(inputs)``; who rebuilds activations backwards
    descends through it to the child.

    Args:
        child: the transform inside, f.
        enter: what the child gets, of the wrapper's inputs.
        leave: (result of the child, the wrapper's inputs) -> the wrapper's result.
        context: the child's context, of the wrapper's.
        rows: rows of the child for each input of the wrapper; log-dets are summed over these.

    Example:
        >>> from nflows.transforms import ReversePermutation
        >>> from nflows_mixer.transforms import ChannelMixingTransform
        >>> import torch
        >>> mixing = ChannelMixingTransform(ReversePermutation(3))
        >>> mixing.passage(torch.zeros(2, 5, 3)).enter(torch.zeros(2, 5, 3)).shape
        torch.Size([10, 3])
    """

    child: Transform
    enter: Callable[[Tensor], Tensor]
    leave: Callable[[Tensor, Tensor], Tensor]
    context: Callable[[Tensor | None], Tensor | None]
    rows: int = 1
