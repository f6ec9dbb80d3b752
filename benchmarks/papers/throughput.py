"""How much of a GPU's arithmetic a training step uses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nflows_mixer.data import ImageData
from nflows_mixer.flows import ImageFlow
from nflows_mixer.training import FlowModule

PEAKS = {"H200": 67e12, "H100 80GB HBM3": 67e12, "A100-SXM": 19.5e12}
"""Part of a GPU's name -> float32 operations a second of the SXM model, without TF32."""


def training_operations(flow: ImageFlow, images: Tensor, batch_size: int) -> float:
    """Return floating-point operations of a training step for each image.

    Those of matrix products and convolutions, a multiplication and an addition as two, forward and
    backward. Some are done once for a batch: two small ones tell them apart.

    Args:
        flow: initialised; its mode, gradients and statistics are left as they were.
        images: uint8 [B, C, H, W], of which B and B / 2 are counted.
        batch_size: images of the step.
    """
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    training, counts = flow.training, []
    flow.train()
    for some in (images[: len(images) // 2], images):
        with FlopCounterMode(display=False) as counter:
            (-flow.log_prob(some).mean()).backward()
        counts.append(counter.get_total_flops())
    flow.zero_grad()
    flow.load_state_dict(state)
    flow.train(training)
    of_each = (counts[1] - counts[0]) / (len(images) - len(images) // 2)
    return of_each + (counts[1] - of_each * len(images)) / batch_size


def fraction_of_peak(operations: float, images_per_second: float, device: str) -> float | None:
    """Return operations a second over what a GPU can do in float32; None of an unknown one.

    Args:
        operations: for each image.
        images_per_second: of training.
        device: its name, such as ``torch.cuda.get_device_name`` gives.
    """
    for name, peak in PEAKS.items():
        if name in device:
            return operations * images_per_second / peak
    return None


def throughput(
    module: FlowModule, images: ImageData, images_per_second: float, accumulate: int
) -> dict[str, float | None]:
    """Return operations for each image and the part of the GPU's peak, for a result.

    Args:
        module: what was trained.
        images: that it was trained on.
        images_per_second: of its training.
        accumulate: parts that a batch was computed in.
    """
    part = module.recipe.batch_size // accumulate
    operations = training_operations(module.flow, images.validation.images(slice(8)), part)
    device = torch.cuda.get_device_name()
    return {
        "training_operations_per_image": operations,
        "fraction_of_peak": fraction_of_peak(operations, images_per_second, device),
    }
