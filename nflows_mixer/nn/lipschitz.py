"""The MLP of residual flows: a contraction by construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_sizes, mismatch
from nflows_mixer.nn.conditioner import append_context


class LipschitzMLP(nn.Module):
    r"""Multi-layer perceptron that brings any two inputs closer: the network of a residual flow.

    .. math:: \hat W_{n+1}\, h_n + b_{n+1}, \qquad h_i = \phi(\hat W_i h_{i-1} + b_i), \qquad
              h_0 = [x, c], \qquad \hat W = W \min\left(1, \frac{L^{1/(n+1)}}{\sigma(W)}\right)

    :math:`\sigma` is the largest singular value, exact and of the weights at hand, so that there
    is nothing to update after a step, and :math:`\phi` is LipSwish,
    :math:`x\,\mathrm{sigmoid}(\beta x) / 1.1` with a learnable :math:`\beta > 0`, whose slope
    stays below 1. Then :math:`\|g(x) - g(x')\| \le L \|x - x'\|` whatever the parameters are. The
    last layer starts at zero, so that a residual flow starts at the identity.

    Args:
        features: D, of inputs and outputs.
        hidden_features: width of every hidden layer.
        num_layers: n, hidden layers.
        context_features: length of the context, concatenated to the input; None takes no context.
        lipschitz: L, above 0 and below 1.

    Shapes:
        inputs and outputs [N, D], context [N, context_features].

    Raises:
        ValueError: if a size is not positive, L is not between 0 and 1, or the context is
            missing, unexpected or of another length.

    References:
        Chen et al., Residual flows for invertible generative modeling, 2019, Section 3.3; Behrmann
        et al., Invertible residual networks, 2019.

    Example:
        >>> net = LipschitzMLP(48, lipschitz=0.9)
        >>> sum(p.numel() for p in net.parameters())
        28978
        >>> rows = torch.randn(7, 48)
        >>> net(rows).abs().max().item()
        0.0
        >>> _ = torch.nn.init.normal_(net.final.weight)
        >>> bool(((net(rows) - net(0 * rows)).norm(dim=1) <= 0.9 * rows.norm(dim=1)).all())
        True
    """

    def __init__(
        self,
        features: int,
        hidden_features: int = 128,
        num_layers: int = 2,
        context_features: int | None = None,
        lipschitz: float = 0.9,
    ) -> None:
        super().__init__()
        sizes = {} if context_features is None else {"context_features": context_features}
        sizes |= {"hidden_features": hidden_features, "num_layers": num_layers}
        features, *_ = check_sizes("LipschitzMLP", features=features, **sizes)
        if not 0 < lipschitz < 1:
            advice = "x + g(x) is invertible only where g is a contraction; 0.9 is usual"
            raise mismatch("LipschitzMLP", "lipschitz above 0 and below 1", lipschitz, advice)
        self.features = features
        self.context_features = context_features
        self.lipschitz = lipschitz
        bound = lipschitz ** (1 / (num_layers + 1))
        widths = [features + (context_features or 0), *[hidden_features] * num_layers]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:]):
            layers += [_BoundedLinear(width_in, width_out, bound), _LipSwish()]
        self.hidden = nn.Sequential(*layers)
        self.final = _BoundedLinear(hidden_features, features, bound)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, features] (and context [N, context_features]) to [N, features]."""
        return self.final(self.hidden(append_context(inputs, context, self.context_features)))


class _BoundedLinear(nn.Linear):
    """Linear layer whose weight is scaled down to a largest singular value, where it is above."""

    def __init__(self, in_features: int, out_features: int, bound: float) -> None:
        super().__init__(in_features, out_features)
        self.bound = bound

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self._bounded_weight(), self.bias)

    def _bounded_weight(self) -> Tensor:
        weight = self.weight
        # By the smaller Gram matrix in half the time of a singular value decomposition; and with
        # the clamp below the root, no gradient is infinite at the zeros that a flow starts from.
        wide = weight.shape[0] <= weight.shape[1]
        gram = weight @ weight.mT if wide else weight.mT @ weight
        square = torch.linalg.eigvalsh(gram)[-1]
        return weight / (square / self.bound**2).clamp(min=1).sqrt()


class _LipSwish(nn.Module):
    """Swish over 1.1: the steepest slope of a swish is 1.0998 for any beta."""

    def __init__(self) -> None:
        super().__init__()
        self.unconstrained_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.sigmoid(F.softplus(self.unconstrained_beta) * inputs) / 1.1
