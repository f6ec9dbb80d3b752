"""Train a MixerFlow on images and show what it learned.

    python examples/train_mixerflow.py                        # handwritten digits, on a laptop
    python examples/train_mixerflow.py --data cifar10 --preset cifar10 --layers 6 --steps 400

Writes samples.png, loss.png, checkpoint.pt, results.json and results.md to --out, and prints the
bits per dimension on held-out images beside those of simple models of the same split.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from tqdm import trange

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import evaluate, round_trip_error, save_curve, save_grids, yardsticks
from nflows_mixer.flows import PRESETS, mixerflow
from nflows_mixer.likelihood import bits_per_dim

SMALL = {"patch_size": 4, "num_layers": 4, "hidden_features": 64}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", default="digits", help="digits, cifar10, mnist, FILE.npz or FOLDER of images")
    add("--test-data", help="FILE.npz or FOLDER to hold out; default: a random tenth of --data")
    add("--preset", choices=PRESETS, help="architecture and recipe of the paper's Table 8")
    add("--layers", type=int, help="mixer layers; default: the preset's, or 4")
    add("--patch-size", type=int, help="default: the preset's, or 2 for digits and 4 for others")
    add("--steps", type=int, default=1000, help="optimiser steps; 0 measures the fresh flow")
    add("--batch-size", type=int, default=100, help="images per step")
    add("--lr", type=float, help="peak learning rate; default: the preset's, or 3e-3")
    add("--test-images", type=int, default=1000, help="held-out images to measure, at most")
    add("--seed", type=int, default=0, help="of the split, the start, the batches and the noise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("runs/mixerflow"), help="folder for what it writes")
    return parser.parse_args()


def architecture(arguments, data):
    """Arguments of mixerflow: those of the preset, or of a small flow, changed by the flags."""
    chosen = SMALL | ({"patch_size": 2} if data.name == "digits" else {})
    if arguments.preset:
        chosen = vars(PRESETS[arguments.preset].architecture)
    # Against a background of exact zeros ink is an outlier, which only a logit brings near.
    logit = 1e-3 if (data.train == 0).sum() > data.train.numel() / 4 else None
    flags = {"num_layers": arguments.layers, "patch_size": arguments.patch_size, "logit": logit}
    chosen = chosen | {name: value for name, value in flags.items() if value is not None}
    return chosen | {"image_shape": data.image_shape, "levels": data.levels}


def train(flow, images, arguments):
    """Adam, with a short warm-up and a cosine to zero; returns the bits/dim of each step."""
    preset = PRESETS.get(arguments.preset)
    lr = arguments.lr or (preset.learning_rate if preset else 3e-3)
    betas, clip = (preset.betas, preset.gradient_clip) if preset else ((0.9, 0.999), 5.0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr, betas=betas)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, arguments.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    flow.initialize(images[: max(500, arguments.batch_size)].to(arguments.device))
    flow.train()
    curve = []
    progress = trange(arguments.steps, desc="training", unit="step", mininterval=0.5)
    for step in progress:
        batch = images[torch.randint(len(images), (arguments.batch_size,))].to(arguments.device)
        loss = bits_per_dim(flow.log_prob(batch), flow.image_shape).mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: expected a finite loss, got {loss}; lower --lr {lr}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), clip)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
        progress.set_postfix_str(f"{curve[-1]:.3f} bits/dim", refresh=False)
    return curve


def table(results):
    """Results as Markdown, with what they were made of."""
    rows = {"MixerFlow": results["bits_per_dim"], **results["yardsticks"]}
    lines = [f"| {name} | {value:.3f} |" for name, value in rows.items()]
    lines = [f"| {results['data']}, held out | bits/dim |", "|---|---|", *lines]
    given = results["arguments"]
    return "\n".join(lines) + (
        f"\n\n{results['parameters']:,} parameters, {given['steps']} steps of "
        f"{given['batch_size']} of {results['train_images']} training images, seed "
        f"{given['seed']},\none dequantisation draw for each of {results['test_images']} held-out "
        f"images; {results['train_seconds']:.0f} s on {results['machine']}.\n"
    )


def main():
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    data = load_images(arguments.data, seed=arguments.seed, test=arguments.test_data)
    test = data.test[: arguments.test_images]
    chosen = architecture(arguments, data)
    flow = mixerflow(**chosen).to(arguments.device)
    print(f"{data.name}: {len(data.train)} images to train on, {len(test)} held out")
    start = time.perf_counter()
    curve = train(flow, data.train, arguments)
    seconds = time.perf_counter() - start
    flow.eval()
    bits = evaluate(flow, test, seed=arguments.seed)

    checkpoint = arguments.out / "checkpoint.pt"
    torch.save({"architecture": chosen, "state_dict": flow.state_dict()}, checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    reloaded = mixerflow(**saved["architecture"]).to(arguments.device)
    reloaded.load_state_dict(saved["state_dict"])
    assert torch.equal(evaluate(reloaded, test, seed=arguments.seed), bits), checkpoint

    results = {
        "data": data.name,
        "train_images": len(data.train),
        "test_images": len(test),
        "arguments": {k: v for k, v in vars(arguments).items() if k != "out"},
        "architecture": chosen,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "bits_per_dim": bits.mean().item(),
        "worst_image": bits.max().item(),
        "yardsticks": yardsticks(data.train, test, data.levels),
        "round_trip_error": round_trip_error(flow, test[:200].to(arguments.device)),
        "train_seconds": round(seconds, 1),
        "machine": f"{os.cpu_count()} cores, {arguments.device}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.out / "results.md").write_text(table(results))
    panels = {"held-out images": test[:64], "samples": flow.sample(64).cpu()}
    save_grids(arguments.out / "samples.png", panels, data.levels)
    if curve:
        save_curve(arguments.out / "loss.png", curve, results["yardsticks"], "bits/dim")
    print(f"\n{table(results)}\nworst image {results['worst_image']:.3f} bits/dim\n"
          f"inverse(forward(x)) is within {results['round_trip_error']:.1e} of the pixel range\n"
          f"the checkpoint reloads to the same likelihoods; see {arguments.out}")  # fmt: skip


if __name__ == "__main__":
    main()
