"""One side of ``equality.py``: run as a file with the tree to test on PYTHONPATH.

    python equality_worker.py SIDE FOLDER    # side "old" makes the state, "new" reads it mapped

Everything is in float64. Results go to FOLDER/CASE.SIDE.pt.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflows_mixer import transforms
from nflows_mixer.flows import denseflow, mixerflow

MEMORIES = ("full", "checkpoint", "constant")
SMALL = {"image_shape": (3, 12, 12), "patch_size": 4, "num_layers": 2, "hidden_features": 16}
DENSE = {
    "image_shape": (3, 16, 16),
    "units": (2, 2, 1),
    "modules": (2, 1, 2),
    "growth": 2,
}
WIDTHS = {"hidden_channels": 8, "attention_channels": 8}


def old_builders() -> dict[str, Any]:
    """Case -> builder, as commit a04558a has it."""
    return {
        "cifar10-2": partial(mixerflow, "cifar10", num_layers=2),
        "cifar10-2-near": partial(mixerflow, "cifar10", num_layers=2),
        "cifar10-30": partial(mixerflow, "cifar10"),
        "mnist": partial(mixerflow, "mnist", num_layers=4, logit=1e-3),
        "spline": partial(mixerflow, channel_flow="spline", patch_flow="spline", **SMALL),
        "classes": partial(mixerflow, num_classes=10, **SMALL),
        "kronecker": partial(mixerflow, linear="kronecker", **SMALL),
        "denseflow": partial(
            denseflow,
            dequantization_channels=4,
            dense_layers=2,
            dense_growth=8,
            **DENSE,
            **WIDTHS,
        ),
    }


def new_builders() -> dict[str, Any]:
    """Case -> builder of the same flow in today's arguments."""
    from nflows_mixer.nn import DenseAttentionConditioner

    # The norm that conditioners had.
    small = partial(mixerflow, norm="batch", **SMALL)
    spline = transforms.RationalQuadraticCoupling
    return {
        "cifar10-2": partial(mixerflow, "cifar10", num_layers=2),
        "cifar10-2-near": partial(mixerflow, "cifar10", num_layers=2),
        "cifar10-30": partial(mixerflow, "cifar10"),
        "mnist": partial(mixerflow, "mnist", num_layers=4),
        "spline": partial(small, channel_flow=spline, patch_flow=spline),
        "classes": partial(small, num_classes=10),
        "kronecker": partial(small, linear=transforms.KroneckerLinear),
        "denseflow": partial(
            denseflow,
            noise_channels=4,
            norm="batch",
            conditioner=partial(DenseAttentionConditioner, num_layers=2, growth=8, **WIDTHS),
            **DENSE,
        ),
    }


def batch_of(flow: Any, size: int, source: str) -> Tensor:
    """Images of a data file with pixels channels last, cut to the flow's shape, or random ones."""
    channels, height, width = flow.image_shape
    generator = torch.Generator().manual_seed(0)
    if not source:
        shape = (size, channels, height, width)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    images = torch.from_numpy(np.load(source)["images"]).permute(0, 3, 1, 2)
    chosen = torch.randperm(len(images), generator=generator)[:size]
    return images[chosen, :channels, -height:, -width:].contiguous()


def make_state(build: Any, case: dict[str, Any]) -> dict[str, Any]:
    """A state away from the start, and images that it maps to numbers of an ordinary size.

    At such parameters exponents of some images overflow, in any code: those are not taken, and a
    state with too few others is drawn anew; so is, for a few times, one that inverts no image.
    """
    found: dict[str, Any] | None = None
    for seed in range(6):
        flow = build().double()
        images = batch_of(flow, 64, case["data"])
        labels = torch.arange(64) % 10 if case["labels"] else None
        noise = flow.draw_noise(3, 0, torch.arange(64), torch.float64)
        move(flow, images, labels, noise, case["std"], seed)
        flow.eval()
        fine, exact = usable(flow, images, labels, noise), invertible(flow, images, labels, noise)
        order = torch.argsort(fine.int() + (fine & exact).int(), descending=True, stable=True)
        chosen = order[: case["batch"]]
        images, noise, exact = images[chosen], noise[chosen], exact[chosen]
        context = None if labels is None else labels[chosen]
        with torch.no_grad():
            latents, _ = flow.transform_and_log_prob(images, context, noise)
        state = {name: value.clone() for name, value in flow.state_dict().items()}
        if not (fine[chosen].all() and usable(flow.train(), images, context, noise).all()):
            continue
        if found is None or exact.any():
            found = {
                "state": state,
                "images": images,
                "context": context,
                "noise": noise,
                "latents": latents[exact],
                "latents_context": None if context is None else context[exact],
            }
        if exact.any():
            break
    if found is None:
        raise RuntimeError(f"{case['name']}: no state without overflow")
    return found


