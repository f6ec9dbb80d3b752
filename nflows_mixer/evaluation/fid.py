"""Frechet Inception distance between images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nflows_mixer._checks import check_levels, mismatch
from nflows_mixer.evaluation.batches import Images, batches, check_pixels

WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
"""Where torch-fidelity publishes the weights of the Inception network; nothing loads them here."""


@torch.no_grad()
def frechet_inception_distance(
    generated: Images,
    real: Images,
    weights: str | Path,
    levels: int = 256,
    features: int = 2048,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
) -> float:
    r"""Frechet Inception distance: how far apart two sets of images are, to a classifier.

    .. math:: \|m_1 - m_2\|^2 + \mathrm{tr}\big(S_1 + S_2 - 2 (S_1 S_2)^{1/2}\big)

    m and S are the mean and covariance of Inception's features. Pixels are scaled to 0 ... 255,
    grey images repeated to three channels, and all resized as the original implementation does.
    Figures compare only at the same number of images, 50,000 by custom.

    Args:
        generated: uint8 [N, C, H, W], with C = 1 or 3, or a data set, such as ``draw_samples``.
        real: uint8 [M, C, H, W], or a data set, such as the training images.
        weights: file with the weights of torch-fidelity's Inception network, from ``WEIGHTS``.
            No download is started. It is read by ``torch.load``: use one that you trust.
        levels: number of pixel values.
        features: which features, 2048 for the figure of papers; 64, 192 or 768 are earlier ones.
        batch_size: images at a time.
        device: where to compute.

    Returns:
        The distance, 0 for sets with the same mean and covariance; NaN if a feature is.

    Raises:
        ImportError: if torchmetrics or torch-fidelity is missing.
        ValueError: if there is no such file, images are not uint8 with 1 or 3 channels, or there
            are fewer than two.

    References:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium, 2017, Section 3; Dowson and Landau, The Frechet distance between multivariate
        normal distributions, 1982.

    Example:
        >>> from nflows_mixer.evaluation import draw_samples
        >>> samples = draw_samples(flow, 50_000)  # doctest: +SKIP
        >>> frechet_inception_distance(samples, train, "inception.pth")  # doctest: +SKIP
        31.4
    """
    check_levels("frechet_inception_distance", levels)
    check_inception(Path(weights))
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(
        feature=features, feature_extractor_weights_path=str(weights), antialias=False
    ).to(device)
    for images, is_real in ((real, True), (generated, False)):
        if len(images) < 2:
            name = "real" if is_real else "generated"
            raise mismatch(
                "frechet_inception_distance", f"2 {name} images or more", len(images), "add some"
            )
        for _, batch, _ in batches(images, batch_size):
            metric.update(_as_colour(batch, levels).to(device), real=is_real)
    return float(metric.compute().item())


def check_inception(weights: Path) -> None:
    """Raise unless the packages and the file that the distance needs are there."""
    try:
        import torch_fidelity  # noqa: F401
        import torchmetrics.image.fid  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "frechet_inception_distance: expected torchmetrics and torch-fidelity, got no "
            f"{error.name}; pip install 'nflows-mixer[fid]'"
        ) from error
    if not weights.is_file():
        expected, advice = "a file with Inception's weights", f"download it from {WEIGHTS}"
        raise mismatch("frechet_inception_distance", expected, str(weights), advice)


def _as_colour(images: Tensor, levels: int) -> Tensor:
    """Return uint8 images [N, 3, H, W] from 0 to 255, or raise."""
    check_pixels(images, "frechet_inception_distance")
    if levels < 256:
        if (largest := int(images.max().item())) >= levels:
            got, expected = f"one of {largest}", f"pixels from 0 to {levels - 1}"
            raise mismatch("frechet_inception_distance", expected, got, "give the data's levels")
        images = (images.float() * (255 / (levels - 1))).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)
