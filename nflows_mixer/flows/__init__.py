"""Ready flows on images."""

from nflows_mixer.flows.architecture import MixerFlowArchitecture
from nflows_mixer.flows.dequantized_flow import DequantizedFlow
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow import mixerflow
from nflows_mixer.flows.presets import PRESETS, MixerFlowPreset

__all__ = [
    "PRESETS",
    "DequantizedFlow",
    "ImageFlow",
    "MixerFlowArchitecture",
    "MixerFlowPreset",
    "mixerflow",
]
