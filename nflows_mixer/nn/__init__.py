"""Conditioner networks: they know nothing of flows."""

from nflows_mixer.nn.labels import ClassEmbedding
from nflows_mixer.nn.lipschitz import LipschitzMLP
from nflows_mixer.nn.mlp import MLP
from nflows_mixer.nn.positions import learned_positions, sinusoidal_positions
from nflows_mixer.nn.residual import ResidualMLP

__all__ = [
    "ClassEmbedding",
    "LipschitzMLP",
    "MLP",
    "ResidualMLP",
    "learned_positions",
    "sinusoidal_positions",
]
