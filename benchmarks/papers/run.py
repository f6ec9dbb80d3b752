"""Train what a row is about, and write down what came out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.papers.budgets import BUDGETS, recipe_of
from benchmarks.papers.images import NOISE
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import Run
from nflows_mixer._files import replace_file
from nflows_mixer.data import ImageData
from nflows_mixer.flows import ImageFlow, load_weights
from nflows_mixer.training import FlowModule, fit

WEIGHTS = "weights.safetensors"
KEPT = (
    "parameters",
    "bits_per_dim",
    "worst_image",
    "evaluated_images",
    "reference_models",
    "round_trip_error",
    "steps",
    "train_seconds",
    "images_per_second",
    "peak_memory_mb",
    "machine",
    "versions",
)
"""What a result keeps of the figures of a run."""


def result_of(
    run: Run,
    size: str,
    budget: str,
    seed: int,
    images: ImageData,
    out: str | Path,
    scratch: str | Path,
    accelerator: str = "auto",
    accumulate: int = 1,
) -> dict[str, Any]:
    """Train and evaluate a run, or go on with it, or read its result if there is one.

    Of all runs on a data set, those of one budget and seed have the same batches in the same
    order, the same noise of dequantisation, and the same images with the same noise to evaluate.

    Args:
        run: what is trained.
        size: "paper" or "small".
        budget: name of a budget of this size.
        seed: of the parameters, the order of the images and the noise.
        images: the data set, or what stands in for it.
        out: folder of the results, one JSON file for each run.
        scratch: folder of checkpoints and weights.
        accelerator: of Lightning's Trainer.
        accumulate: parts that a batch is computed in, where a GPU is too small for the whole;
            BatchNorm then sees a part at a time.

    Returns:
        What is in the file.

    Raises:
        ValueError: if the file, or the checkpoint, is of another setting.
        FloatingPointError: if the loss is not finite, which is kept as a result without figures.
    """
    allowed = BUDGETS[size][budget]
    setting = describe(run, size, budget, seed, images, accumulate)
    path = path_of(run, size, budget, seed, out)
    folder = folder_of(run, size, budget, seed, scratch)
    with locked(folder):
        if path.exists():
            found = json.loads(path.read_text())
            names = (*setting, "accumulate")  # which is there only where batches are in parts
            if changed := [key for key in names if found.get(key) != setting.get(key)]:
                raise ValueError(
                    f"expected a result of this setting in {path}, got one of another: "
                    f"{', '.join(changed)} differ; delete it, or give another --out"
                )
            if "failed" in found:
                raise FloatingPointError(found["failed"])
            return found
        on_gpu = accelerator != "cpu" and torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        flow = build(run, size, budget, images, seed)
        module = FlowModule(flow, recipe_of(run, size, allowed), seed=seed)
        try:
            figures = fit(
                module,
                images,
                folder,
                resume=True,
                checkpoint_every=min(500, max(1, module.recipe.steps // 10)),
                evaluation_images=allowed.evaluated,
                # A baseline says nothing of itself: these make a checkpoint that of this run.
                facts={name: setting[name] for name in ("arguments", "size", "budget")},
                record_every=10 if allowed.steps is not None and allowed.steps < 10_000 else 100,
                accelerator=accelerator,
                accumulate_grad_batches=accumulate,
                enable_progress_bar=False,
            )
        except FloatingPointError as error:
            write(path, {**setting, "date": time.strftime("%Y-%m-%d"), "failed": str(error)})
            raise
        if not on_gpu:
            del figures["peak_memory_mb"]  # of the process, which may have trained others before
        history = json.loads((folder / "history.json").read_text())
        result = {
            **setting,
            "date": time.strftime("%Y-%m-%d"),
            **{key: figures[key] for key in KEPT if key in figures},
            "history": curve(history, module.recipe.batch_size),
        }
        write(path, result)
    return result


def locked(folder: Path) -> FileLock:
    """Return what one process at a time can enter: rows may share a run, and processes the rows."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def describe(
    run: Run, size: str, budget: str, seed: int, images: ImageData, accumulate: int = 1
) -> dict[str, Any]:
    """Return what makes two results those of the same run, as JSON has it."""
    allowed = BUDGETS[size][budget]
    arguments = getattr(MODELS[run.model], scale_of(size, budget))
    described = {
        "name": run.name,
        "run": asdict(run),
        "size": size,
        "budget": {"name": budget, **asdict(allowed)},
        "seed": seed,
        "synthetic": images.version == NOISE,
        "data": images.describe(),
        "arguments": {key: str(value) for key, value in arguments.items()},
        "recipe": asdict(recipe_of(run, size, allowed)),
    }
    if accumulate > 1:
        described["accumulate"] = accumulate
    return json.loads(json.dumps(described))


def scale_of(size: str, budget: str) -> str:
    """Return the scale of the models: published ones are too large for a smoke test."""
    return "smoke" if (size, budget) == ("paper", "smoke") else size


def build(run: Run, size: str, budget: str, images: ImageData, seed: int) -> ImageFlow:
    """Return the model of a run as it starts."""
    torch.manual_seed(seed)
    scale = scale_of(size, budget)
    return MODELS[run.model].at(scale, images.image_shape, images.levels)


def trained(
    run: Run, size: str, budget: str, seed: int, images: ImageData, scratch: str | Path
) -> ImageFlow:
    """Return the model of a run as it was trained.

    Raises:
        FileNotFoundError: if it was not trained here.
    """
    path = folder_of(run, size, budget, seed, scratch) / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"expected the weights of {run.name} in {path}, got none; delete its JSON file, which "
            "has them trained anew, or give the --scratch of its training"
        )
    return load_weights(path, build(run, size, budget, images, seed)).eval()


def folder_of(run: Run, size: str, budget: str, seed: int, scratch: str | Path) -> Path:
    """Return where the checkpoints and weights of a run are."""
    return Path(scratch, f"{size}-{budget}", f"{run.name}-{seed}")


def path_of(run: Run, size: str, budget: str, seed: int, out: str | Path) -> Path:
    """Return the file of a result."""
    return Path(out, f"{size}-{budget}", f"{run.name}-{seed}.json")


def curve(history: list[dict[str, float]], batch_size: int) -> list[dict[str, float]]:
    """Return the curves of a run: bits per dimension over steps and seconds of training."""
    names = {"train/bits_per_dim": "train", "validation/bits_per_dim": "validation"}
    points, seconds, before = [], 0.0, 0.0
    for entry in history:
        if "images_per_second" in entry:
            seconds += (entry["step"] - before) * batch_size / entry["images_per_second"]
            before = entry["step"]
        point = {short: round(entry[name], 4) for name, short in names.items() if name in entry}
        points.append({"step": entry["step"], "seconds": round(seconds, 1), **point})
    return points


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, so that a command that is killed leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(result, indent=1) + "\n").encode())
