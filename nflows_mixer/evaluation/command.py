"""The command line of an evaluation: figures and pictures of trained weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflows_mixer._checks import mismatch
from nflows_mixer._files import replace_file
from nflows_mixer.data import ImageData, ImageDataset, load_images
from nflows_mixer.evaluation.dataset import evaluate, round_trip_error, summary
from nflows_mixer.evaluation.fid import frechet_inception_distance
from nflows_mixer.evaluation.interpolation import interpolation, reconstruction
from nflows_mixer.evaluation.neighbours import nearest_images
from nflows_mixer.evaluation.ood import ood_report
from nflows_mixer.evaluation.pictures import save_grids, save_rows
from nflows_mixer.evaluation.probe import probe_depths
from nflows_mixer.evaluation.sampling import draw_samples, temperature_grid
from nflows_mixer.flows import ImageFlow, load_weights, read_metadata


def evaluate_weights(
    weights: str,
    data: str = "digits",
    test_data: str | None = None,
    root: str = "data",
    size: int | None = None,
    draws: int = 5,
    images: int | None = None,
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0),
    outside: str | None = None,
    probe_steps: int = 0,
    fid_weights: str | None = None,
    fid_samples: int = 10_000,
    seed: int = 0,
    device: str = "cpu",
    out: str = "runs/evaluation",
) -> dict[str, Any]:
    """Evaluate trained weights on held-out images, and draw what they have learned.

    Written to ``out``: ``evaluation.json``, ``temperatures.png``, ``interpolations.png``,
    ``reconstructions.png`` and ``neighbours.png`` (samples with the training images nearest to
    them).

    Args:
        weights: file .safetensors of a training run.
        data: what it was trained on, as for training.
        test_data: a second file or folder, held out whole.
        root: folder of downloads and of the data sets that are named.
        size: resize images to size x size.
        draws: dequantisation draws for each image.
        images: held-out images to evaluate, at most.
        temperatures: of the samples.
        outside: other images, named as data is, to tell from those the flow was trained on.
        probe_steps: steps by which a linear classifier is fitted to the embeddings of every
            depth; 0 for none, 2000 is usual.
        fid_weights: file with the weights of the Inception network, for the distance to the
            training images.
        fid_samples: samples for it, at most as many as there are training images.
        seed: of the split, the noise and the samples.
        device: cpu, cuda, ...
        out: folder for what is written.

    Returns:
        What is in ``evaluation.json``.

    Raises:
        ValueError: if the weights are of images of another shape, or what was asked for wants
            labels that are not there.

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
    source = load_images(data, test=test_data, root=root, seed=seed, size=size)
    flow = load_weights(weights).to(device).eval()
    held_out = (source.test or source.validation).subset(slice(images))
    if flow.image_shape != source.image_shape or flow.dequantization.levels != source.levels:
        raise mismatch(
            "evaluate_weights",
            f"images {list(flow.image_shape)} of {flow.dequantization.levels} levels",
            f"{list(source.image_shape)} of {source.levels}",
            "name the data that the flow was trained on",
        )
    conditional = flow.architecture is not None and flow.architecture.num_classes is not None
    labels = held_out.labels() if conditional else None
    average = evaluate(flow, held_out, labels, seed=seed, draws=draws)
    bound = evaluate(flow, held_out, labels, seed=seed, draws=draws, bound="importance")
    first = None if labels is None else labels[:200].to(device)
    report: dict[str, Any] = {
        **source.describe(),
        "weights": read_metadata(weights),
        "draws": draws,
        "seed": seed,
        "bits_per_dim": summary(average),
        "importance_weighted_bits_per_dim": summary(bound),
        "round_trip_error": round_trip_error(flow, held_out.images(slice(200)).to(device), first),
    }
    if probe_steps:
        if not (source.train.labelled and held_out.labelled):
            raise mismatch(
                "evaluate_weights", "labels to probe for", "images alone", "leave probe_steps out"
            )
        report["linear_probe"] = probe_depths(
            flow, source.train, held_out, seed=seed, steps=probe_steps
        )
    if outside is not None:
        report["out_of_distribution"] = _outside(flow, source, held_out, outside, root, seed)
    if fid_weights is not None:
        count = min(fid_samples, len(source.train))
        context = _classes(flow, count)
        samples = draw_samples(flow, count if context is None else 1, seed=seed, context=context)
        report["fid"] = {
            "samples": count,
            "distance": frechet_inception_distance(
                samples, source.train, fid_weights, levels=source.levels
            ),
        }
    _draw(flow, source, held_out, temperatures, seed, Path(out))
    content = json.dumps(report, indent=2) + "\n"
    replace_file(Path(out) / "evaluation.json", content.encode())
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
    print(json.dumps({k: v for k, v in report.items() if k != "weights"}, indent=2))
    print(f"see {arguments['out']}")
    return report


def _outside(
    flow: ImageFlow, source: ImageData, held_out: ImageDataset, name: str, root: str, seed: int
) -> dict[str, Any]:
    other = load_images(name, root=root, seed=seed)
    if other.image_shape != source.image_shape:
        raise mismatch(
            "evaluate_weights",
            f"outside images of {list(source.image_shape)}",
            list(other.image_shape),
            "name images of that size",
        )
    count = len(held_out)
    outside = (other.test or other.validation).subset(slice(count))
    return ood_report(
        flow, source.train.subset(slice(count)), held_out, {other.name: outside}, seed=seed
    )


def _classes(flow: ImageFlow, count: int) -> Tensor | None:
    """Labels that go round, for a flow that wants some."""
    if flow.architecture is None or flow.architecture.num_classes is None:
        return None
    device = next(flow.parameters()).device
    return torch.arange(count, device=device) % flow.architecture.num_classes


def _draw(
    flow: ImageFlow,
    source: ImageData,
    held_out: ImageDataset,
    temperatures: Sequence[float],
    seed: int,
    out: Path,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    device, levels = next(flow.parameters()).device, source.levels
    classes = _classes(flow, 16)
    number = 16 if classes is None else 1
    grids = temperature_grid(flow, temperatures, number, seed, classes)
    save_rows(out / "temperatures.png", {k: v.flatten(0, -4) for k, v in grids.items()}, levels)

    some = held_out.images(slice(16)).to(device)
    context = None
    if classes is not None:
        context = held_out.labels(slice(8)).to(device)
    between = interpolation(flow, some[:8], some[8:16], 8, context).cpu()
    rows = {str(i): row for i, row in enumerate(between)}
    title = "held-out images at both ends, and interpolated latents"
    save_rows(out / "interpolations.png", rows, levels, title)

    pairs, error = reconstruction(flow, some[:8], context)
    rows = {"images": pairs[:, 0].cpu(), "reconstructed": pairs[:, 1].cpu()}
    title = f"largest error {error:.1e} of {levels} levels"
    save_rows(out / "reconstructions.png", rows, levels, title)

    samples = draw_samples(flow, number, seed=seed, context=classes).reshape(16, *flow.image_shape)
    indices, _ = nearest_images(samples.cpu(), source.train, k=1)
    nearest = source.train.images(indices[:, 0])
    panels = {"samples": samples.cpu(), "nearest training images": nearest}
    save_grids(out / "neighbours.png", panels, levels, columns=4)
