"""Base distributions on any event shape, images among them."""

from nflows_mixer.distributions.as_base import ModuleBase, TorchBase, as_base
from nflows_mixer.distributions.bases import (
    BaseDistribution,
    DiagonalNormal,
    NormalMixture,
    ProductDistribution,
    StudentT,
    standard_normal_log_prob,
)

__all__ = [
    "BaseDistribution",
    "DiagonalNormal",
    "ModuleBase",
    "NormalMixture",
    "ProductDistribution",
    "StudentT",
    "TorchBase",
    "as_base",
    "standard_normal_log_prob",
]
