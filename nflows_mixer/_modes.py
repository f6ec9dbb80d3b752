"""Training and evaluation mode, restored module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put ``module`` in training or evaluation mode, and every part back into its own after."""
    changed = [part for part in module.modules() if part.training != training]
    for part in changed:
        part.training = training
    try:
        yield
    finally:
        for part in changed:
            part.training = not training


def running_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """For inverses: batch normalisation takes, and keeps, its running statistics.

    nflows' ``Flow.sample`` inverts in whatever mode the flow is in, and a batch of samples must
    neither change the map nor the statistics. Parts that are shared may be in another mode than
    the module that they are part of, so that all are looked at.
    """
    training = any([part.training for part in module.modules()])
    return in_mode(module, training=False) if training else nullcontext()
