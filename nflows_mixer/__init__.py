"""MixerFlow for nflows: normalizing flows on images, built from any flow on rows.

``nflows_mixer.flows`` holds ready models, ``nflows_mixer.transforms`` their parts (each an
``nflows.transforms.Transform``), ``nflows_mixer.distributions`` the bases, ``nflows_mixer.nn`` the
conditioners and ``nflows_mixer.likelihood`` the bits per dimension.
"""

__version__ = "0.1.0"

from nflows_mixer import adapters as _adapters  # noqa: F401  (which makes zuko's and normflows' flows known)
from nflows_mixer.flows.denseflow import denseflow
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.jet import jet
from nflows_mixer.flows.mixerflow import mixerflow
from nflows_mixer.flows.tarflow import tarflow
from nflows_mixer.flows.weights import load_weights
from nflows_mixer.likelihood import bits_per_dim

__all__ = [
    "ImageFlow",
    "bits_per_dim",
    "denseflow",
    "jet",
    "load_weights",
    "mixerflow",
    "tarflow",
]
