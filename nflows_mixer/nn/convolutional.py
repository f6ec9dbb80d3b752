"""Plain convolutional networks: Glow's coupling network, and the cross-unit network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer.nn.conditioner import concat_context
from nflows_mixer.nn.dense_block import zero_convolution


class ConvConditioner(nn.Module):
    r"""Glow's coupling network: convolutions 3x3, 1x1 and 3x3, the last of which starts at zero.

    .. math:: f(x) = \mathrm{conv}_{3 \times 3}(\mathrm{relu}(\mathrm{conv}_{1 \times 1}(
              \mathrm{relu}(\mathrm{conv}_{3 \times 3}(x)))))

    Args:
        in_channels: channels of x.
        out_channels: channels of f(x).
        hidden_channels: channels between the convolutions.
        context_features: channels of a context; None for none.

    Shapes:
        [B, in_channels, H, W], context [B, K] or [B, K, H, W] -> [B, out_channels, H, W].

    Raises:
        ValueError: if the context has another shape.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 5.

    Example:
        >>> import torch
        >>> ConvConditioner(6, 12)(torch.ones(2, 6, 4, 4)).shape
        torch.Size([2, 12, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 512,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        self.context_features = context_features
        inputs = in_channels + (context_features or 0)
        self.initial = nn.Conv2d(inputs, hidden_channels, 3, padding=1)
        self.middle = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.final = zero_convolution(hidden_channels, out_channels, 3)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images [B, C, H, W]."""
        joined = concat_context(inputs, context, self.context_features or 0, "ConvConditioner")
        return self.final(F.relu(self.middle(F.relu(self.initial(joined)))))


class CrossUnitNetwork(nn.Sequential):
    r"""DenseFlow's cross-unit network g: a 3x3 convolution to four times the channels, and a 1x1.

    .. math:: g(z) = \mathrm{conv}_{1 \times 1}(\mathrm{relu}(\mathrm{conv}_{3 \times 3}(z)))

    The last convolution starts at zero, where the noise that it preconditions is white.

    Args:
        in_channels: C, channels of the representations z.
        out_channels: channels of the parameters g(z).
        expansion: width of the hidden layer, in multiples of C.

    Shapes:
        [B, C, H, W] -> [B, out_channels, H, W].

    References:
        DenseFlow, Section 2.1, Equation 6.

    Example:
        >>> sum(p.numel() for p in CrossUnitNetwork(12, 20).parameters())
        6212
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 4) -> None:
        hidden = expansion * in_channels
        super().__init__(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.ReLU(),
            zero_convolution(hidden, out_channels),
        )
