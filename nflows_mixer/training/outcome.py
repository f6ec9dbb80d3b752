"""What a finished run is worth: its figures and pictures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from nflows_mixer import __version__
from nflows_mixer.evaluation import round_trip_error, save_grids, yardsticks
from nflows_mixer.training.loaders import ImageDataModule
from nflows_mixer.training.module import FlowModule
from nflows_mixer.training.records import Record, peak_memory_mb, sample_grid, sampling_context


def collect(
    module: FlowModule, images: ImageDataModule, record: Record, trainer: Trainer
) -> dict[str, Any]:
    """Return the figures of a run whose test is done, ready for JSON."""
    figures = {k: v.item() for k, v in trainer.callback_metrics.items()}
    names = images.test_names
    held_out = images.parts[names[-1]]
    speeds = sorted(e["images_per_second"] for e in record.history if "images_per_second" in e)
    reported = dict.fromkeys(
        key.partition("/")[2] for key in figures if key.startswith(f"{names[-1]}/")
    )
    found = {name: {part: figures[f"{part}/{name}"] for part in names} for name in reported}
    counts = found.pop("evaluated_images")
    # Of training: the simple models below take memory of their own.
    entries = [entry.get("peak_memory_mb", 0.0) for entry in record.history]
    peak = max(entries, default=0.0) or peak_memory_mb(module.device)
    return {
        **found,
        "evaluated_images": {part: int(count) for part, count in counts.items()},
        "yardsticks": _yardsticks(images),
        "round_trip_error": round_trip_error(
            module.evaluated,
            held_out.images(slice(200)).to(module.device),
            held_out.labels(slice(200)).to(module.device) if module.conditional else None,
        ),
        "steps": trainer.global_step,
        "train_seconds": round(record.seconds, 1),
        "images_per_second": round(speeds[len(speeds) // 2], 1) if speeds else None,
        "peak_memory_mb": round(peak),
        "machine": _machine(module.device, trainer),
        "versions": {
            "nflows_mixer": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _yardsticks(images: ImageDataModule) -> dict[str, float]:
    """Simple models of the same images; of large sets fitted to a part that memory can hold."""
    train, held_out = images.data.train, images.parts[images.test_names[-1]]
    pixels = torch.Size(train.image_shape).numel()
    if pixels > 4096:
        return {}
    return yardsticks(
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
    record: Record,
    out: Path,
) -> None:
    """Write held-out images beside samples, and the curve beside simple models."""
    held_out = images.parts[images.test_names[-1]]
    context = None
    if module.conditional:
        context = sampling_context(module, 64, held_out.labels(slice(64)))
    samples = sample_grid(module, 64, context, module.seed)
    panels = {"held-out images": held_out.images(slice(64)), "samples": samples}
    save_grids(out / "samples.png", panels, images.data.levels)
    if record.history:
        record.write(results["yardsticks"])
