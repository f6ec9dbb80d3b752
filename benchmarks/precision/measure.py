"""What can be measured of any flow: round trips, log-determinants, singular values, densities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer.flows import ImageFlow


@dataclass(frozen=True)
class Precision:
    """How a flow computes.

    ``autocast`` says which of forward and inverse run under bf16 autocast; ``tf32`` lets matrix
    products in float32 run on CUDA's tensor cores.
    """

    name: str
    dtype: torch.dtype = torch.float32
    autocast: tuple[bool, bool] = (False, False)
    tf32: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot be measured on this device, if it cannot."""
        return "needs CUDA" if self.tf32 and device.type != "cuda" else None

    @contextmanager
    def running(self, device: torch.device, inverse: bool = False) -> Iterator[None]:
        """Compute forward, or inverse, in this precision."""
        before = torch.get_float32_matmul_precision()
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        try:
            enabled = self.autocast[inverse]
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled), torch.no_grad():
                yield
        finally:
            torch.set_float32_matmul_precision(before)


PRECISIONS = (
    Precision("float64", torch.float64),
    Precision("float32"),
    Precision("TF32", tf32=True),
    Precision("bf16 autocast", autocast=(True, True)),
    Precision("bf16 forward, float32 inverse", autocast=(True, False)),
)


def in_precision(flow: ImageFlow, precision: Precision) -> ImageFlow:
    """Return a copy of the flow in the dtype of a precision, in evaluation mode."""
    return copy.deepcopy(flow).to(precision.dtype).eval().requires_grad_(False)


def largest_and_mean(errors: Tensor) -> dict[str, Any]:
    """Return both over the images whose errors are all finite, or why there are none.

    Args:
        errors: [B, ...].
    """
    errors = errors.reshape(len(errors), -1)
    whole = errors[errors.isfinite().all(1)]
    if not len(whole):
        return {"largest": None, "mean": None, "why": "no image stays finite"}
    return {"largest": whole.max().item(), "mean": whole.double().mean().item()}


def share_non_finite(*parts: Tensor) -> float:
    """Return the share of all values that are NaN or infinite."""
    broken = sum((~part.isfinite()).sum().item() for part in parts)
    return broken / sum(part.numel() for part in parts)


def round_trip(
    transform: Transform,
    pixels: Tensor,
    precision: Precision,
    batch_size: int = 100,
    logabsdet: Tensor | None = None,
) -> dict[str, Any]:
    r"""Errors of inverting a transform, and of its log-det.

    .. math:: |x - f^{-1}(f(x))|, \qquad \big| \log|\det J_f(x)| - \ell \big|

    Args:
        transform: in the dtype of ``precision``.
        pixels: [B, C, H, W], dequantised.
        precision: of both directions.
        batch_size: images at a time.
        logabsdet: right log-dets of the first images, [b], if they are known.

    Returns:
        images; round_trip, largest and mean, in pixel levels; logabsdet, likewise, in nats;
        non_finite, the share of latents, log-dets and pixels that are not, of which the errors
        leave out the images.
    """
    results: list[tuple[Tensor, ...]] = []
    for batch in pixels.to(precision.dtype).split(batch_size):
        with precision.running(batch.device):
            latents, found = transform(batch)
        with precision.running(batch.device, inverse=True):
            back, _ = transform.inverse(latents)
        results.append((latents, found, back))
    latents, found, back = (torch.cat(parts) for parts in zip(*results))
    figures = {
        "images": len(pixels),
        "round_trip": largest_and_mean((back.double() - pixels.double()).abs()),
        "non_finite": share_non_finite(latents, found, back),
    }
    if logabsdet is not None:
        figures["logabsdet"] = {
            "images": len(logabsdet),
            **largest_and_mean((found[: len(logabsdet)].double() - logabsdet).abs()),
        }
    return figures


def jacobians_by_depth(layers: Sequence[Transform], pixels: Tensor) -> Iterator[Tensor]:
    r"""Yield the Jacobian [D, D] of the first layer, of the first two, and so on, of one image.

    .. math:: J_d = J_{f_d} \cdots J_{f_1}

    Each factor is autograd's: the image is repeated once per dimension, so that one backward
    pass gives all rows.

    Args:
        layers: from the image on, in evaluation mode.
        pixels: [1, C, H, W].
    """
    product = torch.eye(pixels.numel(), dtype=pixels.dtype, device=pixels.device)
    for layer in layers:
        with torch.enable_grad():
            copies = pixels.expand(pixels.numel(), *pixels.shape[1:]).clone().requires_grad_()
            outputs, _ = layer(copies)
            (rows,) = torch.autograd.grad(outputs.flatten(1).diagonal().sum(), copies)
        pixels = outputs[:1].detach()
        product = rows.flatten(1) @ product
        yield product


