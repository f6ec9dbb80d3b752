"""The architectures of the papers' tables, and our own, as keyword arguments of the builders.

Both papers have BatchNorm in their conditioners. How the models are trained is in the YAML files of
``nflows_mixer/training/presets``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from nflows_mixer.flows.pixels import BACKGROUND, Pixels
from nflows_mixer.nn import ConvConditioner
from nflows_mixer.transforms import AffineCoupling, GlowSteps, RLULinear, identity_maf


class Preset(NamedTuple):
    """A model of a paper, or of ours.

    Args:
        source: where the paper has it.
        arguments: of the builder; what the paper leaves open is the builder's default.
    """

    source: str
    arguments: Mapping[str, Any]


def _column(name: str, **arguments: Any) -> Preset:
    return Preset(f"MixerFlow, Table 8, column {name}", {"norm": "batch", **arguments})


def _local(
    like: Mapping[str, Any], num_layers: int, num_steps: int, hidden_channels: int, **changes: Any
) -> Preset:
    """Steps of Glow before each of a few mixer layers, whose halves are checkerboards in turn."""
    bounded = partial(AffineCoupling, scale="tanh")
    arguments = {
        **like,
        "num_layers": num_layers,
        "channel_flow": bounded,
        "patch_flow": bounded,
        # What more layers in channel flows would change is a line of benchmarks/search.py.
        "num_flow_layers": (1, 4),
        "mask": "checkerboard",
        "alternate": True,
        "local_flow": partial(
            GlowSteps, num_steps=num_steps, hidden_channels=hidden_channels, matrix="full"
        ),
    }
    return Preset("nflows-mixer, beyond the paper", arguments | changes)


_OF_32 = {"image_shape": (3, 32, 32), "patch_size": 4}
_OF_64 = {"image_shape": (3, 64, 64), "patch_size": 8, "shift": 2}
_OF_MNIST = {"image_shape": (1, 28, 28), "patch_size": 4}
_OF_DIGITS = {"image_shape": (1, 8, 8), "patch_size": 2, "levels": 17}
# The column of MNIST leaves unsaid how pixels are scaled. On a linear scale ink on the dark border
# makes the first steps overflow; after this logit the model trains.
_LOGIT = Pixels(logit=1e-3)

MIXERFLOW_PRESETS: dict[str, Preset] = {
    "cifar10": _column("CIFAR-10", **_OF_32),
    "imagenet32": _column("ImageNet32", **_OF_32),
    "galaxy32": _column("Galaxy32", **_OF_32, hidden_features=64),
    "imagenet64": _column("ImageNet64", **_OF_64),
    "animefaces": _column("AnimeFaces", **_OF_64),
    "mnist": _column(
        "MNIST",
        **_OF_MNIST,
        hidden_features=64,
        shift=None,
        linear=RLULinear,
        channel_flow=identity_maf,
        patch_flow=identity_maf,
        pixels=_LOGIT,
    ),
    # Ours, of no more parameters than the paper's of 32x32 and 64x64 images.
    "cifar10-local": _local(_OF_32, 12, 8, 224),
    "imagenet64-local": _local(_OF_64, 16, 8, 256),
    "mnist-local": _local(_OF_MNIST, 4, 6, 48, hidden_features=64, pixels=BACKGROUND),
    "mnist-maf-local": _local(
        _OF_MNIST,
        4,
        4,
        48,
        hidden_features=64,
        linear=RLULinear,
        channel_flow=identity_maf,
        patch_flow=identity_maf,
        num_flow_layers=2,
        mask="halves",
        alternate=False,
        pixels=BACKGROUND,
    ),
    "digits-local": _local(
        _OF_DIGITS,
        3,
        3,
        48,
        hidden_features=48,
        channel_flow=AffineCoupling,
        patch_flow=AffineCoupling,
        pixels=BACKGROUND,
    ),
}
"""The columns of MixerFlow's Table 8, by data set, and flows with local flows."""


def _dense(source: str, *changes: Mapping[str, Any]) -> Preset:
    arguments: dict[str, Any] = {"image_shape": (3, 32, 32), "norm": "batch"}
    for change in changes:
        arguments |= change
    return Preset(f"DenseFlow, {source}", arguments)


_AT_64 = {"image_shape": (3, 64, 64)}
_SMALL = {"units": (5, 3, 1), "modules": (3, 5, 15), "growth": 6}
_PLAIN = {"units": (1, 1, 1), "modules": (15, 15, 15), "growth": 0}
_WHITE = {"preconditioning": None}
_GLOW = {"conditioner": ConvConditioner}
# As many channels of noise as the squeezed image has.
_INPUT = {**_PLAIN, "growth": 12, "augmentation": "input"}

DENSEFLOW_PRESETS: dict[str, Preset] = {
    "denseflow-74-10": _dense("Section 3.1 and Appendix C, CIFAR-10"),
    "denseflow-74-10-imagenet32": _dense("Section 3.1 and Appendix C, ImageNet32"),
    "denseflow-74-10-imagenet64": _dense("Section 3.1 and Appendix C, ImageNet64", _AT_64),
    "denseflow-74-10-celeba": _dense("Section 3.1 and Appendix C, CelebA 64x64", _AT_64),
    "denseflow-45-6": _dense("Section 3.5 and Table 4, row 6", _SMALL),
    # Not in the paper, which has this model on CIFAR-10 alone.
    "denseflow-45-6-64": _dense("Section 3.5, at 64x64", _SMALL, _AT_64),
    # Rows of Table 4: augmentation, preconditioned noise, two-way fusion.
    "table4-none": _dense("Table 4, row 1", _PLAIN, _GLOW),
    "table4-white": _dense("Table 4, row 2", _SMALL, _WHITE, _GLOW),
    "table4-preconditioned": _dense("Table 4, row 3", _SMALL, _GLOW),
    "table4-fused": _dense("Table 4, row 4", _PLAIN),
    "table4-fused-white": _dense("Table 4, row 5", _SMALL, _WHITE),
    # With DenseFlow's modules, which is a choice of this package.
    "vflow": _dense("Section 4 and Figure 1b, VFlow", _INPUT, {"preconditioning": "learned"}),
    "anf": _dense("Section 4 and Figure 1b, ANF", _INPUT, _WHITE),
}
"""Models of the DenseFlow paper; the sixth row of its Table 4 is "denseflow-45-6"."""


_SCALED = {"pixels": Pixels(conv1x1=False)}


def _tar(name: str, image_shape: tuple[int, int, int], **arguments: Any) -> Preset:
    return Preset(f"TarFlow, {name}", {"image_shape": image_shape, **_SCALED, **arguments})


TARFLOW_PRESETS: dict[str, Preset] = {
    "tarflow-mnist": _tar("[4-128-4-4], the example of the released code", (1, 28, 28)),
    "tarflow-imagenet64": _tar(
        "Section 4, ImageNet 64x64, unconditional",
        (3, 64, 64),
        patch_size=2,
        num_blocks=8,
        num_layers=8,
        hidden_features=768,
    ),
}
"""Models of TarFlow, by patch size, width, blocks and layers in each."""

JET_PRESETS: dict[str, Preset] = {
    "jet-imagenet64": Preset(
        "Jet, ImageNet 64x64, 32 couplings", {"image_shape": (3, 64, 64), **_SCALED}
    ),
}
"""Models of Jet."""