@torch.no_grad()
def move(
    flow: Any, images: Tensor, context: Tensor | None, noise: Tensor, std: float, seed: int
) -> None:
    """Add noise to all that is learned or kept.

    ActNorm and running statistics are set from data behind the noise on the other parameters, and
    then get noise themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    actnorms = [m for m in flow.modules() if isinstance(m, transforms.ActNorm)]
    normalized = {id(p) for norm in actnorms for p in norm.parameters()}
    norms = [m for m in flow.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

    def disturb(tensors: Any) -> None:
        for tensor in tensors:
            tensor.add_(std * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    disturb(p for p in flow.parameters() if id(p) not in normalized)
    for norm in norms:
        norm.momentum = 1.0
    flow.initialize(images, context, noise)
    disturb(p for p in flow.parameters() if id(p) in normalized)
    for norm in norms:
        norm.momentum = 0.1
        disturb([norm.running_mean])
        logarithm = norm.running_var.log()
        disturb([logarithm])
        norm.running_var.copy_(logarithm.exp())


@torch.no_grad()
def usable(flow: Any, images: Tensor, context: Tensor | None, noise: Tensor) -> Tensor:
    """Which images have a log-likelihood of less than 50 nats for each number, [B]."""
    log_prob = flow.log_prob(images, context, noise)
    return log_prob.abs() < 50 * images[0].numel()


@torch.no_grad()
def invertible(flow: Any, images: Tensor, context: Tensor | None, noise: Tensor) -> Tensor:
    """Which images the inverse gives back, [B]: of others it has no digits left."""
    latents, _ = flow.transform_and_log_prob(images, context, noise)
    values, _ = flow._transform.inverse(latents, flow._embedding_net(context))
    if noise.shape == images.shape:
        return ((images + noise - values).abs() < 1e-9).flatten(1).all(1)
    return (flow.dequantization.inverse(values)[0] == images).flatten(1).all(1)


def evaluate(build: Any, given: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Everything that is compared, by name of the quantity and name of the tensor."""
    found: dict[str, dict[str, Tensor]] = {}
    for memory in MEMORIES:
        flow = build(memory=memory).double()
        for training in (False, True):
            flow.load_state_dict(given["state"])
            flow.train(training)
            kind = f"{memory}, {'training' if training else 'evaluation'}"
            images, context, noise = given["images"], given["context"], given["noise"]
            flow.zero_grad(set_to_none=True)
            latents, log_prob = flow.transform_and_log_prob(images, context, noise)
            found[f"log_prob, {kind}"] = {"": log_prob.detach()}
            found[f"latents, {kind}"] = {"": latents.detach()}
            (-log_prob.mean()).backward()
            found[f"gradients, {kind}"] = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in flow.named_parameters()
            }
            if training:
                found[f"running statistics, {kind}"] = {
                    name: buffer.clone()
                    for name, buffer in flow.named_buffers()
                    if "running_" in name or "tracked" in name
                }
            else:
                with torch.no_grad():
                    embedded = flow._embedding_net(given["latents_context"])
                    values, logabsdet = flow._transform.inverse(given["latents"], embedded)
                found[f"inverse, {kind}"] = {"values": values, "logabsdet": logabsdet}
    return found


def main() -> None:
    """Do one case of one side; FOLDER/case.pt says which."""
    side, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = torch.load(folder / "case.pt")
    build = (old_builders() if side == "old" else new_builders())[case["name"]]
    if case["step"] == "state":
        torch.save(make_state(build, case), folder / "old-state.pt")
    elif case["step"] == "names":
        shapes = {name: list(value.shape) for name, value in build().state_dict().items()}
        torch.save(shapes, folder / f"{side}-names.pt")
    else:
        torch.save(evaluate(build, torch.load(folder / f"{side}-state.pt")), folder / f"{side}.pt")


if __name__ == "__main__":
    main()
