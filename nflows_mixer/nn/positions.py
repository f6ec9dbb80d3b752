"""Positional embeddings: which row of the matrix a row flow is looking at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nflows_mixer._checks import mismatch


def sinusoidal_positions(rows: int, features: int) -> Tensor:
    r"""Sines and cosines of the position at geometrically spaced wavelengths.

    .. math:: e_{r, 2k} = \sin(r\, \omega_k), \quad e_{r, 2k+1} = \cos(r\, \omega_k), \quad
              \omega_k = 10000^{-2k / F}

    Args:
        rows: number of positions.
        features: F, even.

    Returns:
        [rows, features].

    Raises:
        ValueError: if ``features`` is odd or not positive.

    References:
        Vaswani et al., Attention is all you need, 2017; MixerFlow, Section 10.

    Example:
        >>> sinusoidal_positions(3, 2)[0].tolist()
        [0.0, 1.0]
    """
    if features < 2 or features % 2:
        raise mismatch(
            "sinusoidal_positions", "an even number of features", features, "give 2, 4, ..."
        )
    frequencies = torch.exp(-math.log(1e4) * torch.arange(0, features, 2) / features)
    angles = torch.arange(rows)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def learned_positions(rows: int, features: int) -> nn.Parameter:
    """One learnable vector per position, drawn from a normal of standard deviation 0.02.

    Arguments as for ``sinusoidal_positions``.

    Returns:
        A parameter of shape [rows, features].

    References:
        MixerFlow, Section 10, "Positional embedding".

    Example:
        >>> learned_positions(49, 8).shape
        torch.Size([49, 8])
    """
    return nn.Parameter(0.02 * torch.randn(rows, features))
