"""Bits per dimension of a flow over a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer.evaluation.batches import Images, batches
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import bits_per_dim, log_mean_exp, log_prob_draws

BOUNDS = ("average", "importance")


@torch.no_grad()
def evaluate(
    flow: ImageFlow,
    images: Images,
    context: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 500,
    *,
    draws: int = 1,
    bound: str = "average",
    rows: Sequence[int] | Tensor | None = None,
) -> Tensor:
    r"""Bits per dimension of each image, in evaluation mode, over k draws of the noise.

    .. math:: \ell_n = \frac1k \sum_{i=1}^k \log w_{in} \quad \text{(average)}, \qquad
              \ell_n = \log \frac1k \sum_{i=1}^k w_{in} \quad \text{(importance)}, \qquad
              w_{in} = \frac{p(x_n, u_{in})}{q(u_{in} \mid x_n)}

    u is all noise that the flow draws; where it dequantises by uniform noise alone,
    :math:`w_{in} = p(x_n + u_{in})`. The noise follows the place of an image in the data set: the
    result depends neither on ``batch_size`` nor on how the rows are split over processes. The
    process r of W that takes ``rows=range(r, len(images), W)`` counts no image twice.

    Args:
        flow: any flow on images.
        images: uint8 [N, C, H, W], or a data set, of which a batch at a time is read.
        context: [N, F] for a flow that takes one, or what its embedding net takes: of a
            class-conditional flow, ``dataset.labels()``.
        seed: of the noise.
        batch_size: images at a time, or pairs of an image and a draw.
        draws: k.
        bound: "average", whose mean over images does not depend on k, or "importance", which is
            tighter for larger k. With one draw they are the same.
        rows: places of the images to evaluate, 0 to N - 1; all of them where None.

    Returns:
        One value for each row, in their order, on the images' device; nothing is averaged or
        dropped.

    Raises:
        ValueError: if an argument is out of range, or the context has not one row per image.

    References:
        MixerFlow, Section 5; DenseFlow, Section 3.1 (k = 1000 on CIFAR-10, 200 elsewhere); Theis et
        al., 2016, Section 3.1; Burda et al., 2016.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> evaluate(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8)).shape
        torch.Size([3])
    """
    check_choice("evaluate", "bound", bound, BOUNDS)
    found = evaluate_bounds(flow, images, context, seed, batch_size, draws=draws, rows=rows)
    return found[bound]


@torch.no_grad()
def evaluate_bounds(
    flow: ImageFlow,
    images: Images,
    context: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 500,
    *,
    draws: int = 1,
    rows: Sequence[int] | Tensor | None = None,
) -> dict[str, Tensor]:
    """Both bounds of ``evaluate``, of the same draws and with its arguments, in one pass.

    Returns:
        "average" and "importance", each as ``evaluate`` returns it.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 2, 2))
        >>> sorted(evaluate_bounds(flow, torch.zeros(3, 1, 2, 2, dtype=torch.uint8), draws=2))
        ['average', 'importance']
    """
    found: dict[str, list[Tensor]] = {name: [] for name in BOUNDS}
    for places, batch, given in batches(images, batch_size, rows, context):
        estimates = log_prob_draws(flow, batch, draws, given, seed, places, batch_size)
        found["average"].append(estimates.double().mean(0).to(estimates.dtype))
        found["importance"].append(log_mean_exp(estimates))
    joined = {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in found.items()}
    return {name: bits_per_dim(values, flow.image_shape) for name, values in joined.items()}


def summary(bits: Tensor) -> dict[str, float | int]:
    r"""What a report says of the bits per dimension of a data set.

    .. math:: \mathrm{standard\ error} = \frac{s}{\sqrt N}, \qquad
              s^2 = \frac{1}{N - 1} \sum_n (b_n - \bar b)^2

    Args:
        bits: bits per dimension [N], as ``evaluate`` returns them.

    Returns:
        A dictionary of images, N; mean; standard_error, of the mean over images; best, the
        smallest; worst, the largest; non_finite, how many are NaN or infinite. Where one is NaN, so
        are the mean, the standard error, the best and the worst, as nothing is dropped.

    Raises:
        ValueError: if there are no values.

    Example:
        >>> summary(torch.tensor([1.0, 2.0, 3.0, 4.0]))["mean"]
        2.5
        >>> summary(torch.tensor([1.0, float("nan")]))["mean"]
        nan
    """
    if bits.dim() != 1 or not len(bits):
        raise mismatch(
            "summary", "one value or more, [N]", list(bits.shape), "evaluate some images"
        )
    values = bits.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "images": len(values),
        "mean": values.mean().item(),
        "standard_error": error,
        "best": values.min().item(),
        "worst": values.max().item(),
        "non_finite": int((~values.isfinite()).sum().item()),
    }
