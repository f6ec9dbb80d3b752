"""Samples that are a function of a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import device_of
from nflows_mixer.nn import TakesLabels
from nflows_mixer.noise import philox


def draw_samples(
    flow: ImageFlow,
    num_samples: int,
    temperature: float = 1.0,
    seed: int = 0,
    context: Tensor | None = None,
    batch_size: int = 100,
) -> Tensor:
    """Draw uint8 images in evaluation mode, in chunks, each with a random state of its own.

    Chunk j is a function of (``seed``, j); the random state of the caller is left as it was.

    Args:
        flow: any flow on images.
        num_samples: how many, for each row of the context if there is one.
        temperature: multiplies the scales of the base.
        seed: of the samples, 0 to 2^64 - 1.
        context: [M, F], or what the embedding net takes: the samples of its first row come first.
            Where None, a class-conditional flow draws its classes in turn.
        batch_size: images in a chunk. Other sizes give other images.

    Returns:
        uint8 [n, C, H, W] on the CPU; n is ``num_samples``, times M where there is a context.

    Raises:
        ValueError: if an argument is out of range, or the context is not what the flow takes.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 4, 4))
        >>> draw_samples(flow, 6, batch_size=4).shape
        torch.Size([6, 1, 4, 4])
    """
    for name, size in (("num_samples", num_samples), ("batch_size", batch_size)):
        check_positive("draw_samples", name, size)
    if context is None and isinstance(flow._embedding_net, TakesLabels):
        context = torch.arange(num_samples) % flow._embedding_net.num_classes
        num_samples = 1
    device, total = device_of(flow), num_samples * (1 if context is None else len(context))
    samples = [torch.empty(0, *flow.image_shape, dtype=torch.uint8)]
    for chunk, start in enumerate(range(0, total, batch_size)):
        size = min(batch_size, total - start)
        with _seeded(_chunk_seed(seed, chunk), device), in_mode(flow, training=False):
            if context is None:
                drawn = flow.sample(size, temperature=temperature)
            else:
                rows = torch.arange(start, start + size, device=context.device) // num_samples
                given = context[rows].to(device)
                drawn = flow.sample(1, given, temperature=temperature)[:, 0]
        samples.append(drawn.cpu())
    return torch.cat(samples)


def temperature_grid(
    flow: ImageFlow,
    temperatures: Sequence[float],
    num_samples: int = 16,
    seed: int = 0,
    context: Tensor | None = None,
    batch_size: int = 100,
) -> dict[str, Tensor]:
    """Draw the same latents at several temperatures.

    Args:
        flow: any flow on images with a base that knows a temperature.
        temperatures: what the scales of the base are multiplied by, 0 or more.
        num_samples: images at each temperature, for each row of the context if there is one.
        seed: of the samples.
        context: [M, F], or what the embedding net takes.
        batch_size: images in a chunk.

    Returns:
        Title -> uint8 [n, C, H, W], in the order of ``temperatures``: the panels of
        ``save_grids``, or the rows of ``save_rows``.

    Raises:
        ValueError: if a temperature is negative or named twice.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 6 (reduced temperature).

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), (1, 4, 4))
        >>> list(temperature_grid(flow, [0.5, 1.0], num_samples=2))
        ['temperature 0.5', 'temperature 1']
    """
    panels = {
        f"temperature {temperature:g}": draw_samples(
            flow, num_samples, temperature, seed, context, batch_size
        )
        for temperature in temperatures
    }
    if len(panels) != len(temperatures):
        raise mismatch(
            "temperature_grid", "temperatures that differ", list(temperatures), "name each once"
        )
    return panels


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU and this device, and put both back as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # torch.manual_seed would seed every other device too, which nothing puts back.
        torch.random.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _chunk_seed(seed: int, chunk: int) -> int:
    if not 0 <= seed < 2**64:
        raise mismatch("draw_samples", "a seed from 0 to 2**64 - 1", seed, "count from 0")
    counter = torch.tensor([chunk]), torch.zeros(1, dtype=torch.long), 0, 0
    high, low, _, _ = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return (int(high.item()) << 31) ^ int(low.item())
