"""Time to quality: CPU seconds of training to the bits/dim that Glow of normflows reaches.

    python -m benchmarks.quality --data FOLDER --seeds '[0, 1]'
    python -m benchmarks.quality --smoke true --out runs/quality      # that the command runs

On CIFAR-10 averaged to 16 x 16, with models of as many parameters. The target is what Glow of
normflows has after 400 steps at its best rate of three. Then every model climbs a ladder of
budgets, each with a whole schedule that ends there (a warm-up of a twentieth, but ten steps or
more, and a cosine), up to the first that reaches the target: all models that are not there yet take
a rung before any takes the next. What is reached, and which rate is best, is decided by validation
images, of means over seeds; test images are reported. Seconds are CPU time of the process on one
thread, without evaluation; nothing is compiled. A run that is in the JSON file is not made again,
so that a command that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.papers.budgets import Budget, recipe_of
from benchmarks.papers.images import SMALL, images_of, noise_images
from benchmarks.papers.kept import RESULTS
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import Run
from benchmarks.papers.run import write
from benchmarks.timing import environment
from nflows_mixer._checks import mismatch
from nflows_mixer.data import ImageData
from nflows_mixer.flows import ImageFlow
from nflows_mixer.training import FlowModule, Recipe, fit

DATA, REFERENCE = "cifar10", "glow-normflows"
LADDER = (50, 75, 100, 150, 200, 300, 400, 600)


class Climb(NamedTuple):
    """Rates that a model is trained with at each rung, and the rungs: steps."""

    rates: Sequence[float]
    rungs: Sequence[int] = LADDER


CLIMBS = {
    REFERENCE: Climb((3e-3, 5e-3, 1e-2), (400,)),
    "glow-11": Climb((1e-2,)),
    "mixerflow-32": Climb((1e-2,)),
    "mixerflow-local": Climb((1e-2,)),
    "mixerflow-local-3": Climb((1e-2,)),
}
"""Model -> how it is trained; the last rung of the reference is the target."""
SMOKE = {name: Climb(climb.rates, (2, 4)) for name, climb in CLIMBS.items()}


class Setting(NamedTuple):
    """What all runs have in common."""

    scale: str
    batch_size: int
    evaluated: int


def recipe_at(model: str, steps: int, rate: float, setting: Setting) -> Recipe:
    """Return the recipe that the model has in the tables, with a schedule of so many steps."""
    budget = Budget(steps, setting.batch_size, setting.evaluated, None, 0)
    # A twentieth of the shortest schedules is no warm-up: at full rate the second step overflows.
    warmup = min(max(10, steps // 20), steps // 2)
    recipe = recipe_of(Run(model, DATA), "small", budget)
    return replace(recipe, learning_rate=rate, warmup=warmup)


def train(
    flow: ImageFlow, recipe: Recipe, seed: int, images: ImageData, evaluated: int
) -> dict[str, Any]:
    """Return what is kept of a short run: figures, or why it has none."""
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    with TemporaryDirectory() as folder:
        try:
            figures = fit(
                FlowModule(flow, recipe, seed=seed),
                images,
                Path(folder, "run"),
                evaluation_images=evaluated,
                limit_val_batches=0,
                **quiet,
            )
        except FloatingPointError as error:
            return {"failed": str(error)}
    bits = figures["bits_per_dim"]
    found = {part: bits[part] for part in ("validation", "test")}
    names = ("parameters", "train_cpu_seconds")
    return {**{name: figures[name] for name in names}, **found}


def rung(
    model: str, steps: int, rate: float, seed: int, images: ImageData, setting: Setting
) -> dict[str, Any]:
    """Train a model of the tables for so many steps."""
    torch.manual_seed(seed)
    flow = MODELS[model].at(setting.scale, images.image_shape, images.levels)
    return train(flow, recipe_at(model, steps, rate, setting), seed, images, setting.evaluated)


def runs_at(runs: Iterable[dict[str, Any]], model: str, steps: int, rate: float) -> list[Any]:
    """Return the runs of all seeds, or none where one has failed."""
    key = (model, steps, rate)
    alike = [r for r in runs if (r["model"], r["steps"], r["learning_rate"]) == key]
    return [] if any("failed" in run for run in alike) else alike


def validated(runs: Sequence[dict[str, Any]], model: str, steps: int, rate: float) -> float:
    """Return the mean bits/dim of validation images, infinite where a run has failed."""
    found = [run["validation"] for run in runs_at(runs, model, steps, rate)]
    return float(np.mean(found)) if found else inf


def reached(
    runs: Sequence[dict[str, Any]], model: str, climb: Climb, target: float, below: float = inf
) -> dict[str, Any] | None:
    """Return steps, rate and figures of the first rung that reaches the target, None if none.

    Only rungs ``below`` so many steps are looked at.
    """
    for steps in (steps for steps in climb.rungs if steps < below):
        rate = min(climb.rates, key=lambda each: validated(runs, model, steps, each))
        if validated(runs, model, steps, rate) <= target:
            alike = runs_at(runs, model, steps, rate)
            names = ("validation", "test", "train_cpu_seconds")
            figures = {name: [run[name] for run in alike] for name in names}
            common = {"parameters": alike[0]["parameters"], "steps": steps, "learning_rate": rate}
            return {**common, **figures}
    return None


def climbed(
    results: dict[str, Any],
    climbs: Mapping[str, Climb],
    seeds: Sequence[int],
    images: ImageData,
    setting: Setting,
    path: Path,
) -> None:
    """Find the target and climb all ladders; what is in the results is not trained again."""
    runs = results["runs"]

    def take(model: str, steps: int, rates: Iterable[float], seed: int) -> None:
        for rate in rates:
            key = {"model": model, "steps": steps, "learning_rate": rate, "seed": seed}
            if not any(key.items() <= run.items() for run in runs):
                runs.append(key | rung(model, steps, rate, seed, images, setting))
                write(path, results)
                print(", ".join(f"{name} {value}" for name, value in runs[-1].items()))

    rates, (*_, last) = climbs[REFERENCE]
    for seed in seeds:
        take(REFERENCE, last, rates, seed)
    best = min(rates, key=lambda rate: validated(runs, REFERENCE, last, rate))
    target = validated(runs, REFERENCE, last, best)
    results["target"] = {"model": REFERENCE, "steps": last, "validation": target}
    climbs = {**climbs, REFERENCE: Climb((best,), climbs[REFERENCE].rungs)}
    for steps in sorted({steps for climb in climbs.values() for steps in climb.rungs}):
        waiting = {
            model: climb
            for model, climb in climbs.items()
            if steps in climb.rungs and reached(runs, model, climb, target, below=steps) is None
        }
        for seed in seeds:
            for model, climb in waiting.items():
                take(model, steps, climb.rates, seed)
    results["reached"] = {
        model: reached(runs, model, climb, target) for model, climb in climbs.items()
    }


def main(
    data: str = "data",
    seeds: list[int] = [0, 1],  # noqa: B006 (read only)
    out: str = str(RESULTS),
    smoke: bool = False,
) -> None:
    """Measure the CPU seconds of training to a given quality.

    Args:
        data: folder of the data sets.
        seeds: of the parameters, the order of the images and the noise; one run for each.
        out: folder for quality.json and quality.md.
        smoke: whether tiny models are trained on noise for a few steps, to see that it runs.
    """
    torch.set_num_threads(1)
    if smoke:
        images, setting = noise_images(DATA, SMALL[DATA]), Setting("smoke", 4, 8)
    else:
        images = images_of(DATA, data, None, SMALL[DATA])
        setting = Setting("small", 64, 2_000)
    path = Path(out, "quality.json")
    climbs = SMOKE if smoke else CLIMBS
    models = {
        name: {
            "arguments": str(getattr(MODELS[name], setting.scale)),
            "recipe": asdict(recipe_at(name, climb.rungs[-1], climb.rates[0], setting)),
        }
        for name, climb in climbs.items()
    }
    terms = {"data": images.describe(), "seeds": seeds, "setting": setting._asdict()}
    terms = json.loads(json.dumps({**terms, "models": models}))
    results: dict[str, Any] = {**terms, "runs": [], **environment()}
    if path.exists():
        results = json.loads(path.read_text())
        if changed := [name for name, value in terms.items() if results[name] != value]:
            got = f"others: {', '.join(changed)} differ"
            raise mismatch("quality", f"results of this setting in {path}", got, "give an out")
    climbed(results, climbs, seeds, images, setting, path)
    tables.write("quality", path, results)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
