"""The results of a finished run: its figures as JSON and as a table, and its pictures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from nflows_mixer import __version__
from nflows_mixer._files import replace_file, write_json
from nflows_mixer.evaluation import reference_models, round_trip_error, save_grids
from nflows_mixer.evaluation.attempt import attempt
from nflows_mixer.training.batches import ImageDataModule
from nflows_mixer.training.history import History, sample_grid
from nflows_mixer.training.module import FlowModule


def collect(
    module: FlowModule, images: ImageDataModule, history: History, trainer: Trainer
) -> dict[str, Any]:
    """Return the figures of a run whose test is done, ready for JSON."""
    figures = {k: v.item() for k, v in trainer.callback_metrics.items()}
    names = images.test_names
    held_out = images.parts[names[-1]]
    speeds = sorted(e["images_per_second"] for e in history.entries if "images_per_second" in e)
    reported = dict.fromkeys(
        key.partition("/")[2] for key in figures if key.startswith(f"{names[-1]}/")
    )
    found = {name: {part: figures[f"{part}/{name}"] for part in names} for name in reported}
    counts = found.pop("evaluated_images", {})
    # Of training: the simple models below take memory of their own.
    peaks = [entry["peak_memory_mb"] for entry in history.entries if "peak_memory_mb" in entry]
    return {
        "bits_per_dim": {},  # of a trainer that is told to test nothing
        **found,
        "evaluated_images": {part: int(count) for part, count in counts.items()},
        "reference_models": attempt("reference_models", lambda: _reference_models(images)) or {},
        "round_trip_error": attempt(
            "round_trip_error",
            lambda: round_trip_error(
                module.evaluated,
                held_out.images(slice(200)).to(module.device),
                held_out.labels(slice(200)).to(module.device) if module.conditional else None,
            ),
        ),
        "steps": trainer.global_step,
        "skipped_updates": module.skipped_updates.total,
        "train_seconds": round(history.seconds, 1),
        "train_cpu_seconds": round(history.cpu_seconds, 1),
        "images_per_second": round(speeds[len(speeds) // 2], 1) if speeds else None,
        "peak_memory_mb": round(max(peaks)) if peaks else None,
        "machine": _machine(module.device, trainer),
        "versions": {
            "nflows_mixer": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _reference_models(images: ImageDataModule) -> dict[str, float]:
    """Simple models of the same images; of large sets fitted to a part that memory can hold."""
    train, held_out = images.data.train, images.parts[images.test_names[-1]]
    pixels = torch.Size(train.image_shape).numel()
    if pixels > 4096:
        return {}
    return reference_models(
        train.images(slice(50_000)), held_out.images(slice(10_000)), images.data.levels
    )


def _machine(device: torch.device, trainer: Trainer) -> str:
    name = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def draw(
    module: FlowModule,
    images: ImageDataModule,
    results: Mapping[str, Any],
    history: History,
    out: Path,
) -> None:
    """Write held-out images beside samples, and the curve beside simple models, where it can be."""
    held_out = images.parts[images.test_names[-1]]

    def grids() -> None:
        given = held_out.labels(slice(64)) if module.conditional else None
        samples = sample_grid(module, 64, given, module.seed)
        panels = {"held-out images": held_out.images(slice(64)), "samples": samples}
        save_grids(out / "samples.png", panels, images.data.levels)

    attempt("samples.png", grids)
    if history.entries:
        attempt("curve.png", lambda: history.write(results["reference_models"]))


def write_results(results: Mapping[str, Any], out: str | Path) -> None:
    """Write ``results.json``, and ``results.md`` with the table of it.

    Args:
        results: what ``fit`` returned; ``name`` is that of the flow in the table, and ``notes`` a
            list of sentences below it, if they are there.
        out: folder.

    Example:
        >>> write_results(fit(module, data, out), out)  # doctest: +SKIP
    """
    write_json(Path(out) / "results.json", results)
    replace_file(Path(out) / "results.md", table(results).encode())


def table(results: Mapping[str, Any]) -> str:
    """Return results as Markdown, with what they were made of.

    Args:
        results: what ``fit`` returned, or what is in ``results.json``.

    Example:
        >>> from nflows_mixer.training import FlowModule, Recipe, fit
        >>> from nflows_mixer.data import load_images
        >>> from nflows_mixer.flows import mixerflow
        >>> import tempfile
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1)
        >>> module, data = FlowModule(flow, Recipe(steps=0)), load_images("digits")
        >>> results = fit(module, data, tempfile.mkdtemp(), enable_progress_bar=False)
        >>> table(results).splitlines()[3]
        '| uniform, 17 levels | 4.087 |'
    """
    if not results["bits_per_dim"]:
        return f"{results['steps']:,} steps of training; no image was evaluated.\n"
    part = list(results["bits_per_dim"])[-1]
    rows = {
        results.get("name", "MixerFlow"): results["bits_per_dim"][part],
        **results["reference_models"],
    }
    named = " ".join(filter(None, [results["data"], results["version"]]))
    if shuffle := results.get("shuffle"):
        named += f", pixels shuffled ({shuffle['mode']})"
    recipe, versions = results["recipe"], results["versions"]
    # Other flows may draw more noise than that.
    pixels_alone = results.get("family", "mixerflow") == "mixerflow"
    one = "one dequantisation\ndraw" if pixels_alone else "one draw of\nthe noise"
    return "\n".join(
        [
            f"| {named}, {results['evaluated_images'][part]:,} {part} images | bits/dim |",
            "|---|---|",
            *(f"| {name} | {bits:.3f} |" for name, bits in rows.items()),
            "",
            *results.get("notes", []),
            f"{results['parameters']:,} parameters, {results['steps']:,} steps of "
            f"{recipe['batch_size']} of {results['train_images']:,} training images ("
            f"{results['evaluated_images']['train']:,} of them have",
            f"{results['bits_per_dim']['train']:.3f} bits/dim), seed {results['seed']}, split "
            f"{results['split_hash']}; {one} for each "
            f"{part} image, the worst {results['worst_image'][part]:.3f}; "
            f"{results['train_seconds']:.0f} s on {results['machine']}, torch {versions['torch']}.",
            "",
        ]
    )
