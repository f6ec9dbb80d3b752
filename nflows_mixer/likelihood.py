"""From log-likelihoods to bits per dimension, and bounds over several draws of the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch
from nflows.flows import Flow
from torch import Tensor, nn

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer._modes import in_mode


def bits_per_dim(log_prob: Tensor, image_shape: Sequence[int]) -> Tensor:
    r"""Bits per dimension of images with the given log-likelihoods.

    .. math:: \mathrm{bits/dim}(x) = -\frac{\log p(x)}{D \log 2}, \qquad D = C H W

    ``log_prob`` must be that of the *discrete* image (what ``ImageFlow.log_prob`` returns). A NaN
    stays a NaN: nothing is dropped.

    Args:
        log_prob: log-likelihoods in nats, any shape.
        image_shape: (C, H, W).

    Returns:
        Bits per dimension, of the shape of ``log_prob``; lower is better.

    References:
        Theis et al., A note on the evaluation of generative models, 2016, Section 3.1.

    Example:
        >>> import math, torch
        >>> uniform = torch.tensor(-3 * 32 * 32 * math.log(256))  # each pixel one of 256 levels
        >>> round(bits_per_dim(uniform, (3, 32, 32)).item(), 4)
        8.0
    """
    return -log_prob / (math.prod(image_shape) * math.log(2))


@torch.no_grad()
def log_prob_draws(
    flow: Flow,
    images: Tensor,
    num_samples: int,
    context: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    r"""Log-likelihood estimates of each image, one for each draw of the noise.

    .. math:: \ell_{in} = \log \frac{p(x_n, u_{in})}{q(u_{in} \mid x_n)}, \qquad u_{in} \sim q

    u is all noise that the flow draws: that of the dequantization, and what it appends on the way.

    Draw i of image n is a function of (``seed``, i, ``index`` n): not of the batch size, the
    device, the number of draws or what other images are evaluated. The flow is in evaluation mode.

    Args:
        flow: any flow whose ``log_prob(images, context, noise)`` takes the noise that its
            ``draw_noise`` draws.
        images: uint8 [N, C, H, W].
        num_samples: draws for each image.
        context: [N, F], or what the flow's embedding net takes.
        seed: seed of the noise.
        index: integers [N], the place of each image in its data set; 0 to N - 1 where None.
        batch_size: pairs of an image and a draw at a time; bounds the memory.

    Returns:
        [num_samples, N], in nats, on the images' device.

    Raises:
        ValueError: if a size is not positive, or there is not one index for each image.

    Example:
        >>> from nflows_mixer.flows import ImageFlow
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> log_prob_draws(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8), num_samples=5).shape
        torch.Size([5, 3])
    """
    if not hasattr(flow, "draw_noise"):
        got = f"a {type(flow).__name__}, which draws its noise unseen"
        advice = "ImageFlow.from_flow makes one of a flow on images"
        raise mismatch("log_prob_draws", "a flow with draw_noise", got, advice)
    num_samples = check_positive("log_prob_draws", "num_samples", num_samples)
    batch_size = check_positive("log_prob_draws", "batch_size", batch_size)
    index = torch.arange(len(images)) if index is None else index
    for name, given in (("index", index), ("context", context)):
        if given is not None and len(given) != len(images):
            expected = f"{name} with one row for each of {len(images)} images"
            raise mismatch("log_prob_draws", expected, list(given.shape), "pass one per image")
    device = device_of(flow)
    # Noise is drawn draw by draw: many images of few draws are faster than the other way round.
    images_at_a_time = max(1, min(len(images), batch_size))
    draws_at_a_time = batch_size // images_at_a_time
    columns = [torch.empty(num_samples, 0, device=images.device)]  # of no images
    with in_mode(flow, training=False):
        for start in range(0, len(images), images_at_a_time):
            part = slice(start, start + images_at_a_time)
            batch, places = images[part].to(device), index[part].to(device)
            rows = None if context is None else context[part].to(device)
            column = []
            for draws in torch.arange(num_samples).split(draws_at_a_time):
                noise = [flow.draw_noise(seed, draw, places) for draw in draws.tolist()]
                given = None if rows is None else torch.cat([rows] * len(draws))
                repeated = torch.cat([batch] * len(draws))
                log_probs = flow.log_prob(repeated, given, torch.cat(noise))
                column.append(log_probs.unflatten(0, (len(draws), len(batch))))
            columns.append(torch.cat(column).to(images.device))
    return torch.cat(columns, dim=1)


def importance_weighted_log_prob(
    flow: Flow,
    images: Tensor,
    num_samples: int,
    context: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    r"""Importance-weighted bound on the log-likelihood of each image.

    .. math:: \log P(x) \ge \mathbb E\, \log \frac1k \sum_{i=1}^k
              \frac{p(x, u_i)}{q(u_i \mid x)}, \qquad u_i \sim q

    With one draw it is the usual bound; its mean grows with k = ``num_samples``, towards log P(x).
    Arguments, errors and noise are those of ``log_prob_draws``: the first draws are the same for
    every k.

    Returns:
        [N], in nats, on the images' device. A NaN in one draw of an image makes its bound NaN.

    References:
        Burda et al., Importance weighted autoencoders, 2016, Theorem 1; Ho et al., Flow++, 2019,
        Section 3.1 (for dequantization); DenseFlow, Equation 20 (for noise that is appended).

    Example:
        >>> from nflows_mixer.flows import ImageFlow
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow, images = ImageFlow(PixelScaling(4), (1, 1, 1), levels=4), torch.zeros(1, 1, 1, 1)
        >>> bound = importance_weighted_log_prob(flow, images.to(torch.uint8), 2000)
        >>> round(bound.item(), 2), round(math.log(0.4013 - 0.3085), 2)  # Phi(-1/4) - Phi(-1/2)
        (-2.38, -2.38)
    """
    draws = log_prob_draws(flow, images, num_samples, context, seed, index, batch_size)
    return log_mean_exp(draws)


def log_mean_exp(log_probs: Tensor) -> Tensor:
    r"""Log of the mean of what the first dimension has the logarithms of.

    .. math:: \log \frac1k \sum_{i=1}^k e^{\ell_i}

    Args:
        log_probs: [k, ...].

    Returns:
        [...], in the dtype of ``log_probs``.

    Example:
        >>> log_mean_exp(torch.tensor([1.0, 3.0]).log()).exp().item()
        2.0
    """
    # Thousands of nats have few digits left in float32, so that the sum is taken in float64.
    total = log_probs.double().logsumexp(0) - math.log(len(log_probs))
    return total.to(log_probs.dtype)


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of ``module``; the CPU if it has none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device
