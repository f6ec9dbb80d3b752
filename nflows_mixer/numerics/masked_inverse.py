"""Inverse of masked autoregressive flows that computes every hidden unit once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._modes import is_transformed

# Features whose steps share one wide product with all units before them. With fewer those units
# are read too often, with more too much is done in thin products.
_PANEL = 8


class MaskedStage(NamedTuple):
    r"""Units of a masked network that are computed from its inputs and from earlier stages.

    .. math:: v = g\Big(\sum_s W_s v_s + b\Big)

    Args:
        weights: pairs (s, W_s), where v_0 are the inputs [D, N] and v_s the units of the s-th
            stage; W_s is zero wherever the degree of a source is above that of the unit.
        bias: b, [units, 1], or [units, N] where it depends on a context.
        degrees: of the units: how many features each may have seen.
        activation: g, elementwise.

    Example:
        >>> MaskedStage([(0, torch.ones(2, 1))], torch.zeros(2, 1), (1, 1), torch.relu).degrees
        (1, 1)
    """

    weights: Sequence[tuple[int, Tensor]]
    bias: Tensor
    degrees: Sequence[int]
    activation: Callable[[Tensor], Tensor]


def stages_of(network: Any, context: Tensor | None = None) -> list[MaskedStage]:
    r"""Stages of a masked network in evaluation mode, whatever its mode is.

    Batch normalization is an affine map then, and goes into the weights. The residual stream is
    linear in the inputs and in the inner units r_j of the blocks,

    .. math:: h_n = W_0 x + \sum_{j \le n} W_{2, j}\, r_j + \text{const},

    so that it is no stage: what reads it reads those.

    Args:
        network: a ``MaskedResidualMLP`` or ``MaskedMLP``, or a ``MADE`` of nflows.
        context: [N, F], or None.

    Returns:
        The hidden stages, and behind them one that gives the parameters.

    Example:
        >>> from nflows_mixer.nn import MaskedResidualMLP
        >>> [len(stage.degrees) for stage in stages_of(MaskedResidualMLP(3, hidden_features=5))]
        [5, 5, 6]
    """
    first, final, activation = network.initial_layer, network.final_layer, network.activation
    degrees = degrees_of(first)
    bias = _column(first.bias)
    if context is not None:
        context = context.to(bias.dtype)
        bias = bias + activation(network.context_layer(context)).mT
    weights = [(0, _masked(first))]
    stages: list[MaskedStage] = []
    if not network.use_residual_blocks:
        stages.append(MaskedStage(weights, bias, degrees, activation))
    for block in network.blocks:
        if not network.use_residual_blocks:
            scale, shift = _affine(block.batch_norm, len(degrees), bias)
            weights = [(len(stages), _masked(block.linear) * scale.mT)]
            bias = _column(block.linear.bias) + _masked(block.linear) @ shift
            degrees = degrees_of(block.linear)
            stages.append(MaskedStage(weights, bias, degrees, activation))
            continue
        norms = getattr(block, "batch_norm_layers", (None, None))
        scale, shift = _affine(norms[0], len(degrees), bias)
        read = [(source, scale * weight) for source, weight in weights]
        stages.append(MaskedStage(read, scale * bias + shift, degrees, activation))
        inner, outer = block.linear_layers
        inner_bias = _column(inner.bias)
        if context is not None:
            inner_bias = inner_bias + block.context_layer(context).mT
        degrees = degrees_of(inner)
        scale, shift = _affine(norms[1], len(degrees), bias)
        read = [(len(stages), scale * _masked(inner))]
        stages.append(MaskedStage(read, scale * inner_bias + shift, degrees, activation))
        weights = [*weights, (len(stages), _masked(outer))]
        bias = bias + _column(outer.bias)
        degrees = degrees_of(outer)
    last, last_bias = _masked(final), _column(final.bias)
    if network.use_residual_blocks:
        weights = [(source, last @ weight) for source, weight in weights]
        last_bias = last @ bias + last_bias
    else:
        weights = [(len(stages), last)]
    per_feature = final.out_features // first.in_features
    outputs = tuple(index // per_feature for index in range(final.out_features))
    return [*stages, MaskedStage(weights, last_bias, outputs, _same)]


def degrees_of(layer: Any) -> tuple[int, ...]:
    """Degrees of the outputs of a hidden masked layer: how many features each may have seen.

    Args:
        layer: a ``MaskedLinear`` of this package or of nflows.

    Example:
        >>> from nflows_mixer.nn.masked import MaskedLinear
        >>> degrees_of(MaskedLinear([1, 2], [1, 2, 1]))
        (1, 2, 1)
    """
    degrees = layer.degrees
    return tuple(degrees.tolist()) if isinstance(degrees, Tensor) else degrees


def invert_incrementally(
    stages: Sequence[MaskedStage],
    latents: Tensor,
    solve: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    r"""Invert a masked autoregressive flow feature by feature, each hidden unit computed once.

    .. math:: x_d = f^{-1}(y_d;\ \theta_d(x_{<d})), \qquad d = 1, \dots, D

    When x_d is there, so is all that units of degree d depend on: they are computed then, and at
    no other step, so that all steps together do about the arithmetic of one pass of the network.
    Units are kept transposed and sorted by degree, so that a step is a product of contiguous parts
    of a weight and of the units. Without grad mode and ``torch.func`` units go into memory that is
    there beforehand; else they are ordinary autograd, with gradients of any order.

    Args:
        stages: those of the network; the last gives parameters, k of feature d at degree d - 1.
        latents: y, [N, D].
        solve: (latents of a feature [N], its parameters [k, N]) -> the feature [N].

    Returns:
        x [N, D] and the parameters [D, k, N] at x.

    References:
        Papamakarios et al., Masked autoregressive flow, 2017; Germain et al., MADE, 2015, Section
        3 (degrees).

    Example:
        >>> from nflows_mixer.nn import MaskedResidualMLP
        >>> shift = MaskedResidualMLP(3, outputs_per_feature=1).eval()
        >>> _ = torch.nn.init.normal_(shift.final_layer.weight)
        >>> latents = torch.randn(2, 3)
        >>> x, _ = invert_incrementally(stages_of(shift), latents, lambda y, t: y - t[0])
        >>> torch.allclose(x + shift(x), latents, atol=1e-5)
        True
    """
    count, features = latents.shape
    stages = _sorted_by_degree(stages)
    # The features are units that are zero until they are solved for.
    nothing = MaskedStage((), latents.new_zeros(features, 1), range(features), _same)
    stages = [nothing, *stages]
    activations = [stage.activation for stage in stages[1:-1]]
    # Under torch.func nothing must be written over.
    watched = not torch.compiler.is_compiling() and is_transformed()
    in_memory = not (torch.is_grad_enabled() or watched)
    if in_memory:
        activations = [_in_place(activation) for activation in activations]
    units = [_Units(stage, features, count, in_memory) for stage in stages]
    inputs, *hidden, outputs = units
    targets = latents.mT.contiguous().unbind(0)
    for start in range(0, features, _PANEL):
        stop = min(start + _PANEL, features)
        for stage_units in units:
            stage_units.open(start, stop, units)
        for d in range(stop - start):
            for stage_units, activation in zip(hidden, activations):
                if stage_units.counts[d]:
                    stage_units.put(d, activation(stage_units.sums(d)))
            parameters = outputs.sums(d)
            outputs.put(d, parameters)
            inputs.put(d, solve(targets[start + d], parameters)[None])
    return inputs.all().mT.contiguous(), outputs.all().unflatten(0, (features, -1))


def invert_affine(
    network: Any,
    latents: Tensor,
    context: Tensor | None,
    log_scale: Callable[[Tensor], Tensor],
    scale: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Invert a masked affine flow, :math:`y_d = e^{s(u_d)} x_d + t_d`, incrementally.

    Args:
        network: gives pairs (u_d, t_d), see ``stages_of``.
        latents: y, [N, D].
        context: [N, F], or None.
        log_scale: s.
        scale: e^s, where it has a shorter form.

    Returns:
        x [N, D] and the log-dets of the inverse, [N].
    """

    def solve(latents: Tensor, parameters: Tensor) -> Tensor:
        unconstrained, shift = parameters.unbind(0)
        divisor = log_scale(unconstrained).exp() if scale is None else scale(unconstrained)
        return (latents - shift) / divisor

    with torch.autocast(latents.device.type, enabled=False):
        outputs, parameters = invert_incrementally(stages_of(network, context), latents, solve)
    return outputs, -log_scale(parameters[:, 0]).sum(0)


