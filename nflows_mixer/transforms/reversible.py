"""A composite whose memory does not grow with its depth."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nflows_mixer._checks import check_choice, check_positive, mismatch
from nflows_mixer._distributed import all_reduce_max, world_size
from nflows_mixer._modes import autocast_dtype
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.folded import FoldedCompositeTransform
from nflows_mixer.transforms.gradients import Gradients, detach_weights, tensors_of
from nflows_mixer.transforms.program import invert_maps, leaves
from nflows_mixer.transforms.rebuild import (
    NotInvertible,
    invert,
    rebuild,
    recompute,
)
from nflows_mixer.transforms.recorded import scratch_buffers
from nflows_mixer.transforms.steps import Part, Step, forward_through

MEMORY = ("constant", "checkpoint")
# Compilers of old do not take what is evaluated in a backward pass; this is the oldest tried.
COMPILES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


class ReversibleCompositeTransform(FoldedCompositeTransform):
    r"""Transforms one after the other, whose activations are rebuilt in the backward pass.

    .. math:: x_{i - 1} = f_i^{-1}(x_i), \qquad
              \bar x_{i - 1} = J_{f_i}(x_{i - 1})^\top \bar x_i

    The same map and the same gradients as ``FoldedCompositeTransform``. With ``memory="constant"``
    the forward pass keeps its output and a fixed number of anchors, states between transforms, and
    the backward pass rebuilds the others through inverses; at anchors, what was rebuilt is compared
    to what it should be, and replaced by it. The error is kept on the device and read at the
    first backward pass, and at each ``check_every``-th from there (at each on a CPU, where reading
    is for nothing). Where it is too large, or not
    finite, a warning names the transforms whose inverses are not exact enough. The gradients of
    that pass are computed once more, and from then on the inputs of those transforms are kept
    (``inexact`` has their names; clear it to try again).
    With ``memory="checkpoint"`` the inputs of all transforms are kept, and no inverse is used.

    Transforms of any library will do, as long as they are deterministic. Random numbers (dropout),
    autocast, and batch statistics are in the backward pass what they were in the forward pass;
    running statistics move once. A part's gradients are those of its parameters: other tensors
    that it may read have none. Under autocast "constant" does as "checkpoint": an input that
    differs by a rounding error may round to another number of half precision, and its inverse is
    that of another function.

    Args:
        transforms: the parts, from data to noise.
        memory: "constant" or "checkpoint".
        anchors: how many, evenly spaced; each is as large as an input.
        check_every: at how many backward passes the error is read, which waits for the device.
        tolerance: the largest error of an image, relative to its largest value; 1e-4 in float32
            and 1e-9 in float64 where None.
        compile: see ``FoldedCompositeTransform``.

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
        super().__init__(transforms, compile)
        owner = "ReversibleCompositeTransform"
        check_choice(owner, "memory", memory, MEMORY)
        check_positive(owner, "anchors", anchors)
        check_positive(owner, "check_every", check_every)
        if compile and not COMPILES:
            raise mismatch(
                owner,
                "torch 2.11 or newer to compile layers that are evaluated again",
                torch.__version__,
                "update it, or leave compile out",
            )
        for name, part in self.named_modules():
            if getattr(part, "stochastic_forward", False):
                got = f"{type(part).__name__} at {name!r}"
                advice = "put it before or behind the composite"
                raise mismatch(owner, "deterministic transforms", got, advice)
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
        norms = [part for part in self.modules() if isinstance(part, ActNorm)]
        if self.training and not all(norm.initialized for norm in norms):
            # Not by the pass that is trained on, which would keep all of its activations.
            others = [part for part in self.modules() if not isinstance(part, ActNorm)]
            with torch.no_grad(), scratch_buffers(others):
                super().forward(inputs, context)
        return super().forward(inputs, context)

    def _through(
        self, steps: Sequence[Step], inputs: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if not inputs.is_floating_point() and steps:
            # Nothing flows back through integers, and nothing has to be rebuilt of them.
            outputs, logabsdet = forward_through(steps[:1], inputs, context)
            outputs, total = self._through(steps[1:], outputs, context)
            return outputs, logabsdet + total
        tensors = tensors_of(steps)
        given = [inputs, *tensors] if context is None else [inputs, context, *tensors]
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in given):
            return super()._through(steps, inputs, context)
        for step in leaves(steps):
            if isinstance(step, Part):
                step.records = True
        if self.memory == "checkpoint" or autocast_dtype(inputs) is not None:
            return _checkpointed(steps, inputs, context)
        detach_weights(steps)
        # Parameters that several steps read are there once; their gradient is a sum already.
        pairs = {id(own): (tensor, own) for tensor, own in zip(tensors, tensors_of(steps))}
        tensors, own = ([pair[i] for pair in pairs.values()] for i in (0, 1))
        return _Rebuilt.apply(self, steps, own, inputs, context, *tensors)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles begin to measure anew."""
        return {**super().__getstate__(), "_error": None}

    def _kept(self, steps: Sequence[Step]) -> tuple[set[int], set[int]]:
        """Places of steps before which the state is kept: anchors, and inexact steps."""
        count = min(self.anchors, len(steps))
        anchors = {len(steps) * i // count for i in range(count)}
        return anchors, {i for i, step in enumerate(steps) if step.name in self.inexact}

    def _is_due(self, device: torch.device) -> bool:
        self._passes += 1
        every = self.check_every
        return _is_read_freely(device) or self._passes % every == 1 or every == 1

    def _is_exact(self, error: Tensor, due: bool) -> bool:
        """Whether all went well since the last look, in all processes, as far as one was due."""
        before = self._error
        if before is not None and (before.dtype, before.device) == (error.dtype, error.device):
            error = torch.maximum(before, error)
        self._error = error
        if not due:
            return True
        self._largest, self._error = all_reduce_max(_known(error)).item(), None
        return self._largest <= self._tolerance(error.dtype)

    def _tolerance(self, dtype: torch.dtype) -> float:
        return TOLERANCES.get(dtype, 1e-2) if self.tolerance is None else self.tolerance

    def _name_inexact(
        self, steps: Sequence[Step], states: Sequence[Tensor], context: Tensor | None
    ) -> None:
        """Find the steps whose inverse does not lead back, and warn of them."""
        measured, reasons = [], {}
        for step, before, after in zip(steps, states, states[1:]):
            error = before.new_zeros(())
            if step.name not in self.inexact:
                try:
                    error = _relative_error(invert(step, after, context), before)
                except NotInvertible as raised:
                    error, reasons[step.name] = before.new_full((), torch.inf), f"{raised}"
            measured.append(_known(error))
        errors: dict[str, float] = {}
        # Every process names the same.
        for step, value in zip(steps, all_reduce_max(torch.stack(measured)).tolist()):
            errors[step.name] = max(value, errors.get(step.name, 0.0))
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


def _checkpointed(
    steps: Sequence[Step], inputs: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    outputs, total = inputs, torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
    for step in steps:
        call = partial(checkpoint, step.forward, use_reentrant=False)
        outputs, logabsdet = call(outputs, context)
        total = total if logabsdet is None else total + logabsdet
    return outputs, total


class _Rebuilt(torch.autograd.Function):
    """Steps whose states are rebuilt from the outputs, backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        owner: ReversibleCompositeTransform,
        steps: Sequence[Step],
        own: Sequence[Tensor],
        inputs: Tensor,
        context: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        anchors, inexact = owner._kept(steps)
        places = sorted(anchors | inexact)
        kept = []
        outputs = inputs
        total = torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
        for i, step in enumerate(steps):
            if i in anchors | inexact:
                kept.append(outputs)
            outputs, logabsdet = step.forward(outputs, context)
            total = total if logabsdet is None else total + logabsdet
        ctx.owner, ctx.steps, ctx.own = owner, steps, own
        ctx.places, ctx.inexact = places, inexact
        ctx.has_context = context is not None
        given = () if context is None else (context,)
        ctx.save_for_backward(outputs, *kept, *given, *tensors)
        return outputs, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_outputs: Tensor, grad_logabsdet: Tensor
    ) -> tuple[Tensor | None, ...]:
        owner, steps = ctx.owner, ctx.steps
        outputs, *saved = ctx.saved_tensors
        kept = dict(zip(ctx.places, saved))
        context = saved[len(kept)] if ctx.has_context else None
        if context is not None:
            context = context.detach().requires_grad_(context.requires_grad)
        invert_maps(steps)
        gradients = Gradients()
        state, gradient, errors, broken = outputs, grad_outputs, [], False
        for i in reversed(range(len(steps))):
            if i in ctx.inexact:
                gradient, known = recompute(
                    steps[i], kept[i], gradient, grad_logabsdet, context, gradients
                )
                if i + 1 < len(steps):
                    errors.append(_relative_error(state, known))
                state = kept[i]
                continue
            try:
                state, gradient = rebuild(
                    steps[i], state, gradient, grad_logabsdet, context, gradients
                )
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
        if not owner._is_exact(error, owner._is_due(outputs.device) or broken):
            gradients, gradient = _recomputed(
                owner, steps, kept[0], grad_outputs, grad_logabsdet, context
            )
        of_tensors = [gradients.of(tensor) for tensor in ctx.own]
        return None, None, None, gradient, gradients.of(context), *of_tensors


def _recomputed(
    owner: ReversibleCompositeTransform,
    steps: Sequence[Step],
    inputs: Tensor,
    gradient: Tensor,
    grad_logabsdet: Tensor,
    context: Tensor | None,
) -> tuple[Gradients, Tensor]:
    """Name the inexact steps, and go back with the inputs of all of them."""
    states = [inputs]
    for step in steps:
        states.append(step.forward(states[-1], context)[0])
    owner._name_inexact(steps, states, context)
    gradients = Gradients()
    for step, state in zip(reversed(steps), reversed(states[:-1])):
        gradient, _ = recompute(step, state, gradient, grad_logabsdet, context, gradients)
    return gradients, gradient
