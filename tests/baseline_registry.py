"""Transforms of the papers' baselines, by name, under the properties of test_properties.py."""

from __future__ import annotations

from benchmarks.baselines.autoregressive import made, maf
from benchmarks.baselines.butterfly import ButterflyTransform, butterfly
from benchmarks.baselines.emerging import AutoregressiveConvolution, EmergingConvolution, emerging
from benchmarks.baselines.glow import glow
from benchmarks.baselines.macow import MaskedConvolutionalFlow, macow
from benchmarks.baselines.neural_spline import neural_spline
from benchmarks.baselines.periodic import PeriodicConvolution, periodic
from benchmarks.baselines.woodbury import WoodburyTransform, woodbury
from nflows_mixer.flows import ImageFlow


def values(flow: ImageFlow):
    """The transform of dequantised pixels, scaling and all."""
    return flow._transform


SHAPE = (1, 4, 4)
SMALL = {"hidden_channels": 8, "scales": 2, "steps": 1, "levels": 4}

FLOWS = {
    "Butterfly": lambda: values(butterfly(SHAPE, **SMALL)),
    "Glow": lambda: values(glow(SHAPE, **SMALL)),
    "MADE": lambda: values(made(SHAPE, hidden_features=24, hidden_layers=2, levels=4)),
    "MADE-logit": lambda: values(made(SHAPE, hidden_features=8, logit=0.05, levels=4)),
    "MAF": lambda: values(maf(SHAPE, num_layers=3, hidden_features=24, levels=4)),
    "Neural spline": lambda: values(neural_spline(SHAPE, **SMALL)),
    "Emerging": lambda: values(emerging(SHAPE, **SMALL)),
    "Periodic": lambda: values(periodic(SHAPE, **SMALL)),
    # Masked convolutions of an image of one pixel have nothing to read.
    "MaCow": lambda: values(macow(SHAPE, **{**SMALL, "scales": 1}, masked_channels=3)),
    "Woodbury": lambda: values(woodbury(SHAPE, rank=2, **SMALL)),
}
"""Whole baselines, of images of SHAPE with 4 levels, whose latents are rows of 16."""

LAYERS = {
    "AutoregressiveConvolution": (lambda: AutoregressiveConvolution(3), (3, 4, 5)),
    "EmergingConvolution": (lambda: EmergingConvolution(4), (4, 4, 4)),
    "EmergingConvolution-5": (lambda: EmergingConvolution(2, 5), (2, 3, 2)),
    "PeriodicConvolution": (lambda: PeriodicConvolution(4), (4, 4, 4)),
    "PeriodicConvolution-odd": (lambda: PeriodicConvolution(2), (2, 5, 3)),
    "PeriodicConvolution-wraps": (lambda: PeriodicConvolution(2, 5), (2, 3, 2)),
    "MaskedConvolutionalFlow-above": (lambda: MaskedConvolutionalFlow(4), (4, 4, 4)),
    "MaskedConvolutionalFlow-below": (lambda: MaskedConvolutionalFlow(2, "below"), (2, 5, 4)),
    "MaskedConvolutionalFlow-left": (lambda: MaskedConvolutionalFlow(2, "left"), (2, 5, 4)),
    "MaskedConvolutionalFlow-right": (
        lambda: MaskedConvolutionalFlow(2, "right", (1, 5), 3),
        (2, 4, 3),
    ),
    "ButterflyTransform": (lambda: ButterflyTransform((4, 2, 4)), (4, 2, 4)),
    "ButterflyTransform-odd": (lambda: ButterflyTransform((3, 5, 2)), (3, 5, 2)),
    "ButterflyTransform-prime": (lambda: ButterflyTransform((5, 1, 1)), (5, 1, 1)),
    "WoodburyTransform": (lambda: WoodburyTransform((4, 4, 4), 3), (4, 4, 4)),
    "WoodburyTransform-high-rank": (lambda: WoodburyTransform((2, 3, 1), 8), (2, 3, 1)),
}
"""What a baseline adds: name -> (constructor, shape of one input)."""
