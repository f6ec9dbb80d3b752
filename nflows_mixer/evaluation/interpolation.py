"""Images between images."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from nflows.distributions.base import Distribution
from torch import Tensor

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.distributions import (
    BaseDistribution,
    DiagonalNormal,
    ProductDistribution,
    StudentT,
)
from nflows_mixer.evaluation.batches import in_batches
from nflows_mixer.evaluation.reconstruction import inverted
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import device_of


@torch.no_grad()
def interpolation(
    flow: ImageFlow,
    first: Tensor,
    second: Tensor,
    steps: int = 8,
    context: Tensor | None = None,
    batch_size: int = 100,
) -> Tensor:
    r"""Images on the way from one image to another, through their latents.

    .. math:: z(t) = \frac{\sin((1 - t)\, \omega)}{\sin \omega}\, z_1 +
              \frac{\sin(t\, \omega)}{\sin \omega}\, z_2, \qquad
              \cos \omega = \frac{z_1 \cdot z_2}{\|z_1\| \|z_2\|}

    Latents are those of ``transform_to_noise``, with all noise at its median, standardised by the
    location and scale of the base where it has one of each per dimension. The ends are the images
    themselves where the flow inverts well enough (see ``reconstruction``).

    Args:
        flow: any flow on images.
        first: uint8 [n, C, H, W], where the ways begin.
        second: uint8 [n, C, H, W], where they end.
        steps: images on each way, both ends among them.
        context: [n, F], for a flow that takes one; it stays the same on the way.
        batch_size: images at a time.

    Returns:
        uint8 [n, steps, C, H, W] on the CPU.

    Raises:
        ValueError: if the ends differ in number, or there are fewer than two steps.

    References:
        Shoemake, Animating rotation with quaternion curves, 1985; White, Sampling generative
        networks, 2016, Section 2.1.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> ends = torch.randint(256, (2, 3, 1, 2, 2), dtype=torch.uint8)
        >>> way = interpolation(flow, ends[0], ends[1], steps=5)
        >>> way.shape, torch.equal(way[:, 0], ends[0])
        (torch.Size([3, 5, 1, 2, 2]), True)
    """
    steps = check_positive("interpolation", "steps", steps)
    if steps < 2:
        raise mismatch("interpolation", "2 steps or more", steps, "both ends are among them")
    if first.shape != second.shape:
        got = f"{list(first.shape)} and {list(second.shape)}"
        raise mismatch("interpolation", "as many first as second images", got, "pair them")
    if not len(first):
        return torch.empty(0, steps, *flow.image_shape, dtype=torch.uint8)
    location, scale = _location_and_scale(flow._distribution)
    start, end = (
        (in_batches(flow, flow.transform_to_noise, ends, context, batch_size) - location) / scale
        for ends in (first, second)
    )
    weights = torch.linspace(0, 1, steps, dtype=torch.float64)
    way = torch.stack([_slerp(start, end, weight.item()) for weight in weights], dim=1)
    latents = (way * scale + location).flatten(0, 1)
    given = None if context is None else repeat(context, "n ... -> (n steps) ...", steps=steps)
    pixels = flow.dequantization.inverse(inverted(flow, latents, given, batch_size))[0]
    return rearrange(pixels.cpu(), "(n steps) c h w -> n steps c h w", steps=steps)


def _location_and_scale(base: Distribution) -> tuple[Tensor, Tensor]:
    """Location and scale of the latents, of their shape or one that broadcasts to it."""
    if isinstance(base, (DiagonalNormal, StudentT)):
        return base.location, base.log_scale.exp()
    if isinstance(base, ProductDistribution):
        locations, scales = [], []
        for part in base.parts.values():
            assert isinstance(part, BaseDistribution)
            location, scale = _location_and_scale(part)
            locations.append(location.expand(part.shape).flatten())
            scales.append(scale.expand(part.shape).flatten())
        return torch.cat(locations), torch.cat(scales)
    one = torch.ones((), device=device_of(base))
    return torch.zeros_like(one), one


def _slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of each row, linear where rows are parallel; the ends are exact."""
    a, b = (rows.flatten(1).double() for rows in (first, second))
    lengths = (a.norm(dim=1) * b.norm(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    angle = ((a * b).sum(1) / lengths).clamp(-1, 1).acos()[:, None]
    parallel = angle.sin() < 1e-6
    sine = torch.where(parallel, 1.0, angle.sin())
    before = torch.where(parallel, 1 - weight, ((1 - weight) * angle).sin() / sine)
    after = torch.where(parallel, weight, (weight * angle).sin() / sine)
    return (before * a + after * b).to(first.dtype).reshape(first.shape)
