"""Training and evaluation mode, restored module by module."""

from __future__ import annotations

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

    Evaluation mode is for parts alone that do something else in it: those that are not known to do
    so may be in use by another thread, which trains them.
    """
    parts = list(module.modules())
    # What is to be initialized reads its mode, and that of what it is in.
    every = training or any([getattr(part, "initialized", True) is False for part in parts])
    changed = [p for p in parts if p.training != training and (every or _heeds_mode(type(p)))]
    for part in changed:
        part.training = training
    try:
        yield
    finally:
        for part in changed:
            part.training = not training


_HOMES = tuple(
    f"torch.nn.modules.{name}."
    for name in ("linear", "conv", "container", "activation", "normalization", "sparse", "flatten")
)
_OF_TORCH = (nn.modules.batchnorm._BatchNorm, nn.MultiheadAttention, nn.RReLU)
_OF_NFLOWS = (nflows_transforms.BatchNorm, nflows_transforms.ActNorm)


# As in transforms/flow_layer.py: a class, as an argument, is said not to be hashable.
@cast(Callable[[Any], Any], cache)
def _heeds_mode(kind: type) -> bool:
    """Whether modules of a class may do something else in training mode; of users' classes, yes."""
    home = f"{kind.__module__}."
    if home.startswith((*_HOMES, "nflows_mixer.")):
        return issubclass(kind, _OF_TORCH)
    return not home.startswith("nflows.") or issubclass(kind, _OF_NFLOWS)


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
