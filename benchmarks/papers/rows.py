"""Every row of the papers' tables: what was trained on what, and what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.papers.images import SMALL
from benchmarks.papers.models import MODELS

FIGURES = {
    "bits_per_dim": "bits/dim",
    "importance_bits_per_dim": "importance-weighted bits/dim",
    "probe_loss": "cross-entropy of a linear probe",
    "probe_accuracy": "accuracy of a linear probe, %",
    "training_hours": "hours to train",
    "fid": "FID",
}
"""What a row reports -> how it is called."""
HIGHER_IS_BETTER = ("probe_accuracy",)


@dataclass(frozen=True)
class Run:
    """A model on a data set: what is trained once, and may stand in several tables.

    Args:
        model: key of ``MODELS``.
        data: key of ``benchmarks.papers.images.SIZES``.
        shuffle: "global" or "local", the fixed shuffle of all images' pixels; None for none.
    """

    model: str
    data: str
    shuffle: str | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join((self.data, self.shuffle or "plain", self.model))


@dataclass(frozen=True)
class Row:
    """A figure of a table.

    Args:
        table: key of ``TABLES``.
        run: what was trained.
        published: the figure; None for what the paper does not have and the claim needs.
        figure: key of ``FIGURES``.
        version: of the data set, "old" or "new", where there are two that do not compare.
    """

    table: str
    run: Run
    published: float | None
    figure: str = "bits_per_dim"
    version: str = ""

    @property
    def name(self) -> str:
        """Of the test."""
        figure = "" if self.figure == "bits_per_dim" else f"-{self.figure}"
        return f"{self.table}-{self.run.name}{figure}"

    @property
    def label(self) -> str:
        """What the table calls the model."""
        return MODELS[self.run.model].label


BEYOND = "beyond"
"""The table of ours: nothing of it is published, and its last row is expected to be the best."""
TABLES = {
    "mixerflow-1": "MixerFlow, Table 1: 32x32 images",
    "mixerflow-2": "MixerFlow, Table 2: 64x64 images",
    "mixerflow-3": "MixerFlow, Table 3: masked autoregressive flows",
    "mixerflow-4": "MixerFlow, Table 4 and Figure 3(a): global shuffle",
    "mixerflow-5": "MixerFlow, Table 5 and Figure 3(b): local shuffle",
    "mixerflow-6": "MixerFlow, Table 6: Galaxy32",
    "mixerflow-7": "MixerFlow, Table 7: linear probes of the embeddings",
    "mixerflow-9": "MixerFlow, Table 9: ablation",
    "mixerflow-9-alternating": "MixerFlow, Table 9 where halves alternate: ablation",
    "denseflow-1": "DenseFlow, Table 1: likelihood",
    "denseflow-2": "DenseFlow, Table 2: cost of training",
    "denseflow-3": "DenseFlow, Table 3: samples",
    "denseflow-4": "DenseFlow, Table 4: ablation",
    BEYOND: "Beyond the paper: local flows between mixer layers",
}
"""Key -> what the table is."""


PUBLISHED = """
mixerflow-1 cifar10: glow-11 3.51, spline-11 3.50, macow 3.48, woodbury 3.48, emerging 3.48, \
    periodic 3.49, mixerflow-32 3.46
mixerflow-1 imagenet32 old: glow-11 4.32, spline-11 4.24, macow 4.34, woodbury 4.22, \
    emerging 4.26, periodic 4.28, mixerflow-32 4.20
mixerflow-2 animefaces: glow-37 3.21, spline-38 3.23, mixerflow-64 3.17
mixerflow-2 imagenet64 old: glow-37 3.94, spline-38 3.95, mixerflow-64 3.92
mixerflow-3 mnist: made-mnist 2.04, maf-mnist 1.89, mixerflow-mnist 1.22
mixerflow-3 cifar10: made 5.67, maf 4.31, mixerflow-maf 3.44
mixerflow-4 cifar10: glow-44 -, spline-90 -, mixerflow-32 3.46
mixerflow-4 cifar10 global: glow-44 5.18, spline-90 5.01, butterfly 5.11, mixerflow-32 4.09
mixerflow-4 imagenet32 global old: glow-44 5.27, spline-90 5.32, butterfly 6.18, mixerflow-32 4.91
mixerflow-5 cifar10 local: glow-44 4.06, spline-90 3.99, mixerflow-32 3.49
mixerflow-5 imagenet32 local old: glow-44 4.49, spline-90 4.54, mixerflow-32 4.24
mixerflow-6 galaxy32: glow-11 2.27, spline-11 2.25, mixerflow-galaxy 2.22
mixerflow-7 cifar10 probe_loss: glow-11 1.69, spline-11 1.67, mixerflow-32 1.54
mixerflow-7 cifar10 probe_accuracy: glow-11 41.23, spline-11 41.27, mixerflow-32 45.11
mixerflow-9 cifar10: mixerflow-base 3.81, mixerflow-base-60 3.52, mixerflow-base-linear 3.49, \
    mixerflow-base-shift 3.58
