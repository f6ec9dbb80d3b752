"""The models of the papers' tables, whole and scaled down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.baselines.autoregressive import made, maf
from benchmarks.baselines.butterfly import butterfly
from benchmarks.baselines.emerging import emerging
from benchmarks.baselines.glow import glow
from benchmarks.baselines.glow_of_normflows import glow_of_normflows
from benchmarks.baselines.macow import macow
from benchmarks.baselines.neural_spline import neural_spline
from benchmarks.baselines.periodic import periodic
from benchmarks.baselines.woodbury import woodbury
from nflows_mixer.flows import (
    DENSEFLOW_PRESETS,
    MIXERFLOW_PRESETS,
    ImageFlow,
    Pixels,
    denseflow,
    mixerflow,
)
from nflows_mixer.nn import ConvConditioner, DenseAttentionConditioner
from nflows_mixer.transforms import RLULinear, identity_maf

LOGIT = 1e-3
"""Of MNIST, where without one the ink on a background of zeros makes first steps overflow."""
SCALES = ("paper", "small", "smoke")
"""As published; scaled down for a CPU, all of a table to as many parameters; and tiny."""


@dataclass(frozen=True)
class Model:
    """A model of a table.

    Args:
        label: what the table calls it.
        build: function of (C, H, W), levels and more arguments.
        paper: those arguments, as published.
        small: the same, scaled down to images of 16 x 16 (MNIST: 28 x 28) and to as many
            parameters as the other models of the table; None where it is not scaled down.
        smoke: the same, as small as they go.
        parameters: the published number, in millions, of any table of its paper; None where there
            is none.
        recipe: where -> fields of the recipe that differ from those of the data. Where is any of
            the size of the models and the shuffle ("plain", "local" or "global"), between spaces:
            "small global" is both, "" is everywhere. The last that fits counts.
        preset: of a DenseFlow, whose recipe it has.
    """

    label: str
    build: Callable[..., ImageFlow]
    paper: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] | str | None = None
    smoke: Mapping[str, Any] = field(default_factory=dict)
    parameters: float | None = None
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preset: str | None = None

    def at(self, scale: str, image_shape: Sequence[int], levels: int) -> ImageFlow:
        """Build it.

        Args:
            scale: one of ``SCALES``.
            image_shape: (C, H, W).
            levels: number of pixel values.
        """
        arguments = getattr(self, scale)
        if arguments is None:
            raise ValueError(f"{self.label}: expected a scale that it has, got {scale!r}")
        return self.build(image_shape=tuple(image_shape), levels=levels, **arguments)


_TINY: dict[str, Any] = {"hidden_channels": 8, "scales": 2, "steps": 1}
_TINY_MIXER: dict[str, Any] = {"num_layers": 2, "num_flow_layers": 1, "hidden_features": 8}
_TINY_DENSE: dict[str, Any] = {
    "units": (2, 1),
    "modules": (1, 1),
    "growth": 2,
    "noise_channels": 8,
    "conditioner": partial(
        DenseAttentionConditioner, hidden_channels=8, num_layers=1, growth=4, attention_channels=4
    ),
}
# Of the ablation: without linear blocks eight layers overflow at 0.01.
_ABLATED = {"small": {"learning_rate": 3e-3}}
_SMALL_MIXER: dict[str, Any] = {
    "patch_size": 2,
    "num_layers": 4,
    "hidden_features": 64,
    "norm": "batch",
}
_WHITENED = {"": {"whiten": True}}
_CHECKERBOARD: dict[str, Any] = {"mask": "checkerboard", "alternate": True}
_MAF_FLOWS: dict[str, Any] = {"channel_flow": identity_maf, "patch_flow": identity_maf}


def _glow(
    label: str,
    build: Callable[..., ImageFlow],
    parameters: float | None,
    small: int | str | None,
    **changes: Any,
) -> Model:
    """A model of Glow's backbone, with all that builders take, whatever their defaults come to be.

    The papers say neither widths nor bins, kernels and ranks: they are those that give the
    published numbers of parameters. Scaled down there are two scales of eight steps, whose width
    ``small`` gives them MixerFlow's number.
    """
    paper = {"hidden_channels": 512, "scales": 3, "steps": 8} | changes
    scaled = small
    if isinstance(small, int):
        scaled = {"scales": 2, "steps": 8, "hidden_channels": small}
    return Model(label, build, paper, scaled, _TINY, parameters)


def _spline(parameters: float, small: int | str | None, **changes: Any) -> Model:
    sizes = {"hidden_channels": 256, "num_bins": 4, "tail_bound": 3.0} | changes
    return _glow("Neural Spline", neural_spline, parameters, small, **sizes)


def _rows(
    label: str,
    build: Callable[..., ImageFlow],
    num_layers: int | None = None,
    small: int | None = None,
    logit: float | None = None,
    recipe: Mapping[str, Mapping[str, Any]] = {},  # noqa: B006 (read only)
) -> Model:
    """A model of rows of all values: MADE, or so many of them."""
    scales: list[dict[str, Any]] = []
    for layers, width in ((num_layers, 1024), (small, 512), (num_layers and 2, 8)):
        sizes = {"num_layers": layers, "hidden_features": width, "logit": logit}
        scales.append({name: value for name, value in sizes.items() if value is not None})
    return Model(label, build, *scales, recipe=recipe)


def _without_images(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a preset, but for those that the images say."""
    return {k: v for k, v in arguments.items() if k not in ("image_shape", "levels")}


