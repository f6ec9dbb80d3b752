"""A flow layer as one function of its folded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union, cast

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import ROWS_ADVICE, check_event
from nflows_mixer._distributed import all_reduce_sum, world_size
from nflows_mixer._modes import autocast_dtype, without_autocast
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.nn.batch_norm import BatchNorm1d
from nflows_mixer.nn.collapsed import CollapsedWeights, collapsed_mlp, is_collapsible, norms_of
from nflows_mixer.nn.residual import append_context
from nflows_mixer.transforms.affine import apply_affine
from nflows_mixer.transforms.coupling import AdditiveCoupling, AffineCoupling, Map, _Coupling
from nflows_mixer.transforms.spline import RationalQuadraticCoupling

Options = tuple[tuple[float, float], bool, bool, Union[torch.dtype, None]]
COUPLINGS = (AffineCoupling, AdditiveCoupling, RationalQuadraticCoupling)


def is_flow_step(transform: Transform) -> bool:
    """Whether ``FlowStep`` can take the transform's place: a coupling of ours, left as it was.

    Example:
        >>> is_flow_step(AffineCoupling(4)), is_flow_step(AffineCoupling(4, nn.Linear))
        (True, False)
    """
    if type(transform) not in COUPLINGS or {"forward", "inverse"} & transform.__dict__.keys():
        return False
    return is_collapsible(cast(nn.Module, transform.conditioner))


def flow_layer(
    rows: Tensor,
    maps: tuple[Tensor, Tensor, Tensor] | None,
    weights: CollapsedWeights,
    context: Tensor | None,
    split: tuple[int, bool],
    function: Map,
    constants: tuple[Any, ...],
    options: Options,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    r"""Affine map, then a coupling conditioned by a collapsed network.

    .. math:: v = A x + t, \qquad y = [v_a,\ g(v_b;\ f(v_a))], \qquad
              \log|\det J| = \log|\det A| + \log|\det J_g|

    A function of tensors and constants alone, so that one compilation serves all layers of the
    same size.

    Args:
        rows: x, [N, D].
        maps: A, t and the log-det of A; None for the identity.
        weights: of f.
        context: [N, F], or None.
        split: the number of conditioning features, and whether they are the first.
        function: g, (moved, parameters, *constants) -> (moved, logabsdet).
        constants: what g takes besides tensors.
        options: what ``collapsed_mlp`` takes besides tensors, in its order.

    Returns:
        y [N, D], log-dets [N], and the batch statistics of f, as ``collapsed_mlp`` gives them.
    """
    if maps is not None:
        rows = apply_affine(rows, maps[0], maps[1])
    fixed, moved = parts_of_rows(rows, split)
    parameters, statistics = collapsed_mlp(with_context(fixed, context), weights, *options)
    moved, logabsdet = function(moved, parameters, *constants)
    if maps is not None:
        logabsdet = logabsdet + maps[2]
    return torch.cat((fixed, moved) if split[1] else (moved, fixed), 1), logabsdet, statistics


def flow_layer_inverse(
    rows: Tensor,
    maps: tuple[Tensor, Tensor, Tensor] | None,
    weights: CollapsedWeights,
    context: Tensor | None,
    split: tuple[int, bool],
    function: Map,
    constants: tuple[Any, ...],
    options: Options,
) -> tuple[Tensor, Tensor]:
    """The inverse of ``flow_layer``, given the inverse maps and the inverse of g."""
    fixed, moved = parts_of_rows(rows, split)
    parameters, _ = collapsed_mlp(with_context(fixed, context), weights, *options)
    moved, logabsdet = function(moved, parameters, *constants)
    rows = torch.cat((fixed, moved) if split[1] else (moved, fixed), 1)
    if maps is not None:
        rows = apply_affine(rows, maps[0], maps[1])
        logabsdet = logabsdet + maps[2]
    return rows, logabsdet


def parts_of_rows(rows: Tensor, split: tuple[int, bool]) -> tuple[Tensor, Tensor]:
    """Split rows into the part that conditions and the part that moves."""
    count, first = split
    if first:
        return rows[:, :count], rows[:, count:]
    moved = rows.shape[1] - count
    return rows[:, moved:], rows[:, :moved]


def with_context(fixed: Tensor, context: Tensor | None) -> Tensor:
    """Append the context, where there is one."""
    return fixed if context is None else torch.cat([fixed, context], 1)


class FlowStep:
    """Affine neighbours and the coupling behind them.

    ``maps`` and ``weights`` are set, before it is used, to the folded maps of its parts, for the
    direction that is to be evaluated, and to the conditioner's collapsed weights; ``call`` is what
    evaluates ``flow_layer`` and its inverse, compiled or not. ``used`` is how it was evaluated
    first, and is again; ``inverse_maps`` are the maps of the other direction, where both are
    needed. In training ``statistics`` are those of the batch: means and variances of both
    normalisations, with the number of rows that they are of.
    """

    def __init__(
        self, coupling: _Coupling, parts: Sequence[Transform] = (), name: str = ""
    ) -> None:
        self.name = name
        self.coupling = coupling
        self.parts = list(parts)
        self.maps: tuple[Tensor, Tensor, Tensor] | None = None
        self.inverse_maps: tuple[Tensor, Tensor, Tensor] | None = None
        self.weights: CollapsedWeights | None = None
        self.call: Callable[..., Any] = call_directly
        self.used: Options | None = None
        self.statistics: tuple[list[Tensor], float | Tensor] | None = None

    @property
    def network(self) -> ResidualMLP:
        """The conditioner."""
        return cast(ResidualMLP, self.coupling.conditioner)

    @property
    def norms(self) -> tuple[nn.BatchNorm1d, nn.BatchNorm1d] | None:
        """Its batch normalisations."""
        return norms_of(self.network)

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D]."""
        function, _, constants = self.coupling.elementwise
        if self.used is None:
            self.used = self._options(inputs)
        with without_autocast(inputs):
            outputs, logabsdet, statistics = self.call(
                flow_layer, *self._arguments(inputs, context), function, constants, self.used
            )
        if statistics:
            count: float | Tensor = len(inputs)
            if self.used[2]:
                count = all_reduce_sum(logabsdet.detach().new_tensor(len(inputs)))
            self.statistics = statistics, count
        return outputs, logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back."""
        _, function, constants = self.coupling.elementwise
        options = self._options(inputs)
        with without_autocast(inputs):
            return self.call(
                flow_layer_inverse, *self._arguments(inputs, context), function, constants, options
            )

    def _options(self, inputs: Tensor) -> Options:
        norms = self.norms
        if norms is None:
            return (0.0, 0.0), False, False, autocast_dtype(inputs)
        eps, training = (norms[0].eps, norms[1].eps), norms[0].training
        # torch's own normalises by the batch of each process.
        reduced = training and world_size() > 1 and isinstance(norms[0], BatchNorm1d)
        return eps, training, reduced, autocast_dtype(inputs)

    @property
    def split(self) -> tuple[int, bool]:
        """The number of conditioning features, and whether they are the first."""
        return self.coupling.conditioning_features, self.coupling.conditioning == "first"

    def given_context(self, inputs: Tensor, context: Tensor | None) -> Tensor | None:
        """The context, if the conditioner takes one; raise if it is not what was agreed."""
        context = context if self.coupling._passes_context else None
        append_context(inputs[:0], None if context is None else context[:0], self._context_features)
        return context

    @property
    def _context_features(self) -> int | None:
        return self.network.context_features

    def _arguments(self, inputs: Tensor, context: Tensor | None) -> tuple[Any, ...]:
        assert self.weights is not None
        check_event(inputs, (self.coupling.features,), type(self.coupling).__name__, ROWS_ADVICE)
        context = self.given_context(inputs, context)
        return inputs, self.maps, self.weights, context, self.split


def call_directly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Evaluate without compiling."""
    return function(*arguments)
