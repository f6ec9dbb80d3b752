"""Train a class-conditional MixerFlow on handwritten digits; draw digits to order, and read them.

    python examples/class_conditional.py

One flow models p(x | c) for each class c of digits. With Bayes' rule it is also a classifier,
argmax_c of log p(x | c) + log p(c), and a model of all digits, the sum over c of p(x | c) p(c).
Writes samples.png (a row for each class), results.json and results.md to --out.
"""

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from tqdm import trange

from nflows_mixer.evaluation import evaluate, save_grids, yardsticks
from nflows_mixer.flows import mixerflow
from nflows_mixer.likelihood import bits_per_dim

CLASSES, LEVELS, IMAGE_SHAPE, HELD_OUT = 10, 17, (1, 8, 8), 397
BATCH_SIZE, DRAWS = 100, 4  # dequantisation draws for each held-out image


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--layers", type=int, default=4, help="mixer layers")
    add("--steps", type=int, default=1000, help="optimiser steps, of 100 images")
    add("--lr", type=float, default=3e-3, help="peak learning rate")
    add("--temperature", type=float, default=0.8, help="of the samples; 1 is the model itself")
    add("--seed", type=int, default=0, help="of the split, the start, the batches and the noise")
    add("--out", type=Path, default=Path("runs/class_conditional"), help="folder")
    return parser.parse_args()


def load_labelled_digits(seed):
    """Training and held-out images uint8 [N, 1, 8, 8] of 17 levels, with their labels."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, *IMAGE_SHAPE)
    labels = torch.tensor(classes)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return (images[train], labels[train]), (images[test], labels[test])


def train(flow, images, labels, arguments):
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.lr, arguments.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    flow.initialize(images[:500], labels[:500]).train()
    progress = trange(arguments.steps, desc="training", unit="step", mininterval=0.5)
    for step in progress:
        batch = torch.randint(len(images), (BATCH_SIZE,))
        loss = bits_per_dim(flow.log_prob(images[batch], labels[batch]), IMAGE_SHAPE).mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: expected a finite loss, got {loss}; lower --lr")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix_str(f"{loss.item():.3f} bits/dim", refresh=False)


def log_probs_of_classes(flow, images, seed):
    """log p(x | c) in nats, [N, classes], with the same dequantisation noise for all classes."""
    every = (torch.full((len(images),), c) for c in range(CLASSES))
    bits = torch.stack([evaluate(flow, images, labels, seed) for labels in every], dim=-1)
    return -bits * math.prod(IMAGE_SHAPE) * math.log(2)


def measure(flow, images, labels, priors, seed):
    """Bits/dim of p(x | c) and of p(x), for each image, and the accuracy of Bayes' rule."""
    seeds = range(seed, seed + DRAWS)
    given_class = torch.stack([log_probs_of_classes(flow, images, s) for s in seeds])
    joint = given_class + priors.log()
    accuracy = (joint.mean(0).argmax(-1) == labels).double().mean().item()
    conditional = given_class.mean(0)[torch.arange(len(labels)), labels]
    marginal = joint.logsumexp(-1).mean(0)
    return bits_per_dim(conditional, IMAGE_SHAPE), bits_per_dim(marginal, IMAGE_SHAPE), accuracy


def table(results):
    """Results as Markdown, with what they were made of."""
    conditional, marginal = results["bits_per_dim"], results["marginal_bits_per_dim"]
    flows = {"MixerFlow, p(image, given its class)": conditional, "MixerFlow, p(image)": marginal}
    lines = [f"| {name} | {bits:.3f} |" for name, bits in (flows | results["yardsticks"]).items()]
    return "\n".join([f"| {results['data']}, held out | bits/dim |", "|---|---|", *lines]) + (
        f"\n\nBy Bayes' rule {results['accuracy']:.1%} of the held-out digits are read rightly. "
        f"{results['parameters']:,} parameters,\n{results['steps']} steps of {BATCH_SIZE} of "
        f"{results['train_images']} training images, seed {results['seed']}, {results['draws']} "
        f"dequantisation draws for\neach of {results['test_images']} held-out images (worst "
        f"{results['worst_image']:.3f}); {results['train_seconds']} s on {results['machine']}.\n"
    )


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    (images, labels), (test, test_labels) = load_labelled_digits(arguments.seed)
    flow = mixerflow(
        image_shape=IMAGE_SHAPE,
        levels=LEVELS,
        patch_size=2,
        num_layers=arguments.layers,
        hidden_features=64,
        num_classes=CLASSES,
        logit=1e-3,  # of a background of exact zeros, from which ink is far on a linear scale
    )
    start = time.perf_counter()
    train(flow, images, labels, arguments)
    seconds = time.perf_counter() - start
    priors = labels.bincount(minlength=CLASSES) / len(labels)
    bits, marginal, accuracy = measure(flow, test, test_labels, priors, arguments.seed)
    results = {
        "data": "digits",
        "train_images": len(images),
        "test_images": len(test),
        **{k: v for k, v in vars(arguments).items() if k != "out"},
        "parameters": sum(p.numel() for p in flow.parameters()),
        "bits_per_dim": bits.mean().item(),
        "worst_image": bits.max().item(),
        "marginal_bits_per_dim": marginal.mean().item(),
        "draws": DRAWS,
        "accuracy": accuracy,
        "yardsticks": yardsticks(images, test, LEVELS),
        "train_seconds": round(seconds, 1),
        "machine": f"{torch.get_num_threads()} of {os.cpu_count()} cores, cpu, "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.out / "results.md").write_text(table(results))
    real = torch.cat([test[test_labels == c][:8] for c in range(CLASSES)])
    drawn = flow.sample(8, torch.arange(CLASSES), temperature=arguments.temperature).flatten(0, 1)
    panels = {"held-out images": real, f"samples, temperature {arguments.temperature:g}": drawn}
    save_grids(arguments.out / "samples.png", panels, LEVELS)
    print(f"\n{table(results)}\nsee {arguments.out}")


if __name__ == "__main__":
    main()