mixerflow-9-alternating cifar10: mixerflow-base 3.81, mixerflow-base-60 3.52, \
    mixerflow-base-linear-alternating 3.49, mixerflow-base-shift 3.58
denseflow-1 cifar10 importance_bits_per_dim: denseflow-74-10 2.98
denseflow-1 imagenet32 importance_bits_per_dim new: denseflow-74-10-imagenet32 3.63
denseflow-1 celeba64 importance_bits_per_dim: denseflow-74-10-celeba 1.99
denseflow-1 imagenet64 importance_bits_per_dim new: denseflow-74-10-imagenet64 3.35
denseflow-2 cifar10 training_hours: denseflow-74-10 250
denseflow-2 imagenet32 training_hours new: denseflow-74-10-imagenet32 310
denseflow-2 celeba64 training_hours: denseflow-74-10-celeba 224
denseflow-3 cifar10 fid: denseflow-74-10 34.90
denseflow-4 cifar10 importance_bits_per_dim: table4-none 3.42, table4-white 3.40, \
    table4-preconditioned 3.37, table4-fused 3.14, table4-fused-white 3.08, denseflow-45-6 3.07
beyond cifar10: glow-11 -, mixerflow-32 -, mixerflow-alternating -, mixerflow-checkerboard -, \
    mixerflow-whitened -, mixerflow-local -
beyond cifar10 local: glow-11 -, mixerflow-32 -, mixerflow-alternating -, \
    mixerflow-checkerboard -, mixerflow-whitened -, mixerflow-local -
beyond cifar10 global: glow-11 -, mixerflow-32 -, mixerflow-alternating -, \
    mixerflow-checkerboard -, mixerflow-whitened -, mixerflow-local -
beyond cifar10 probe_loss: glow-11 -, mixerflow-32 -, mixerflow-local -
beyond cifar10 probe_accuracy: glow-11 -, mixerflow-32 -, mixerflow-local -
"""
"""Table, data set, and where it is not usual shuffle, figure and version: model and figure.

In the order of the papers. MixerFlow's ImageNet is the old version, DenseFlow's the new one; they
never stand in one column. A dash is what no table has and a difference needs: without a shuffle,
the larger baselines are in no table.
"""


def _rows(column: str) -> list[Row]:
    """Rows of one line of ``PUBLISHED``."""
    head, models = column.split(":")
    table, data, *more = head.split()
    shuffle = next((word for word in more if word in ("global", "local")), None)
    figure = next((word for word in more if word in FIGURES), "bits_per_dim")
    version = next((word for word in more if word in ("old", "new")), "")
    rows = []
    for model, value in (entry.split() for entry in models.split(",")):
        published = None if value == "-" else float(value)
        rows.append(Row(table, Run(model, data, shuffle), published, figure, version))
    return rows


ROWS: Sequence[Row] = [row for column in PUBLISHED.strip().splitlines() for row in _rows(column)]
"""All rows, in the order of the papers."""


def scaled_down(row: Row) -> Row | None:
    """Return the same row of small images and models, or None where there is none."""
    named = MODELS[row.run.model].small
    if named is None or row.run.data not in SMALL:
        return None
    model = named if isinstance(named, str) else row.run.model
    return replace(row, run=replace(row.run, model=model))


ROWS_OF = {
    "paper": ROWS,
    "small": [
        *(row for row in map(scaled_down, ROWS) if row is not None),
        Row("mixerflow-9", Run("mixerflow-both", "cifar10"), 3.46),
        Row("mixerflow-9-alternating", Run("mixerflow-both-alternating", "cifar10"), 3.46),
    ],
}
"""Size of the models -> rows. The published figure of the last two is MixerFlow's, of Table 1."""
