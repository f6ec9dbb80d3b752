"""What a trained flow is worth: figures over a data set, yardsticks, pictures (extra: train)."""

from nflows_mixer.evaluation.dataset import evaluate, round_trip_error
from nflows_mixer.evaluation.pictures import save_curve, save_grids
from nflows_mixer.evaluation.yardsticks import (
    gaussian_bits_per_dim,
    histogram_bits_per_dim,
    uniform_bits_per_dim,
    yardsticks,
)

__all__ = [
    "evaluate",
    "gaussian_bits_per_dim",
    "histogram_bits_per_dim",
    "round_trip_error",
    "save_curve",
    "save_grids",
    "uniform_bits_per_dim",
    "yardsticks",
]
