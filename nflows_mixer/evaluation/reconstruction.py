"""Images brought back from their latents."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.evaluation.batches import in_batches
from nflows_mixer.flows.image_flow import ImageFlow


@torch.no_grad()
def reconstruction(
    flow: ImageFlow, images: Tensor, context: Tensor | None = None, batch_size: int = 100
) -> tuple[Tensor, float]:
    r"""Images beside what the inverse makes of their latents.

    .. math:: \hat x = \lfloor f^{-1}(f(y)) \rfloor, \qquad
              \mathrm{error} = \max |f^{-1}(f(y)) - y|

    y are the pixels with the noise of their dequantisation at its median, x + 1/2 where it is
    uniform.

    Args:
        flow: any flow on images, evaluated in the precision that it has.
        images: uint8 [n, C, H, W], n > 0.
        context: [n, F], for a flow that takes one.
        batch_size: images at a time.

    Returns:
        uint8 [n, 2, C, H, W] on the CPU, each image followed by its reconstruction, and the largest
        error in pixel values, NaN if the inverse gives one. Under uniform dequantisation both
        images are the same where it is below 1/2.

    Raises:
        ValueError: if there are no images.

    References:
        Behrmann et al., Understanding and mitigating exploding inverses, 2021.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> pairs, error = reconstruction(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
        >>> pairs.shape, error
        (torch.Size([3, 2, 1, 2, 2]), 0.0)
    """
    if not len(images):
        raise mismatch("reconstruction", "one image or more", 0, "give some")
    latents = in_batches(flow, flow.transform_to_noise, images, context, batch_size)
    started = in_batches(flow, flow.dequantize_mid, images, context, batch_size)
    values = inverted(flow, latents, context, batch_size)
    pairs = torch.stack([images.cpu(), flow.dequantization.inverse(values)[0].cpu()], dim=1)
    return pairs, (values - started).abs().max().item()


def round_trip_error(
    flow: ImageFlow, images: Tensor, context: Tensor | None = None, batch_size: int = 100
) -> float:
    r"""Largest error of inverting the flow, as a fraction of the pixel range; of real images as is.

    .. math:: \max |f^{-1}(f(y)) - y|\, /\, \mathrm{levels}

    That of ``reconstruction``, whose arguments, errors and y these are; what a flow appends on the
    way is dropped by its inverse.

    Returns:
        The largest error over all pixels of all images; NaN if the inverse gives one.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> round_trip_error(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
        0.0
    """
    error = reconstruction(flow, images, context, batch_size)[1]
    return error / (flow.dequantization.levels or 1)


def inverted(flow: ImageFlow, latents: Tensor, context: Tensor | None, batch_size: int) -> Tensor:
    """Real pixels of latents, a batch at a time, in evaluation mode; a warning if any overflow."""

    def invert(rows: Tensor, given: Tensor | None) -> Tensor:
        return flow._transform.inverse(rows, flow._embedding_net(given))[0]

    with in_mode(flow, training=False):
        values = in_batches(flow, invert, latents, context, batch_size)
    broken = (~torch.isfinite(values)).flatten(1).any(1)
    if broken.any():
        warnings.warn(
            f"{broken.sum().item()} of {len(values)} images have pixels that are not finite: the "
            "inverse overflowed",
            RuntimeWarning,
            stacklevel=3,
        )
    return values
