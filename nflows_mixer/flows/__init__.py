"""Ready flows on images."""

from nflows_mixer.flows.architecture import MixerFlowArchitecture
from nflows_mixer.flows.denseflow import denseflow
from nflows_mixer.flows.denseflow_architecture import DenseFlowArchitecture
from nflows_mixer.flows.denseflow_presets import DENSEFLOW_PRESETS, DenseFlowPreset
from nflows_mixer.flows.dequantized_flow import DequantizedFlow
from nflows_mixer.flows.grow import grow
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow import mixerflow
from nflows_mixer.flows.presets import PRESETS, MixerFlowPreset
from nflows_mixer.flows.weights import load_weights, read_metadata, save_weights

__all__ = [
    "DENSEFLOW_PRESETS",
    "PRESETS",
    "DenseFlowArchitecture",
    "DenseFlowPreset",
    "DequantizedFlow",
    "ImageFlow",
    "MixerFlowArchitecture",
    "MixerFlowPreset",
    "denseflow",
    "grow",
    "load_weights",
    "mixerflow",
    "read_metadata",
    "save_weights",
]
