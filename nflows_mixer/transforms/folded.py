"""A composite that folds neighbours, evaluated with weights that are prepared once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nflows_mixer._modes import (
    is_compiling,
    is_transformed,
    running_statistics,
    without_autocast,
)
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.affine import AffineMaps
from nflows_mixer.transforms.compiled import CompiledCalls
from nflows_mixer.transforms.flow_step import FlowStep
from nflows_mixer.transforms.program import fold, leaves, steps_of_chain
from nflows_mixer.transforms.recorded import report_statistics
from nflows_mixer.transforms.steps import Step, forward_through, inverse_through


class FoldedCompositeTransform(CompositeTransform):
    r"""Transforms one after the other, as one function of weights that are folded first.

    .. math:: f_n \circ \dots \circ f_1, \qquad \log|\det J| = \sum_i \log|\det J_{f_i}|

    The same map as ``CompositeTransform``, and the parts stay what they are, with their parameters
    and names. At each call, in ordinary autograd,

    - affine neighbours (ActNorm, linear blocks, 1x1 convolutions, permutations) become one map,
      all those of one size in one batch, also inside mixing and shift layers,
    - the linear tail of a ``ResidualMLP`` is multiplied out (see ``nn.collapse``),
    - shift layers become one gather and one scatter.

    Parts of other libraries, parts that somebody has subclassed or whose methods were replaced,
    and networks that are hooked or changed are called as they are. (Hooks on the parts themselves
    are passed by.) So is everything before ActNorm is initialised. For
    inverses the folded maps are inverted in float64; without grad mode they are kept until the
    parameters differ. Of composites within each other the outermost folds all.

    Args:
        transforms: the parts, from data to noise; flows of zuko and normflows are bridged.
        compile: whether ``torch.compile`` compiles the function of a flow layer, once for all
            layers of the same size, at its first use.

    Shapes:
        those of the parts; context [B, F].

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3; MixerFlow, Section 4.

    Example:
        >>> from nflows_mixer.transforms import AffineCoupling, LULinear
        >>> parts = [LULinear(6), AffineCoupling(6), LULinear(6), AffineCoupling(6)]
        >>> rows = torch.randn(5, 6)
        >>> folded, plain = FoldedCompositeTransform(parts), CompositeTransform(parts)
        >>> torch.allclose(folded.eval()(rows)[0], plain(rows)[0], atol=1e-5)
        True
    """

    def __init__(self, transforms: Iterable[Any], compile: bool = False) -> None:
        super().__init__(transforms)
        self.compiled = CompiledCalls() if compile else None
        self._inverses: dict[tuple, tuple[AffineMaps, AffineMaps]] = {}

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map through the parts in their order."""
        if not self._folds():
            return super().forward(inputs, context)
        steps = self._steps()
        with without_autocast(inputs):
            fold(steps)
        outputs = self._through(steps, inputs, context)
        update_running_statistics(steps)
        return outputs

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map back through the parts in reverse order, in evaluation mode."""
        if not self._folds():
            return super().inverse(inputs, context)
        with running_statistics(self):
            steps = self._steps()
            used: dict[tuple, tuple[AffineMaps, AffineMaps]] = {}
            with without_autocast(inputs):
                fold(steps, inverse=True, invert=partial(self._invert, used))
            if used:
                self._inverses = used
            return inverse_through(steps, inputs, context)

    forward.is_chain = inverse.is_chain = True  # type: ignore[attr-defined]

    def _through(
        self, steps: Sequence[Step], inputs: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return forward_through(steps, inputs, context)

    def _steps(self) -> list[Step]:
        steps = steps_of_chain(self)
        for step in leaves(steps):
            if isinstance(step, FlowStep) and self.compiled is not None:
                step.call = self.compiled
        return steps

    def _folds(self) -> bool:
        """Whether all is ready. A compiler that traces the whole gets the plain chain."""
        if is_compiling():
            return False
        return all(part.initialized for part in self.modules() if isinstance(part, ActNorm))

    def _invert(
        self, used: dict[tuple, tuple[AffineMaps, AffineMaps]], key: tuple, maps: AffineMaps
    ) -> AffineMaps:
        gradients = torch.is_grad_enabled() or any(map_.requires_grad for map_ in maps.tensors)
        if gradients or is_transformed():
            return maps.inverse()
        # By value: parameters change in more ways than their versions tell.
        kept = self._inverses.get(key)
        if kept is None or not all(map(_same, kept[0].tensors, maps.tensors)):
            # What inference mode makes could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                source = AffineMaps(*(tensor.clone() for tensor in maps.tensors))
                kept = source, source.inverse()
        used[key] = kept
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do without the inverses."""
        return {**self.__dict__, "_inverses": {}}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


@torch.no_grad()
def update_running_statistics(steps: Sequence[Step]) -> None:
    """Let the batch normalisations of flow layers keep their last batch, all in a few operations.

    .. math:: \\bar\\mu \\leftarrow \\bar\\mu + m\\, (\\mu - \\bar\\mu), \\qquad
              \\bar\\sigma^2 \\leftarrow
              \\bar\\sigma^2 + m\\, (\\tfrac{n}{n - 1} \\sigma^2 - \\bar\\sigma^2)

    Args:
        steps: that were evaluated in training mode; others change nothing.
    """
    # What is shared comes up again, and is updated by one batch after the other.
    rounds: dict[tuple[float, int], tuple[list, list, list]] = {}
    seen: Counter = Counter()
    for step in leaves(steps):
        if not isinstance(step, FlowStep) or step.statistics is None or step.norms is None:
            continue
        found, rows = step.statistics
        for i, norm in enumerate(step.norms):
            mean, variance = found[2 * i], found[2 * i + 1]
            report_statistics(norm, mean, variance)
            assert norm.momentum is not None
            turn = norm.momentum, seen[id(norm)]
            seen[id(norm)] += 1
            running, batch, counts = rounds.setdefault(turn, ([], [], []))
            running += [norm.running_mean, norm.running_var]
            batch += [mean, variance * (rows / (rows - 1))]
            counts.append(norm.num_batches_tracked)
    for (momentum, _), (running, batch, counts) in sorted(rounds.items(), key=lambda item: item[0]):
        torch._foreach_lerp_(running, [b.to(r.dtype) for b, r in zip(batch, running)], momentum)
        torch._foreach_add_(counts, 1)
