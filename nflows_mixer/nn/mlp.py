"""The plain MLP that conditions couplings."""

from __future__ import annotations

from torch import Tensor, nn

from nflows_mixer._checks import check_sizes
from nflows_mixer.nn.conditioner import append_context, zero_linear
from nflows_mixer.nn.norm import make_norm


class MLP(nn.Module):
    r"""Multi-layer perceptron with a normalization before each activation.

    .. math:: W_{n+1}\, h_n + b_{n+1}, \qquad
              h_i = \mathrm{GELU}(\mathrm{norm}(W_i h_{i-1} + b_i)), \qquad h_0 = [a, c]

    The last layer starts at zero, so that a coupling starts at the identity.

    Args:
        in_features, out_features, context_features, norm: as ``ResidualMLP``.
        hidden_features: width of every hidden layer.
        num_layers: hidden layers; 2 is "one hidden 128 x 128 layer" between the outer two.

    Errors: as ``ResidualMLP``.

    References:
        English, Integrating structured transformations into probabilistic generative models
        (the 7.5M-parameter variant of MixerFlow).

    Example:
        >>> import torch
        >>> MLP(24, 48, hidden_features=128)(torch.randn(7, 24)).shape
        torch.Size([7, 48])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        num_layers: int = 2,
        context_features: int | None = None,
        norm: str | None = "layer",
    ) -> None:
        super().__init__()
        check_sizes("MLP", hidden_features=hidden_features, num_layers=num_layers)
        self.context_features = context_features
        widths = [in_features + (context_features or 0), *[hidden_features] * num_layers]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:]):
            layers.append(nn.Linear(width_in, width_out))
            layers += [make_norm(norm, width_out, "MLP"), nn.GELU()]
        self.layers = nn.Sequential(*layers, zero_linear(hidden_features, out_features))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_features] (and context [N, context_features]) to [N, out_features]."""
        return self.layers(append_context(inputs, context, self.context_features))
