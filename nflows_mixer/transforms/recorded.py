"""Calls of modules that can be made again: the same mode, random numbers and batch statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from nflows_mixer._distributed import all_reduce_sum, world_size
from nflows_mixer._modes import autocast_dtype
from nflows_mixer.nn.batch_norm import BatchNorm1d, BatchNorm2d

_BatchNorm = nn.modules.batchnorm._BatchNorm
_RECORDERS: list[dict[nn.Module, tuple[Tensor, Tensor]]] = []


def report_statistics(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Tell those who record what a batch normalisation, that was not called itself, has seen.

    Args:
        norm: one whose work is done by a folded layer.
        mean: of the batch.
        variance: of the batch, biased.
    """
    for statistics in _RECORDERS:
        statistics[norm] = mean, variance


@contextmanager
def scratch_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules write to copies of their buffers, which are dropped at the end.

    A forward pass that is made again must not move running statistics again. The buffers
    themselves are not written to, so that what a graph has saved of them stays valid. Modules
    inside those given are not meant; pass ``module.modules()``.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with scratch_buffers([norm]):
        ...     _ = norm(torch.ones(3, 2))
        >>> norm.running_mean.tolist()
        [0.0, 0.0]
    """
    places = [
        (module._buffers, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for buffers, name, buffer in places:
        buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for buffers, name, buffer in places:
            buffers[name] = buffer


class Recorded:
    """What one call of a module depended on besides its inputs.

    Random state, autocast, the mode and the parameters of each part, and the statistics of the
    batches that went through its batch normalisations. Where one of them normalised several
    batches, those of the last are kept.

    Args:
        module: what is called.
        inputs: what it is called with, of whose device autocast and random state are kept.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> rows = torch.randn(8, 2)
        >>> record = Recorded(net, rows)
        >>> with record.recording():
        ...     outputs = net(rows)
        >>> with record.again():
        ...     torch.equal(net(rows), outputs)
        True
    """

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        self.module = module
        self.device = inputs.device
        self.modes = [(part, part.training) for part in module.modules()]
        self.autocast = autocast_dtype(inputs)
        # A flow without dropout draws nothing, but nothing says that of a module of others.
        self.random = torch.get_rng_state()
        self.random_device = None
        if self.device.type == "cuda":
            self.random_device = torch.cuda.get_rng_state(self.device)
        # By value, as somebody may have put others in their place for this call alone.
        self.parameters = [
            (part, name, parameter)
            for part in module.modules()
            for name, parameter in part._parameters.items()
            if parameter is not None
        ]
        self.statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the statistics of the batches that are normalised."""
        norms = {m for m in self.module.modules() if isinstance(m, _BatchNorm) and m.training}
        if not norms:
            yield
            return
        _RECORDERS.append(self.statistics)

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module in norms and module.training:
                self._keep(cast(_BatchNorm, module), inputs)

        # Of all modules: a hook of its own would make a network one that is not to be folded.
        handle = register_module_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()
            _RECORDERS.remove(self.statistics)

    @torch.no_grad()
    def _keep(self, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        axes = [0, *range(2, inputs[0].dim())]
        values = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        if world_size() == 1 or not isinstance(norm, (BatchNorm1d, BatchNorm2d)):
            variance, mean = torch.var_mean(values, axes, correction=0)
        else:
            count = torch.full_like(values.sum(axes), values.numel() / values.shape[1])
            total, count = all_reduce_sum(torch.stack([values.sum(axes), count]))
            mean = total / count
            centred = values - mean.reshape(1, -1, *(1,) * (values.dim() - 2))
            variance = all_reduce_sum(centred.square().sum(axes)) / count
        self.statistics[norm] = mean, variance

    @contextmanager
    def again(self) -> Iterator[None]:
        """Call it again as it was called, without a trace in its buffers."""
        with ExitStack() as stack:
            stack.enter_context(self._surroundings())
            stack.enter_context(scratch_buffers(self.module.modules()))
            yield

    @contextmanager
    def inverted(self) -> Iterator[None]:
        """Invert what it was: batch normalisation by the statistics of that batch."""
        with self.again():
            for norm, (mean, variance) in self.statistics.items():
                norm.training = False
                norm._buffers["running_mean"] = mean.to(norm.running_mean)  # type: ignore[arg-type]
                norm._buffers["running_var"] = variance.to(norm.running_var)  # type: ignore[arg-type]
            yield

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        before = [(part, part.training) for part in self.module.modules()]
        devices = [self.device] if self.random_device is not None else []
        half = self.autocast
        kind = self.device.type
        cast = nullcontext() if half is None else torch.autocast(kind, half)
        present = [(part, name, part._parameters[name]) for part, name, _ in self.parameters]
        for part, name, parameter in self.parameters:
            part._parameters[name] = parameter
        with torch.random.fork_rng(devices), cast:
            torch.set_rng_state(self.random)
            if self.random_device is not None:
                torch.cuda.set_rng_state(self.random_device, self.device)
            for part, training in self.modes:
                part.training = training
            try:
                yield
            finally:
                for part, training in before:
                    part.training = training
                for part, name, now in present:
                    part._parameters[name] = now
