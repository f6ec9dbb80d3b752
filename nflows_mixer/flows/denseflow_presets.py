"""The architectures and recipes of the DenseFlow paper, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nflows_mixer.flows.denseflow_architecture import DenseFlowArchitecture


@dataclass(frozen=True)
class DenseFlowPreset:
    """A model of the DenseFlow paper, with how it was trained.

    Args:
        source: where the paper has it.
        architecture: what the flow is made of.
        training_points: images that it was trained on, an epoch.
        epochs: at the learning rate below, decayed.
        fine_tune_epochs: at 2e-5, behind these.
        learning_rate: of Adamax, after a warm-up of 5000 iterations.
        decay: factor of the learning rate, once an epoch.
        batch_size: images per step.

    Example:
        >>> DENSEFLOW_PRESETS["denseflow-45-6"].epochs
        300
    """

    source: str
    architecture: DenseFlowArchitecture
    training_points: int
    epochs: int
    fine_tune_epochs: int
    learning_rate: float = 1e-3
    decay: float = 0.95
    batch_size: int = 64


_LARGE = DenseFlowArchitecture((3, 32, 32))
_SMALL = replace(_LARGE, units=(5, 3, 1), modules=(3, 5, 15), growth=6)
_PLAIN = replace(_SMALL, units=(1, 1, 1), modules=(15, 15, 15), growth=0)


def _with_glow(architecture: DenseFlowArchitecture) -> DenseFlowArchitecture:
    """Return it with Glow's coupling networks."""
    return replace(architecture, conditioner="conv")


def _ablation(row: str, architecture: DenseFlowArchitecture) -> DenseFlowPreset:
    return DenseFlowPreset(f"DenseFlow, {row}", architecture, 50_000, 300, 10, decay=0.9975)


DENSEFLOW_PRESETS: dict[str, DenseFlowPreset] = {
    "denseflow-74-10": DenseFlowPreset(
        "DenseFlow, Section 3.1 and Appendix C, CIFAR-10", _LARGE, 50_000, 580, 70, decay=0.9975
    ),
    "denseflow-74-10-imagenet32": DenseFlowPreset(
        "DenseFlow, Section 3.1 and Appendix C, ImageNet32", _LARGE, 1_281_167, 20, 2
    ),
    "denseflow-74-10-imagenet64": DenseFlowPreset(
        "DenseFlow, Section 3.1 and Appendix C, ImageNet64",
        replace(_LARGE, image_shape=(3, 64, 64)),
        1_281_167,
        10,
        1,
        batch_size=32,
    ),
    "denseflow-74-10-celeba": DenseFlowPreset(
        "DenseFlow, Section 3.1 and Appendix C, CelebA 64x64",
        replace(_LARGE, image_shape=(3, 64, 64)),
        162_770,
        50,
        5,
        batch_size=32,
    ),
    "denseflow-45-6": _ablation("Section 3.5 and Table 4, row 6", _SMALL),
    # Not in the paper, which has this model on CIFAR-10 alone; trained as the larger one is.
    "denseflow-45-6-64": DenseFlowPreset(
        "DenseFlow, Section 3.5, at 64x64, with ImageNet64's recipe",
        replace(_SMALL, image_shape=(3, 64, 64)),
        1_281_167,
        10,
        1,
        batch_size=32,
    ),
    # Rows of Table 4: augmentation, preconditioned noise, two-way fusion.
    "table4-none": _ablation("Table 4, row 1", _with_glow(_PLAIN)),
    "table4-white": _ablation("Table 4, row 2", _with_glow(replace(_SMALL, preconditioning=None))),
    "table4-preconditioned": _ablation("Table 4, row 3", _with_glow(_SMALL)),
    "table4-fused": _ablation("Table 4, row 4", _PLAIN),
    "table4-fused-white": _ablation("Table 4, row 5", replace(_SMALL, preconditioning=None)),
    # Noise joined to the input alone, as many channels as the image has; with DenseFlow's modules.
    "vflow": _ablation(
        "Section 4 and Figure 1b, VFlow",
        replace(_PLAIN, growth=12, augmentation="input", preconditioning="learned"),
    ),
    "anf": _ablation(
        "Section 4 and Figure 1b, ANF",
        replace(_PLAIN, growth=12, augmentation="input", preconditioning=None),
    ),
}
"""Models of the paper, by name; the sixth row of its Table 4 is "denseflow-45-6"."""
