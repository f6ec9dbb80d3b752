"""Train a MixerFlow of masked autoregressive flows (MAFs) on MNIST.

    python examples/maf_mnist.py                # nflows' MAFs, built in; downloads MNIST
    python examples/maf_mnist.py --maf zuko     # zuko's MAFs in their place

The model of the paper's Table 3, small. To invert a MAF takes up to one pass through its network
for each feature: here of the rows and columns of a matrix of patches, not of a whole image.
Writes samples.png, loss.png, results.json and results.md to --out, and prints bits/dim.
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

import torch
import zuko
from nflows.transforms.made import MADE
from tqdm import trange

from nflows_mixer.bridges import from_zuko
from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate, save_curve, save_grids, yardsticks
from nflows_mixer.flows import PRESETS, mixerflow
from nflows_mixer.likelihood import bits_per_dim

PATCH_SIZE = 4


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", default="mnist", help="mnist (torchvision downloads it) or FILE.npz")
    add("--maf", choices=("nflows", "zuko"), default="nflows", help="whose masked flows")
    add("--layers", type=int, default=2, help="mixer layers, of 8 MAFs each; the paper has 30")
    add("--steps", type=int, default=1000, help="optimiser steps")
    add("--batch-size", type=int, default=64, help="images per step")
    add("--lr", type=float, default=5e-3, help="peak learning rate; the paper's is 5e-4")
    add("--seed", type=int, default=0, help="of the split, the start, the batches and the noise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("runs/maf_mnist"), help="folder for what it writes")
    return parser.parse_args()


def zuko_maf(features):
    maf = zuko.flows.MAF(features, transforms=1, hidden_features=(128, 128))
    return from_zuko(maf, identity_start=True)


def build_flow(arguments, image_shape):
    # The preset has nflows' MAFs. A logit brings ink near to the background of exact zeros.
    chosen = {"image_shape": image_shape, "num_layers": arguments.layers, "logit": 1e-3}
    if arguments.maf == "zuko":
        chosen |= {"channel_flow": zuko_maf, "patch_flow": zuko_maf}
    return mixerflow("mnist", patch_size=PATCH_SIZE, **chosen).to(arguments.device)


def train(flow, images, arguments):
    """Adam, with a short warm-up and a cosine to zero; returns the bits/dim of each step."""
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.lr, arguments.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    flow.initialize(images[:500].to(arguments.device)).train()
    curve = []
    progress = trange(arguments.steps, desc="training", unit="step", mininterval=0.5)
    for step in progress:
        batch = images[torch.randint(len(images), (arguments.batch_size,))].to(arguments.device)
        loss = bits_per_dim(flow.log_prob(batch), flow.image_shape).mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: expected a finite loss, got {loss}; lower --lr")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), PRESETS["mnist"].gradient_clip)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
        progress.set_postfix_str(f"{curve[-1]:.3f} bits/dim", refresh=False)
    return curve


def sample_and_count_passes(flow, number):
    """Samples, and how often the busiest masked network ran for them, its log-det included."""
    passes = Counter()
    masked = [m for m in flow.modules() if isinstance(m, (MADE, zuko.nn.MaskedMLP))]
    hooks = [m.register_forward_hook(lambda net, *_: passes.update([net])) for m in masked]
    samples = flow.sample(number)
    for hook in hooks:
        hook.remove()
    return samples.cpu(), max(passes.values())


def table(results):
    """Results as Markdown, with what they were made of."""
    given, rows, passes = results["arguments"], results["row_lengths"], results["passes"]
    flows = {f"MixerFlow, MAFs of {given['maf']}": results["bits_per_dim"]}
    lines = [f"| {name} | {bits:.3f} |" for name, bits in (flows | results["yardsticks"]).items()]
    return "\n".join([f"| {results['data']}, held out | bits/dim |", "|---|---|", *lines]) + (
        f"\n\nSampling took at most {passes} passes through a masked network; its rows have "
        f"{rows['channel']} or {rows['patch']} features,\nan image {results['dimensions']}. "
        f"{results['parameters']:,} parameters, {given['layers']} mixer layers, {given['steps']} "
        f"steps of {given['batch_size']} of\n{results['train_images']} training images, seed "
        f"{given['seed']}, one dequantisation draw for each of {results['test_images']}\nheld-out "
        f"images (worst {results['worst_image']:.3f}); {results['train_seconds']:.0f} s on "
        f"{results['machine']}.\n"
    )


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    data = load_images(arguments.data, seed=arguments.seed)
    flow = build_flow(arguments, data.image_shape)
    start = time.perf_counter()
    curve = train(flow, data.train, arguments)
    seconds = time.perf_counter() - start
    bits = evaluate(flow.eval(), data.test, seed=arguments.seed)
    samples, passes = sample_and_count_passes(flow, 64)
    dimensions, row = data.train[0].numel(), data.image_shape[0] * PATCH_SIZE**2
    results = {
        "data": data.name,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "arguments": {k: v for k, v in vars(arguments).items() if k != "out"},
        "parameters": sum(p.numel() for p in flow.parameters()),
        "bits_per_dim": bits.mean().item(),
        "worst_image": bits.max().item(),
        "yardsticks": yardsticks(data.train, data.test, data.levels),
        "passes": passes,
        "row_lengths": {"channel": row, "patch": dimensions // row},
        "dimensions": dimensions,
        "train_seconds": round(seconds, 1),
        "machine": f"{torch.get_num_threads()} of {os.cpu_count()} cores, {arguments.device}, "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.out / "results.md").write_text(table(results))
    panels = {"held-out images": data.test[:64], "samples": samples}
    save_grids(arguments.out / "samples.png", panels, data.levels)
    save_curve(arguments.out / "loss.png", curve, results["yardsticks"], "bits/dim")
    print(f"\n{table(results)}\nsee {arguments.out}")


if __name__ == "__main__":
    main()
