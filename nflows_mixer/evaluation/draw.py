"""The pictures of an evaluation of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflows_mixer.data import ImageDataset
from nflows_mixer.evaluation.interpolation import interpolation, reconstruction
from nflows_mixer.evaluation.neighbours import centre
from nflows_mixer.evaluation.pictures import save_neighbours, save_rows
from nflows_mixer.evaluation.sampling import temperature_grid
from nflows_mixer.flows import ImageFlow
from nflows_mixer.likelihood import device_of


def classes_in_turn(flow: ImageFlow, count: int) -> Tensor | None:
    """Return labels [count] that go round, for a flow that wants some; None for another.

    Args:
        flow: any flow on images.
        count: how many.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, num_layers=1, num_classes=3)
        >>> classes_in_turn(flow, 5)
        tensor([0, 1, 2, 0, 1])
    """
    if flow.architecture is None or flow.architecture.num_classes is None:
        return None
    return torch.arange(count, device=device_of(flow)) % flow.architecture.num_classes


def draw_pictures(
    flow: ImageFlow, held_out: ImageDataset, temperatures: Sequence[float], seed: int, out: Path
) -> None:
    """Write ``temperatures.png``, ``interpolations.png`` and ``reconstructions.png``.

    Args:
        flow: any flow on images.
        held_out: images that it was not trained on, two or more, with labels if it wants some.
        temperatures: of the samples.
        seed: of the samples.
        out: folder, made where there is none.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow, out = ImageFlow(PixelScaling(256), (1, 4, 4)), Path(tempfile.mkdtemp())
        >>> images = torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8)
        >>> draw_pictures(flow, ImageDataset(images), [0.5, 1.0], 0, out)
        >>> len(list(out.iterdir()))
        3
    """
    out.mkdir(parents=True, exist_ok=True)
    device, levels = device_of(flow), flow.dequantization.levels
    classes = classes_in_turn(flow, 16)
    number = 16 if classes is None else 1
    grids = temperature_grid(flow, temperatures, number, seed, classes)
    save_rows(out / "temperatures.png", grids, levels)

    half = min(8, len(held_out) // 2)
    some = held_out.images(slice(2 * half)).to(device)
    context = None if classes is None else held_out.labels(slice(half)).to(device)
    between = interpolation(flow, some[:half], some[half:], 8, context).cpu()
    rows = {str(i): row for i, row in enumerate(between)}
    title = "held-out images at both ends, and interpolated latents"
    save_rows(out / "interpolations.png", rows, levels, title)

    pairs, error = reconstruction(flow, some[:half], context)
    rows = {"images": pairs[:, 0].cpu(), "reconstructed": pairs[:, 1].cpu()}
    title = f"largest error {error:.1e} of {levels} levels"
    save_rows(out / "reconstructions.png", rows, levels, title)


def draw_neighbours(
    samples: Tensor, train: ImageDataset, report: Mapping[str, Any], levels: int, out: Path
) -> None:
    """Write ``neighbours.png``: samples beside the training images nearest to them.

    Args:
        samples: uint8 [M, C, H, W], of which the first ten are shown.
        train: the training images.
        report: what ``memorisation_report`` says of them.
        levels: number of pixel values.
        out: folder, which is there.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.evaluation import memorisation_report
        >>> train, out = torch.randint(17, (9, 1, 4, 4), dtype=torch.uint8), tempfile.mkdtemp()
        >>> report = memorisation_report(train[:3], train, train[3:])
        >>> draw_neighbours(train[:3], ImageDataset(train), report, 17, Path(out))
        >>> (Path(out) / "neighbours.png").exists()
        True
    """
    distances = torch.tensor(report["distances"][:10])
    indices = torch.tensor(report["indices"][:10])
    nearest = train.images(indices.flatten()).unflatten(0, indices.shape)
    if report["flipped"]:
        nearest = _as_compared(samples[:10].cpu(), nearest, report["crop"])
    height, width = report["crop"]
    part = "all" if (height, width) == samples.shape[-2:] else "the central"
    mirrored = ", mirrored or not" if report["flipped"] else ""
    at = f" at temperature {report['temperature']:g}" if "temperature" in report else ""
    title = (
        f"samples{at}, and the training images nearest to them{mirrored}\n"
        f"(mean squared difference over {part} {height} x {width} pixels;\n"
        f"median {report['samples']['median']:.4g}, "
        f"of held-out images {report['held_out']['median']:.4g})"
    )
    save_neighbours(out / "neighbours.png", samples[:10], nearest, distances, levels, title)


def _as_compared(samples: Tensor, nearest: Tensor, crop: Sequence[int]) -> Tensor:
    """Mirror those neighbours [M, k, C, H, W] that are nearer so."""
    rows, columns = centre(samples.shape[-2:], crop)
    of_samples = samples[:, None, :, rows, columns].double()
    plain, mirrored = (
        (view[..., rows, columns].double() - of_samples).square().flatten(2).sum(2)
        for view in (nearest, nearest.flip(-1))
    )
    return torch.where((mirrored < plain)[..., None, None, None], nearest.flip(-1), nearest)
