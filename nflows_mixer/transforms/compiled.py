"""Flow layers compiled once for all layers of a size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn


class CompiledCalls:
    """Calls functions of tensors and constants through ``torch.compile``, whole.

    Layers of one size share the compiled code, as their weights are arguments: a flow of any depth
    compiles as many functions as it has row lengths, each for any number of rows.

    Args:
        backend: of ``torch.compile``.

    Example:
        >>> calls = CompiledCalls(backend="eager")
        >>> calls(torch.add, torch.ones(2, 3), torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend
        self._compiled: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Evaluate ``function``, compiled for rows of this length and these constants."""
        rows: Tensor = arguments[0]
        constants = tuple(repr(value) for value in arguments if not _holds_tensors(value))
        key = (function, rows.shape[1], torch.is_grad_enabled(), constants)
        if key not in self._compiled:
            self._compiled[key] = torch.compile(
                _own_code(function), backend=self.backend, fullgraph=True, dynamic=False
            )
        for value in arguments:
            # As many rows as images have patches, or patches channels: one code for all.
            if isinstance(value, Tensor) and value.dim() == 2 and len(value) == len(rows):
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return self._compiled[key](*arguments)

    def attach(self, network: nn.Module) -> None:
        """Let a network of images be evaluated compiled, wherever it is called.

        Networks of one class and one size share the code. Copies and pickles are not compiled.

        Args:
            network: such as a ``ConvConditioner``.
        """
        sizes = tuple(tuple(parameter.shape) for parameter in network.parameters())
        # torch's own place for what compiles a module and keeps its names.
        network._compiled_call_impl = partial(self._network, (type(network), sizes), network)

    def _network(self, key: tuple, network: nn.Module, *arguments: Any) -> Any:
        if key not in self._compiled:
            forward = _own_code(type(network).forward)
            self._compiled[key] = torch.compile(forward, backend=self.backend)
        return self._compiled[key](network, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles compile anew."""
        return {"backend": self.backend, "_compiled": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledCalls:
        """Share the compiled code, which holds no weights."""
        return self


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(part) for part in value)
    return isinstance(value, Tensor)


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function: torch counts the recompilations of a code object, and then gives up."""
    if not isinstance(function, FunctionType):
        return function
    copied = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