def jacobian_figures(
    layers: Sequence[Transform], pixels: Tensor
) -> tuple[list[dict[str, Any]], Tensor]:
    """Return singular values by depth, and the log-dets of the whole.

    Args:
        layers: from the image on, in float64.
        pixels: [B, C, H, W], in float64.

    Returns:
        For each depth the largest and the smallest singular value over all images, or None for
        both where one has overflowed; and [B], NaN for those.
    """
    values, logabsdets = [], []
    for index in range(len(pixels)):
        depths = []
        for jacobian in jacobians_by_depth(layers, pixels[index : index + 1]):
            finite = bool(jacobian.isfinite().all())
            spectrum = (
                torch.linalg.svdvals(jacobian) if finite else jacobian.new_full((2,), math.nan)
            )
            depths.append(spectrum[[0, -1]])
        values.append(torch.stack(depths))
        logabsdets.append(torch.linalg.slogdet(jacobian).logabsdet)
    # Either is NaN at a depth where one image's is.
    largest, smallest = torch.stack(values).amax(0)[:, 0], torch.stack(values).amin(0)[:, 1]
    by_depth: list[dict[str, Any]] = []
    for layer, high, low in zip(layers, largest.tolist(), smallest.tolist()):
        found: dict[str, Any] = {"largest": high, "smallest": low}
        if not math.isfinite(high):
            found = {"largest": None, "smallest": None, "why": "overflows"}
        by_depth.append({"layer": type(layer).__name__, **found})
    return by_depth, torch.stack(logabsdets)


def own_samples(flow: ImageFlow, count: int, precision: Precision, seed: int = 0) -> dict[str, Any]:
    """Compare log_prob of own samples with what ``sample_and_log_prob`` said of them.

    Both are of the deterministic part; samples are drawn in the precision of the inverse.

    Args:
        flow: in the dtype of ``precision``, in evaluation mode.
        count: samples.
        precision: of both.
        seed: of the samples.

    Returns:
        samples; difference, largest and mean, in nats; non_finite, the share of the sampled
        values and of both log-probabilities that are not.
    """
    deterministic = flow.deterministic
    device = next(flow.parameters()).device
    torch.manual_seed(seed)
    with precision.running(device, inverse=True):
        values, said = deterministic.sample_and_log_prob(count)
    # A flow takes finite pixels only; the others are counted.
    whole = values.flatten(1).isfinite().all(1)
    found = torch.full_like(said, math.nan)
    if whole.any():
        with precision.running(device):
            found[whole] = deterministic.log_prob(values[whole]).to(found.dtype)
    return {
        "samples": count,
        "difference": largest_and_mean((found.double() - said.double()).abs()),
        "non_finite": share_non_finite(values, said, found),
    }


@torch.no_grad()
def square_integral(
    log_density: Callable[[Tensor], Tensor],
    low: float,
    high: float,
    points: int,
    stretched: bool = False,
) -> float:
    r"""Integral of a density of two variables over the square [low, high]^2, by mid-points.

    .. math:: \int\!\!\int p(x, y)\, dx\, dy \approx \sum_{ij} w_i w_j\, p(x_i, y_j)

    Args:
        log_density: [B, 2] in float64 -> [B].
        low: of both variables.
        high: of both variables.
        points: along each side.
        stretched: whether points are even in the asinh of the distance from the middle, dense
            there and far apart in the tails, instead of even in the distance.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    reach = math.asinh(half) if stretched else half
    even = ((torch.arange(points, dtype=torch.float64) + 0.5) * 2 / points - 1) * reach
    axis = middle + (even.sinh() if stretched else even)
    weights = (even.cosh() if stretched else torch.ones_like(even)) * (2 * reach / points)
    total, rows_at_a_time = 0.0, max(1, 100_000 // points)
    for rows, row_weights in zip(axis.split(rows_at_a_time), weights.split(rows_at_a_time)):
        density = log_density(torch.cartesian_prod(rows, axis)).exp()
        total += (density.reshape(len(rows), points) @ weights @ row_weights).item()
    return total
