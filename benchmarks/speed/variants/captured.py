"""What is timed of a flow whose training step is one CUDA graph."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.variants.base import Setting, Variant


class Captured(Variant):
    """The whole step, with the bound on the gradient and Adam, captured once and replayed."""

    methods = ("training_step",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, capturable=True)
        self._graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    def missing(cls, setting: Setting) -> str | None:
        """Return why nothing can be captured; None if it can."""
        return None if setting.device == "cuda" else "it is for a GPU"

    def training_step(self) -> None:
        """Replay the step of ``Variant``; the first call captures it."""
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        step = super().training_step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is allocated, tuned and compiled once
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The step begins with gradients of None: they are the graph's, and written anew each time.
        with torch.cuda.graph(graph):
            step()
        return graph
