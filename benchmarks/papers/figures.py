"""What a row reports of the result of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.papers.budgets import PROBE_STEPS, draws_of
from benchmarks.papers.rows import Row
from benchmarks.papers.run import Job, write
from nflows_mixer.evaluation import (
    draw_samples,
    embeddings,
    evaluate,
    frechet_inception_distance,
    linear_probe,
)
from nflows_mixer.training import Recipe

PLACES = {
    "bits_per_dim": ("bits_per_dim", "test"),
    "importance_bits_per_dim": ("importance_bits_per_dim", "test"),
    "probe_loss": ("probe", "loss"),
    "probe_accuracy": ("probe", "accuracy"),
    "training_hours": ("published_training", "hours"),
    "fid": ("fid", "distance"),
}
"""Figure -> where it is in a result."""


def figure_of(row: Row, result: Mapping[str, Any]) -> float | None:
    """Return the figure of a row, None where it is not in the result."""
    part, name = PLACES[row.figure]
    found = result.get(part)
    if found is None:
        return None
    if row.figure == "bits_per_dim":
        return held_out(found)
    return 100 * found[name] if row.figure == "probe_accuracy" else found[name]


def held_out(found: Mapping[str, float]) -> float:
    """Return what is of the test part, of the validation part where a data set has no other."""
    return found.get("test", found["validation"])


def worst_image(row: Row, result: Mapping[str, Any]) -> float:
    """Return the highest bits/dim of a held-out image, of the bound that the row reports."""
    if row.figure == "importance_bits_per_dim":
        return result[row.figure]["worst_image"]
    return held_out(result["worst_image"])


def with_figure(row: Row, job: Job, inception: str | Path | None = None) -> dict[str, Any]:
    """Return a result with the figure of a row, which is computed and kept where it is missing.

    Args:
        row: what is asked for.
        job: its run, which has a result.
        inception: weights of the Inception network; without them no FID is computed.

    Raises:
        FileNotFoundError: if the weights are needed and gone.
    """
    part = PLACES[row.figure][0]
    with job.locked():
        # Another row of this run may have added to it by now.
        result = json.loads(job.path.read_text())
        if part in result or (part == "fid" and inception is None):
            return result
        if part == "published_training":
            found = published_training(row, result)
        elif part == "probe":
            found = probe(job)
        elif part == "importance_bits_per_dim":
            found = importance(job, draws_of(job.run, job.budget))
        else:
            found = fid(job, inception)
        result = {**result, part: found}
        write(job.path, result)
    return result


def importance(job: Job, draws: int) -> dict[str, float | int]:
    """Evaluate the importance-weighted bound of test images, which a DenseFlow is reported by."""
    assert job.images.test is not None
    part = job.images.test.subset(slice(job.allowed.evaluated))
    bits = evaluate(job.trained(), part, draws=draws, bound="importance")
    return {
        "test": bits.mean().item(),
        "worst_image": bits.max().item(),
        "draws": draws,
        "test_images": len(part),
    }


def probe(job: Job) -> dict[str, Any]:
    """Fit a linear classifier to the latents of labelled images; test it on those of others."""
    images, count, flow = job.images, job.allowed.probed, job.trained()
    assert images.test is not None
    train = images.train.subset(slice(count))
    test = images.test.subset(slice(None if count is None else count // 5))
    found: list[Any] = []
    for part in (train, test):
        found += [embeddings(flow, part), part.labels()]
    steps = PROBE_STEPS[job.budget]
    fitted = linear_probe(*found, seed=job.seed, steps=steps, device=job.device)
    return {**fitted, "train_images": len(train), "test_images": len(test)}


def fid(job: Job, inception: str | Path) -> dict[str, Any]:
    """Compare samples with as many training images, at most, as there are."""
    samples = draw_samples(job.trained(), job.allowed.generated, seed=job.seed)
    real, levels = job.images.train.subset(slice(job.allowed.generated)), job.images.levels
    distance = frechet_inception_distance(samples, real, inception, levels, device=job.device)
    return {"distance": distance, "samples": len(samples), "images": len(real)}


def published_training(row: Row, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the published training would take at the speed of this run."""
    recipe, speed = Recipe.from_preset(row.run.model), result["images_per_second"]
    hours = recipe.steps * recipe.batch_size / speed / 3600
    return {"hours": hours, "steps": recipe.steps, "images_per_second": speed}
