"""What is timed of a flow by kernels, which are in use for its own calls alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from benchmarks.speed.variants.base import Setting, Variant
from nflows_mixer.kernels import load_cpu_kernels, load_gpu_kernels, without_kernels


class ByKernels(Variant):
    """Each call switches the kernels on, and off again."""

    load: Callable[[], None]

    @classmethod
    def missing(cls, setting: Setting) -> str | None:
        """Return why the kernels cannot be used; None if they can."""
        try:
            with _in_use(cls.load):
                return None
        except ValueError as error:
            return str(error)

    def add_gradients(self) -> None:
        """See ``Variant``."""
        with _in_use(self.load):
            super().add_gradients()

    def log_prob(self) -> Tensor:
        """See ``Variant``."""
        with _in_use(self.load):
            return super().log_prob()

    def sample(self) -> Tensor:
        """See ``Variant``."""
        with _in_use(self.load):
            return super().sample()


class ByCPUKernels(ByKernels):
    """That in C++ is of batch statistics: only training makes use of it."""

    load = staticmethod(load_cpu_kernels)
    methods = ("forward_backward", "training_step")

    @classmethod
    def missing(cls, setting: Setting) -> str | None:
        """See ``ByKernels``."""
        return super().missing(setting) if setting.device == "cpu" else "it is for the CPU"


class ByGPUKernels(ByKernels):
    """Those in Triton."""

    load = staticmethod(load_gpu_kernels)

    @classmethod
    def missing(cls, setting: Setting) -> str | None:
        """See ``ByKernels``."""
        return super().missing(setting) if setting.device == "cuda" else "they are for a GPU"


@contextmanager
def _in_use(load: Callable[[], None]) -> Iterator[None]:
    with without_kernels():
        load()
        yield
