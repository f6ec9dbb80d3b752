"""TarFlow, a causal transformer over patches, on handwritten digits, and ways to sample from it.

    python examples/tarflow.py

Four by four patches of 2 x 2 pixels are mapped one after the other, each as a transformer says of
those before it. At the end the same latents are mapped back to images by every method: patch by
patch, by whole passes (Jacobi), and by passes over segments (Gauss-Seidel-Jacobi).
"""

import time

import torch
from jsonargparse import auto_cli

from nflows_mixer import tarflow
from nflows_mixer.data import load_images
from nflows_mixer.flows import Pixels
from nflows_mixer.numerics import inverse_method
from nflows_mixer.training import FlowModule, Recipe, fit, table, write_results

METHODS = {"sequential": None, "jacobi": None, "gauss-seidel": 4}
"""Method -> patches of a segment."""


@torch.no_grad()
def inverses(flow, num_images: int, rounds: int) -> list[dict]:
    """Passes and seconds of each method, and how far its images are from those of the first.

    Args:
        flow: in evaluation mode.
        num_images: that are drawn at once.
        rounds: in each of which every method is timed once; the fastest counts.
    """
    latents = flow._distribution.sample(num_images)
    images, passes = {}, {}
    seconds = {name: [] for name in METHODS}
    for _ in range(rounds):
        for name, segment in METHODS.items():
            start = time.perf_counter()
            with inverse_method(name, segment) as report:
                images[name], _ = flow._transform.inverse(latents)
            seconds[name].append(time.perf_counter() - start)
            passes[name] = sum(each.passes for each in report)
    first = next(iter(images.values()))
    return [
        {
            "method": name,
            "images": num_images,
            "passes": passes[name],
            "seconds": min(seconds[name]),
            "difference": (images[name] - first).abs().max().item(),
        }
        for name in METHODS
    ]


def main(steps: int = 700, seed: int = 0, out: str = "runs/tarflow", overwrite: bool = False):
    """TarFlow on handwritten digits, and the ways to sample from it.

    Args:
        steps: optimizer steps, of 100 images.
        seed: of the split, the start, the batches and the noise.
        out: folder for what is written.
        overwrite: whether a run that is there is deleted.
    """
    torch.manual_seed(seed)
    data = load_images("digits", seed=seed)
    flow = tarflow(
        image_shape=data.image_shape,
        levels=data.levels,
        patch_size=2,
        num_blocks=4,
        num_layers=2,
        hidden_features=48,
        num_heads=4,
        actnorm=True,
        # Ink on a white page: learned noise and a logit, see the page on data.
        pixels=Pixels(dequantization="variational-small", logit=1e-6),
    )
    recipe = Recipe(3e-3, steps=steps, batch_size=100, warmup=0.05, gradient_skip=100.0)
    results = fit(FlowModule(flow, recipe, seed=seed), data, out, overwrite=overwrite)
    flow.eval()
    results["inverses"] = [each for n in (1, 64) for each in inverses(flow, n, rounds=3)]
    results["notes"] = ["", "Four maps of 4 x 4 patches, back from latents to images:", ""]
    results["notes"] += [
        "| images | method | passes | seconds | difference |",
        "|--:|---|--:|--:|--:|",
    ]
    results["notes"] += [
        f"| {each['images']} | {each['method']} | {each['passes']} | {each['seconds']:.3f} | "
        f"{each['difference']:.0e} |"
        for each in results["inverses"]
    ]
    results["notes"] += [""]
    write_results(results, out)
    print(f"\n{table(results)}\nsee {out}")


if __name__ == "__main__":
    auto_cli(main)
