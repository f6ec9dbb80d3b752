"""Training and evaluation mode, restored module by module."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar, Union, cast
from weakref import WeakSet

import torch
from nflows import transforms as nflows_transforms
from torch import Tensor, nn


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put ``module`` in training or evaluation mode, and every part back into its own after.

    Evaluation mode is for parts alone that may do something else in it: the others may be in use
    by another thread, which trains them. A part that several threads evaluate goes back when the
    last of them is done.
    """
    parts = list(module.modules())
    # What is to be initialized reads its mode, and that of what it is in.
    every = training or any([getattr(part, "initialized", True) is False for part in parts])
    # Traced code has no other threads, and cannot take a lock.
    holds = not training and not torch.compiler.is_compiling()
    lock = _LOCK if holds else nullcontext()
    with lock:
        changed = [
            part
            for part in parts
            if (part.training != training or (holds and part in _HELD))
            and (every or _heeds_mode(type(part)))
        ]
        for part in changed:
            part.training = training
            if holds:
                _HELD[part] = _HELD.get(part, 0) + 1
    try:
        yield
    finally:
        with lock:
            for part in changed:
                if left := _HELD.pop(part) - 1 if holds else 0:
                    _HELD[part] = left
                else:
                    part.training = not training


_LOCK = threading.Lock()
# How many evaluations hold a part in evaluation mode that is to train again after them.
_HELD: dict[nn.Module, int] = {}

# What the libraries' own modules do in training mode alone, apart from those listed here, is to
# keep a cache, or, in zuko, to give gradients to parameters: both belong to the mode they are in.
_LIBRARIES = ("nflows_mixer.", "nflows.", "zuko.", "normflows.")
_HOMES = tuple(
    f"torch.nn.modules.{name}."
    for name in ("linear", "conv", "container", "activation", "normalization", "sparse", "flatten")
)
_HEEDING = (
    nn.modules.batchnorm._BatchNorm,
    nn.MultiheadAttention,
    nn.RReLU,
    nflows_transforms.BatchNorm,
    nflows_transforms.ActNorm,
)


# As in transforms/flow_layer.py: a class, as an argument, is said not to be hashable.
@cast(Callable[[Any], Any], cache)
def _heeds_mode(kind: type) -> bool:
    """Whether modules of a class may do something else in training mode; of users' classes, yes."""
    known = f"{kind.__module__}.".startswith((*_HOMES, *_LIBRARIES))
    # normflows, which may be missing, estimates the log-det of this one in training mode.
    return not known or issubclass(kind, _HEEDING) or kind.__name__ == "iResBlock"


def running_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """For inverses: batch normalization takes, and keeps, its running statistics.

    nflows' ``Flow.sample`` inverts in whatever mode the flow is in, and a batch of samples must
    neither change the map nor the statistics. Parts that are shared may be in another mode than
    the module that they are part of, so that all are looked at. What would normalize by its batch
    is warned of.
    """
    if EVALUATING.get():
        return nullcontext()
    if torch.compiler.is_compiling():  # traced code cannot set a context variable
        return in_mode(module, training=False)
    warn_of_batch_statistics(module)
    return _evaluating(module)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Batch normalizations of a module, torch's and nflows', that are in training mode."""
    kinds = nn.modules.batchnorm._BatchNorm, nflows_transforms.BatchNorm
    return [part for part in module.modules() if isinstance(part, kinds) and part.training]


_WARNED: WeakSet[nn.Module] = WeakSet()


def warn_of_batch_statistics(module: nn.Module) -> None:
    """Say, once, that what is inverted here has another density in training mode."""
    norms = [norm for norm in batch_norms(module) if norm not in _WARNED]
    if norms:
        _WARNED.update(norms)
        warnings.warn(
            f"{type(module).__name__}: its BatchNorm is in training mode: samples, and inverses, "
            "are of the running statistics, log_prob is of those of the batch, another density; "
            "call eval(), or leave BatchNorm out",
            stacklevel=3,
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    token = EVALUATING.set(True)
    try:
        with in_mode(module, training=False):
            yield
    finally:
        EVALUATING.reset(token)


# True within the inverse of a flow, whose parts need not look through their modules again.
EVALUATING: ContextVar[bool] = ContextVar("nflows_mixer_all_evaluate", default=False)


Values = TypeVar("Values", Tensor, Union[Tensor, None])


def in_own_precision(module: nn.Module, values: Values) -> Values:
    """Real values in the precision of a module's parameters."""
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if values is None or own is None or not values.is_floating_point():
        return values
    return values.to(own)


def widened(module: nn.Module, latents: Tensor) -> Tensor:
    """Latents in the precision of a module, where that is the wider one.

    nflows' bases draw in torch's default precision, whatever that of the flow is.
    """
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), latents.dtype)
    return latents.to(torch.promote_types(latents.dtype, own))


def autocast_dtype(inputs: Tensor) -> torch.dtype | None:
    """The half precision of autocast on the device of ``inputs``, or None where it is off."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_autocast(inputs: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of ``inputs``, where it is on."""
    if autocast_dtype(inputs) is None:
        return nullcontext()
    return torch.autocast(inputs.device.type, enabled=False)


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation watches what is computed."""
    forward_level = torch.autograd.forward_ad._current_level
    return forward_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