def _mixer(
    preset: str,
    parameters: float | None = None,
    small: Mapping[str, Any] | str | None = None,
    label: str = "MixerFlow",
    recipe: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Model:
    """A MixerFlow: a preset, with some of it changed at all scales."""
    paper = _without_images(MIXERFLOW_PRESETS[preset].arguments) | changes
    tiny = paper | _TINY_MIXER
    if isinstance(small, Mapping):
        small = _SMALL_MIXER | changes | small
    return Model(label, mixerflow, paper, small, tiny, parameters, recipe or {})


def _local(label: str, *sizes: int) -> Model:
    """Ours: steps of Glow before each mixer layer, at the size of a model of the paper.

    Scaled down, sizes are mixer layers and their width, steps of Glow before each and theirs.
    """
    paper = _without_images(MIXERFLOW_PRESETS["cifar10-local"].arguments)

    def scaled(num_layers: int, width: int, steps: int, channels: int, **changes: Any) -> Any:
        local = partial(paper["local_flow"], num_steps=steps, hidden_channels=channels)
        changes |= {"num_layers": num_layers, "hidden_features": width, "local_flow": local}
        return {**paper, **changes}

    small = scaled(*sizes, patch_size=2)
    smoke = scaled(2, 8, 1, 8, num_flow_layers=1)
    # At this rate its scales may throw a few images of a batch far out.
    recipe = {"": {**_WHITENED[""], "gradient_skip": 100.0}}
    return Model(label, mixerflow, paper, small, smoke, recipe=recipe)


def _dense(preset: str, label: str, parameters: float | None = None) -> Model:
    """A DenseFlow of a preset."""
    usual, tiny = DENSEFLOW_PRESETS[preset].arguments, dict(_TINY_DENSE)
    if usual.get("conditioner") is ConvConditioner:
        tiny["conditioner"] = partial(ConvConditioner, hidden_channels=8)
    if usual.get("growth") == 0:
        tiny |= {"units": (1, 1), "growth": 0}
    build = partial(denseflow, preset)
    return Model(label, build, smoke=tiny, parameters=parameters, preset=preset)


MODELS: dict[str, Model] = {
    "glow-11": _glow("Glow", glow, 11.02, 85),
    "glow-normflows": _glow("Glow of normflows", glow_of_normflows, None, 84),
    "glow-37": _glow("Glow", glow, 37.04, None, scales=4, steps=16),
    "glow-44": _glow("Glow", glow, 44.24, "glow-11", steps=32),
    "spline-11": _spline(10.91, 28),
    "spline-38": _spline(38.31, None, hidden_channels=224, scales=4, steps=16),
    "spline-90": _spline(89.9, "spline-11", hidden_channels=472, steps=32),
    "macow": _glow("MaCow", macow, 11.43, 54, kernel_size=(2, 3), masked_channels=20),
    "woodbury": _glow("Woodbury", woodbury, 11.02, 81, rank=16),
    "emerging": _glow("Emerging", emerging, 11.43, 70, kernel_size=3),
    "periodic": _glow("Periodic", periodic, 11.21, 78, kernel_size=3),
    "butterfly": _glow("ButterflyFlow", butterfly, None, 30),
    "mixerflow-32": _mixer("cifar10", 11.34, small={}),
    "mixerflow-64": _mixer("imagenet64", 18.90),
    "mixerflow-galaxy": _mixer("galaxy32"),
    "mixerflow-base": _mixer("cifar10", None, {}, "base", _ABLATED, linear=None, shift=None),
    "mixerflow-base-60": _mixer(
        "cifar10",
        None,
        {"num_layers": 8},
        "60 layers",
        _ABLATED,
        linear=None,
        shift=None,
        num_layers=60,
    ),
    "mixerflow-base-linear": _mixer("cifar10", None, {}, "linear blocks", _ABLATED, shift=None),
    "mixerflow-base-shift": _mixer("cifar10", None, {}, "shift layers", _ABLATED, linear=None),
    # At its published size this is MixerFlow itself; scaled down it has the rate of the ablation.
    "mixerflow-both": _mixer("cifar10", 11.34, {}, "linear blocks, shift layers", _ABLATED),
    # Without linear blocks halves alternate anyway.
    "mixerflow-base-linear-alternating": _mixer(
        "cifar10", None, {}, "linear blocks", _ABLATED, shift=None, alternate=True
    ),
    "mixerflow-both-alternating": _mixer(
        "cifar10", None, {}, "linear blocks, shift layers", _ABLATED, alternate=True
    ),
    "mixerflow-alternating": _mixer(
        "cifar10", None, {}, "MixerFlow, alternating halves", alternate=True
    ),
    "mixerflow-checkerboard": _mixer(
        "cifar10", None, {}, "MixerFlow, checkerboard halves", **_CHECKERBOARD
    ),
    "mixerflow-whitened": _mixer(
        "cifar10",
        None,
        {},
        "MixerFlow, checkerboard halves, whitened",
        _WHITENED,
        **_CHECKERBOARD,
    ),
    "mixerflow-local": _local("MixerFlow with local flows", 4, 44, 8, 36),
    "mixerflow-local-3": _local("MixerFlow with fewer, wider local flows", 3, 64, 4, 72),
    "made": _rows("MADE", made),
    "maf": _rows("MAF", maf, 10, 5, recipe=_ABLATED),  # at 0.01 its first steps overflow, too
    "mixerflow-maf": _mixer("cifar10", None, {}, "MixerFlow with MAF", **_MAF_FLOWS),
    "made-mnist": _rows("MADE", made, logit=LOGIT),
    "maf-mnist": _rows("MAF", maf, 10, 5, logit=LOGIT),
    "mixerflow-mnist": _mixer(
        "mnist",
        None,
        {"patch_size": 4},
        "MixerFlow with MAF",
        linear=RLULinear,
        shift=None,
        pixels=Pixels(logit=LOGIT),
        **_MAF_FLOWS,
    ),
    "denseflow-74-10": _dense("denseflow-74-10", "DenseFlow-74-10", 130.0),
    "denseflow-74-10-imagenet32": _dense("denseflow-74-10-imagenet32", "DenseFlow-74-10", 130.0),
    "denseflow-74-10-celeba": _dense("denseflow-74-10-celeba", "DenseFlow-74-10", 130.0),
    "denseflow-74-10-imagenet64": _dense("denseflow-74-10-imagenet64", "DenseFlow-74-10", 130.0),
    "table4-none": _dense("table4-none", "none"),
    "table4-white": _dense("table4-white", "noise"),
    "table4-preconditioned": _dense("table4-preconditioned", "preconditioned noise"),
    "table4-fused": _dense("table4-fused", "two-way fusion"),
    "table4-fused-white": _dense("table4-fused-white", "fusion, noise"),
    "denseflow-45-6": _dense("denseflow-45-6", "fusion, preconditioned noise"),
}
"""Name -> model. Numbers behind names are millions of parameters."""
