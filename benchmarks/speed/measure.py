"""Training, log-likelihoods and sampling: how fast, and how near to the products alone.

    python -m benchmarks.speed.measure            # writes results/speed-cpu.json, .md and .png
    python -m benchmarks.speed.measure --variants "eager, stock nflows parts" --rounds 5
    python -m benchmarks.speed.measure --device cuda --num_layers 30 --batch_size 512 \
        --peak_tflops 989 --calls 5

Ratios are to the floor, see ``floor.py``: the same model's matrix products alone, forward for
log-likelihoods and sampling, forward and backward for training; of times in the same round, see
``interleaved.py``. What is timed:

- forward and backward: mean bits/dim of a batch, and its gradients;
- training step: the same, the gradient's norm bounded by 5, and Adam (fused=False);
- log_prob, in evaluation mode without gradients;
- sampling, of as many images as a batch has.

What is prepared once and kept between calls (inverses, compiled code) is there before the clock
starts. Images are random; the weights are moved off their start, see ``variants/base.py``. bf16
variants are divided by the floor in float32 too. Glow has other products, so that its rates are
images a second alone; its parameters are about as many. Of compiled variants there is also how
long they compile in a process that finds nothing compiled.

Results of another setting than the usual one are written to files of other names.
"""

from __future__ import annotations

import warnings
from statistics import median
from typing import Any

import torch
from jsonargparse import auto_cli

from benchmarks import tables
from benchmarks.speed.compilation import cold_seconds
from benchmarks.speed.environment import machine, versions
from benchmarks.speed.files import RESULTS, path_of
from benchmarks.speed.floor import Floor, matrix_products, multiply_adds
from benchmarks.speed.interleaved import clock, interleaved, ratios
from benchmarks.speed.variants import VARIANTS, Setting, Unavailable, Variant
from nflows_mixer.flows import MIXERFLOW_PRESETS

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


def main(
    preset: str = "cifar10",
    num_layers: int = 4,
    batch_size: int = 64,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
    rounds: int = 9,
    calls: int = 1,
    variants: str = "all",
    measures: str = "all",
    peak_tflops: float | None = None,
    hidden_features: int | None = None,
    image_size: int | None = None,
    out: str = str(RESULTS),
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
        variants: names with commas between, or all.
        measures: names with commas between, or all.
        peak_tflops: what the device's bf16 products can reach, to say what share is used.
        hidden_features: of the conditioners, where not the preset's.
        image_size: height and width of the images, where not the preset's.
        out: folder for the results.
    """
    path = path_of("speed", main, locals())
    torch.set_num_threads(threads)
    changes = changes_of(preset, hidden_features, image_size)
    setting = Setting(
        preset, num_layers, batch_size, device, getattr(torch, dtype), changes=changes
    )
    results = {
        "preset": preset,
        "image_shape": setting.image_shape,
        "num_layers": num_layers,
        "batch_size": batch_size,
        "dtype": dtype,
        "rounds": rounds,
        "calls": calls,
        "clock": clock(device),
        "machine": machine(device, threads),
        "versions": versions(),
        "peak_tflops": peak_tflops,
        **measure(setting, chosen(variants, VARIANTS), chosen(measures, MEASURES), rounds, calls),
    }
    tables.write("speed", path, results)
    print(path.with_suffix(".md").read_text())


def changes_of(preset: str, hidden_features: int | None, image_size: int | None) -> dict[str, Any]:
    """Arguments of ``mixerflow`` that are not the preset's."""
    changes: dict[str, Any] = {}
    if hidden_features is not None:
        changes["hidden_features"] = hidden_features
    if image_size is not None:
        channels = MIXERFLOW_PRESETS[preset].arguments["image_shape"][0]
        changes["image_shape"] = (channels, image_size, image_size)
    return changes


def chosen(names: str, known: dict[str, Any]) -> list[str]:
    """Split names at commas, and check them."""
    if names == "all":
        return list(known)
    found = [name.strip() for name in names.split(",")]
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(f"expected names among {', '.join(known)}, got {', '.join(unknown)}")
    return found


def measure(
    setting: Setting, names: list[str], measures: list[str], rounds: int, calls: int = 1
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
            print(f"skipped: {name}: {reason}")
            continue
        entries[name] = {"parameters": variant.num_parameters, "measures": {}}
        if variant.compiled:
            entries[name]["compile_seconds"] = cold_seconds(setting, name)
            print(f"{name}: compiled in {entries[name]['compile_seconds']:.0f} s")
    for kind in measures if built else []:
        timed_here = {n: v for n, v in built.items() if MEASURES[kind][0] in v.methods}
        print(f"{kind}: {', '.join(timed_here)}")
        for name, timed in time_all(setting, model, timed_here, kind, rounds, calls).items():
            entries[name]["measures"][kind] = timed
    return {
        "multiply_adds": {
            name: multiply_adds(matrix_products(model, collapsed))
            for name, collapsed in FLOORS.items()
        },
        "variants": entries,
        "skipped": skipped,
    }


def time_all(
    setting: Setting,
    model: torch.nn.Module,
    built: dict[str, Variant],
    kind: str,
    rounds: int,
    calls: int,
) -> dict[str, dict[str, Any]]:
    """Time one measure of all variants, the floor and the collapsed floor, interleaved."""
    method, training = MEASURES[kind]
    tasks = {}
    for name, collapsed in FLOORS.items():
        products = matrix_products(model, collapsed)
        floor = Floor(products, setting.batch_size, setting.device, setting.dtype)
        tasks[name] = floor.training if training else floor.forward
    for name, variant in built.items():
        variant.flow.train(training)
        tasks[name] = getattr(variant, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old parts of torch that nflows still calls
        seconds = interleaved(tasks, rounds, setting.device, calls)
    timed: dict[str, dict[str, Any]] = {}
    for name in tasks:
        middle = median(seconds[name])
        timed[name] = {
            "milliseconds": 1000 * middle,
            "images_per_second": setting.batch_size / middle,
            "rounds": [1000 * value for value in seconds[name]],
        }
        if name not in built or built[name].products:
            timed[name]["to_floor"] = ratios(seconds, name, "floor")
            timed[name]["to_collapsed_floor"] = ratios(seconds, name, "collapsed floor")
        if training and "compiled" in built and name in FRUGAL:
            timed[name]["to_compiled"] = ratios(seconds, name, "compiled")
    return timed


if __name__ == "__main__":
    auto_cli(main)
