"""A spline flow of zuko as the patch flow of a MixerFlow, on handwritten digits.

    python examples/zuko_spline.py

It is one line of the model, the class of zuko's flow with its arguments. Writes samples.png,
results.json and results.md to --out, and prints bits per dimension on held-out images, and how far
the log-determinant of a mixer layer is from that of autograd's Jacobian.
"""

import argparse
import json
import os
import platform
import time
from functools import partial
from pathlib import Path

import torch
import zuko
from tqdm import trange

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate, save_grids, yardsticks
from nflows_mixer.flows import mixerflow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.transforms import PatchMixerTransform


def build_flow(data):
    return mixerflow(
        image_shape=data.image_shape,
        levels=data.levels,
        patch_size=2,
        num_layers=2,
        num_flow_layers=2,
        hidden_features=64,
        channel_flow="spline",
        patch_flow=partial(zuko.flows.NSF, transforms=1, hidden_features=(64, 64)),
        logit=1e-3,  # of a background of exact zeros, from which ink is far on a linear scale
    )


def train(flow, images, steps):
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, steps + 1, pct_start=0.05, cycle_momentum=False
    )
    flow.initialize(images[:500]).train()
    progress = trange(steps, desc="training", unit="step", mininterval=0.5)
    for step in progress:
        batch = images[torch.randint(len(images), (100,))]
        loss = bits_per_dim(flow.log_prob(batch), flow.image_shape).mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: expected a finite loss, got {loss}; try another --seed")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix_str(f"{loss.item():.3f} bits/dim", refresh=False)


def logabsdet_error(flow):
    """Largest |log-det - log|det of autograd's Jacobian|| of a mixer layer, over five inputs."""
    layer = [m for m in flow.double().modules() if isinstance(m, PatchMixerTransform)][-1]
    errors = []
    for image in torch.randn(5, 1, *layer.image_shape, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], image)
        expected = torch.linalg.slogdet(jacobian.reshape(image.numel(), -1)).logabsdet
        errors.append((layer(image)[1] - expected).abs().item())
    return max(errors)


def table(results):
    """Results as Markdown, with what they were made of."""
    flows = {"MixerFlow, patch flow of zuko": results["bits_per_dim"]}
    lines = [f"| {name} | {bits:.3f} |" for name, bits in (flows | results["yardsticks"]).items()]
    return "\n".join([f"| {results['data']}, held out | bits/dim |", "|---|---|", *lines]) + (
        f"\n\nThe log-determinant of a mixer layer is within {results['logabsdet_error']:.0e} of "
        f"autograd's, in float64.\n{results['parameters']:,} parameters, {results['steps']} steps "
        f"of 100 of {results['train_images']} training images, seed {results['seed']},\none "
        f"dequantisation draw for each of {results['test_images']} held-out images (worst "
        f"{results['worst_image']:.3f});\n{results['train_seconds']:.0f} s on "
        f"{results['machine']}.\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps, of 100 images")
    parser.add_argument("--seed", type=int, default=0, help="of split, start, batches and noise")
    parser.add_argument("--out", type=Path, default=Path("runs/zuko_spline"), help="folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    data = load_images("digits", seed=arguments.seed)
    flow = build_flow(data)
    start = time.perf_counter()
    train(flow, data.train, arguments.steps)
    seconds = time.perf_counter() - start
    bits = evaluate(flow.eval(), data.test, seed=arguments.seed)
    panels = {"held-out images": data.test[:64], "samples": flow.sample(64)}
    save_grids(arguments.out / "samples.png", panels, data.levels)
    results = {
        "data": data.name,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "steps": arguments.steps,
        "seed": arguments.seed,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "bits_per_dim": bits.mean().item(),
        "worst_image": bits.max().item(),
        "yardsticks": yardsticks(data.train, data.test, data.levels),
        "logabsdet_error": logabsdet_error(flow),
        "train_seconds": round(seconds, 1),
        "machine": f"{torch.get_num_threads()} of {os.cpu_count()} cores, cpu, "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.out / "results.md").write_text(table(results))
    print(f"\n{table(results)}\nsee {arguments.out}")


if __name__ == "__main__":
    main()
