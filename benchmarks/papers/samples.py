"""Samples of scaled-down models side by side, beside held-out images.

    python -m benchmarks.papers.samples --root data --scratch runs/papers/runs

The picture that is kept is written by `--out benchmarks/papers/results/small-short/samples.png`.

Glow and MixerFlow, and MixerFlow with and without shift layers at the learning rate of the
ablation: 64 samples each at temperature 1, with the same seed. Models are those that
`pytest benchmarks -m cpu` left; one that was not trained is left out.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli

from benchmarks.papers.images import SMALL, images_of
from benchmarks.papers.rows import Run
from benchmarks.papers.run import Job
from nflows_mixer.evaluation import draw_samples, save_grids

DATA, SIZE, BUDGET, SEED, COUNT = "cifar10", "small", "short", 0, 64
PANELS = {
    "glow-11": "Glow",
    "mixerflow-32": "MixerFlow",
    "mixerflow-both": "ablation: with shift layers",
    "mixerflow-base-linear": "ablation: without shift layers",
}
"""Model -> title of its samples."""


def main(
    root: str = "data",
    scratch: str = "runs/papers/runs",
    out: str = "runs/papers/samples.png",
) -> None:
    """Draw and write samples.

    Args:
        root: folder of the data sets.
        scratch: folder of the weights.
        out: PNG file to write.
    """
    images = images_of(DATA, root, None, SMALL[DATA])
    assert images.test is not None
    panels = {"held-out images": images.test.images(slice(COUNT))}
    for model, title in PANELS.items():
        try:
            job = Job(Run(model, DATA), SIZE, BUDGET, SEED, images, Path(), Path(scratch), "cpu")
            flow = job.trained()
        except FileNotFoundError as missing:
            print(f"left out: {title}: {missing}")
            continue
        panels[title] = draw_samples(flow, COUNT, temperature=1.0, seed=SEED)
    if len(panels) == 1:
        raise SystemExit("expected weights of one model or more, got none; nothing is written")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_grids(out, panels, images.levels)
    print(out)


if __name__ == "__main__":
    auto_cli(main)
