"""What one row of the catalogue does as a channel flow or as a patch flow."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from nflows.transforms import IdentityTransform, Transform
from torch import Tensor

from benchmarks.compatibility.catalogue import Row
from nflows_mixer.transforms import PatchMixerTransform


def nothing(features: int) -> Transform:
    """Return the identity: the other half of the mixer layer under test."""
    return IdentityTransform()


def mixer(row: Row, place: str, image_shape: tuple[int, int, int], patch_size: int) -> Transform:
    """Return a mixer layer with the row's flow in one place, "channel" or "patch"."""
    flows = {"channel_flow": nothing, "patch_flow": nothing, f"{place}_flow": row.make}
    torch.manual_seed(0)
    return PatchMixerTransform(image_shape, patch_size, **flows)


def draw(row: Row, layer: Any, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Draw standard normal images, and a context where the row takes one."""
    images = torch.randn(batch, *layer.image_shape, dtype=dtype)
    return images, torch.randn(batch, 3, dtype=dtype) if row.context else None


def settle(row: Row, layer: Any, std: float = 0.05) -> Any:
    """Initialise from data, and move every parameter off its start; leaves evaluation mode on."""
    parameter = next(layer.parameters(), torch.empty(0, dtype=torch.float64))
    images, context = draw(row, layer, 16, parameter.dtype)
    layer.train()
    with torch.no_grad():
        layer(images, context)
        for parameter in layer.parameters():
            parameter += std * torch.randn_like(parameter)
    return layer.eval()


@torch.no_grad()
def errors(row: Row, layer: Any, dtype: torch.dtype, batch: int = 2) -> dict[str, float]:
    """Largest error of the round trip, and of the sum of the two log-dets; see ``relative``."""
    layer = layer.to(dtype)
    torch.manual_seed(1)
    images, context = draw(row, layer, batch, dtype)
    outputs, logabsdet = layer(images, context)
    back, logabsdet_back = layer.inverse(outputs, context)
    return {
        "round_trip": relative(back, images),
        "logabsdet_both_ways": relative(-logabsdet_back, logabsdet),
    }


def logabsdet_error(row: Row, layer: Any, jacobian: Callable) -> float:
    """Log-det against autograd's Jacobian of the whole layer, in float64."""
    layer = layer.double()
    torch.manual_seed(1)
    images, context = draw(row, layer, 1, torch.float64)
    _, logabsdet = layer(images, context)
    return relative(logabsdet.detach(), jacobian(layer.forward, images, context))


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest |got - expected| / max(1, |expected|); NaN where anything is NaN."""
    return ((got - expected).abs() / expected.abs().clamp(min=1)).max().item()


def compiles(row: Row, layer: Any) -> bool:
    """Whether ``torch.compile(fullgraph=True)`` takes the forward pass in one graph."""
    layer = layer.float()
    images, context = draw(row, layer, 2, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled(images, context)
    except Exception:
        return False
    return True


def seconds(function: Callable[[], Any]) -> float:
    """Fastest of runs that take 0.3 seconds together, or one that takes longer."""
    taken: list[float] = []
    while sum(taken) < 0.3:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)
