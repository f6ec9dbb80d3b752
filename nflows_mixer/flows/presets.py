"""The architectures and recipes of the MixerFlow paper's tables, as data."""

from __future__ import annotations

from dataclasses import dataclass

from nflows_mixer.flows.architecture import MixerFlowArchitecture


@dataclass(frozen=True)
class MixerFlowPreset:
    """One column of MixerFlow's Table 8.

    Args:
        source: the table and column.
        architecture: what the flow is made of; what the table leaves open is the default.
        training_points: images trained on; the validation part is int(0.04 n).
        learning_rate: of Adam, decayed to zero by a cosine over all steps.
        betas: of Adam.
        gradient_clip: largest norm of the gradient.
        steps: optimiser steps.
        batch_size: images per step.

    Example:
        >>> PRESETS["cifar10"].learning_rate
        0.001
    """

    source: str
    architecture: MixerFlowArchitecture
    training_points: int
    learning_rate: float
    steps: int
    batch_size: int
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 5.0


PRESETS: dict[str, MixerFlowPreset] = {
    "cifar10": MixerFlowPreset(
        source="MixerFlow, Table 8, column CIFAR-10",
        architecture=MixerFlowArchitecture(image_shape=(3, 32, 32), patch_size=4),
        training_points=48_000,
        learning_rate=1e-3,
        steps=400_000,
        batch_size=512,
    ),
    "imagenet32": MixerFlowPreset(
        source="MixerFlow, Table 8, column ImageNet32",
        architecture=MixerFlowArchitecture(image_shape=(3, 32, 32), patch_size=4),
        training_points=1_229_904,
        learning_rate=1e-3,
        steps=500_000,
        batch_size=512,
    ),
    "galaxy32": MixerFlowPreset(
        source="MixerFlow, Table 8, column Galaxy32",
        architecture=MixerFlowArchitecture(
            image_shape=(3, 32, 32), patch_size=4, hidden_features=64
        ),
        training_points=5_000,
        learning_rate=1e-3,
        steps=50_000,
        batch_size=512,
    ),
    "imagenet64": MixerFlowPreset(
        source="MixerFlow, Table 8, column ImageNet64",
        architecture=MixerFlowArchitecture(image_shape=(3, 64, 64), patch_size=8, shift=2),
        training_points=1_229_904,
        learning_rate=5e-4,
        steps=400_000,
        batch_size=200,
    ),
    "animefaces": MixerFlowPreset(
        source="MixerFlow, Table 8, column AnimeFaces",
        architecture=MixerFlowArchitecture(image_shape=(3, 64, 64), patch_size=8, shift=2),
        training_points=61_023,
        learning_rate=5e-4,
        betas=(0.9, 0.99),
        steps=400_000,
        batch_size=200,
    ),
    # Table 8 names no logit. Without one, ink on the dark border makes the first steps overflow:
    # mixerflow("mnist", logit=1e-3) trains.
    "mnist": MixerFlowPreset(
        source="MixerFlow, Table 8, column MNIST",
        architecture=MixerFlowArchitecture(
            image_shape=(1, 28, 28),
            patch_size=4,
            hidden_features=64,
            shift=None,
            linear="rlu",
            channel_flow="maf",
            patch_flow="maf",
        ),
        training_points=57_600,
        learning_rate=5e-4,
        steps=400_000,
        batch_size=512,
    ),
}
"""The columns of Table 8, by data set."""
