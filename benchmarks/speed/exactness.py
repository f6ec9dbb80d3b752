"""What the fast ways cost in exactness: gradients in constant memory, and bf16 conditioners.

    python -m benchmarks.speed.exactness --data train.npz --test test.npz

The cifar10 preset, fresh and after some steps of training: gradients with ``memory="constant"`` and
"checkpoint" against those of ordinary autograd, relative in the norm over all parameters, in
float64 and float32. Then, with the trained weights: bits/dim of test images with bf16 conditioners
against float32, with the same noise, and the largest error of a round trip, in parts of the pixels'
range. The files hold ``images``, uint8 [N, 32, 32, 3]. Writes results/exactness-cpu.json and
.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.scaling.likelihood import trained
from benchmarks.sizes import parameters_of
from benchmarks.timing import environment, given
from nflows_mixer.data import load_images
from nflows_mixer.flows import mixerflow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.training import Recipe

WAYS = ("constant", "checkpoint")


def gradients(flow, images, noise):
    """The gradients of the mean log-likelihood, in training mode, one after the other."""
    flow.zero_grad()
    flow.train()
    flow.log_prob(images, noise=noise).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in flow.parameters()])


def gradient_errors(state, num_layers, images, seed):
    """Relative error of the gradients, by way and precision."""
    errors = {}
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(seed)
        noise = torch.rand(images.shape, dtype=dtype)
        found = {}
        for memory in ("full", *WAYS):
            flow = mixerflow("cifar10", num_layers=num_layers, memory=memory).to(dtype)
            flow.load_state_dict(state)
            found[memory] = gradients(flow, images, noise)
            inexact = getattr(flow._transform, "inexact", set())
            if inexact:
                raise RuntimeError(f"expected exact inverses, got {sorted(inexact)} named")
        for memory in WAYS:
            error = (found[memory] - found["full"]).norm() / found["full"].norm()
            errors[f"{memory}, {str(dtype).split('.')[1]}"] = error.item()
    return errors


@torch.no_grad()
def precision(flow, images, seed):
    """Bits/dim and errors of a round trip, in float32 and with bf16 conditioners."""
    flow.eval()
    torch.manual_seed(seed)
    noise = torch.rand(images.shape)
    pixels = images + noise
    bits, latents = {}, {}
    for name, enabled in [("float32", False), ("bf16", True)]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            log_prob = flow.log_prob(images, noise=noise)
            latents[name] = flow._transform(pixels)[0]
        bits[name] = bits_per_dim(log_prob, flow.image_shape).mean().item()
    errors = {}
    for there, back in [("float32", "float32"), ("bf16", "bf16"), ("bf16", "float32")]:
        with torch.autocast("cpu", torch.bfloat16, enabled=back == "bf16"):
            rebuilt, _ = flow._transform.inverse(latents[there])
        errors[f"{there} there, {back} back"] = ((rebuilt - pixels).abs().max() / 256).item()
    return bits, errors


def main(
    data: str,
    test: str,
    name: str = "CIFAR-10",
    num_layers: int = 30,
    steps: int = 300,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    gradient_images: int = 8,
    evaluated: int = 200,
    seed: int = 0,
    threads: int = 1,
    out: str = "runs/benchmarks",
):
    """Gradients in constant memory and bf16 conditioners against the exact ones.

    Args:
        data: .npz file to train on.
        test: .npz file to evaluate on.
        name: of the data set, for the table.
        num_layers: mixer layers.
        steps: of training, before the second comparison.
        batch_size: images of a step.
        learning_rate: of Adam, warmed up over a tenth of the steps.
        gradient_images: whose gradients are compared.
        evaluated: test images, of bits/dim and round trips.
        seed: of the weights, the order, the noise and the split.
        threads: of torch.
        out: folder for the results.
    """
    asked = given(locals())
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parts = load_images(data, test_data=test, seed=seed)
    batch = parts.train.images(slice(gradient_images))
    flow = mixerflow("cifar10", num_layers=num_layers)
    flow.initialize(parts.train.images(slice(64)))
    fresh = gradient_errors(flow.state_dict(), num_layers, batch, seed)
    recipe = Recipe(learning_rate, steps=steps, batch_size=batch_size, warmup=0.1)
    trained(flow, parts, recipe, seed)
    after = gradient_errors(flow.state_dict(), num_layers, batch, seed)
    bits, errors = precision(flow, parts.test.images(slice(evaluated)), seed)
    results = {
        "preset": "cifar10",
        **asked,
        "parameters": parameters_of(flow),
        "split_hash": parts.split_hash,
        "gradient_errors": {"fresh": fresh, f"after {steps} steps": after},
        "bits_per_dim": bits,
        "round_trip_errors": errors,
        **environment(),
    }
    tables.write("exactness", Path(out, "exactness-cpu.json"), results)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
