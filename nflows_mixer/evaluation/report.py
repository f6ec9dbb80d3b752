"""Everything about trained weights: figures and pictures, written to a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflows_mixer._checks import as_python, check_positive, mismatch
from nflows_mixer._files import read_json, write_json
from nflows_mixer.data import ImageData, ImageDataset, load_images
from nflows_mixer.data.image_data import check_same_images, with_levels
from nflows_mixer.evaluation.attempt import attempt
from nflows_mixer.evaluation.batches import check_fit
from nflows_mixer.evaluation.bits import evaluate_bounds, summary
from nflows_mixer.evaluation.fid import check_inception, frechet_inception_distance
from nflows_mixer.evaluation.interpolation import interpolation
from nflows_mixer.evaluation.neighbours import centre, memorisation_report
from nflows_mixer.evaluation.ood import ood_report
from nflows_mixer.evaluation.pictures import save_neighbours, save_rows
from nflows_mixer.evaluation.probe import probe_depths
from nflows_mixer.evaluation.reconstruction import reconstruction, round_trip_error
from nflows_mixer.evaluation.sampling import draw_samples, temperature_grid
from nflows_mixer.flows import ImageFlow, load_weights, read_metadata
from nflows_mixer.nn import TakesLabels

OWNER = "evaluate_weights"
COMPARED = 64
"""How many samples, and how many held-out images, are compared with the training images."""


FIGURES = "evaluation.json"
PICTURES = ("temperatures.png", "interpolations.png", "reconstructions.png", "neighbours.png")


@dataclass(frozen=True)
class Evaluation:
    """What to find out about trained weights.

    Args:
        draws: of the noise, for each image; 1000 for DenseFlow's published figure of CIFAR-10.
        images: held-out images to evaluate, at most.
        temperatures: of the samples.
        neighbours: training images to show beside each sample.
        crop: side of the part around the centre by which they are compared; the whole image if
            not given.
        flipped: whether training images are compared mirrored, too; if they were in training,
            where left out.
        outside: other images, named as data is, to tell from those the flow was trained on.
        probe_steps: steps by which a linear classifier is fitted to the embeddings of every
            depth; 0 for none, 2000 is usual.
        fid_weights: file with the weights of the Inception network, for the distance to the
            training images.
        fid_samples: samples for it, at most as many as there are training images.
        seed: of the noise and the samples.
        batch_size: images, or pairs of an image and a draw, at a time, for likelihoods and
            embeddings; bounds the memory.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> Evaluation(draws=1000).neighbours
        5
    """

    draws: int = 5
    images: int | None = None
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0)
    neighbours: int = 5
    crop: int | None = None
    flipped: bool | None = None
    outside: str | None = None
    probe_steps: int = 0
    fid_weights: str | None = None
    fid_samples: int = 10_000
    seed: int = 0
    batch_size: int = 500

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, as_python(value))
        for name in ("draws", "neighbours", "fid_samples", "batch_size"):
            check_positive("Evaluation", name, getattr(self, name))
        for name, none in (("images", None), ("crop", None), ("probe_steps", 0)):
            if getattr(self, name) != none:
                check_positive("Evaluation", name, getattr(self, name))
        if any(not 0 <= each < math.inf for each in self.temperatures):
            expected = "temperatures of 0 or more"
            raise mismatch("Evaluation", expected, self.temperatures, "1 is that of the density")


def evaluate_weights(
    weights: str | Path,
    data: str | Path = "digits",
    test_data: str | Path | None = None,
    root: str | Path = "data",
    size: int | None = None,
    options: Evaluation | None = None,
    device: str = "auto",
    out: str | Path = "runs/evaluation",
) -> dict[str, Any]:
    """Evaluate trained weights on held-out images, and draw what they have learned.

    The split of the images, and the shuffle of their pixels if there is one, are those of the
    training run, which the weights' file names. Written to ``out``: ``evaluation.json``,
    ``temperatures.png``, ``interpolations.png``, ``reconstructions.png`` and ``neighbours.png``
    (samples with the training images nearest to them; see ``memorisation_report``).

    Args:
        weights: file .safetensors of a training run.
        data: the images that it was trained on, a name, an .npz file or a folder.
        test_data: a second file or folder, held out whole; otherwise a tenth of the first is.
        root: folder of downloads, of the data sets that are named, and of the cache.
        size: of a folder: the shorter side of each image is resized to it, the centre cropped.
        options: what to find out; the defaults where None.
        device: cpu, cuda, ..., or auto.
        out: folder for what is written.

    Returns:
        What is in ``evaluation.json``.

    Raises:
        ValueError: if the images are not those that the weights were trained and validated on,
            what was asked for cannot be had of this flow or these images, or there are files in
            the place of these in ``out`` that no evaluation has written.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.flows import mixerflow, save_weights
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1)
        >>> flow = flow.initialize(load_images("digits").train.images())
        >>> out = Path(tempfile.mkdtemp())
        >>> save_weights(flow, out / "weights.safetensors")
        >>> options = Evaluation(draws=2, images=20)
        >>> report = evaluate_weights(out / "weights.safetensors", options=options, out=out)
        >>> report["bits_per_dim"]["images"], len(list(out.glob("*.png")))
        (20, 4)
    """
    options, place, folder = options or Evaluation(), _device(device), Path(out)
    facts = _facts_of(weights)
    images = _images_of_the_run(weights, data, test_data=test_data, root=root, size=size)
    flow = load_weights(weights).to(place).eval()
    held_out = (images.test or images.validation).subset(slice(options.images))
    _check(flow, images, held_out, options)
    _check_folder(folder)
    others = None if options.outside is None else _others(flow, options.outside, root)
    labels = held_out.labels() if _conditional(flow) else None
    seed, batch_size = options.seed, options.batch_size
    bounds = evaluate_bounds(flow, held_out, labels, seed, batch_size, draws=options.draws)
    first = None if labels is None else labels[:200]
    report: dict[str, Any] = {
        **images.describe(),
        "weights": facts,
        "draws": options.draws,
        "seed": seed,
        "bits_per_dim": summary(bounds["average"]),
        "importance_weighted_bits_per_dim": summary(bounds["importance"]),
        "round_trip_error": attempt(
            "round_trip_error",
            lambda: round_trip_error(flow, held_out.images(slice(200)), first, batch_size),
        ),
    }
    write_json(folder / FIGURES, report)  # the others take long, and may fail
    if options.probe_steps:
        report["linear_probe"] = attempt(
            "linear_probe",
            lambda: probe_depths(
                flow, images.train, held_out, None, seed, options.probe_steps, batch_size
            ),
        )
    if others is not None:
        part = (others.test or others.validation).subset(slice(len(held_out)))
        known, outside = images.train.subset(slice(len(held_out))), {others.name: part}
        report["out_of_distribution"] = attempt(
            "out_of_distribution",
            lambda: ood_report(flow, known, held_out, outside, seed=seed, batch_size=batch_size),
        )
    if (of_net := options.fid_weights) is not None:
        count = min(options.fid_samples, len(images.train))
        distance = attempt(
            "frechet_inception_distance",
            lambda: frechet_inception_distance(
                draw_samples(flow, count, seed=seed),
                images.train,
                of_net,
                images.levels,
                device=place,
            ),
        )
        report["frechet_inception_distance"] = {"samples": count, "distance": distance}
    flipped = bool(facts.get("flip", False)) if options.flipped is None else options.flipped

    def compare() -> tuple[Tensor, dict[str, Any]]:
        samples, some = draw_samples(flow, COMPARED, seed=seed), held_out.images(slice(COMPARED))
        crop = options.crop
        return samples, memorisation_report(
            samples, images.train, some, options.neighbours, crop=crop, flipped=flipped
        )

    compared = attempt("memorisation", compare)
    report["memorisation"] = None if compared is None else compared[1]
    write_json(folder / FIGURES, report)
    _draw_pictures(flow, held_out, options, folder)
    if compared is not None:
        draw = partial(_draw_neighbours, compared[0], images.train, compared[1])
        attempt("neighbours.png", partial(draw, images.levels, folder))
    return report


def _draw_pictures(flow: ImageFlow, held_out: ImageDataset, options: Evaluation, out: Path) -> None:
    """Write ``temperatures.png``, ``interpolations.png`` and ``reconstructions.png``."""
    levels = flow.dequantization.levels

    def temperatures() -> None:
        grids = temperature_grid(flow, options.temperatures, 16, options.seed)
        save_rows(out / "temperatures.png", grids, levels)

    def context_of(count: int) -> Tensor | None:
        return held_out.labels(slice(count)) if _conditional(flow) else None

    def interpolations() -> None:
        half = min(8, len(held_out) // 2)
        if not half:
            raise mismatch(OWNER, "two images to interpolate", len(held_out), "evaluate more")
        some = held_out.images(slice(2 * half))
        between = interpolation(flow, some[:half], some[half:], 8, context_of(half))
        title = "held-out images at both ends, and interpolated latents"
        rows = {str(i): row for i, row in enumerate(between)}
        save_rows(out / "interpolations.png", rows, levels, title)

    def reconstructions() -> None:
        some = held_out.images(slice(8))
        pairs, error = reconstruction(flow, some, context_of(len(some)))
        title = f"largest error {error:.1e} of {levels} levels"
        rows = {"images": pairs[:, 0], "reconstructed": pairs[:, 1]}
        save_rows(out / "reconstructions.png", rows, levels, title)

    for picture in (temperatures, interpolations, reconstructions):
        attempt(f"{picture.__name__}.png", picture)


def _draw_neighbours(
    samples: Tensor, train: ImageDataset, report: Mapping[str, Any], levels: int, out: Path
) -> None:
    """Write ``neighbours.png``: the first ten samples beside the images nearest to them."""
    distances = torch.tensor(report["distances"][:10])
    indices = torch.tensor(report["indices"][:10])
    nearest = train.images(indices.flatten()).unflatten(0, indices.shape)
    height, width = report["crop"]
    if report["flipped"]:  # show each as it was nearest
        rows, columns = centre(samples.shape[-2:], report["crop"])
        views = torch.stack([nearest, nearest.flip(-1)])
        differences = (views - samples[:10, None].double())[..., rows, columns]
        mirrored = differences.square().flatten(3).sum(3).argmin(0).bool()
        nearest = torch.where(mirrored[..., None, None, None], views[1], views[0])
    part = "all" if (height, width) == samples.shape[-2:] else "the central"
    mirrored_or_not = ", mirrored or not" if report["flipped"] else ""
    title = (
        f"samples, and the training images nearest to them{mirrored_or_not}\n"
        f"(mean squared difference over {part} {height} x {width} pixels;\n"
        f"median {report['samples']['median']:.4g}, "
        f"of held-out images {report['held_out']['median']:.4g})"
    )
    save_neighbours(out / "neighbours.png", samples[:10], nearest, distances, levels, title)


def _conditional(flow: ImageFlow) -> bool:
    return flow.context_features is not None or isinstance(flow._embedding_net, TakesLabels)


def trained_on(weights: str | Path) -> dict[str, Any]:
    """Return what the run that wrote a file of weights said of its images.

    Args:
        weights: file .safetensors.

    Returns:
        What ``ImageData.describe`` had returned, with the seed of the split; {} where the file says
        nothing of them, as no run has written it.

    Example:
        >>> trained_on("runs/train/weights.safetensors")["split_seed"]  # doctest: +SKIP
        0
    """
    facts = _facts_of(weights)
    if not isinstance(facts.get("data"), dict):
        return {}
    drawn = facts["data"].get("split_seed")
    return {**facts["data"], "split_seed": facts.get("seed", 0) if drawn is None else drawn}


def _facts_of(weights: str | Path) -> dict[str, Any]:
    return {name: _parsed(text) for name, text in read_metadata(weights).items()}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # a plain string
        return text


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        advice = "--device cpu works everywhere"
        raise mismatch(OWNER, f"a device {name!r}", reason, advice) from None


def _images_of_the_run(weights: str | Path, name: str | Path, **where: Any) -> ImageData:
    """Load the images with the split and the shuffle of the training run."""
    trained = trained_on(weights)
    shuffle = trained.get("shuffle") or {}
    data = load_images(
        name,
        seed=trained.get("split_seed", 0),
        shuffle=shuffle.get("mode"),
        shuffle_patch=shuffle.get("patch_size"),
        remap_labels="label_values" in trained,
        **where,
    )
    check_same_images(trained, data, OWNER)
    return with_levels(data, trained.get("levels", data.levels))


def _others(flow: ImageFlow, name: str, root: str | Path) -> ImageData:
    """Load images from outside, as the flow takes them."""
    # Sources that are no folders have a size of their own.
    size = flow.image_shape[-1] if Path(name).is_dir() else None
    others, levels = load_images(name, root=root, size=size), flow.dequantization.levels
    if others.levels > levels and int((others.test or others.validation).images().max()) < levels:
        others = replace(others, levels=levels)  # files do not say that they have fewer
    check_fit(OWNER, "outside images", flow, others, "name images of that size and levels")
    return others


def _check(flow: ImageFlow, data: ImageData, held_out: ImageDataset, options: Evaluation) -> None:
    """Refuse what cannot be, before anything is computed."""
    check_fit(OWNER, "images", flow, data, "name the data that the flow was trained on")
    centre(data.image_shape[1:], options.crop)
    if options.neighbours > len(data.train):
        expected = f"at most {len(data.train)} neighbours, as many as there are training images"
        raise mismatch(OWNER, expected, options.neighbours, "5 is usual")
    if options.fid_weights is not None:
        check_inception(Path(options.fid_weights))
    if _conditional(flow) and (options.probe_steps or options.outside is not None):
        expected = "a flow without context, for probe_steps or outside images"
        raise mismatch(OWNER, expected, "a conditional one", "leave them out")
    if options.probe_steps and not (data.train.labelled and held_out.labelled):
        raise mismatch(OWNER, "labels to probe for", "images alone", "leave probe_steps out")


def _check_folder(out: Path) -> None:
    """Refuse to write over what no evaluation has written."""
    there = [name for name in (FIGURES, *PICTURES) if (out / name).exists()]
    if there and read_json(out / FIGURES, {"bits_per_dim", "draws", "split_hash"}) is None:
        expected = f"no files in {str(out)!r} that the evaluation would write over"
        got = ", ".join(map(repr, there[:3])) + ", which no evaluation has written"
        raise mismatch(OWNER, expected, got, "move them, or name another folder (--out)")
