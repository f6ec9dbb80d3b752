"""How long the rows are trained: the same for all models of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import Run
from nflows_mixer.flows import MIXERFLOW_PRESETS
from nflows_mixer.training import Recipe

NAMES = ("smoke", "short", "long", "paper")


@dataclass(frozen=True)
class Budget:
    """How much of the published training a run gets.

    Args:
        steps: of the optimizer; None for as many as published.
        batch_size: images per step; None for as many as published.
        evaluated: images of each part that are evaluated, at most; None for all.
        probed: images that a linear probe is fitted to, at most, and a fifth of them to test it.
        generated: samples that an FID is of.
    """

    steps: int | None
    batch_size: int | None
    evaluated: int | None
    probed: int | None
    generated: int


BUDGETS = {
    "paper": {
        "smoke": Budget(2, 4, 8, 60, 8),
        "short": Budget(1_000, None, 1_000, 5_000, 5_000),
        "long": Budget(20_000, None, 10_000, None, 50_000),
        "paper": Budget(None, None, None, None, 50_000),
    },
    "small": {
        "smoke": Budget(2, 4, 8, 60, 8),
        "short": Budget(400, 64, 2_000, 10_000, 0),
        "long": Budget(2_000, 64, 10_000, None, 0),
    },
}
"""Size of the models -> budget; what is scaled down has no published budget."""
PROBE_STEPS = {"smoke": 20, "short": 2_000, "long": 2_000, "paper": 2_000}
"""Budget -> optimizer steps of a linear probe."""
DRAWS = {"smoke": 2, "short": 16, "long": 64}
"""Budget -> draws of an importance-weighted bound, but for the published ones."""
SMALL_RATES = {"cifar10": 1e-2, "mnist": 5e-3}
"""Data set -> learning rate of scaled-down models, but for those that say otherwise.

On CIFAR-10 it is the largest of 0.003, 0.006 and 0.01, which were tried in runs of 200 steps with
another seed, by validation images: the best for MixerFlow, close to it for Glow.
"""


def recipe_of(run: Run, size: str, budget: Budget) -> Recipe:
    """Return how a run is trained.

    The published recipe of the data set is that of all models of a MixerFlow table: Adam, a cosine
    to zero, a bound of 5 on the gradient. Baselines have its rate, too. What a model has of its
    own is in ``Model.recipe``. The first twentieth of all steps is a warm-up.

    Args:
        run: what is trained.
        size: "paper" or "small".
        budget: how much of it.
    """
    model = MODELS[run.model]
    if model.preset is not None:
        recipe = Recipe.from_preset(model.preset)
        if budget.steps is not None:
            # A shorter run is as much warm-up and fine-tuning, in parts.
            part = budget.steps / recipe.steps
            recipe = replace(
                recipe,
                steps=budget.steps,
                warmup=min(int(recipe.warmup), budget.steps // 10),
                fine_tune_steps=int(part * recipe.fine_tune_steps),
            )
    else:
        recipe = Recipe.from_preset(run.data if run.data in MIXERFLOW_PRESETS else "cifar10")
        if size == "small":
            recipe = replace(recipe, learning_rate=SMALL_RATES[run.data])
        here, own = {size, run.shuffle or "plain"}, {"steps": budget.steps or recipe.steps}
        for where, fields in model.recipe.items():
            own |= fields if here.issuperset(where.split()) else {}
        recipe = replace(recipe, **own)
        if recipe.warmup * recipe.steps < 1:  # too short for the warm-up that the rate needs
            recipe = replace(recipe, learning_rate=1e-5)
    return replace(recipe, batch_size=budget.batch_size or recipe.batch_size)


def draws_of(run: Run, budget: str) -> int:
    """Return the draws of an importance-weighted bound: published are 1000 and 200."""
    if budget == "paper":
        return 1000 if run.data == "cifar10" else 200
    return DRAWS[budget]
