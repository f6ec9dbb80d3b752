"""Evaluation of a trained flow: figures over a data set, probes, samples, pictures (extra: train).

The Frechet Inception distance needs the extra ``fid``.
"""

from nflows_mixer.evaluation.bits import evaluate, evaluate_bounds, summary
from nflows_mixer.evaluation.embeddings import embeddings, top_level_layers
from nflows_mixer.evaluation.fid import frechet_inception_distance
from nflows_mixer.evaluation.interpolation import interpolation
from nflows_mixer.evaluation.neighbours import memorisation_report, nearest_images
from nflows_mixer.evaluation.ood import auroc, ood_report, ood_scores, png_bits_per_dim
from nflows_mixer.evaluation.pictures import save_curves, save_grids, save_neighbours, save_rows
from nflows_mixer.evaluation.probe import linear_probe, probe_depths
from nflows_mixer.evaluation.reconstruction import reconstruction, round_trip_error
from nflows_mixer.evaluation.reference_models import (
    gaussian_bits_per_dim,
    histogram_bits_per_dim,
    reference_models,
)
from nflows_mixer.evaluation.report import Evaluation, evaluate_weights
from nflows_mixer.evaluation.sampling import draw_samples, temperature_grid

__all__ = [
    "Evaluation",
    "auroc",
    "draw_samples",
    "embeddings",
    "evaluate",
    "evaluate_bounds",
    "evaluate_weights",
    "frechet_inception_distance",
    "gaussian_bits_per_dim",
    "histogram_bits_per_dim",
    "interpolation",
    "linear_probe",
    "memorisation_report",
    "nearest_images",
    "ood_report",
    "ood_scores",
    "png_bits_per_dim",
    "probe_depths",
    "reconstruction",
    "reference_models",
    "round_trip_error",
    "save_curves",
    "save_grids",
    "save_neighbours",
    "save_rows",
    "summary",
    "temperature_grid",
    "top_level_layers",
]
