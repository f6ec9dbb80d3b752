"""Ready flows on images."""

from nflows_mixer.flows.architecture import MixerFlowArchitecture
from nflows_mixer.flows.dequantized_flow import DequantizedFlow
from nflows_mixer.flows.grow import grow
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow import mixerflow
from nflows_mixer.flows.presets import PRESETS, MixerFlowPreset
from nflows_mixer.flows.weights import load_weights, read_metadata, save_weights

__all__ = [
    "PRESETS",
    "DequantizedFlow",
    "ImageFlow",
    "MixerFlowArchitecture",
    "MixerFlowPreset",
    "grow",
    "load_weights",
    "mixerflow",
    "read_metadata",
    "save_weights",
]
