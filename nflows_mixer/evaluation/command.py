"""The command line of an evaluation: figures and pictures of trained weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer._files import replace_file
from nflows_mixer.data import ImageData, load_images
from nflows_mixer.evaluation.dataset import evaluate_bounds, round_trip_error, summary
from nflows_mixer.evaluation.draw import classes_in_turn, draw_neighbours, draw_pictures
from nflows_mixer.evaluation.fid import frechet_inception_distance
from nflows_mixer.evaluation.neighbours import centre, memorisation_report
from nflows_mixer.evaluation.ood import ood_report
from nflows_mixer.evaluation.probe import probe_depths
from nflows_mixer.evaluation.sampling import draw_samples
from nflows_mixer.flows import ImageFlow, load_weights, read_metadata
from nflows_mixer.nn import ClassEmbedding

OWNER = "evaluate_weights"
COMPARED = 64
"""How many samples, and how many held-out images, are compared with the training images."""


def evaluate_weights(
    weights: str,
    data: str = "digits",
    test_data: str | None = None,
    root: str = "data",
    size: int | None = None,
    draws: int = 5,
    images: int | None = None,
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0),
    neighbours: int = 5,
    crop: int | None = None,
    flipped: bool | None = None,
    neighbour_temperature: float = 1.0,
    outside: str | None = None,
    probe_steps: int = 0,
    fid_weights: str | None = None,
    fid_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 500,
    device: str = "auto",
    out: str = "runs/evaluation",
) -> dict[str, Any]:
    """Evaluate trained weights on held-out images, and draw what they have learned.

    The split of the images, and the shuffle of their pixels if there is one, are those of the
    training run, which the weights' file names. Written to ``out``: ``evaluation.json``,
    ``temperatures.png``, ``interpolations.png``, ``reconstructions.png`` and ``neighbours.png``
    (samples with the training images nearest to them; see ``memorisation_report``).

    Args:
        weights: file .safetensors of a training run.
        data: what it was trained on, as for training.
        test_data: a second file or folder, held out whole.
        root: folder of downloads and of the data sets that are named.
        size: resize images to size x size.
        draws: of the noise, for each image; 1000 for DenseFlow's published figure of CIFAR-10.
        images: held-out images to evaluate, at most.
        temperatures: of the samples.
        neighbours: training images to show beside each sample.
        crop: side of the part around the centre by which they are compared; the whole image if
            not given.
        flipped: whether training images are compared mirrored, too; if they were in training,
            where left out.
        neighbour_temperature: of the samples that are compared.
        outside: other images, named as data is, to tell from those the flow was trained on.
        probe_steps: steps by which a linear classifier is fitted to the embeddings of every
            depth; 0 for none, 2000 is usual.
        fid_weights: file with the weights of the Inception network, for the distance to the
            training images.
        fid_samples: samples for it, at most as many as there are training images.
        seed: of the noise and the samples.
        batch_size: images, or pairs of an image and a draw, at a time, for likelihoods and
            embeddings; bounds the memory.
        device: cpu, cuda, ..., or auto.
        out: folder for what is written.

    Returns:
        What is in ``evaluation.json``.

    Raises:
        ValueError: if the images are not those that the weights were trained and validated on, or
            what was asked for cannot be had of this flow or these images.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.flows import mixerflow, save_weights
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1)
        >>> flow = flow.initialize(load_images("digits").train.images())
        >>> out = Path(tempfile.mkdtemp())
        >>> save_weights(flow, out / "weights.safetensors")
        >>> weights = str(out / "weights.safetensors")
        >>> report = evaluate_weights(weights, draws=2, images=20, out=str(out))
        >>> report["bits_per_dim"]["images"], len(list(out.glob("*.png")))
        (20, 4)
    """
    check_positive(OWNER, "neighbours", neighbours)
    if not (math.isfinite(neighbour_temperature) and neighbour_temperature >= 0):
        got = neighbour_temperature
        raise mismatch(OWNER, "a neighbour_temperature of at least 0", got, "1 is the default")
    place = _device(device)
    facts = {name: _parsed(text) for name, text in read_metadata(weights).items()}
    source = _images(facts, data, test_data, root, size)
    flow = load_weights(weights).to(place).eval()
    held_out = (source.test or source.validation).subset(slice(images))
    _check_images("images", flow, source, "name the data that the flow was trained on")
    centre(source.image_shape[1:], crop)
    if neighbours > len(source.train):
        expected = f"at most {len(source.train)} neighbours, as many as there are training images"
        raise mismatch(OWNER, expected, neighbours, "5 is usual")
    flipped = bool(facts.get("flip", False)) if flipped is None else flipped
    conditional = flow.context_features is not None or isinstance(
        flow._embedding_net, ClassEmbedding
    )
    if conditional and (probe_steps or outside is not None):
        expected = "a flow without context, for probe_steps or outside images"
        raise mismatch(OWNER, expected, "a conditional one", "leave them out")
    if probe_steps and not (source.train.labelled and held_out.labelled):
        raise mismatch(OWNER, "labels to probe for", "images alone", "leave probe_steps out")
    labels = held_out.labels() if conditional else None
    bounds = evaluate_bounds(flow, held_out, labels, seed, batch_size, draws=draws)
    first = held_out.images(slice(200)).to(place)
    context = None if labels is None else labels[:200].to(place)
    report: dict[str, Any] = {
        **source.describe(),
        "weights": facts,
        "draws": draws,
        "seed": seed,
        "bits_per_dim": summary(bounds["average"]),
        "importance_weighted_bits_per_dim": summary(bounds["importance"]),
        "round_trip_error": round_trip_error(flow, first, context, batch_size),
    }
    if probe_steps:
        report["linear_probe"] = probe_depths(
            flow, source.train, held_out, seed=seed, steps=probe_steps, batch_size=batch_size
        )
    if outside is not None:
        others = load_images(outside, root=root, size=_size_of(outside, flow))
        part = (others.test or others.validation).subset(slice(len(held_out)))
        levels = flow.dequantization.levels
        if others.levels > levels and int(part.images().max()) < levels:
            others = replace(others, levels=levels)  # files do not say that they have fewer
        _check_images("outside images", flow, others, "name images of that size and levels")
        known = source.train.subset(slice(len(held_out)))
        report["out_of_distribution"] = ood_report(
            flow, known, held_out, {others.name: part}, seed=seed, batch_size=batch_size
        )
    if fid_weights is not None:
        count = min(fid_samples, len(source.train))
        context = classes_in_turn(flow, count)
        samples = draw_samples(flow, count if context is None else 1, seed=seed, context=context)
        distance = frechet_inception_distance(
            samples, source.train, fid_weights, levels=source.levels, device=place
        )
        report["frechet_inception_distance"] = {"samples": count, "distance": distance}
    context = classes_in_turn(flow, COMPARED)
    number = COMPARED if context is None else 1
    samples = draw_samples(
        flow, number, seed=seed, context=context, temperature=neighbour_temperature
    )
    unseen = held_out.images(slice(COMPARED))
    copies = memorisation_report(
        samples, source.train, unseen, neighbours, crop=crop, flipped=flipped
    )
    if neighbour_temperature != 1.0:
        copies["temperature"] = neighbour_temperature
    report["memorisation"] = copies
    content = json.dumps(report, indent=2) + "\n"
    replace_file(Path(out) / "evaluation.json", content.encode())
    draw_pictures(flow, held_out, temperatures, seed, Path(out))
    draw_neighbours(samples, source.train, copies, source.levels, Path(out))
    return report


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> dict[str, Any]:
    """Evaluate trained weights as a command line says, and print the figures.

    Args:
        argv: the arguments; those of the process where None.
        prog: how the command is called, for the help.

    Returns:
        What was written to ``evaluation.json``.

    Raises:
        SystemExit: with the message of an error, if an argument or a file is not right.

    Example:
        >>> main(["--help"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    from jsonargparse import ArgumentParser

    description = (evaluate_weights.__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of these.")
    parser.add_function_arguments(evaluate_weights, as_group=False)
    arguments = vars(parser.parse_args(argv))
    arguments.pop("config")
    try:
        report = evaluate_weights(**arguments)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    shown = {name: value for name, value in report.items() if name != "weights"}
    lists = ("indices", "distances")
    shown["memorisation"] = {k: v for k, v in shown["memorisation"].items() if k not in lists}
    print(json.dumps(shown, indent=2))
    print(f"see {arguments['out']}")
    return report


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
        raise mismatch(
            OWNER, f"a device {name!r}", reason, "--device cpu works everywhere"
        ) from None


def _images(
    facts: dict[str, Any], data: str, test_data: str | None, root: str, size: int | None
) -> ImageData:
    """Load the images with the split and the shuffle of the training run."""
    trained = facts["data"] if isinstance(facts.get("data"), dict) else {}
    shuffle = trained.get("shuffle") or {}
    source = load_images(
        data,
        test=test_data,
        root=root,
        seed=facts.get("seed", 0),
        size=size,
        shuffle=shuffle.get("mode"),
        shuffle_patch=shuffle.get("patch_size"),
    )
    described = json.loads(json.dumps(source.describe()))
    for name in ("split_hash", "version"):
        if name in trained and trained[name] != described[name]:
            raise mismatch(
                OWNER,
                f"the images of the training run, {name} {trained[name]!r}",
                f"{described[name]!r}, where training images may be held out",
                "name the same data, test_data and root",
            )
    return source


def _check_images(what: str, flow: ImageFlow, source: ImageData, advice: str) -> None:
    if flow.image_shape != source.image_shape or flow.dequantization.levels != source.levels:
        raise mismatch(
            OWNER,
            f"{what} {list(flow.image_shape)} of {flow.dequantization.levels} levels",
            f"{list(source.image_shape)} of {source.levels}",
            advice,
        )


def _size_of(name: str, flow: ImageFlow) -> int | None:
    """Folders are resized to what the flow takes; other sources have a size of their own."""
    return flow.image_shape[-1] if Path(name).is_dir() else None
