"""Table 4 of the DenseFlow paper, scaled down: equal parameters, equal steps, several seeds.

    python -m benchmarks.denseflow.ablation --data cifar10_train.npz --test cifar10_test.npz
    python -m benchmarks.denseflow.ablation --data digits --size 8 --only '["1", "6"]' --seeds '[0]'

Rows differ in what the paper's differ in: augmentation, preconditioned noise, the networks of the
couplings. In the paper all rows have as many modules, and their sizes differ; here the width of
each row is chosen so that all have as many parameters, those of the cross-unit networks counted:
here they are a fifth of all, in DenseFlow-45-6 a sixtieth.
The images are means over squares of pixels, rounded; the split is that of
``nflows_mixer.data.load_images``. Noise of dequantisation is uniform in all rows. The learning rate
is the same for all: of 0.003 to 0.04 the best for row 1 and for row 6, in shorter runs with another
seed, of which validation images were evaluated.

Each row with each seed is a job, which is written to results/ablation-NAME.json as soon as it is
done, with the table and the picture of what is there; a command that was stopped goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.denseflow.rows import (
    ROWS,
    Scale,
    arguments_of,
    conditioner_of,
    cross_unit_parameters,
    widths_of,
)
from benchmarks.papers.images import averaged_down
from benchmarks.scaling.likelihood import trained
from benchmarks.sizes import parameters_of
from benchmarks.timing import environment
from nflows_mixer.data import ImageData, ImageDataset, load_images
from nflows_mixer.evaluation import evaluate
from nflows_mixer.flows import denseflow
from nflows_mixer.training import Recipe

RESULTS = Path(__file__).parent / "results"


def main(
    data: str,
    test: str | None = None,
    name: str | None = None,
    size: int = 16,
    only: list[str] = list(ROWS),  # noqa: B006, B008 (read only)
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    parameters: int = 150_000,
    steps: int = 800,
    batch_size: int = 32,
    learning_rate: float = 4e-2,
    evaluated: int = 500,
    draws: int = 16,
    out: str = str(RESULTS),
):
    """Bits per dimension of the rows of Table 4, at equal parameters and equal steps.

    Args:
        data: what to train on: a name, or an .npz file, see ``load_images``.
        test: .npz file of images to report, where ``data`` is a file.
        name: of the data set, for the report and the file; that of the data where None.
        size: height and width that images are averaged down to.
        only: rows, by name, see ``benchmarks.denseflow.rows.ROWS``.
        seeds: of the parameters, the order of the images and the noise; one job for each.
        parameters: of every row, as near as widths allow.
        steps: of the optimizer.
        batch_size: images per step.
        learning_rate: its peak; a warm-up of a tenth of the steps, a cosine to zero.
        evaluated: test images.
        draws: of the importance-weighted bound.
        out: folder for the results.
    """
    torch.set_num_threads(1)
    images, scale = averaged_down(load_images(data, test_data=test), size), Scale()
    name = name or images.name
    recipe = Recipe(
        learning_rate,
        steps=steps,
        batch_size=batch_size,
        warmup=0.1,
        optimizer="adamax",
        flip=True,
    )
    setting = {
        "name": name,
        "data": images.describe(),
        "parameters": parameters,
        "scale": asdict(scale),
        "recipe": asdict(recipe),
        "evaluated_images": min(evaluated, len(reported(images))),
        "draws": draws,
    }
    path = Path(out, f"ablation-{name.lower()}.json")
    setting = json.loads(json.dumps(setting))
    done = jobs_in(path, setting)
    for row in only:
        arguments = arguments_of(ROWS[row], scale, images.image_shape, images.levels)
        left = [seed for seed in seeds if (row, seed) not in done]
        widths: dict[str, int] = {}
        if left:
            widths = widths_of(ROWS[row], scale, arguments, parameters)
            arguments["conditioner"] = conditioner_of(ROWS[row], scale, widths)
        for seed in left:
            job = {
                "row": row,
                "seed": seed,
                "hidden_channels": widths["hidden_channels"],
                "dense_growth": widths.get("dense_growth"),
                **run(arguments, images, recipe, seed, evaluated, draws),
            }
            results = {
                "setting": setting,
                **environment(),
                # Of another process, too, that does other rows.
                "jobs": sorted(
                    [*jobs_in(path, setting).values(), job],
                    key=lambda job: (list(ROWS).index(job["row"]), job["seed"]),
                ),
            }
            tables.write("ablation", path, results)


def run(
    arguments: dict[str, Any],
    images: ImageData,
    recipe: Recipe,
    seed: int,
    evaluated: int,
    draws: int,
) -> dict[str, Any]:
    """Train one model, and evaluate it on the first test images."""
    torch.manual_seed(seed)
    flow = denseflow(**arguments)
    seconds = trained(flow, images, recipe, seed)
    held_out = reported(images).images(slice(evaluated))
    weighted = evaluate(flow, held_out, draws=draws, bound="importance")
    return {
        "parameters": parameters_of(flow),
        "cross_unit_parameters": cross_unit_parameters(flow),
        "bits_per_dim": evaluate(flow, held_out).mean().item(),
        "importance_bits_per_dim": weighted.mean().item(),
        "train_cpu_seconds": round(seconds, 1),
    }


def reported(images: ImageData) -> ImageDataset:
    """Return the test part; every source that is read here has one."""
    assert images.test is not None
    return images.test


def jobs_in(path: Path, setting: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the jobs of a file by row and seed, none where there is no file."""
    if not path.exists():
        return {}
    results = json.loads(path.read_text())
    if results["setting"] != setting:
        there = results["setting"]
        changed = [key for key in setting if there.get(key) != setting[key]]
        raise ValueError(
            f"expected jobs of this setting in {path}, got others: {', '.join(changed)} differ; "
            "give another --out or --name"
        )
    return {(job["row"], job["seed"]): job for job in results["jobs"]}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
