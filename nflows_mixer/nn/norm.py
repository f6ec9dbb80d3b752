"""The normalization inside a conditioner, by name."""

from __future__ import annotations

from torch import Tensor, nn

from nflows_mixer._checks import check_choice
from nflows_mixer.nn.batch_norm import BatchNorm1d, BatchNorm2d

NORMS = ("layer", "batch", None)


class ChannelLayerNorm(nn.LayerNorm):
    r"""Layer normalization of feature maps, over the channels of each pixel.

    .. math:: y_{chw} = w_c\, \frac{x_{chw} - \mu_{hw}}{\sqrt{\sigma^2_{hw} + \epsilon}} + b_c

    It has as many parameters as ``BatchNorm2d`` and no state: a pixel alone decides what becomes
    of it.

    Args:
        channels: C.

    Shapes:
        inputs and outputs [B, C, H, W].

    References:
        Ba et al., Layer normalization, 2016.

    Example:
        >>> import torch
        >>> ChannelLayerNorm(3)(torch.randn(2, 3, 4, 4)).mean(1).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize [B, C, H, W]."""
        return super().forward(inputs.movedim(1, -1)).movedim(-1, 1)


def make_norm(norm: str | None, features: int, owner: str, images: bool = False) -> nn.Module:
    """Return the normalization that a conditioner's ``norm`` names, for rows or for images.

    Args:
        norm: "layer", over the features of each row (the channels of each pixel); "batch", over
            the batch of all processes, with running statistics in evaluation; or None.
        features: width of a row, or channels.
        owner: whose argument this is, for the error.
        images: whether inputs are [B, features, H, W] and not [N, features].

    Raises:
        ValueError: if the name is unknown.

    Example:
        >>> [type(make_norm(norm, 16, "example", images=True)).__name__ for norm in NORMS]
        ['ChannelLayerNorm', 'BatchNorm2d', 'Identity']
    """
    check_choice(owner, "norm", norm, NORMS)
    if norm is None:
        return nn.Identity()
    if norm == "layer":
        return ChannelLayerNorm(features) if images else nn.LayerNorm(features)
    return BatchNorm2d(features) if images else BatchNorm1d(features)
