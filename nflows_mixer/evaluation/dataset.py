"""Figures of a flow over a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from nflows_mixer._modes import in_mode
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import bits_per_dim


@torch.no_grad()
def evaluate(
    flow: ImageFlow,
    images: Tensor,
    context: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> Tensor:
    """Bits per dimension of each image, in evaluation mode, one dequantisation draw each.

    Args:
        flow: any flow on images.
        images: uint8 [N, C, H, W].
        context: [N, F], for a flow that takes one.
        seed: of the dequantisation noise, which does not depend on ``batch_size``.
        batch_size: images at a time.

    Returns:
        [N], on the images' device; nothing is averaged or dropped.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> evaluate(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8)).shape
        torch.Size([3])
    """
    device = next(flow.dequantization.buffers()).device
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    log_probs = []
    with in_mode(flow, training=False):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            given = None if context is None else context[part].to(device)
            log_probs.append(flow.log_prob(images[part].to(device), given, noise[part].to(device)))
    return bits_per_dim(torch.cat(log_probs), flow.image_shape).to(images.device)


@torch.no_grad()
def round_trip_error(flow: ImageFlow, images: Tensor, context: Tensor | None = None) -> float:
    r"""Largest error of inverting the flow, as a fraction of the pixel range.

    .. math:: \max |f^{-1}(f(x + \tfrac12)) - (x + \tfrac12)|\, /\, \mathrm{levels}

    Args:
        flow: any flow on images, evaluated in the precision that it has.
        images: uint8 [N, C, H, W], on the flow's device.
        context: [N, F], for a flow that takes one.

    Returns:
        The largest error over all pixels of all images; NaN if the inverse gives one.

    References:
        Behrmann et al., Understanding and mitigating exploding inverses, 2021.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> round_trip_error(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
        0.0
    """
    with in_mode(flow, training=False):
        latents = flow.transform_to_noise(images, context)
        back, _ = flow._transform.inverse(latents, flow._embedding_net(context))
    pixels = images.to(back.dtype) + 0.5
    return ((back - pixels).abs().max() / flow.dequantization.levels).item()
