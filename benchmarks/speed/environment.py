"""On what it was measured, in words."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

import nflows_mixer


def machine(device: str, threads: int) -> str:
    """The GPU's name, or "CPU" and the number of torch's threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part."""
    libraries = {name: version(name) for name in ("nflows", "zuko")}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nflows-mixer": nflows_mixer.__version__,
        **libraries,
    }
