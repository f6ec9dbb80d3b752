"""nflows' masked autoregressive flow, started at the identity."""

from __future__ import annotations

import math

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform

from nflows_mixer._checks import check_choice


def identity_maf(
    features: int,
    hidden_features: int = 128,
    context_features: int | None = None,
    norm: str | None = None,
    num_blocks: int = 1,
) -> MaskedAffineAutoregressiveTransform:
    """Return nflows' ``MaskedAffineAutoregressiveTransform`` with its last layer at the identity.

    Args:
        features: row length D.
        hidden_features: width of its masked network.
        context_features: length of the context; None takes none.
        norm: of its masked network, None or "batch"; a LayerNorm would break the masks.
        num_blocks: residual blocks of its network.

    Raises:
        ValueError: if the norm is another.

    References:
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017; MixerFlow,
        Section 5.3.

    Example:
        >>> rows = torch.randn(5, 16)
        >>> outputs, logabsdet = identity_maf(16, hidden_features=32)(rows)
        >>> torch.allclose(outputs, rows, atol=1e-6)
        True
    """
    check_choice("identity_maf", "norm", norm, ("batch", None))
    maf = MaskedAffineAutoregressiveTransform(
        features,
        hidden_features,
        context_features=context_features,
        num_blocks=num_blocks,
        use_batch_norm=norm == "batch",
    )
    # Its outputs are pairs (u, shift), and its scale softplus(u) + 1e-3: 1 at this u.
    start = torch.tensor([math.log(math.expm1(1 - 1e-3)), 0.0])
    final = maf.autoregressive_net.final_layer
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(start.repeat(features))
    return maf
