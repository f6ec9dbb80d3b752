"""Samples of scaled-down models side by side, beside held-out images.

    python -m benchmarks.papers.samples --root data --scratch runs/papers/runs

    python -m benchmarks.papers.samples --budget long       # published MixerFlow, Glow, ours

The pictures that are kept are written by `--out benchmarks/papers/results/small-short/samples.png`,
and the same with `small-long`.

After the short budget Glow and MixerFlow, and MixerFlow with and without shift layers at the
learning rate of the ablation; after the long one MixerFlow, Glow and MixerFlow with local flows: 64
samples each, with the same seed. Models are those that `pytest benchmarks -m cpu` left; one that
was not trained is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli

from benchmarks.papers.images import SMALL, images_of
from benchmarks.papers.rows import Run
from benchmarks.papers.run import Job
from nflows_mixer.evaluation import draw_samples, save_grids

DATA, SIZE, SEED, COUNT = "cifar10", "small", 0, 64
PANELS = {
    "short": {
        "glow-11": "Glow",
        "mixerflow-32": "MixerFlow",
        "mixerflow-both": "ablation: with shift layers",
        "mixerflow-base-linear": "ablation: without shift layers",
    },
    "long": {
        "mixerflow-32": "MixerFlow, as published",
        "glow-11": "Glow",
        "mixerflow-local": "MixerFlow with local flows",
    },
}
"""Budget -> model -> title of its samples."""


def main(
    root: str = "data",
    scratch: str = "runs/papers/runs",
    out: str = "runs/papers/samples.png",
    budget: Literal["short", "long"] = "short",
    temperature: float = 1.0,
) -> None:
    """Draw and write samples.

    Args:
        root: folder of the data sets.
        scratch: folder of the weights.
        out: PNG file to write.
        budget: whose models are shown.
        temperature: of the latents, which the titles say.
    """
    images = images_of(DATA, root, None, SMALL[DATA])
    assert images.test is not None
    panels = {"held-out images": images.test.images(slice(COUNT))}
    for model, title in PANELS[budget].items():
        try:
            job = Job(Run(model, DATA), SIZE, budget, SEED, images, Path(), Path(scratch), "cpu")
            flow = job.trained()
        except FileNotFoundError as missing:
            print(f"left out: {title}: {missing}")
            continue
        titled = f"{title}, temperature {temperature:g}"
        panels[titled] = draw_samples(flow, COUNT, temperature=temperature, seed=SEED)
    if len(panels) == 1:
        raise SystemExit("expected weights of one model or more, got none; nothing is written")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_grids(out, panels, images.levels)
    print(out)


if __name__ == "__main__":
    auto_cli(main)
