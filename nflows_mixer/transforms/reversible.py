"""A composite that prepares its flow layers at once, and whose memory need not grow with depth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import repeat
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

from nflows_mixer._checks import check_choice, check_sizes, mismatch
from nflows_mixer._distributed import all_reduce_max, world_size
from nflows_mixer._modes import (
    autocast_dtype,
    batch_norms,
    is_transformed,
    running_statistics,
    without_autocast,
)
from nflows_mixer.core.composite import CompositeTransform, Passage, run_chain
from nflows_mixer.core.context import stochastic_part
from nflows_mixer.nn.norm import scratch_buffers
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.compiled import CompiledCalls
from nflows_mixer.transforms.flow_layer import (
    FlowLayer,
    LayerWeights,
    is_in_pass,
    is_untouched,
    layers_in,
    prepare_layers,
    tensors_of,
    using_weights,
)
from nflows_mixer.transforms.gradients import (
    Gradients,
    Pair,
    as_leaves,
    inputs_of,
    recompute,
    tensors_in,
)
from nflows_mixer.transforms.linear import InvertibleConv1x1, LinearBlock

MEMORY = ("full", "checkpoint", "constant")
# Compilers of old do not take what is evaluated in a backward pass; this is the oldest tried.
COMPILES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
# Parts that are known to draw no random numbers, whose state is not kept.
DRAW_NOTHING = (ActNorm, LinearBlock, InvertibleConv1x1)
Weights = dict[FlowLayer, LayerWeights]
Chain = Sequence[tuple[Transform, bool]]


class ReversibleCompositeTransform(CompositeTransform):
    r"""Transforms one after the other, for deep flows: fast, and in constant memory on demand.

    .. math:: x_{i - 1} = f_i^{-1}(x_i), \qquad
              \bar x_{i - 1} = J_{f_i}(x_{i - 1})^\top \bar x_i

    The same map as ``CompositeTransform``. The weights of all flow layers inside are prepared
    before each pass, those of a size in a few batched operations (see ``prepare_layers``).

    With ``memory="full"`` activations are kept for the backward pass. With ``memory="constant"``
    the forward pass keeps its output and a fixed number of anchors, states between transforms, and
    the backward pass rebuilds the others through inverses, descending into composites and into
    wrappers that only rearrange; at anchors, what was rebuilt is compared to what it should be,
    and replaced by it. The error is kept on the device and read at the first backward pass, and at
    each ``check_every``-th from there (at each on a CPU, where reading costs nothing). Where it
    is too large, or not finite, a warning names the transforms whose inverses are not exact
    enough. The gradients of that pass are computed once more, and from then on the inputs of those
    transforms are kept (``inexact`` has their names; clear it to try again). With
    ``memory="checkpoint"`` the inputs of all transforms are kept, and no inverse is used.

    Transforms of any library will do, as long as they are deterministic. Random numbers (dropout)
    and modes are in the backward pass what they were in the forward pass; running statistics move
    once. Couplings are rebuilt by one evaluation of their conditioner; a part of another kind with
    batch statistics, which its inverse would not know, keeps its inputs. Under autocast "constant"
    does as "checkpoint": an input that differs by a rounding error may round to another number of
    half precision, and its inverse is that of another function.

    Args:
        transforms: the parts, from data to noise.
        memory: "full", "checkpoint" or "constant".
        anchors: how many, evenly spaced; each is as large as an input.
        check_every: at how many backward passes the error is read, which waits for the device.
        tolerance: the largest error of an image, relative to its largest value; 1e-4 in float32
            and 1e-9 in float64 where None.
        compile: whether ``torch.compile`` compiles the function of a flow layer, once for all
            layers of the same size, at its first use.

    Shapes:
        those of the parts; context [B, F].

    Raises:
        ValueError: if a choice is unknown, a transform is stochastic, or torch is too old to
            compile with.

    References:
        Gomez et al., The reversible residual network, 2017; Chen et al., Training deep nets with
        sublinear memory cost, 2016.

    Example:
        >>> from nflows_mixer.transforms import AffineCoupling, LULinear
        >>> parts = [part for _ in range(9) for part in (LULinear(6), AffineCoupling(6))]
        >>> flow = ReversibleCompositeTransform(parts, anchors=2)
        >>> outputs, logabsdet = flow(torch.randn(5, 6))
        >>> (outputs.square().sum() - logabsdet.sum()).backward()
        >>> parts[0].packed.grad.shape
        torch.Size([6, 6])
    """

    def __init__(
        self,
        transforms: Iterable[Any],
        memory: str = "constant",
        anchors: int = 4,
        check_every: int = 100,
        tolerance: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(transforms)
        owner = "ReversibleCompositeTransform"
        check_choice(owner, "memory", memory, MEMORY)
        check_sizes(owner, anchors=anchors, check_every=check_every)
        if compile and memory != "full" and not COMPILES:
            raise mismatch(
                owner,
                "torch 2.11 or newer to compile layers that are evaluated again",
                torch.__version__,
                "update it, or leave compile out",
            )
        if memory != "full" and (got := stochastic_part(self)) is not None:
            advice = "put it before or behind the composite"
            raise mismatch(owner, "deterministic transforms", got, advice)
        self.compiled = CompiledCalls() if compile else None
        for layer in layers_in(self) if compile else ():
            layer.compiled = self.compiled
        self.memory = memory
        self.anchors = anchors
        self.check_every = check_every
        self.tolerance = tolerance
        self.inexact: set[str] = set()
        self._error: Tensor | None = None
        self._largest = 0.0
        self._passes = 0

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map through the parts in their order."""
        if torch.compiler.is_compiling():
            return super().forward(inputs, context)
        gradients = self.memory != "full" and torch.is_grad_enabled()
        if is_in_pass() and not gradients:
            return super().forward(inputs, context)
        layers = layers_in(self)
        constant = gradients and self.memory == "constant" and autocast_dtype(inputs) is None
        if constant and is_transformed():
            expected, got = "memory='full' under torch.func", "'constant'"
            advice = "set flow._transform.memory, or build the flow so"
            raise mismatch("ReversibleCompositeTransform", expected, got, advice)
        with torch.autocast(inputs.device.type, enabled=False):
            weights = prepare_layers(layers, None if constant else False)
        if self.training and len(weights) < len(layers):
            # An ActNorm has no scale yet: one pass for that alone, which keeps nothing.
            with (
                torch.no_grad(),
                scratch_buffers(self, keep=(ActNorm,)),
                using_weights(weights, tracks=False),
            ):
                super().forward(inputs, context)
            with torch.autocast(inputs.device.type, enabled=False):
                weights = prepare_layers(layers, None if constant else False)
        if not gradients:
            with using_weights(weights):
                return super().forward(inputs, context)
        chain, total = self.chain(), None
        with using_weights(weights):
            if not inputs.is_floating_point() and chain:
                # Nothing flows back through integers, and nothing has to be rebuilt of them.
                (part, passes), *chain = chain
                inputs, total = part(inputs, context if passes else None)
            if not constant:
                outputs, logabsdet = self._checkpointed(chain, weights, inputs, context)
        if constant:
            outputs, logabsdet = self._rebuilt(chain, weights, inputs, context)
        return outputs, logabsdet if total is None else logabsdet + total

    chain = CompositeTransform.chain

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map back through the parts in reverse order, in evaluation mode."""
        if torch.compiler.is_compiling() or is_in_pass():
            return super().inverse(inputs, context)
        with running_statistics(self):
            with torch.autocast(inputs.device.type, enabled=False):
                weights = prepare_layers(layers_in(self), inverse=True)
            with using_weights(weights):
                return super().inverse(inputs, context)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles begin to measure anew."""
        return {**super().__getstate__(), "_error": None}

    def _checkpointed(
        self, chain: Chain, weights: Weights, inputs: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keep the inputs of the parts, and evaluate each once more in the backward pass."""

        def calls(part: Transform) -> Callable[..., tuple[Tensor, Tensor]]:
            return partial(
                checkpoint,
                part,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _Again(part, weights)),
            )

        return run_chain([(calls(part), passes) for part, passes in chain], inputs, context)

    def _rebuilt(
        self, chain: Chain, weights: Weights, inputs: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keep anchors, and rebuild what is between them in the backward pass."""
        prepared = tensors_in(tuple(weights.values()))
        leaves = {layer: as_leaves(of_layer) for layer, of_layer in weights.items()}
        own, parameters = tensors_in(tuple(leaves.values())), list(self.parameters())
        # What several parts read is there once; its gradient is a sum already.
        pairs = {
            id(leaf): (tensor, leaf)
            for tensor, leaf in zip([*prepared, *parameters], [*own, *parameters])
            if tensor.requires_grad
        }
        tensors, own = ([pair[i] for pair in pairs.values()] for i in (0, 1))
        first = len(self._transforms) - len(chain)
        names = [f"_transforms.{first + i}" for i in range(len(chain))]
        run = _Run(self, chain, names, leaves, own, _Again(self, leaves))
        return _Rebuilt.apply(run, inputs, context, *tensors)

    def _kept(self, names: Sequence[str]) -> tuple[set[int], set[int]]:
        """Places of parts before which the state is kept: anchors, and inexact parts."""
        count = min(self.anchors, len(names))
        anchors = {len(names) * i // count for i in range(count)}
        return anchors, {i for i, name in enumerate(names) if name in self.inexact}

    def _is_exact(self, error: Tensor, broken: bool) -> bool:
        """Whether all went well since the last look, in all processes, as far as one is due."""
        before, every = self._error, self.check_every
        if before is not None and (before.dtype, before.device) == (error.dtype, error.device):
            error = torch.maximum(before, error)
        self._error = error
        self._passes += 1
        freely = _is_read_freely(error.device)
        if not (freely or broken or every == 1 or self._passes % every == 1):
            return True
        self._largest, self._error = all_reduce_max(_known(error)).item(), None
        return self._largest <= self._tolerance(error.dtype)

    def _tolerance(self, dtype: torch.dtype) -> float:
        return TOLERANCES.get(dtype, 1e-2) if self.tolerance is None else self.tolerance

    def _name_inexact(
        self, run: _Run, states: Sequence[Tensor], calls: Sequence[_Call], context: Tensor | None
    ) -> None:
        """Find the parts whose inverse does not lead back, and warn of them."""
        measured, reasons = [], {}
        for name, call, before, after in zip(run.names, calls, states, states[1:]):
            error = before.new_zeros(())
            if name not in self.inexact:
                try:
                    zeros = torch.zeros_like(after), after.new_zeros(len(after))
                    rebuilt, _ = _rebuild(call, after, zeros, context, Gradients())
                    error = _relative_error(rebuilt, before)
                except NotInvertible as raised:
                    error, reasons[name] = before.new_full((), torch.inf), f"{raised}"
            measured.append(_known(error))
        # Every process names the same.
        values = all_reduce_max(torch.stack(measured)).tolist()
        errors = dict(zip(run.names, values))
        worst, bound = max(errors.values()), self._tolerance(states[0].dtype)
        # Where each is good enough and all together are not, the worst has to go.
        found = {n: e for n, e in errors.items() if e > bound or e == worst}
        self.inexact |= set(found)
        listed = ", ".join(
            f"{name!r} ({reasons.get(name, f'{error:.1g}')})" for name, error in found.items()
        )
        warnings.warn(
            f"ReversibleCompositeTransform: expected rebuilt activations with a relative error of "
            f"at most {bound:g}, got {self._largest:.2g}, with the least exact inverses at "
            f"{listed}; the inputs of these are kept from now on, and gradients since the last "
            "check may have been inexact; smaller weights, float64, or memory='checkpoint' help",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_read_freely(device: torch.device) -> bool:
    """Whether a number can be read without waiting for a device or other processes."""
    return device.type == "cpu" and world_size() == 1


def _known(error: Tensor) -> Tensor:
    """An error that can be compared: what is not a number is as bad as can be."""
    return torch.where(error.isnan(), torch.inf, error)


def _relative_error(rebuilt: Tensor, known: Tensor) -> Tensor:
    """The largest over all images; NaN if one is NaN."""
    if rebuilt.shape != known.shape:
        return known.new_full((), torch.inf)
    if not known.numel():
        return known.new_zeros(())
    largest = known.flatten(1).abs().amax(1).clamp_min(torch.finfo(known.dtype).tiny)
    return ((rebuilt - known).flatten(1).abs().amax(1) / largest).max()


class _Again:
    """Modes, parameters and prepared weights as they are, for passes that are made again later.

    What writes to buffers then writes to copies. Parameters are kept by value:
    ``torch.func.functional_call`` puts others there for one call.
    """

    def __init__(self, module: nn.Module, weights: Weights) -> None:
        self.module, self.weights = module, weights
        self.modes = [(part, part.training) for part in module.modules()]
        self.parameters = [(part, dict(part._parameters)) for part in module.modules()]

    def __enter__(self) -> None:
        self.stack = ExitStack()
        for part, training in self.modes:
            if part.training != training:
                self.stack.callback(setattr, part, "training", part.training)
                part.training = training
        for part, was in self.parameters:
            if any(part._parameters.get(name) is not tensor for name, tensor in was.items()):
                self.stack.callback(part._parameters.update, dict(part._parameters))
                part._parameters.update(was)
        self.stack.enter_context(scratch_buffers(self.module))
        self.stack.enter_context(using_weights(self.weights, tracks=False))

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


class NotInvertible(RuntimeError):
    """The inverse of a transform raised an error."""


@dataclass
class _Call:
    """One evaluation of a part: what is needed to evaluate or to invert it again."""

    part: Transform
    passes_context: bool
    passage: Passage | None = None
    children: list[_Call] = field(default_factory=list)
    kept: Tensor | None = None
    random: tuple[Tensor, tuple] | None = None

    def again(
        self, inputs: Tensor, grads: Pair, context: Tensor | None, gradients: Gradients
    ) -> Pair:
        """Gradient of its inputs, and its outputs; see ``recompute``."""
        given = context if self.passes_context else None
        with _random(self.random):
            return recompute(self.part, inputs, grads, given, tensors_of(self.part), gradients)


@dataclass
class _Run:
    """What one forward pass leaves to its backward pass, besides tensors that autograd saves."""

    owner: ReversibleCompositeTransform
    chain: Chain
    names: Sequence[str]
    weights: Weights
    own: Sequence[Tensor]
    again: _Again
    calls: list[_Call] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    inexact: set[int] = field(default_factory=set)
    has_context: bool = False


def _evaluate(call: _Call, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Evaluate a part, and note in ``call`` what its backward pass needs."""
    part = call.part
    context = context if call.passes_context else None
    if is_untouched(part, "passage", deep=False):
        passage = call.passage = part.passage(inputs)
        inner = _Call(passage.child, True)
        call.children = [inner]
        rows, logabsdet = _evaluate(inner, passage.enter(inputs), passage.context(context))
        outputs = passage.leave(rows.to(inputs.dtype), inputs)
        return outputs, _wide(logabsdet).unflatten(0, (-1, passage.rows)).sum(1)
    rebuilds = is_untouched(part, "rebuild", deep=False) and getattr(part, "rebuilds", True)
    if not rebuilds and is_untouched(part, "chain", deep=False):
        call.children = [_Call(child, passes) for child, passes in part.chain()]
        functions = [(partial(_evaluate, child), True) for child in call.children]
        return run_chain(functions, inputs, context)
    if not rebuilds and batch_norms(part):
        call.kept = inputs
    if not getattr(part, "rearranges", False) and not isinstance(part, DRAW_NOTHING):
        call.random = torch.get_rng_state(), get_device_states(inputs)
    outputs, logabsdet = part(inputs, context)
    return outputs, _wide(logabsdet)


def _rebuild(
    call: _Call, outputs: Tensor, grads: Pair, context: Tensor | None, gradients: Gradients
) -> Pair:
    """Inputs of a part and their gradient, from its outputs; see ``Coupling.rebuild``."""
    part, (grad_outputs, grad_logabsdet) = call.part, grads
    context = context if call.passes_context else None
    if (passage := call.passage) is not None:
        with torch.enable_grad():
            given = passage.context(context)
        own = None if given is None else given.detach().requires_grad_(given.requires_grad)
        of_rows = repeat(grad_logabsdet, "b -> (b rows)", rows=passage.rows)
        entered = passage.enter(outputs), (passage.enter(grad_outputs), of_rows)
        found = _rebuild(call.children[0], *entered, own, gradients)
        if given is not None and (of_context := gradients.of(own)) is not None:
            wanted = [context, getattr(part, "positions", None)]
            gradients.backward([given], [of_context], None, wanted)
        return passage.leave(found[0], outputs), passage.leave(found[1], grad_outputs)
    for child in reversed(call.children):
        pair = grad_outputs, grad_logabsdet
        outputs, grad_outputs = _rebuild(child, outputs, pair, context, gradients)
    if call.children:
        return outputs, grad_outputs
    if getattr(part, "rearranges", False):
        return inverse_of(part)(outputs, None)[0], inverse_of(part)(grad_outputs, None)[0]
    inputs = call.kept
    try:
        with _random(call.random):
            if inputs is None and is_untouched(part, "rebuild", deep=False):
                return part.rebuild(outputs, grads, context, gradients)
            inputs = inputs_of(part, outputs, context) if inputs is None else inputs
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever kind a transform of others raises
        raise NotInvertible(f"{type(part).__name__}.inverse: {error}") from error
    return inputs, call.again(inputs, grads, context, gradients)[0]


@contextmanager
def _random(state: tuple[Tensor, tuple] | None) -> Iterator[None]:
    if state is None:
        yield
        return
    cpu, (devices, states) = state
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu)
        set_device_states(devices, states)
        yield


def _wide(logabsdet: Tensor) -> Tensor:
    return logabsdet.to(torch.promote_types(logabsdet.dtype, torch.float32))


class _Rebuilt(torch.autograd.Function):
    """Parts whose states are rebuilt from the outputs, backwards."""

    @staticmethod
    def forward(
        ctx: Any, run: _Run, inputs: Tensor, context: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        anchors, run.inexact = run.owner._kept(run.names)
        run.places = sorted(anchors | run.inexact)
        run.has_context = context is not None
        outputs, kept = inputs, []
        total = torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
        with using_weights(run.weights):
            for i, (part, passes) in enumerate(run.chain):
                if i in run.places:
                    kept.append(outputs)
                run.calls.append(_Call(part, passes))
                before = outputs.dtype
                outputs, logabsdet = _evaluate(run.calls[-1], outputs, context)
                outputs = outputs.to(torch.promote_types(before, outputs.dtype))
                total = total + logabsdet
        ctx.run = run
        ctx.save_for_backward(outputs, *kept, *(() if context is None else (context,)), *tensors)
        return outputs, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        outputs, *saved = ctx.saved_tensors
        kept = dict(zip(run.places, saved))
        context = saved[len(kept)] if run.has_context else None
        if context is not None:
            context = context.detach().requires_grad_(context.requires_grad)
        with run.again, without_autocast(outputs):
            gradients, gradient = _backward(run, outputs, kept, grads, context)
        of_tensors = [gradients.of(tensor) for tensor in run.own]
        return None, gradient, gradients.of(context), *of_tensors


def _backward(
    run: _Run, outputs: Tensor, kept: dict[int, Tensor], grads: Any, context: Tensor | None
) -> tuple[Gradients, Tensor]:
    gradients, (gradient, of_logabsdet) = Gradients(), grads
    state, errors, broken = outputs, [], False
    for i, call in reversed(list(enumerate(run.calls))):
        pair = gradient, of_logabsdet
        if i in run.inexact:
            gradient, known = call.again(kept[i], pair, context, gradients)
            if i + 1 < len(run.calls):
                errors.append(_relative_error(state, known))
            state = kept[i]
            continue
        try:
            state, gradient = _rebuild(call, state, pair, context, gradients)
        except NotInvertible:
            if world_size() > 1:
                # The others go on, and would wait for batch statistics of this one.
                raise
            broken = True
            errors.append(outputs.new_full((), torch.nan))
            break
        if i in kept:
            errors.append(_relative_error(state, kept[i]))
            state = kept[i]
    error = torch.stack(errors).max() if errors else outputs.new_zeros(())
    # Outputs that overflowed are no fault of the inverses.
    error = torch.where(torch.isfinite(outputs).all(), error, 0.0)
    if run.owner._is_exact(error, broken):
        return gradients, gradient
    # Name the inexact parts, and go back with the inputs of all of them.
    states, calls, (gradient, _) = [kept[0]], [], grads
    with torch.no_grad():
        for call in run.calls:
            calls.append(_Call(call.part, call.passes_context))
            with _random(call.random):
                states.append(_evaluate(calls[-1], states[-1], context)[0])
    run.owner._name_inexact(run, states, calls, context)
    gradients = Gradients()
    for call, state in zip(reversed(run.calls), reversed(states[:-1])):
        gradient, _ = call.again(state, (gradient, of_logabsdet), context, gradients)
    return gradients, gradient
