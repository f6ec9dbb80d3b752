"""Convolutional networks: Glow's, the cross-unit network, and those of densely connected blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_positive, check_sizes
from nflows_mixer.nn.conditioner import concat_context


class DenseBlock(nn.Module):
    r"""Densely connected layers, each of which sees the features of all before, and a gate.

    .. math:: h_{i + 1} = \big[h_i,\ \mathrm{relu}(\mathrm{conv}_{3 \times 3}(
              \mathrm{relu}(\mathrm{conv}_{1 \times 1}(h_i))))\big], \qquad
              y = a + b \odot \sigma(c), \quad (a, b, c) = \mathrm{conv}_{1 \times 1}(h_n)

    A 1x1 convolution keeps the width of what it reads, a 3x3 one adds ``growth`` channels. There
    is no normalization.

    Args:
        in_channels: channels of :math:`h_0`.
        out_channels: channels of y.
        num_layers: n.
        growth: channels that each layer adds.

    Shapes:
        [B, in_channels, H, W] -> [B, out_channels, H, W].

    Raises:
        ValueError: if a size is not positive.

    References:
        Huang et al., Densely connected convolutional networks, 2017; DenseFlow, Section 2.2 and
        Figure 2; van den Oord et al., Gated PixelCNN, 2016 (gates).

    Example:
        >>> DenseBlock(48, 48)(torch.randn(2, 48, 4, 4)).shape
        torch.Size([2, 48, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int = 7, growth: int = 64
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels}
        check_sizes("DenseBlock", **sizes, num_layers=num_layers, growth=growth)
        widths = [in_channels + growth * i for i in range(num_layers)]
        self.mixes = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.grows = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.gate = nn.Conv2d(widths[-1] + growth, 3 * out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map feature maps [B, C, H, W]."""
        for mix, grow in zip(self.mixes, self.grows):
            new = F.relu(grow(F.relu(mix(features))))
            features = torch.cat((features, new), dim=1)
        plain, gated, gate = self.gate(features).chunk(3, dim=1)
        return torch.addcmul(plain, gated, gate.sigmoid())


class DenseConditioner(nn.Module):
    r"""Convolutional conditioner around one densely connected block; starts at zero.

    .. math:: f(x, c) = \mathrm{conv}_{1 \times 1}(\mathrm{dense}(
              \mathrm{conv}_{1 \times 1}([x, c])))

    Args:
        in_channels: channels of x.
        out_channels: channels of f(x, c).
        hidden_channels: channels that the dense block reads and writes.
        num_layers: layers of the dense block.
        growth: channels that each of them adds.
        context_features: channels of the context c; None for none.

    Shapes, errors: as ``ConvConditioner``.

    References:
        Nielsen et al., SurVAE flows, 2020, Section 5 (dense couplings); DenseFlow, Section 4.

    Example:
        >>> network = DenseConditioner(6, 12, context_features=8)
        >>> network(torch.randn(2, 6, 4, 4), torch.randn(2, 8)).shape
        torch.Size([2, 12, 4, 4])
    """

    image_shape = None  # of any size

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 4,
        growth: int = 64,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        self.context_features = context_features
        self.initial = nn.Conv2d(in_channels + (context_features or 0), hidden_channels, 1)
        self.block = DenseBlock(hidden_channels, hidden_channels, num_layers, growth)
        self.final = zero_convolution(hidden_channels, out_channels)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images [B, C, H, W]."""
        joined = concat_context(inputs, context, self.context_features or 0, "DenseConditioner")
        return self.final(self.block(self.initial(joined)))


class DenseEncoder(nn.Module):
    r"""Features of images: two densely connected blocks, with a convolution of a stride between.

    .. math:: f(x) = \mathrm{dense}(\mathrm{conv}_{s \times s}(\mathrm{dense}(x)))

    Args:
        in_channels: channels of x.
        out_channels: channels of f(x).
        hidden_channels: channels between the blocks.
        stride: s; 1 keeps the resolution.
        num_layers: layers of each block.
        growth: channels that each layer adds.

    Shapes:
        [B, in_channels, H, W] -> [B, out_channels, H / s, W / s].

    References:
        DenseFlow, Section 3.1 (variational dequantization); Ho et al., Flow++, 2019.

    Example:
        >>> DenseEncoder(3, 64)(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 64, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 64,
        hidden_channels: int = 64,
        stride: int = 2,
        num_layers: int = 4,
        growth: int = 16,
    ) -> None:
        super().__init__()
        self.first = DenseBlock(in_channels, hidden_channels, num_layers, growth)
        self.between = nn.Conv2d(hidden_channels, hidden_channels, stride, stride)
        self.second = DenseBlock(hidden_channels, out_channels, num_layers, growth)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images [B, C, H, W]."""
        return self.second(self.between(self.first(images)))


def zero_convolution(in_channels: int, out_channels: int, kernel_size: int = 1) -> nn.Conv2d:
    """Return a convolution of odd kernel size that starts at zero and keeps the resolution.

    Example:
        >>> zero_convolution(2, 4)(torch.ones(1, 2, 3, 3)).abs().sum().item()
        0.0
    """
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


class PriorConvolution(nn.Module):
    r"""One convolution 3x3 of an image and a context: mean and scale of what is dropped.

    .. math:: f(x, y) = \mathrm{conv}_{3 \times 3}([x, y])

    Starts at zero.

    Args:
        in_channels, out_channels, context_features: as ``ConvConditioner``.

    Shapes, errors: as ``ConvConditioner``.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3 (its multi-scale architecture, from RealNVP).

    Example:
        >>> prior = PriorConvolution(6, 12, context_features=8)
        >>> prior(torch.randn(2, 6, 4, 4), torch.ones(2, 8)).shape
        torch.Size([2, 12, 4, 4])
    """

    image_shape = None  # of any size

    def __init__(
        self, in_channels: int, out_channels: int, context_features: int | None = None
    ) -> None:
        super().__init__()
        self.context_features = context_features
        self.convolution = zero_convolution(in_channels + (context_features or 0), out_channels, 3)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images [B, C, H, W]."""
        joined = concat_context(inputs, context, self.context_features or 0, "PriorConvolution")
        return self.convolution(joined)


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
        ValueError: if the width is not positive, or the context has another shape.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 5.

    Example:
        >>> import torch
        >>> ConvConditioner(6, 12)(torch.ones(2, 6, 4, 4)).shape
        torch.Size([2, 12, 4, 4])
    """

    image_shape = None  # of any size

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 512,
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        check_positive("ConvConditioner", "hidden_channels", hidden_channels)
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
