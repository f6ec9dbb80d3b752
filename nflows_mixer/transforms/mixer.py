"""One mixer layer, from image to image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nflows.transforms import InverseTransform
from torch import Tensor

from nflows_mixer.core.as_transform import FlowLike, as_transform
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.transforms.mixing import ChannelMixingTransform, PatchMixingTransform
from nflows_mixer.transforms.patches import PatchTransform


class PatchMixerTransform(CompositeTransform):
    r"""A mixer layer: cut into patches, channel flow on rows, patch flow on columns, reassemble.

    .. math:: \mathrm{patches}^{-1} \circ \mathrm{columns}(f_\mathrm{patch}) \circ
              \mathrm{rows}(f_\mathrm{channel}) \circ \mathrm{patches}

    Args:
        image_shape: (C, H, W).
        patch_size: p, or (height, width), or a ready ``PatchTransform`` of this shape.
        channel_flow: transform of rows of length p_h * p_w * C, or a factory of one,
            ``features -> transform``.
        patch_flow: transform of rows of length n_patches, or a factory of one.
        layout: see ``PatchTransform``.
        positions: ``rows -> [rows, F]``, the positional context of the flows; None gives none.

    Shapes:
        inputs and outputs [B, C, H, W]; context [B, F].

    Raises:
        TypeError: if a flow is no nflows transform and no factory of one.
        ValueError: if a patch does not divide the image, or a flow has another length.

    References:
        MixerFlow, Section 4 and Figure 4.

    Example:
        >>> import torch
        >>> from nflows.transforms import LULinear, MaskedAffineAutoregressiveTransform
        >>> layer = PatchMixerTransform(
        ...     image_shape=(3, 8, 8),
        ...     patch_size=4,
        ...     channel_flow=lambda features: MaskedAffineAutoregressiveTransform(features, 64),
        ...     patch_flow=lambda features: LULinear(features, identity_init=True),
        ... )
        >>> images, logabsdet = layer(torch.rand(5, 3, 8, 8))
        >>> images.shape, logabsdet.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int] | PatchTransform,
        channel_flow: FlowLike,
        patch_flow: FlowLike,
        layout: str = "patch",
        positions: Callable[[int], Tensor] | None = None,
    ) -> None:
        patches = patch_size
        if not isinstance(patches, PatchTransform):
            patches = PatchTransform(image_shape, patches, layout)
        channel = as_transform(channel_flow, patches.channels, "PatchMixerTransform.channel_flow")
        patch = as_transform(patch_flow, patches.n_patches, "PatchMixerTransform.patch_flow")
        super().__init__(
            [
                patches,
                ChannelMixingTransform(channel, positions and positions(patches.n_patches)),
                PatchMixingTransform(patch, positions and positions(patches.channels)),
                InverseTransform(patches),
            ]
        )
        self.image_shape = patches.image_shape
