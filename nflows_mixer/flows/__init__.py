"""Ready flows on images."""

from nflows_mixer.core.factory import UNSET
from nflows_mixer.flows.architecture import Architecture
from nflows_mixer.flows.denseflow import denseflow
from nflows_mixer.flows.grow import grow
from nflows_mixer.flows.image_flow import DequantizedFlow, ImageFlow
from nflows_mixer.flows.jet import jet
from nflows_mixer.flows.mixerflow import mixerflow
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.flows.presets import (
    DENSEFLOW_PRESETS,
    JET_PRESETS,
    MIXERFLOW_PRESETS,
    TARFLOW_PRESETS,
    Preset,
)
from nflows_mixer.flows.tarflow import tarflow
from nflows_mixer.flows.weights import load_weights, read_metadata, save_weights

__all__ = [
    "Architecture",
    "DENSEFLOW_PRESETS",
    "DequantizedFlow",
    "ImageFlow",
    "JET_PRESETS",
    "MIXERFLOW_PRESETS",
    "Pixels",
    "Preset",
    "TARFLOW_PRESETS",
    "UNSET",
    "denseflow",
    "grow",
    "jet",
    "load_weights",
    "mixerflow",
    "read_metadata",
    "save_weights",
    "tarflow",
]
