"""Numerical methods: inverses of masked and monotone functions, gradients of solutions."""

from nflows_mixer.numerics.autoregressive import (
    inverse_of,
    invert_autoregressive,
    why_not_foldable,
)
from nflows_mixer.numerics.fixed_point import Inversion, inverse_method, until_unchanged
from nflows_mixer.numerics.implicit import (
    check_solution,
    first_order,
    invert_monotone,
    row_jacobian,
    with_implicit_gradient,
)
from nflows_mixer.numerics.masked_inverse import MaskedStage, invert_incrementally, stages_of

__all__ = [
    "Inversion",
    "MaskedStage",
    "check_solution",
    "first_order",
    "inverse_method",
    "inverse_of",
    "invert_autoregressive",
    "invert_incrementally",
    "invert_monotone",
    "row_jacobian",
    "stages_of",
    "until_unchanged",
    "why_not_foldable",
    "with_implicit_gradient",
]
