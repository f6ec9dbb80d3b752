"""One network for p(image) and p(label | image): probes, hybrid training, outliers.

    python examples/hybrid_digits.py

Trains a MixerFlow on handwritten digits as a density, and linear probes on its frozen embeddings;
then flows with a linear classifier on their latents, with weights between the two objectives, with
all labels and with a few. The density also scores images that are no digits.
"""

from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import auto_cli

from nflows_mixer.data import ImageDataset, load_images
from nflows_mixer.evaluation import ood_report, probe_depths
from nflows_mixer.flows import Pixels, mixerflow
from nflows_mixer.training import (
    FlowModule,
    HybridModule,
    Recipe,
    fit,
    hide_labels,
    table,
    write_results,
)


def small_flow(data, seed):
    torch.manual_seed(seed)
    return mixerflow(
        image_shape=data.image_shape,
        levels=data.levels,
        patch_size=2,
        num_layers=2,
        hidden_features=64,
        pixels=Pixels(logit=1e-3),  # on a linear scale ink is far from a background of zeros
    )


def other_images(images, levels, seed):
    """Images like digits in some ways: negatives, pixels shuffled among them, and noise."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(images[0].numel(), generator=generator)
    return {
        "negatives": levels - 1 - images,
        "shuffled pixels": images.flatten(1)[:, order].reshape(images.shape),
        "noise": torch.randint(levels, images.shape, generator=generator, dtype=torch.uint8),
    }


def main(
    steps: int = 500,
    kept: int = 50,
    probe_steps: int = 2000,
    seed: int = 0,
    out: str = "runs/hybrid_digits",
    overwrite: bool = False,
):
    """One network for p(image) and p(label | image): probes, hybrid training, outliers.

    Args:
        steps: optimizer steps of each flow, of 100 images.
        kept: labels that are left for semi-supervised training.
        probe_steps: steps by which each linear probe is fitted.
        seed: of the split, the start, the batches and the noise.
        out: folder for what is written.
        overwrite: whether runs that are there are deleted.
    """
    data = load_images("digits", seed=seed)
    recipe = Recipe(1e-3, steps=steps, batch_size=100, warmup=0.05)
    few = replace(data, train=hide_labels(data.train, kept, seed))
    flow = small_flow(data, seed)
    module = FlowModule(flow, recipe, seed=seed)
    results = fit(module, data, out, overwrite=overwrite, facts={"kept_labels": kept})

    results["linear_probe"] = probe_depths(
        flow, data.train, data.test, seed=seed, steps=probe_steps
    )
    others = other_images(data.test.images(), data.levels, seed)
    outside = {name: ImageDataset(images) for name, images in others.items()}
    results["out_of_distribution"] = ood_report(flow, data.train, data.test, outside, seed=seed)
    results["hybrid"] = {}
    for weight, images in ((1.0, data), (0.1, data), (1.0, few), (0.1, few)):
        labels = kept if images is few else len(data.train)
        name = f"weight {weight:g}, {labels:,} labels"
        hybrid = HybridModule(small_flow(data, seed), recipe, data.num_classes, weight, seed)
        # Beside the first run, not in its folder, whose files alone overwrite deletes.
        folder = Path(f"{out}-{name.replace(' ', '-').replace(',', '')}")
        found = fit(hybrid, images, folder, overwrite=overwrite)
        figures = ("bits_per_dim", "cross_entropy", "accuracy")
        results["hybrid"][name] = {figure: found[figure]["test"] for figure in figures}
    results["notes"] = notes(results)
    write_results(results, out)
    print(f"\n{table(results)}\nsee {out}")


def notes(results):
    """Tables of the probes, the hybrid flows and the scores, as lines of Markdown."""
    lines = [
        "| linear probe of the frozen flow, after | cross-entropy | accuracy |",
        "|---|---|---|",
    ]
    for probe in results["linear_probe"]:
        row = f"{probe['depth']}: {probe['layer']} | {probe['loss']:.3f} | {probe['accuracy']:.1%}"
        lines.append(f"| {row} |")
    lines += ["", "| trained jointly | bits/dim | cross-entropy | accuracy |", "|---|---|---|---|"]
    for name, run in results["hybrid"].items():
        figures = f"{run['bits_per_dim']:.3f} | {run['cross_entropy']:.3f} | {run['accuracy']:.1%}"
        lines.append(f"| {name} | {figures} |")
    aurocs = results["out_of_distribution"]["auroc"]
    scores = list(next(iter(aurocs.values())))
    lines += ["", f"| AUROC of digits against | {' | '.join(scores)} |", "|---" * 4 + "|"]
    for name, by_score in aurocs.items():
        lines.append(f"| {name} | {' | '.join(f'{by_score[score]:.3f}' for score in scores)} |")
    return [*lines, ""]


if __name__ == "__main__":
    auto_cli(main)
