"""What an image has become after each layer of a flow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nflows.transforms import CompositeTransform as NflowsComposite
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.evaluation.batches import Images, in_batches
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.transforms import MultiScaleTransform


def top_level_layers(flow: ImageFlow) -> list[Transform]:
    """Return the layers of a flow between image and latent, from the image on.

    Args:
        flow: any flow on images; one whose transform is no composite has one layer.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, num_layers=2)
        >>> [type(layer).__name__ for layer in top_level_layers(flow)]
        ['PixelScaling', 'InvertibleConv1x1', 'ShiftTransform', 'PatchMixerTransform']
    """
    whole = flow._transform
    if isinstance(whole, (NflowsComposite, MultiScaleTransform)):
        return list(whole._transforms)
    return [whole]


@torch.no_grad()
def embeddings(
    flow: ImageFlow,
    images: Images,
    depth: int = -1,
    context: Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    r"""Embeddings of images: what a flow has made of them after one of its layers.

    .. math:: e_d(x) = (f_d \circ \dots \circ f_0)(y)

    A function of each image: in evaluation mode and with all noise at its median, so that
    :math:`y = x + \tfrac12` under uniform dequantisation. The noise that a flow appends on the way
    is part of the embedding, and so are channels that it drops before its last layer.

    Args:
        flow: any flow on images.
        images: uint8 [N, C, H, W], or a data set, of which a batch at a time is read.
        depth: which of ``top_level_layers``, 0 the first; negative ones count from the latents.
        context: [N, F], for a flow that takes one.
        batch_size: images at a time.

    Returns:
        float32 [N, D] on the CPU.

    Raises:
        ValueError: if there is no such layer, or the context has not one row per image.

    References:
        MixerFlow, Section 5.5.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(2, 0.0, 2.0), (1, 1, 2), levels=2)
        >>> embeddings(flow, torch.tensor([[[[0, 1]]]], dtype=torch.uint8))
        tensor([[0.5000, 1.5000]])
    """
    layers = top_level_layers(flow)
    if not -len(layers) <= depth < len(layers):
        expected = f"a depth from {-len(layers)} to {len(layers) - 1}"
        raise mismatch("embeddings", expected, depth, "0 is the first layer, -1 the last")
    embed = _embedding(flow, depth % len(layers) + 1)
    if not len(images):
        return torch.empty(0, 0)

    def rows(batch: Tensor, given: Tensor | None) -> Tensor:
        return embed(batch, given).flatten(1).float().cpu()

    with in_mode(flow, training=False):
        return in_batches(flow, rows, images, context, batch_size)


def _embedding(flow: ImageFlow, count: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return what maps images and their context through the first layers of a flow."""
    layers = top_level_layers(flow)
    if count == len(layers):
        return flow.transform_to_noise
    if not isinstance(flow._transform, MultiScaleTransform):
        # A composite of our own hands the context only to those layers that take one.
        prefix = CompositeTransform(layers[:count])
        return lambda images, context: prefix(
            flow.dequantize_mid(images, context), flow._embedding_net(context)
        )[0]
    multiscale = MultiScaleTransform(layers[:count], flow.image_shape)

    def embed(images: Tensor, context: Tensor | None) -> Tensor:
        pixels = flow.dequantize_mid(images, context)
        noise = []
        if multiscale.stochastic_forward:  # with normal noise, of median 0
            noise = [pixels.new_zeros(len(pixels), *multiscale.noise_shape(flow.image_shape))]
        return multiscale(pixels, flow._embedding_net(context), *noise)[0]

    return embed
