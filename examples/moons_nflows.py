"""Fit a normalizing flow to two moons, and draw its density.

Run it without arguments. It writes a picture and the figures to --out with .png, .json and .md
added, and prints the mean log-density of held-out points.
"""

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, ReversePermutation
from sklearn.datasets import make_moons
from tqdm import trange

# isort: split
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform

NOISE = 0.1


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--steps", type=int, default=1000, help="optimizer steps, of 128 points")
    add("--seed", type=int, default=0, help="of the points, the start and the batches")
    add("--out", type=Path, default=Path("runs") / Path(__file__).stem, help="folder/name of files")
    return parser.parse_args()


def moons(number, seed, noise=NOISE):
    points, _ = make_moons(number, noise=noise, random_state=seed)
    return torch.as_tensor(points, dtype=torch.float32)


def build_layers(number=5):
    layers = []
    for _ in range(number):
        layers.append(ReversePermutation(features=2))
        layers.append(MaskedAffineAutoregressiveTransform(features=2, hidden_features=96))
    return layers


def train(flow, points, steps):
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps + 1)
    progress = trange(steps, desc="training", unit="step", mininterval=0.5)
    for step in progress:
        loss = -flow.log_prob(points[torch.randint(len(points), (128,))]).mean()
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: expected a finite loss, got {loss}; try another --seed")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix_str(f"{loss.item():.3f} nats", refresh=False)


def reference_models(train, test):
    """Mean log-densities of simple models; the last is what no model beats but by luck."""
    normal = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.T))
    # The moons are arcs with normal noise: a mixture of normals, closely spaced along them.
    arcs = torch.distributions.Normal(moons(2000, seed=0, noise=None)[:, None], NOISE)
    drawn_from = arcs.log_prob(test).sum(-1).logsumexp(0) - math.log(2000)
    return {
        "normal, full covariance": normal.log_prob(test).mean().item(),
        "the density they were drawn from": drawn_from.mean().item(),
    }


@torch.no_grad()
def save_density(path, flow, points, title):
    x, y = torch.linspace(-1.75, 2.75, 300), torch.linspace(-1.25, 1.75, 200)
    grid = torch.cartesian_prod(x, y)
    density = flow.log_prob(grid).exp().reshape(len(x), len(y)).T
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    extent = (x[0].item(), x[-1].item(), y[0].item(), y[-1].item())
    picture = axis.imshow(density.numpy(), origin="lower", extent=extent, cmap="viridis")
    axis.scatter(*points[:200].T.numpy(), s=2, color="white", label="held-out points")
    axis.set_title(title)
    axis.legend(loc="upper right", labelcolor="white", facecolor="black", fontsize="small")
    figure.colorbar(picture, label="density", shrink=0.75)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def table(results):
    """Results as Markdown, with what they were made of."""
    rows = {results["layer"]: results["log_density"], **results["reference_models"]}
    lines = [f"| {name} | {value:.3f} |" for name, value in rows.items()]
    return "\n".join(["| two moons, held out | nats per point |", "|---|---|", *lines]) + (
        f"\n\n{results['layers']} layers, {results['parameters']:,} parameters, "
        f"{results['steps']} steps of 128 of {results['train_points']} points, seed "
        f"{results['seed']};\n{results['test_points']} held-out points, the worst at "
        f"{results['worst_point']:.3f}; {results['train_seconds']:.0f} s on {results['machine']}.\n"
    )


def main():
    arguments = parse_arguments()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    points, test = moons(10_000, 2 * arguments.seed), moons(5_000, 2 * arguments.seed + 1)
    layers = build_layers()
    flow = Flow(CompositeTransform(layers), StandardNormal(shape=[2]))
    start = time.perf_counter()
    train(flow, points, arguments.steps)
    seconds = time.perf_counter() - start
    flow.eval()
    with torch.no_grad():
        log_densities = flow.log_prob(test)
    results = {
        "layer": type(layers[-1]).__name__,
        "layers": len(layers) // 2,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "train_points": len(points),
        "test_points": len(test),
        "steps": arguments.steps,
        "seed": arguments.seed,
        "log_density": log_densities.mean().item(),
        "worst_point": log_densities.min().item(),
        "reference_models": reference_models(points, test),
        "train_seconds": round(seconds, 1),
        "machine": f"{torch.get_num_threads()} of {os.cpu_count()} cores, cpu, "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    name = str(arguments.out)
    Path(f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    Path(f"{name}.md").write_text(table(results))
    save_density(f"{name}.png", flow, test, results["layer"])
    print(f"\n{table(results)}\nsee {name}.png")


if __name__ == "__main__":
    main()
