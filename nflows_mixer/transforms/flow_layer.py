"""The flow layer: the unit of which channel and patch flows are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn.modules import module as module_of_torch

from nflows_mixer._checks import ROWS_ADVICE, check_outputs, check_positive, wrong_event
from nflows_mixer._modes import EVALUATING, running_statistics, widened, without_autocast
from nflows_mixer.core.as_transform import FlowLike, as_transform
from nflows_mixer.core.composite import run_chain
from nflows_mixer.core.context import check_takes_context, takes_context
from nflows_mixer.nn.conditioner import Conditioner, Statistics, append_context
from nflows_mixer.nn.norm import track_statistics
from nflows_mixer.numerics.autoregressive import HOOKS, inverse_of
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.compiled import CompiledCalls
from nflows_mixer.transforms.coupling import AffineCoupling, Coupling
from nflows_mixer.transforms.gradients import Gradients, Pair, inputs_of, recompute, tensors_in
from nflows_mixer.transforms.linear import AffineMaps, LinearBlock, LULinear, fold

Maps = tuple[Tensor, Tensor, Tensor]


class LayerWeights(NamedTuple):
    """What a flow layer reads in one pass, prepared once.

    ``maps`` are weight, bias and log-det of its ActNorm and linear block as one affine map,
    ``inverse`` those of its inverse, and ``network`` the prepared weights of its conditioner. None
    stands for parts that are called as they are, or for a direction that was not asked for.
    """

    maps: Maps | None = None
    inverse: Maps | None = None
    network: Any = None


class FlowLayer(Transform):
    r"""ActNorm, linear block, row flow: one flow layer of rows.

    .. math:: y = \mathrm{flow}(W (e^s \odot x + t) + b)

    Each of the three is a transform of rows, a factory ``features -> transform``, or None to leave
    it out. With the defaults the layer starts at the identity, ActNorm's data-dependent scaling
    apart. A channel or patch flow is some of them and an ActNorm.

    It evaluates ActNorm and linear block as one affine map, and a coupling whose conditioner is a
    ``nn.Conditioner`` with that network's prepared weights, all in ordinary autograd. Other parts,
    and those with hooks or with a ``forward`` of a subclass, are called as they are.

    Args:
        features: row length D.
        actnorm: the normalization.
        linear: the linear block, such as ``LULinear`` or ``RLULinear``.
        flow: a coupling, or any other flow on rows.
        context_features: length of the context, for factories whose signature names it; refused
            where no part takes one.

    Shapes:
        inputs and outputs [N, D]; context [N, F] goes to the parts that take one.

    Raises:
        TypeError: if a part is no nflows transform and no factory of one.
        ValueError: if a part is for rows of another length.

    References:
        MixerFlow, Section 4 and Figure 4; Kingma and Dhariwal, Glow, 2018, Figure 2.

    Example:
        >>> import torch
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> layer = FlowLayer(16, flow=lambda d: MaskedAffineAutoregressiveTransform(d, 64))
        >>> layer(torch.randn(20, 16))[1].shape
        torch.Size([20])
    """

    def __init__(
        self,
        features: int,
        actnorm: FlowLike | None = ActNorm,
        linear: FlowLike | None = LULinear,
        flow: FlowLike | None = AffineCoupling,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        self.features = features = check_positive("FlowLayer", "features", features)
        given = {"actnorm": actnorm, "linear": linear, "flow": flow}
        offered: dict[str, Any] = {}
        if context_features:
            offered["context_features"] = context_features
        for name, part in given.items():
            owner = f"FlowLayer.{name}"
            made = None if part is None else as_transform(part, features, owner, **offered)
            setattr(self, name, made)
        self._passes_context = {
            name: takes_context(part) for name, part in self._parts().items() if part is not None
        }
        check_takes_context("FlowLayer", context_features, self)
        self.compiled: CompiledCalls | None = None

    def chain(self) -> list[tuple[Transform, bool]]:
        """Its parts in their order, and whether each is given the context."""
        passes = self._passes_context
        return [
            (part, passes.get(name, False))
            for name, part in self._parts().items()
            if part is not None
        ]

    def _parts(self) -> dict[str, Any]:
        return {"actnorm": self.actnorm, "linear": self.linear, "flow": self.flow}

    @property
    def rebuilds(self) -> bool:
        """Whether to go back by ``rebuild``: with a coupling, or without a row flow."""
        return self.flow is None or (_is_plain(self.flow) and not _have_hooks([self.flow]))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D]."""
        self._check_rows(inputs)
        if self.training and getattr(self.actnorm, "initialized", True) is False:
            self.actnorm.initialize(inputs)
        return self._map(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back, with running statistics even in training mode."""
        self._check_rows(inputs)
        with nullcontext() if EVALUATING.get() else running_statistics(self):
            return self._map(widened(self, inputs), context, inverse=True)

    def rebuild(
        self, outputs: Tensor, grads: Pair, context: Tensor | None, gradients: Gradients
    ) -> Pair:
        """Inputs and their gradient, from the outputs, by one evaluation of the conditioner.

        Arguments as for ``Coupling.rebuild``. Weights are those that were prepared for the pass, in
        both directions; gradients are of these, and of parameters of parts that have none.
        """
        weights = self._weights(inverse=None)
        state, grad = outputs, grads[0]
        if (network := weights.network) is not None:
            conditioner = self.flow.conditioner

            def parameters_of(fixed: Tensor, moved: Tensor, given: Tensor | None) -> Tensor:
                inputs = append_context(fixed, given, conditioner.context_features)
                return self._call(
                    conditioner.evaluate, inputs, network, conditioner.options(fixed)
                )[0]

            state, grad = self.flow.rebuild(
                state, grads, context, gradients, parameters_of, tensors_in(network)
            )
        elif self.flow is not None:
            given = context if self._passes_context["flow"] else None
            state, grad = self.flow.rebuild(state, grads, given, gradients)
        if weights.maps is None or weights.inverse is None:
            for part in reversed(self._affine_parts()):
                state, pair, own = inputs_of(part, state, None), (grad, grads[1]), part.parameters()
                grad, _ = recompute(part, state, pair, None, list(own), gradients)
            return state, grad
        state = _apply(state, weights.inverse)
        weight = weights.maps[0]
        of_weight = grad.t() @ state if weight.dim() == 2 else (grad * state).sum(0)
        gradients.add(weights.maps, [of_weight, grad.sum(0), grads[1].sum()])
        return state, grad @ weight if weight.dim() == 2 else grad * weight

    def _check_rows(self, inputs: Tensor) -> None:
        if inputs.shape[1:] != (self.features,):
            raise wrong_event(inputs, (self.features,), "FlowLayer", ROWS_ADVICE)

    def _affine_parts(self) -> list[Any]:
        return [part for part in (self.actnorm, self.linear) if part is not None]

    def _map(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """One direction: as one function, or as a chain of what is prepared and what is not."""
        weights = self._weights(inverse)
        maps = weights.inverse if inverse else weights.maps
        affine = len(self._affine_parts())
        if weights.network is not None and (maps is not None or not affine):
            return self._coupled(inputs, context, weights.network, maps, inverse)
        steps: list[tuple[Any, bool]] = [
            (inverse_of(part) if inverse else part, passes) for part, passes in self.chain()
        ]
        if weights.network is not None:
            steps[-1] = partial(self._coupled, network=weights.network, inverse=inverse), True
        if maps is not None:
            steps[:affine] = [(partial(_apply_maps, maps=maps), False)]
        return run_chain(steps[::-1] if inverse else steps, inputs, context)

    def _coupled(
        self,
        rows: Tensor,
        context: Tensor | None,
        network: Any,
        maps: Maps | None = None,
        inverse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The coupling with its prepared network, and the affine map before it."""
        coupling, conditioner = self.flow, self.flow.conditioner
        context = context if coupling._passes_context else None
        if (None if context is None else context.shape[-1]) != conditioner.context_features:
            append_context(rows, context, conditioner.context_features)  # which raises
        options = conditioner.options(rows)
        kind = rows.device.type
        casts = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if casts else nullcontext():
            outputs, logabsdet, statistics = self._call(
                *(flow_layer, rows, maps, network, context, coupling.split, inverse),
                coupling.order,
                coupling.parameters_per_feature,
                coupling.elementwise_inverse if inverse else coupling.elementwise,
                *(coupling.constants, conditioner.evaluate, options),
            )
        if statistics and not inverse:
            _track(conditioner.batch_norms(), statistics)
        return outputs, logabsdet

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return (function if self.compiled is None else partial(self.compiled, function))(*arguments)

    def _weights(self, inverse: bool | None) -> LayerWeights:
        """Weights for one direction (None for both): those of the pass, or its own."""
        if torch.compiler.is_compiling():
            # What traces the whole flow gets the parts as they are.
            return LayerWeights()
        current = _PASS.get()
        weights = None if current is None else current[0].get(self)
        if weights is not None:
            maps, of_inverse, _ = weights
            # Beside the maps the inverse carries no gradient: it is there to go back.
            detached = inverse and maps is not None and torch.is_grad_enabled()
            if maps is None and of_inverse is None:
                return weights
            if (of_inverse if inverse else maps) is not None and not detached:
                return weights
        return prepare_layers([self], inverse).get(self, LayerWeights())


def flow_layer(
    rows: Tensor,
    maps: Maps | None,
    network: Any,
    context: Tensor | None,
    split: tuple[int, bool],
    inverse: bool,
    order: Tensor | None,
    per_feature: int,
    elementwise: Callable[..., tuple[Tensor, Tensor]],
    constants: tuple,
    evaluate: Callable[..., tuple[Tensor, Statistics]],
    options: tuple,
) -> tuple[Tensor, Tensor, Statistics]:
    r"""Affine map, then a coupling: a function of tensors and constants alone.

    .. math:: v = A x + t, \qquad y = [v_a,\ g(v_b;\ f(v_a))], \qquad
              \log|\det J| = \log|\det A| + \log|\det J_g|

    One compilation serves all layers of a size.

    Args:
        rows: x, [N, D]; y for the inverse.
        maps: A, t and the log-det of A, or those of the inverse map; None for the identity.
        network: prepared weights of f.
        context: [N, F], or None.
        split: see ``Coupling.split``.
        inverse: whether the map comes behind the coupling.
        order: of the features for the coupling, [D]; None for as they are.
        per_feature: parameters that f gives for each feature that moves.
        elementwise: g, or its inverse.
        constants: of g.
        evaluate: f, see ``nn.Conditioner.evaluate``.
        options: of f.

    Returns:
        y [N, D] (x for the inverse), log-dets [N], and the batch statistics of f.
    """
    if maps is not None and not inverse:
        rows = _apply(rows, maps)
    rows = rows if order is None else rows.index_select(1, order)
    count, first = split if split[1] else (rows.shape[1] - split[0], False)
    fixed, moved = rows.tensor_split((count,), 1) if first else rows.tensor_split((count,), 1)[::-1]
    given = fixed if context is None else torch.cat([fixed, context.to(fixed.dtype)], 1)
    parameters, statistics = evaluate(given, network, options)
    shape = len(moved), per_feature * moved.shape[1]
    if parameters.shape != shape:
        check_outputs(parameters, shape, "conditioner", "parameters")  # which raises
    moved, logabsdet = elementwise(moved, parameters, *constants)
    rows = torch.cat((fixed, moved) if first else (moved, fixed), 1)
    rows = rows if order is None else rows.index_select(1, order.argsort())
    if maps is not None:
        rows, logabsdet = _apply(rows, maps) if inverse else rows, logabsdet + maps[2]
    return rows, logabsdet, statistics


def _apply(rows: Tensor, maps: Maps) -> Tensor:
    weight, bias, _ = maps
    if weight.dim() == 1:
        return torch.addcmul(bias, rows, weight)
    return torch.nn.functional.linear(rows, weight, bias)


def _apply_maps(rows: Tensor, context: Tensor | None, maps: Maps) -> tuple[Tensor, Tensor]:
    """One map of rows, in the contract of a transform."""
    with without_autocast(rows):
        return _apply(rows, maps), maps[2].expand(len(rows))


# Weights prepared for one pass of a flow, and the batch statistics that it met, where it tracks.
_PASS: ContextVar[tuple[dict[FlowLayer, LayerWeights], list | None] | None] = ContextVar(
    "nflows_mixer_pass", default=None
)


@contextmanager
def using_weights(weights: dict[FlowLayer, LayerWeights], tracks: bool = True) -> Iterator[None]:
    """Let flow layers read prepared weights within a block, for the pass that is made in it.

    Args:
        weights: from ``prepare_layers``.
        tracks: whether batch normalizations track the statistics that they meet, at the end.
    """
    statistics: list | None = [] if tracks else None
    token = _PASS.set((weights, statistics))
    try:
        yield
    finally:
        _PASS.reset(token)
    if statistics:
        track_statistics(statistics)


def is_in_pass() -> bool:
    """Whether weights are prepared for a pass that is under way."""
    return _PASS.get() is not None


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters of a module, and what was prepared of them for the pass that is under way."""
    current = _PASS.get()
    prepared = {} if current is None else current[0]
    own = tuple(prepared[layer] for layer in layers_in(module) if layer in prepared)
    return [*module.parameters(), *tensors_in(own)]


def _track(norms: list[Any], statistics: Statistics) -> None:
    current = _PASS.get()
    if current is None:
        track_statistics([(norms, statistics)])
    elif current[1] is not None:
        current[1].append((norms, statistics))


def layers_in(module: nn.Module) -> list[FlowLayer]:
    """Flow layers of a module, the module itself included, each once.

    Example:
        >>> len(layers_in(nn.Sequential(FlowLayer(4), FlowLayer(4))))
        2
    """
    found, rest = [], [module]
    while rest:
        module = rest.pop()
        if isinstance(module, FlowLayer):
            found.append(module)
        # Inside of these there are none, and they are most of what a flow is made of.
        elif isinstance(module, (Coupling, LinearBlock, ActNorm)):
            continue
        rest += [part for part in module._modules.values() if part is not None][::-1]
    return list(dict.fromkeys(found))


def prepare_layers(
    layers: Iterable[FlowLayer], inverse: bool | None = False
) -> dict[FlowLayer, LayerWeights]:
    """Weights of many flow layers, those of a size in a few batched operations.

    In ordinary autograd: gradients reach the parameters. A layer needs nothing of its neighbors,
    so that nothing is known here of how layers are chained.

    Args:
        layers: any.
        inverse: direction of the pass; None for both, whose inverse maps carry no gradient.

    Returns:
        Weights for each; of layers whose ActNorm has no scale yet there are none.

    Example:
        >>> layers = [FlowLayer(6, actnorm=None), FlowLayer(6, actnorm=None)]
        >>> prepare_layers(layers)[layers[0]].maps[0].shape
        torch.Size([6, 6])
    """
    weights: dict[FlowLayer, LayerWeights] = {}
    affine: dict[tuple, list[tuple[FlowLayer, list[Any]]]] = defaultdict(list)
    networks: dict[Any, list[tuple[FlowLayer, Any]]] = defaultdict(list)
    for layer in layers:
        actnorm, linear, flow = layer.actnorm, layer.linear, layer.flow
        if getattr(actnorm, "initialized", True) is False:
            continue
        weights[layer] = LayerWeights()
        if _have_hooks(layer._modules.values()):
            continue
        parts = [part for part in (actnorm, linear) if part is not None]
        folds = [stands_for_forward(type(part), "affine_maps") for part in parts]
        if parts and all(folds):
            like = next((linear or actnorm).parameters(), torch.empty(0))
            kinds = type(actnorm), type(linear), getattr(linear, "bias", None) is None
            key = (*kinds, layer.features, like.dtype, like.device)
            affine[key].append((layer, parts))
        network = getattr(flow, "conditioner", None)
        if isinstance(network, Conditioner) and _is_plain(flow):
            if stands_for_forward(type(network), "evaluate") and network.prepares():
                networks[type(network)].append((layer, network))
    for members in affine.values():
        of_layers, of_parts = zip(*members)
        maps = fold([list(parts) for parts in zip(*of_parts)])
        wanted: dict[str, AffineMaps] = {"inverse": maps.inverse()} if inverse else {"maps": maps}
        if inverse is None:
            wanted["inverse"] = AffineMaps(*(tensor.detach() for tensor in maps)).inverse()
        for name, stacked in wanted.items():
            for layer, of_layer in zip(of_layers, zip(*map(torch.unbind, stacked))):
                weights[layer] = weights[layer]._replace(**{name: of_layer})
    for kind, alike in networks.items():
        prepared = kind.prepare([network for _, network in alike])
        for (layer, _), network in zip(alike, prepared):
            weights[layer] = weights[layer]._replace(network=network)
    return weights


def _is_plain(flow: Any) -> bool:
    """Whether a row flow is a coupling that does what ``elementwise`` says, and no more."""
    kind = type(flow)
    return (
        isinstance(flow, Coupling)
        and kind.forward is Coupling.forward
        and kind.inverse is Coupling.inverse
        and kind.rebuild is Coupling.rebuild
    )


def is_untouched(module: nn.Module, method: str, deep: bool = True) -> bool:
    """Whether a faster method may stand for a module's ``forward``.

    Not if a subclass has overridden ``forward`` or ``inverse`` and not the method, if one of these
    was replaced on the object, or if somebody listens to it or to a part of it by a hook.

    Args:
        module: any.
        method: name of the method that does what its ``forward`` does.
        deep: whether its parts are looked at, which the method does not call.

    Example:
        >>> layer = LULinear(4)
        >>> is_untouched(layer, "affine_maps")
        True
        >>> handle = layer.register_forward_hook(lambda *arguments: None)
        >>> is_untouched(layer, "affine_maps")
        False
    """
    return stands_for_forward(type(module), method) and not _have_hooks([module], deep)


# Not as a decorator: functools says that a class, as an argument, could not be hashed.
@cast(Callable[[Any], Any], cache)
def stands_for_forward(kind: type, method: str) -> bool:
    """Whether no subclass of the class that defines a method has overridden a direction since.

    Args:
        kind: a class of modules.
        method: name of the method that does what ``forward`` and ``inverse`` do.

    Example:
        >>> class Own(nn.Linear):
        ...     def forward(self, inputs):
        ...         return 2 * super().forward(inputs)
        >>> stands_for_forward(nn.Linear, "forward"), stands_for_forward(Own, "reset_parameters")
        (True, False)
    """
    defined = [{"forward", "inverse", method} & vars(base).keys() for base in kind.__mro__]
    return method in next((names for names in defined if names), ())


def _have_hooks(modules: Iterable[nn.Module | None], deep: bool = True) -> bool:
    """Whether somebody listens to modules or their parts, or has replaced a direction of theirs.

    Hooks on all modules of the process count, which flop counters and profilers set.
    """
    if any(getattr(module_of_torch, f"_global{hooks}") for hooks in HOOKS):
        return True
    rest = list(modules)
    while rest:
        part = rest.pop()
        if part is not None:
            if (
                part._forward_hooks
                or part._forward_pre_hooks
                or part._backward_hooks
                or part._backward_pre_hooks
                or "forward" in part.__dict__
                or "inverse" in part.__dict__
            ):
                return True
            rest += part._modules.values() if deep else ()
    return False