class _Units:
    """Units [units, N] of a stage, by degree: a panel of them at a time, and in it step by step.

    In memory that is there beforehand, where the sums stand before the units do; or, for autograd,
    as tensors of their own.
    """

    def __init__(self, stage: MaskedStage, features: int, batch: int, in_memory: bool) -> None:
        self._weights, self._bias = stage.weights, stage.bias
        self._below = _units_below(stage.degrees, features)
        self._batch = batch
        self._memory = stage.bias.new_empty(self._below[-1], batch) if in_memory else None
        self._before = stage.bias.new_empty(0, batch)
        self._new: list[Tensor] = []

    def open(self, start: int, stop: int, units: Sequence[_Units]) -> None:
        """Begin a panel of units of the degrees from start to stop; its sources have begun it."""
        bounds = self._below[start : stop + 1]
        self.panel = slice(bounds[0], bounds[-1])
        self.counts = [high - low for low, high in zip(bounds[:-1], bounds[1:])]
        # Products with all units before the panel.
        wide = [(w[self.panel, : units[s].panel.start], units[s]._before) for s, w in self._weights]
        if self._memory is None:
            self._before, self._new = self.all(), []
            sums = self._bias[self.panel].expand(-1, self._batch)
            for weight, before in wide:
                sums = torch.addmm(sums, weight, before)
        else:
            self._before = self._memory[: self.panel.start]
            sums = self._open = self._memory[self.panel]
            sums.copy_(self._bias[self.panel])
            for weight, before in wide:
                sums.addmm_(weight, before)
        self._sums = sums.split_with_sizes(self.counts)
        # Of the units of this panel, those that are not there yet have a weight of zero.
        thin = [(units[s], w[self.panel, units[s].panel]) for s, w in self._weights]
        self._thin = [(source, w.split_with_sizes(self.counts)) for source, w in thin]

    def sums(self, d: int) -> Tensor:
        """What the activation is to be applied to in step d of the panel."""
        sums = self._sums[d]
        for source, weights in self._thin:
            if self._memory is not None:
                sums.addmm_(weights[d], source._open)
            elif source._new:
                units = torch.cat(source._new)
                sums = torch.addmm(sums, weights[d][:, : len(units)], units)
        return sums

    def put(self, d: int, values: Tensor) -> None:
        """Take the units of step d, which may stand where its sums stood."""
        if self._memory is None:
            self._new.append(values)
        elif values is not self._sums[d]:
            self._sums[d].copy_(values)

    def all(self) -> Tensor:
        """All units that are there."""
        return torch.cat([self._before, *self._new]) if self._memory is None else self._memory


