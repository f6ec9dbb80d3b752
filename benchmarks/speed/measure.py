"""Training, log-likelihoods and sampling: how fast, and how near to the products alone.

    python -m benchmarks.speed.measure            # writes to runs/benchmarks
    python -m benchmarks.speed.measure --preset cifar10-local --variants '["eager", "compiled"]'
    python -m benchmarks.speed.measure --variants '["eager", "constant"]' --rounds 5
    python -m benchmarks.speed.measure --device cuda --num_layers 30 --batch_size 512 --calls 5

Ratios are to the floor, see ``floor.py``: the same model's matrix products alone (and convolutions,
where it has local flows, in the faster layout), forward for log-likelihoods and sampling, forward
and backward for training; of times in the same round, see ``benchmarks/timing.py``. What is timed:

- forward and backward: mean bits/dim of a batch, and its gradients;
- training step: the same, the gradient's norm bounded by 5, and Adam (fused=False);
- log_prob, in evaluation mode without gradients;
- sampling, of as many images as a batch has.

What is prepared once and kept between calls (inverses, compiled code) is there before the clock
starts. Images are random; the weights are moved off their start, see ``variants/base.py``. bf16
variants are divided by the floor in float32 too. Glow has other products, so that its rates are
images a second alone; its parameters are about as many. Of compiled variants there is also how
long they compile in a process that finds nothing compiled.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import nn

from benchmarks import tables
from benchmarks.denseflow.convolutions import convolutions
from benchmarks.speed.floor import Floor, Product, matrix_products, multiply_adds
from benchmarks.speed.variants import VARIANTS, Setting, Unavailable, Variant
from benchmarks.timing import environment, given, interleaved, ratios, timed
from nflows_mixer.transforms import GlowSteps

MEASURES = {
    "forward and backward": ("forward_backward", True),
    "training step": ("training_step", True),
    "log_prob": ("log_prob", False),
    "sampling": ("sample", False),
}
"""What is timed -> (the variant's method, whether it trains)."""
FLOORS = {"floor": False, "collapsed floor": True}
"""Name -> whether the linear tails of conditioners are collapsed."""
FRUGAL = ("compiled checkpoint", "compiled constant")
"""What is divided by "compiled" too, to say what the saved memory costs."""
Name = Literal[tuple(VARIANTS)]
Measure = Literal[tuple(MEASURES)]


def main(
    preset: str = "cifar10",
    num_layers: int = 4,
    batch_size: int = 64,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
    rounds: int = 9,
    calls: int = 1,
    variants: Sequence[Name] = tuple(VARIANTS),
    measures: Sequence[Measure] = tuple(MEASURES),
    changes: Mapping[str, Any] = {},  # noqa: B006 (read only)
    out: str = "runs/benchmarks",
):
    """Time variants of a MixerFlow beside the floor of its matrix products.

    Args:
        preset: of ``mixerflow``.
        num_layers: mixer layers; every fourth is a shift layer.
        batch_size: images.
        device: cpu or cuda.
        dtype: float32 or float64.
        threads: of torch, on the CPU.
        rounds: in each of which every variant runs once.
        calls: of a variant in each round.
        variants: which are timed.
        measures: what is timed of them.
        changes: arguments of ``mixerflow`` that are not the preset's.
        out: folder for the results; their names have the preset's, where it is not the usual one.
    """
    asked = given(locals())
    torch.set_num_threads(threads)
    setting = Setting(preset, num_layers, batch_size, device, getattr(torch, dtype), changes)
    results = {
        **asked,
        "image_shape": setting.image_shape,
        **environment(device),
        **measure(setting, variants, measures, rounds, calls),
    }
    name = device if preset == "cifar10" else f"{preset}-{device}"
    tables.write("speed", Path(out, f"speed-{name}.json"), results)


def measure(
    setting: Setting, names: Sequence[str], measures: Sequence[str], rounds: int, calls: int = 1
) -> dict[str, Any]:
    """Return what the tables are made of, of the named variants."""
    model = setting.flow()
    entries: dict[str, dict[str, Any]] = {name: {"measures": {}} for name in FLOORS}
    skipped: dict[str, str] = {}
    built: dict[str, Variant] = {}
    for name in names:
        try:
            built[name] = variant = VARIANTS[name](setting)
        except Unavailable as reason:
            skipped[name] = str(reason)
            continue
        entries[name] = {"parameters": variant.num_parameters, "measures": {}}
        if variant.compiled:
            entries[name]["compile_seconds"] = cold_seconds(setting, name)
    for kind in measures if built else []:
        for name, found in time_all(setting, model, built, kind, rounds, calls).items():
            entries[name]["measures"][kind] = found
    return {
        "multiply_adds": {
            name: multiply_adds(operations(setting, model, collapsed))
            for name, collapsed in FLOORS.items()
        },
        "variants": entries,
        "skipped": skipped,
    }


def operations(setting: Setting, model: Any, collapsed: bool) -> list[Any]:
    """Return the products of mixer layers, and the convolutions and products of local flows."""
    images = setting.images()[:2]
    model.initialize(images)
    local = convolutions(model, lambda: model.log_prob(images))
    local = [replace(each, layout=torch.channels_last) for each in local]
    for steps in (part for part in model.modules() if isinstance(part, GlowSteps)):
        pixels = math.prod(steps.image_shape) // steps.transform._transforms[0].features
        sizes = [layer.features for layer in steps.transform._transforms]
        local += [Product(pixels, size, size) for size in sizes]
    return [*matrix_products(model, collapsed), *local]


def time_all(
    setting: Setting,
    model: nn.Module,
    built: Mapping[str, Variant],
    kind: str,
    rounds: int,
    calls: int,
) -> dict[str, dict[str, Any]]:
    """Time one measure of all variants, the floor and the collapsed floor, interleaved."""
    method, training = MEASURES[kind]
    tasks = {}
    for name, collapsed in FLOORS.items():
        products = operations(setting, model, collapsed)
        floor = Floor(products, setting.batch_size, setting.device, setting.dtype)
        tasks[name] = floor.training if training else floor.forward
    for name, variant in built.items():
        variant.flow.train(training)
        tasks[name] = getattr(variant, method)
    seconds = interleaved(tasks, rounds, setting.device, calls)
    found = {name: timed(seconds[name], setting.batch_size) for name in tasks}
    for name in tasks:
        if name not in built or built[name].products:
            found[name]["to_floor"] = ratios(seconds, name, "floor")
            found[name]["to_collapsed_floor"] = ratios(seconds, name, "collapsed floor")
        if training and "compiled" in built and name in FRUGAL:
            found[name]["to_compiled"] = ratios(seconds, name, "compiled")
    return found


def cold_seconds(setting: Setting, name: str) -> float:
    """Wall time to build a variant and to train on one batch, beyond that of it uncompiled.

    In a process of its own, whose compiler finds nothing that was kept from before.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_compile, setting, name, torch.get_num_threads()).result()


def _compile(setting: Setting, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    uncompiled = name.removeprefix("compiled").strip() or "eager"
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        plain = _first_use(setting, uncompiled)
        return _first_use(setting, name) - plain


def _first_use(setting: Setting, name: str) -> float:
    start = time.perf_counter()
    VARIANTS[name](setting).forward_backward()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    auto_cli(main)
