"""Ready flows on images."""

from nflows_mixer.flows.image_flow import DequantizedFlow, ImageFlow
from nflows_mixer.flows.mixerflow import MixerFlowArchitecture, mixerflow
from nflows_mixer.flows.presets import PRESETS, MixerFlowPreset

__all__ = [
    "PRESETS",
    "DequantizedFlow",
    "ImageFlow",
    "MixerFlowArchitecture",
    "MixerFlowPreset",
    "mixerflow",
]
