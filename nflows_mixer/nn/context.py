"""What is given as context: class labels and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_sizes, mismatch


class TakesLabels:
    """Base of embedding nets of class labels.

    Args:
        num_classes: K.
    """

    num_classes: int
    lowest = 0
    """The smallest label that is taken."""

    def check_labels(self, labels: Tensor) -> None:
        """Raise unless labels are a row of integers of these classes.

        They come with the images, so they are checked as those are, at the boundary.

        Raises:
            ValueError: if they are not.
        """
        owner = type(self).__name__
        expected = f"labels [B], integers from {self.lowest} to {self.num_classes - 1}"
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            got = f"{labels.dtype} of shape {list(labels.shape)}"
            raise mismatch(owner, expected, got, "pass one class index per image")
        if labels.numel():
            lowest, highest = torch.aminmax(labels)
            if lowest < self.lowest or highest >= self.num_classes:
                got = f"labels from {lowest.item()} to {highest.item()}"
                raise mismatch(owner, expected, got, "count classes from 0")


class ClassEmbedding(TakesLabels, nn.Embedding):
    r"""A learned vector for each class: the embedding net of a class-conditional flow.

    .. math:: c_n = E_{\ell_n,:}, \qquad \ell_n \in \{0, \dots, K - 1\}

    Args:
        num_classes: K.
        features: length of each vector; they start as draws from a standard normal.

    Shapes:
        labels [B] of an integer dtype; outputs [B, features].

    Raises:
        ValueError: if a size is not positive, or labels are not a row of integers from 0 to K - 1.

    References:
        Mirza and Osindero, Conditional generative adversarial nets, 2014 (labels as an input).

    Example:
        >>> ClassEmbedding(10, features=16)(torch.tensor([3, 7])).shape
        torch.Size([2, 16])
    """

    def __init__(self, num_classes: int, features: int) -> None:
        sizes = {"num_classes": num_classes, "features": features}
        num_classes, features = check_sizes("ClassEmbedding", **sizes)
        super().__init__(num_classes, features)
        self.num_classes = num_classes

    def forward(self, labels: Tensor) -> Tensor:
        """Look up [B] labels: [B, features]."""
        self.check_labels(labels)
        return super().forward(labels.long())


class OneHotClasses(TakesLabels, nn.Module):
    r"""A unit vector for each class, where each layer has vectors of its own for the classes.

    .. math:: c_n = e_{\ell_n}, \qquad c_n = (1 / K, \dots, 1 / K) \text{ for the label } -1

    A linear layer of it has a learned vector for each class, and their mean for images without a
    label, -1, as those whose label is dropped in training.

    Args:
        num_classes: K.

    Shapes:
        labels [B] of an integer dtype; outputs [B, K].

    Raises:
        ValueError: if K is not positive, or labels are not a row of integers from -1 to K - 1.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024, Section 3.

    Example:
        >>> OneHotClasses(2)(torch.tensor([1, -1])).tolist()
        [[0.0, 1.0], [0.5, 0.5]]
    """

    lowest = -1

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        (self.num_classes,) = check_sizes("OneHotClasses", num_classes=num_classes)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up [B] labels: [B, K]."""
        self.check_labels(labels)
        classes = torch.arange(self.num_classes, device=labels.device)
        hot = (labels[:, None] == classes).to(torch.get_default_dtype())
        return torch.where(labels[:, None] < 0, 1 / self.num_classes, hot)


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
