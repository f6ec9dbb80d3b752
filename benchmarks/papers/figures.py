"""What a row reports of the result of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.papers.budgets import BUDGETS, PROBE_STEPS, Budget, draws_of
from benchmarks.papers.rows import Row
from benchmarks.papers.run import folder_of, locked, path_of, trained, write
from nflows_mixer.data import ImageData
from nflows_mixer.evaluation import (
    draw_samples,
    embeddings,
    evaluate,
    frechet_inception_distance,
    linear_probe,
)
from nflows_mixer.flows import ImageFlow
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


def with_figure(
    row: Row,
    result: Mapping[str, Any],
    images: ImageData,
    out: str | Path,
    scratch: str | Path,
    accelerator: str = "auto",
    inception: str | Path | None = None,
) -> dict[str, Any]:
    """Return a result with the figure of a row, which is computed and kept where it is missing.

    Args:
        row: what is asked for.
        result: of its run.
        images: that it was trained on.
        out: folder of the results.
        scratch: folder of the weights.
        accelerator: "cpu", or "auto" for a GPU where there is one.
        inception: weights of the Inception network; without them no FID is computed.

    Raises:
        FileNotFoundError: if the weights are needed and gone.
    """
    part = PLACES[row.figure][0]
    size, budget, seed = result["size"], result["budget"]["name"], result["seed"]
    path = path_of(row.run, size, budget, seed, out)
    with locked(folder_of(row.run, size, budget, seed, scratch)):
        # Another row of this run may have added to it by now.
        result = json.loads(path.read_text())
        if part in result or (part == "fid" and inception is None):
            return dict(result)
        if part == "published_training":
            found = published_training(row, result)
        else:
            device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
            flow = trained(row.run, size, budget, seed, images, scratch).to(device)
            allowed = BUDGETS[size][budget]
            if part == "probe":
                found = probe(flow, images, allowed, seed, PROBE_STEPS[budget])
            elif part == "importance_bits_per_dim":
                found = importance(flow, images, allowed, draws_of(row.run, budget))
            else:
                assert inception is not None
                found = fid(flow, images, allowed, seed, inception)
        result = {**result, part: found}
        write(path, result)
    return result


def importance(
    flow: ImageFlow, images: ImageData, budget: Budget, draws: int
) -> dict[str, float | int]:
    """Evaluate the importance-weighted bound of test images, which a DenseFlow is reported by."""
    assert images.test is not None
    part = images.test.subset(slice(budget.evaluated))
    bits = evaluate(flow, part, draws=draws, bound="importance")
    return {
        "test": bits.mean().item(),
        "worst_image": bits.max().item(),
        "draws": draws,
        "test_images": len(part),
    }


def probe(
    flow: ImageFlow, images: ImageData, budget: Budget, seed: int, steps: int
) -> dict[str, Any]:
    """Fit a linear classifier to the latents of labelled images; test it on those of others."""
    assert images.test is not None
    parts = (
        images.train.subset(slice(budget.probed)),
        images.test.subset(slice(None if budget.probed is None else budget.probed // 5)),
    )
    found: list[Any] = []
    for part in parts:
        found += [embeddings(flow, part), part.labels()]
    device = next(flow.parameters()).device
    fitted = linear_probe(*found, seed=seed, steps=steps, device=device)
    return {**fitted, "train_images": len(parts[0]), "test_images": len(parts[1])}


def fid(
    flow: ImageFlow, images: ImageData, budget: Budget, seed: int, inception: str | Path
) -> dict[str, Any]:
    """Compare samples with as many training images, at most, as there are."""
    samples = draw_samples(flow, budget.generated, seed=seed)
    real = images.train.subset(slice(budget.generated))
    device = next(flow.parameters()).device
    distance = frechet_inception_distance(samples, real, inception, images.levels, device=device)
    return {"distance": distance, "samples": len(samples), "images": len(real)}


def published_training(row: Row, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the published training would take at the speed of this run."""
    recipe, speed = Recipe.from_preset(row.run.model), result["images_per_second"]
    hours = recipe.steps * recipe.batch_size / speed / 3600
    return {"hours": hours, "steps": recipe.steps, "images_per_second": speed}
