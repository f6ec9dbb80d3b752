"""Training of flows on images: Lightning's, with what a flow needs beside it."""

from nflows_mixer.training.batches import ImageDataModule, ShuffledBatches
from nflows_mixer.training.checkpoints import AtomicCheckpointIO
from nflows_mixer.training.diagnosis import find_non_finite
from nflows_mixer.training.history import History
from nflows_mixer.training.hybrid import HybridModule, hide_labels
from nflows_mixer.training.module import FlowModule
from nflows_mixer.training.moving_average import moving_average
from nflows_mixer.training.recipe import Recipe
from nflows_mixer.training.results import table, write_results
from nflows_mixer.training.run import fit

__all__ = [
    "AtomicCheckpointIO",
    "FlowModule",
    "History",
    "HybridModule",
    "ImageDataModule",
    "Recipe",
    "ShuffledBatches",
    "find_non_finite",
    "fit",
    "hide_labels",
    "moving_average",
    "table",
    "write_results",
]
