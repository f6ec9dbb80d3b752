"""Transforms of the papers' baselines, by name, under the properties of test_properties.py."""

from __future__ import annotations

from benchmarks.baselines.glow import glow
from benchmarks.baselines.neural_spline import neural_spline
from nflows_mixer.flows import ImageFlow


def values(flow: ImageFlow):
    """The transform of dequantised pixels, scaling and all."""
    return flow._transform


SHAPE = (1, 4, 4)
SMALL = {"hidden_channels": 8, "scales": 2, "steps": 1, "levels": 4}

FLOWS = {
    "Glow": lambda: values(glow(SHAPE, **SMALL)),
    "Neural spline": lambda: values(neural_spline(SHAPE, **SMALL)),
}
"""Whole baselines, of images of SHAPE with 4 levels, whose latents are rows of 16."""

LAYERS = {}
"""What a baseline adds: name -> (constructor, shape of one input)."""