def _sorted_by_degree(stages: Sequence[MaskedStage]) -> list[MaskedStage]:
    """Stages with their units, and the columns of what reads them, in the order of degrees."""
    orders: dict[int, Tensor] = {}
    result = []
    for position, stage in enumerate(stages, 1):
        weights, bias, degrees = list(stage.weights), stage.bias, stage.degrees
        order = sorted(range(len(degrees)), key=degrees.__getitem__)
        weights = [(s, w[:, orders[s]] if s in orders else w) for s, w in weights]
        if order != list(range(len(degrees))):
            orders[position] = torch.tensor(order, device=bias.device)
            weights = [(source, weight[orders[position]]) for source, weight in weights]
            bias, degrees = bias[orders[position]], [degrees[index] for index in order]
        result.append(MaskedStage(weights, bias, degrees, stage.activation))
    return result


def _masked(layer: Any) -> Tensor:
    return layer.weight * layer.mask


def _column(values: Tensor) -> Tensor:
    return values[:, None]


def _affine(norm: Any, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalization by its running statistics, as columns."""
    if norm is None or isinstance(norm, nn.Identity):
        return like.new_ones(size, 1), like.new_zeros(size, 1)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return _column(scale), _column(norm.bias - norm.running_mean * scale)


def _same(values: Tensor) -> Tensor:
    return values


def _units_below(degrees: Sequence[int], features: int) -> list[int]:
    """Return how many units have a degree below 0, 1, ..., D; those of D are seen by no feature."""
    counts = [0] * (features + 1)
    for degree in degrees:
        counts[degree] += 1
    return [0, *accumulate(counts[:-1])]


def _in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the activation that writes over its argument, if there is one."""
    # A dictionary of functions is more than the compiler of an old torch gets through.
    if activation is F.gelu:
        return _gelu_
    if activation is F.relu or activation is torch.relu:
        return torch.relu_
    return activation


def _gelu_(values: Tensor) -> Tensor:
    # oneDNN takes what is contiguous, and spends more on a short row than GELU itself needs.
    halves = (2, values.numel() // 2)
    apart = values if values.numel() % 2 else values.view(halves).mT
    torch.ops.aten.gelu_.default(apart)
    return values
