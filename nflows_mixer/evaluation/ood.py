"""Out-of-distribution scores of images, and how well they tell data sets apart."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer.evaluation.batches import Images, batches, check_pixels
from nflows_mixer.evaluation.bits import evaluate, summary
from nflows_mixer.flows.image_flow import ImageFlow

SCORES = ("likelihood", "typicality", "input_complexity")
"""Names of the scores; a larger score is further out of distribution."""


def png_bits_per_dim(images: Images, batch_size: int = 500) -> Tensor:
    r"""Bits per dimension of each image as a PNG file, the complexity of the input.

    .. math:: c(x) = \frac{8\, |\mathrm{PNG}(x)|}{D}

    The few dozen bytes that every file has are counted too; among images of one size they change
    no order.

    Args:
        images: uint8 [N, C, H, W], or a data set, with C = 1 or 3.
        batch_size: images that are read at a time.

    Returns:
        float64 [N] on the CPU.

    Raises:
        ValueError: if images are not uint8 with 1 or 3 channels.

    References:
        Serra et al., Input complexity and out-of-distribution detection with likelihood-based
        generative models, 2020, Section 3.1.

    Example:
        >>> noise = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
        >>> plain, random = png_bits_per_dim(torch.cat([torch.zeros_like(noise), noise]))
        >>> bool(plain < 2), bool(random > 8)
        (True, True)
    """
    from PIL import Image

    bits = []
    for _, batch, _ in batches(images, batch_size):
        check_pixels(batch, "png_bits_per_dim")
        for pixels in batch.permute(0, 2, 3, 1).cpu().numpy():
            file = io.BytesIO()
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            picture.save(file, format="PNG", optimize=True)
            bits.append(8 * file.tell() / pixels.size)
    return torch.tensor(bits, dtype=torch.float64)


def ood_scores(
    flow: ImageFlow,
    images: Images,
    train_bits: Tensor,
    context: Tensor | None = None,
    seed: int = 0,
    draws: int = 1,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    r"""Out-of-distribution scores of each image; larger is further out.

    .. math:: s_\mathrm{likelihood} = b(x), \qquad
              s_\mathrm{typicality} = |b(x) - \bar b_\mathrm{train}|, \qquad
              s_\mathrm{complexity} = b(x) - c(x)

    b are the flow's bits per dimension, and c those of a PNG file.

    Args:
        flow: any flow on images.
        images: uint8 [N, C, H, W], or a data set, with C = 1 or 3.
        train_bits: bits per dimension of training images, as ``evaluate`` returns them. A NaN
            among them makes every typicality NaN.
        context: [N, F], for a flow that takes one.
        seed: of the dequantisation noise.
        draws: of the noise, averaged.
        batch_size: images at a time.

    Returns:
        Name -> float64 [N] on the CPU, for each of ``SCORES``.

    Raises:
        ValueError: if there are no training bits, or images are not what the flow is for.

    References:
        Nalisnick et al., Detecting out-of-distribution inputs to deep generative models using
        typicality, 2019, Section 4 (with one image); Serra et al., 2020, Section 3.2.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 8, 8))
        >>> images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
        >>> list(ood_scores(flow, images, train_bits=evaluate(flow, images)))
        ['likelihood', 'typicality', 'input_complexity']
    """
    if train_bits.dim() != 1 or not len(train_bits):
        got = list(train_bits.shape)
        raise mismatch("ood_scores", "train_bits [N], N > 0", got, "evaluate training images")
    bits = evaluate(flow, images, context, seed, batch_size, draws=draws).double().cpu()
    typical = train_bits.double().mean().item()
    typicality = (bits - typical).abs() if math.isfinite(typical) else bits * math.nan
    complexity = png_bits_per_dim(images, batch_size)
    return dict(zip(SCORES, (bits, typicality, bits - complexity)))


def auroc(inside: Tensor, outside: Tensor) -> float:
    r"""Area under the ROC curve of a score that should be larger outside.

    .. math:: P(s_\mathrm{out} > s_\mathrm{in}) + \tfrac12 P(s_\mathrm{out} = s_\mathrm{in})

    Exact, by ranks. 1/2 is chance; below it the score takes the outside for the inside.

    Args:
        inside: scores [N] of images of the distribution.
        outside: scores [M] of others.

    Raises:
        ValueError: if there are no scores, or one is NaN: it has no rank, and leaving it out would
            flatter the model.

    References:
        Hanley and McNeil, The meaning and use of the area under a receiver operating
        characteristic curve, 1982.

    Example:
        >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))  # (1 + 1/2 + 1 + 1) / 4
        0.875
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.dim() != 1 or not len(scores):
            raise mismatch("auroc", f"{name} scores [N], N > 0", list(scores.shape), "give some")
        if broken := int(scores.isnan().sum().item()):
            got = f"{broken} of {len(scores)} that are NaN"
            advice = "find the images that the flow fails on; none is left out"
            raise mismatch("auroc", f"{name} scores with a rank", got, advice)
    ordered, points = inside.double().cpu().sort().values, outside.double().cpu()
    below = torch.searchsorted(ordered, points)
    not_above = torch.searchsorted(ordered, points, right=True)
    return 0.5 * (below + not_above).sum().item() / (len(inside) * len(outside))


def ood_report(
    flow: ImageFlow,
    train: Images,
    inside: Images,
    outside: Mapping[str, Images],
    seed: int = 0,
    draws: int = 1,
    batch_size: int = 500,
) -> dict[str, Any]:
    """How well a flow tells its own distribution from others, by each score.

    Args:
        flow: any flow on images that takes no context.
        train: images that it was trained on, or some of them.
        inside: held-out images of the same distribution.
        outside: name -> images of another one, of the same shape and levels.
        seed: of the dequantisation noise.
        draws: of the noise, averaged.
        batch_size: images at a time.

    Returns:
        A dictionary that JSON can hold, of "bits_per_dim", a ``summary`` for "train", "inside" and
        each name; "png_bits_per_dim", the mean for "inside" and each name; "auroc", for each name
        the area under the ROC curve by each of ``SCORES``.

    Raises:
        ValueError: if a name is "train" or "inside", images are not what the flow is for, or a
            score is NaN.

    References:
        Nalisnick et al., Do deep generative models know what they don't know?, 2019; those of
        ``ood_scores``.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 8, 8))
        >>> middle = torch.randint(100, 156, (20, 1, 8, 8), dtype=torch.uint8)
        >>> ends = 255 * torch.randint(2, (20, 1, 8, 8), dtype=torch.uint8)
        >>> ood_report(flow, middle, middle, {"ends": ends})["auroc"]["ends"]["likelihood"]
        1.0
    """
    if taken := {"train", "inside"} & set(outside):
        raise mismatch("ood_report", "other names", sorted(taken), "rename these data sets")
    train_bits = evaluate(flow, train, None, seed, batch_size, draws=draws).double().cpu()
    scores = {
        name: ood_scores(flow, images, train_bits, None, seed, draws, batch_size)
        for name, images in {"inside": inside, **outside}.items()
    }
    bits = {"train": train_bits, **{name: of["likelihood"] for name, of in scores.items()}}
    return {
        "bits_per_dim": {name: summary(values) for name, values in bits.items()},
        "png_bits_per_dim": {
            name: (of["likelihood"] - of["input_complexity"]).mean().item()
            for name, of in scores.items()
        },
        "auroc": {
            name: {score: auroc(scores["inside"][score], scores[name][score]) for score in SCORES}
            for name in outside
        },
    }
