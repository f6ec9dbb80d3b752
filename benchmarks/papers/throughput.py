"""How much of a GPU's arithmetic a training step uses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nflows_mixer.flows import ImageFlow

PEAKS = {"H200": 67e12, "H100": 67e12, "A100": 19.5e12}
"""Part of a GPU's name -> float32 operations a second of the SXM model, without TF32."""


def training_operations(flow: ImageFlow, images: Tensor) -> float:
    """Return floating-point operations of a training step for each image.

    Those of matrix products and convolutions, a multiplication and an addition as two, forward and
    backward.

    Args:
        flow: initialised; its mode, gradients and statistics are left as they were.
        images: uint8 [B, C, H, W].
    """
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    training = flow.training
    flow.train()
    with FlopCounterMode(display=False) as counter:
        (-flow.log_prob(images).mean()).backward()
    flow.zero_grad()
    flow.load_state_dict(state)
    flow.train(training)
    return counter.get_total_flops() / len(images)


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


def throughput(flow: ImageFlow, images: Tensor, images_per_second: float) -> dict[str, object]:
    """Return operations for each image and the part of the GPU's peak, for a result.

    Args:
        flow: trained, on a GPU.
        images: uint8 [B, C, H, W], a few.
        images_per_second: of its training.
    """
    operations = training_operations(flow, images.to(next(flow.parameters()).device))
    device = torch.cuda.get_device_name()
    return {
        "training_operations_per_image": operations,
        "fraction_of_peak": fraction_of_peak(operations, images_per_second, device),
    }
