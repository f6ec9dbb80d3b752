"""MADE and masked autoregressive flows on images, as rows of all their values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from nflows.transforms import BatchNorm, ReversePermutation, Transform
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer._checks import check_event, check_image_shape, check_positive
from nflows_mixer.core.composite import no_volume_change
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import ImageFlow
from nflows_mixer.nn import MaskedMLP
from nflows_mixer.transforms import (
    AffineAutoregressive,
    CompositeTransform,
    LogitTransform,
    PixelScaling,
)


class FlattenTransform(Transform):
    r"""Lay the values of an image out in one row, channel by channel; :math:`\log|\det| = 0`.

    Args:
        image_shape: (C, H, W).

    Shapes:
        inputs [B, C, H, W], outputs [B, C H W].

    Raises:
        ValueError: if inputs have another shape, either way.

    References:
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017, Section 4.3.

    Example:
        >>> import torch
        >>> FlattenTransform((2, 1, 2))(torch.tensor([[[[1, 2]], [[3, 4]]]]))[0].tolist()
        [[1, 2, 3, 4]]
    """

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape, "FlattenTransform")

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images to rows."""
        check_event(inputs, self.image_shape, "FlattenTransform", "build it for these images")
        return rearrange(inputs, "b c h w -> b (c h w)"), no_volume_change(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows to images."""
        check_event(inputs, self.output_shape(self.image_shape), "FlattenTransform", "pass rows")
        channels, height, width = self.image_shape
        images = rearrange(inputs, "b (c h w) -> b c h w", c=channels, h=height, w=width)
        return images, no_volume_change(inputs)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """One row for all values."""
        return (math.prod(input_shape),)


def gaussian_made(
    features: int, hidden_features: int = 1024, hidden_layers: int = 1
) -> AffineAutoregressive:
    r"""Build MADE with Gaussian conditionals, as a transform of rows: an ``AffineAutoregressive``.

    .. math:: y_d = e^{s_d} x_d + t_d, \qquad (s_d, t_d) = f_d(x_{<d}), \qquad
              x_d \mid x_{<d} \sim \mathcal N(-e^{-s_d} t_d, e^{-2 s_d})

    The network is fully connected with ReLU, and the degrees of its hidden units are spread evenly
    up to D - 1: taken in turn, fewer than D - 1 units would not see the last inputs at all. With
    fewer units, H, outputs miss up to (D - 1) / H of the inputs right before their own.

    Args:
        features: row length D.
        hidden_features: units of each hidden layer.
        hidden_layers: their number.

    Raises:
        ValueError: if a size is not positive.

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015, Section 3;
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017, Section 3.

    Example:
        >>> transform = gaussian_made(5, hidden_features=8)
        >>> transform.network.initial_layer.degrees
        (1, 1, 2, 2, 3, 3, 4, 4)
    """
    for name, value in (("hidden_features", hidden_features), ("hidden_layers", hidden_layers)):
        check_positive("gaussian_made", name, value)
    transform = AffineAutoregressive(features, 1)
    # Rounded up, so that the last unit sees all inputs but one; of one input it sees none.
    degrees = [
        -(-unit * (features - 1) // hidden_features) for unit in range(1, hidden_features + 1)
    ]
    transform.network = MaskedMLP(features, [degrees] * hidden_layers, activation=F.relu)
    return transform


def made(
    image_shape: Sequence[int],
    hidden_features: int = 1024,
    hidden_layers: int = 1,
    logit: float | None = None,
    levels: int = 256,
) -> ImageFlow:
    r"""Build MADE: one autoregressive layer with Gaussian conditionals, of all values of an image.

    .. math:: p(x) = \prod_d \mathcal N(x_d;\, \mu_d(x_{<d}),\, \sigma_d^2(x_{<d}))

    Args:
        image_shape: (C, H, W); the values are in the order of this array.
        hidden_features: units of each hidden layer.
        hidden_layers: their number; 1 or 2 in the paper on masked autoregressive flows.
        logit: alpha of a ``LogitTransform`` of the pixels (1e-6 for MNIST and 0.05 for CIFAR-10 in
            that paper); None scales them to [-1/2, 1/2).
        levels: number of pixel values.

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015; Papamakarios
        et al., Masked autoregressive flow for density estimation, 2017, Section 4.

    Example:
        >>> sum(parameter.numel() for parameter in made((1, 28, 28)).parameters())
        2411040
    """
    layers = [gaussian_made(math.prod(image_shape), hidden_features, hidden_layers)]
    return _flow_of_rows(image_shape, layers, logit, levels)


def maf(
    image_shape: Sequence[int],
    num_layers: int = 5,
    hidden_features: int = 1024,
    hidden_layers: int = 1,
    logit: float | None = None,
    levels: int = 256,
) -> ImageFlow:
    r"""Build a masked autoregressive flow: MADEs in turn, each in the reverse order of the last.

    .. math:: f = \mathrm{BN} \circ \mathrm{MADE}_n \circ \mathrm{reverse} \circ \dots \circ
              \mathrm{reverse} \circ \mathrm{BN} \circ \mathrm{MADE}_1

    A batch normalization follows every MADE, the last one too. In training mode it uses
    the statistics of the batch, and a log-likelihood is exact as a sum over the batch.

    Args:
        image_shape: (C, H, W); the first layer takes the values in the order of this array.
        num_layers: number of MADEs; 5 or 10 in the paper.
        hidden_features: units of each hidden layer of each.
        hidden_layers: their number; 1 or 2 in the paper.
        logit: alpha of a ``LogitTransform`` of the pixels (1e-6 for MNIST and 0.05 for CIFAR-10 in
            the paper); None scales them to [-1/2, 1/2).
        levels: number of pixel values.

    References:
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017, Sections 3
        and 4.

    Example:
        >>> sum(parameter.numel() for parameter in maf((1, 28, 28)).parameters())
        12063040
    """
    check_positive("maf", "num_layers", num_layers)
    features = math.prod(image_shape)
    layers: list[Transform] = []
    for layer in range(num_layers):
        if layer > 0:
            layers.append(ReversePermutation(features))
        norm = BatchNorm(features)
        # nflows starts it at 0, where evaluation after a few steps scales by 1 / sqrt(eps).
        norm.running_var.fill_(1.0)
        layers += [gaussian_made(features, hidden_features, hidden_layers), norm]
    return _flow_of_rows(image_shape, layers, logit, levels)


def _flow_of_rows(
    image_shape: Sequence[int], layers: Sequence[Transform], logit: float | None, levels: int
) -> ImageFlow:
    if logit is None:
        pixels: list[Transform] = [PixelScaling(levels)]
    else:
        pixels = [PixelScaling(levels, low=0.0, high=1.0), LogitTransform(logit)]
    transform = CompositeTransform([*pixels, FlattenTransform(image_shape), *layers])
    base = DiagonalNormal(math.prod(image_shape), learnable=False)
    return ImageFlow(transform, image_shape, base, levels)
