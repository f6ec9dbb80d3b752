"""What the presets of ours were chosen from: short runs of variants, judged by validation images.

    python -m benchmarks.search --root FOLDER
    python -m benchmarks.search --root FOLDER --only '["no whitening", "rate 0.02"]'
    python -m benchmarks.search --smoke true --out runs/search      # that the command runs

Each variant differs from the preset, scaled down, in what its line says. One seed: differences
below 0.01 bits/dim say nothing. A run that is in the JSON file is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.papers.budgets import BUDGETS, SMALL_RATES
from benchmarks.papers.images import SMALL, images_of, noise_images
from benchmarks.papers.kept import RESULTS
from benchmarks.papers.models import MODELS
from benchmarks.papers.run import write
from benchmarks.quality import train
from benchmarks.timing import environment
from nflows_mixer._checks import mismatch
from nflows_mixer.flows import MIXERFLOW_PRESETS, mixerflow
from nflows_mixer.training import Recipe
from nflows_mixer.transforms import AffineCoupling, GlowSteps


class Variant(NamedTuple):
    """What differs from the preset: in arguments of the builder, and in fields of the recipe."""

    arguments: Mapping[str, Any] = {}
    recipe: Mapping[str, Any] = {}


def _steps(num_layers: Any, width: int, steps: int, channels: int, **changes: Any) -> Variant:
    local = partial(
        GlowSteps, num_steps=steps, hidden_channels=channels, **{"matrix": "full", **changes}
    )
    return Variant({"num_layers": num_layers, "hidden_features": width, "local_flow": local})


_UNBOUNDED = {"channel_flow": AffineCoupling, "patch_flow": AffineCoupling}

CIFAR10: dict[str, Variant] = {
    "preset": Variant(),
    "no whitening": Variant(recipe={"whiten": False}),
    "rate 0.02": Variant(recipe={"learning_rate": 0.02}),
    "rate 0.005": Variant(recipe={"learning_rate": 0.005}),
    "betas 0.9 and 0.99": Variant(recipe={"betas": (0.9, 0.99)}),
    "moving average of 0.98": Variant(recipe={"ema_decay": 0.98}),
    "no norm": Variant({"norm": None}),
    "scale without a bound": Variant(_UNBOUNDED),
    "1x1 convolutions in LU form": _steps(4, 44, 8, 36, matrix="lu"),
    "3 layers of 4 wider steps": _steps(3, 64, 4, 72),
    "6 steps, 4 layers in each channel flow": Variant(
        {**_steps(4, 44, 6, 36).arguments, "num_flow_layers": 4}
    ),
    "two scales, 3 and 1 layers": _steps([3, 1], 42, 8, 35),
}
MNIST: dict[str, Variant] = {
    "preset": Variant(),
    "whitening": Variant(recipe={"whiten": True}),
    "rate 0.01": Variant(recipe={"learning_rate": 0.01}),
    "no norm": Variant({"norm": None}),
}
SEARCHES: dict[str, dict[str, Variant]] = {"cifar10": CIFAR10, "mnist": MNIST}
"""Data set -> name -> variant."""


def main(
    root: str = "data",
    only: list[str] = [],  # noqa: B006 (read only)
    data: list[str] = list(SEARCHES),  # noqa: B006 (read only)
    seed: int = 0,
    out: str | None = None,
    smoke: bool = False,
) -> None:
    """Train the variants that have no result yet.

    Args:
        root: folder of the data sets.
        only: names of variants; all if there is none.
        data: names of data sets.
        seed: of the parameters, the order of the images and the noise.
        out: folder for search.json and search.md; where it is a smoke test, runs/search if it is
            not given.
        smoke: whether tiny models are trained on noise for two steps, to see that it runs.
    """
    torch.set_num_threads(1)
    budget = BUDGETS["small"]["smoke" if smoke else "short"]
    path = Path(out or ("runs/search" if smoke else RESULTS), "search.json")
    results: dict[str, Any] = {"runs": [], **environment()}
    variants = {label for name in data for label in SEARCHES[name]}
    if unknown := sorted(set(only) - variants):
        raise mismatch("search", f"names among {sorted(variants)}", unknown, "look at SEARCHES")
    if path.exists():
        results = json.loads(path.read_text())
    for name in data:
        images = noise_images(name, SMALL[name])
        if not smoke:
            images = images_of(name, root, None, SMALL[name])
        for label, variant in SEARCHES[name].items():
            if only and label not in only:
                continue
            arguments = {**scaled_down(name, smoke), **(variant.arguments if not smoke else {})}
            own = {"learning_rate": SMALL_RATES[name], "steps": budget.steps}
            own |= {"batch_size": budget.batch_size, "warmup": 0.05, **variant.recipe}
            recipe = replace(Recipe.from_preset(f"{name}-local"), ema_decay=None)
            recipe = replace(recipe, **own)
            key = {"data": name, "variant": label, "seed": seed}
            key |= {"arguments": str(arguments), "recipe": asdict(recipe)}
            key = json.loads(json.dumps({**key, "split_hash": images.split_hash}))
            if any(key.items() <= run.items() for run in results["runs"]):
                continue
            torch.manual_seed(seed)
            flow = mixerflow(image_shape=images.image_shape, levels=images.levels, **arguments)
            found = train(flow, recipe, seed, images, budget.evaluated or 0)
            place = ("data", "variant", "seed")
            others = [r for r in results["runs"] if any(r[name] != key[name] for name in place)]
            results["runs"] = [*others, {**key, **found}]
            write(path, results)
            print(results["runs"][-1])
    tables.write("search", path, results)


def scaled_down(data: str, smoke: bool = False) -> dict[str, Any]:
    """Return the arguments of the preset at the size of the tables."""
    if data == "cifar10":
        return dict(getattr(MODELS["mixerflow-local"], "smoke" if smoke else "small"))
    given = MIXERFLOW_PRESETS[f"{data}-local"].arguments
    tiny = {"num_layers": 1, "num_flow_layers": 1, "hidden_features": 8} if smoke else {}
    return {**{k: v for k, v in given.items() if k != "image_shape"}, **tiny}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
