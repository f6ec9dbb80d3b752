"""Flows on images of two pixels, whose density can be integrated and whose images summed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor

from benchmarks.precision.measure import share_non_finite, square_integral
from benchmarks.precision.models import initialized, moved, trained
from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.flows import ImageFlow
from nflows_mixer.likelihood import log_prob_draws
from nflows_mixer.training import Recipe
from nflows_mixer.transforms import (
    AffineCoupling,
    CompositeTransform,
    FlowLayer,
    LULinear,
    PatchMixerTransform,
    PixelScaling,
    RationalQuadraticCoupling,
)

SHAPE, LEVELS, SEED, MOVED = (1, 1, 2), 4, 0, 0.1
RECIPE = Recipe(steps=300, batch_size=200, learning_rate=3e-3, warmup=0.05)
SQUARE, POINTS, DRAWS, FAR = (-30.0, 34.0), 1200, 4096, 128.0
COUPLINGS = {"affine": AffineCoupling, "spline": RationalQuadraticCoupling}


def two_pixel_flow(coupling: str) -> ImageFlow:
    """Return a flow with two patch flows over two patches and a channel flow in one."""
    torch.manual_seed(SEED)
    row_flow = partial(COUPLINGS[coupling], hidden_features=16, norm="batch")
    layer = partial(FlowLayer, flow=row_flow)
    transform: list[Transform] = [
        PixelScaling(LEVELS),
        PatchMixerTransform(SHAPE, 1, LULinear, layer),
        PatchMixerTransform(SHAPE, (1, 2), layer, LULinear),
        PatchMixerTransform(SHAPE, 1, LULinear, layer),
    ]
    return ImageFlow(CompositeTransform(transform), SHAPE, levels=LEVELS)


def toy_data() -> ImageData:
    """Return 4,000 images: the second pixel is the first, or 3 minus it one time in five."""
    generator = torch.Generator().manual_seed(SEED)
    first = torch.multinomial(torch.tensor([4.0, 1.0, 2.0, 3.0]), 4000, True, generator=generator)
    turned = torch.rand(4000, generator=generator) < 0.2
    pixels = torch.stack([first, torch.where(turned, 3 - first, first)], -1)
    images = ImageDataset(pixels.to(torch.uint8).reshape(-1, *SHAPE))
    train, rest = images.subset(slice(3600)), images.subset(slice(3600, None))
    validation, test = rest.subset(slice(100)), rest.subset(slice(100, None))
    return ImageData("two pixels", train, validation, test, levels=LEVELS)


def density_figures(flow: ImageFlow) -> dict[str, Any]:
    """Integrate the density of a flow of two pixels, and sum the probabilities of all images.

    Args:
        flow: on images [1, 1, 2], of any number of levels; ActNorm is initialized.

    Returns:
        The integral over a large square, that with half the points along a side, the mass of
        the pixels' range by quadrature, and the same as the sum over all images of the
        importance-weighted estimate of P(x), with the standard error of that sum; and the share
        of points far away where the log-density is not finite.
    """
    flow = flow.double().eval().requires_grad_(False)

    def log_density(points: Tensor) -> Tensor:
        return flow.deterministic.log_prob(points.reshape(-1, *SHAPE))

    levels = flow.dequantization.levels
    images = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
    images = images.to(torch.uint8).reshape(-1, *SHAPE)
    draws = log_prob_draws(flow, images, DRAWS, batch_size=50_000).exp()
    axis = torch.linspace(-FAR, FAR, 257, dtype=torch.float64)
    far = log_density(torch.cartesian_prod(axis, axis))
    return {
        "integral": integral(log_density, *SQUARE, POINTS, stretched=True),
        "half the points": integral(log_density, *SQUARE, POINTS // 2, stretched=True),
        "mass of the range": integral(log_density, 0.0, levels, 400),
        "not finite far away": share_non_finite(far),
        "sum over all images": draws.mean(0).sum().item(),
        "standard error": (draws.var(0) / DRAWS).sum().sqrt().item(),
    }


def integral(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the integral over a square, or why there is none; see ``square_integral``."""
    value = square_integral(*arguments, **options)
    if math.isfinite(value):
        return {"value": value}
    return {"value": None, "why": "the density is not finite everywhere"}


def measure_two_pixels() -> dict[str, Any]:
    """Return the figures of moved and trained flows with affine and with spline couplings."""
    data = toy_data()
    rows = []
    for coupling in COUPLINGS:
        start = moved(two_pixel_flow(coupling), MOVED)
        start = initialized(start, data.train.images(slice(200)))
        rows.append({"flow": f"{coupling} couplings, moved", **density_figures(start)})
        flow, results = trained(two_pixel_flow(coupling), RECIPE, data, SEED)
        bits = {"bits_per_dim": results["bits_per_dim"]["test"]}
        rows.append({"flow": f"{coupling} couplings, trained", **bits, **density_figures(flow)})
    return {
        "square": list(SQUARE),
        "points": POINTS,
        "draws": DRAWS,
        "far": FAR,
        "levels": LEVELS,
        "steps": RECIPE.steps,
        "moved": MOVED,
        "seed": SEED,
        "entropy_bits_per_dim": toy_entropy(),
        "rows": rows,
    }


def toy_entropy() -> float:
    """Return the entropy of the toy distribution, in bits per dimension: the best there is."""
    weights = [4.0, 1.0, 2.0, 3.0]
    parts = [w / sum(weights) * turn for w in weights for turn in (0.2, 0.8)]
    return -sum(p * math.log2(p) for p in parts) / 2
