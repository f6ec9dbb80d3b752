"""Masked autoregressive flows of nflows or zuko as channel and patch flows, on MNIST.

    python examples/maf_mnist.py                      # torchvision downloads MNIST
    python examples/maf_mnist.py --maf zuko --data FILE.npz

A MAF over all pixels is sampled pixel by pixel, in C * H * W passes; inside a mixer each one is
over a row of the matrix patches x channels, so that sampling takes as many passes as a row is long,
or fewer: an inverse that no longer changes is done. Both are counted here.
"""

from collections import Counter
from typing import Literal

import torch
import zuko
from jsonargparse import auto_cli
from nflows.transforms.made import MADE

from nflows_mixer.adapters.zuko import from_zuko
from nflows_mixer.data import load_images
from nflows_mixer.flows import mixerflow
from nflows_mixer.training import FlowModule, Recipe, fit, table, write_results


def zuko_maf(features):
    maf = zuko.flows.MAF(features, transforms=1, hidden_features=(128, 128))
    return from_zuko(maf, identity_start=True)


def count_passes(flow):
    """How often the busiest masked network runs for samples, its log-det included."""
    passes = Counter()
    masked = [m for m in flow.modules() if isinstance(m, (MADE, zuko.nn.MaskedMLP))]
    hooks = [m.register_forward_hook(lambda net, *_: passes.update([net])) for m in masked]
    flow.eval().sample(64)
    for hook in hooks:
        hook.remove()
    return max(passes.values())


def main(
    data: str = "mnist",
    maf: Literal["nflows", "zuko"] = "nflows",
    layers: int = 2,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    seed: int = 0,
    out: str = "runs/maf_mnist",
    overwrite: bool = False,
):
    """Masked autoregressive flows of nflows or zuko as channel and patch flows, on MNIST.

    Args:
        data: mnist (torchvision downloads it) or a file .npz.
        maf: whose masked flows.
        layers: mixer layers, of 8 MAFs each; the paper has 30.
        steps: optimizer steps.
        batch_size: images per step.
        learning_rate: its peak; the paper's is 5e-4.
        seed: of the split, the start, the batches and the noise.
        out: folder for what is written.
        overwrite: whether a run that is there is deleted.
    """
    torch.manual_seed(seed)
    images = load_images(data, seed=seed)
    # The preset has nflows' MAFs.
    arguments = {"image_shape": images.image_shape, "num_layers": layers}
    if maf == "zuko":
        arguments |= {"channel_flow": zuko_maf, "patch_flow": zuko_maf}
    flow = mixerflow("mnist", **arguments)
    recipe = Recipe(learning_rate, steps=steps, batch_size=batch_size, warmup=0.05)
    results = fit(
        FlowModule(flow, recipe, seed=seed),
        images,
        out,
        overwrite=overwrite,
        facts={"name": f"MixerFlow, MAFs of {maf}", "layers": layers, "maf": maf},
    )
    channels, height, width = images.image_shape
    rows = {"channel": channels * 16, "patch": height * width // 16}
    passes = count_passes(flow)
    results |= {"passes": passes, "row_lengths": rows}
    results["notes"] = [
        f"Sampling took at most {passes} passes through a masked network; its rows have "
        f"{rows['channel']} or {rows['patch']} features,",
        f"an image {channels * height * width}. {layers} mixer layers.",
    ]
    write_results(results, out)
    print(f"\n{table(results)}\nsee {out}")


if __name__ == "__main__":
    auto_cli(main)
