"""Moving the patch grid: a transform of the inner part of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import as_pair, check_image_shape, mismatch, wrong_event
from nflows_mixer.core.as_transform import built
from nflows_mixer.core.composite import Passage
from nflows_mixer.core.context import takes_context

ImageTransformLike = Union[Transform, Callable[[tuple[int, int, int]], Transform]]
"""A transform of images, or a factory: image shape -> transform."""


class ShiftTransform(Transform):
    r"""Transform the inner part of an image, one patch smaller than it; the frame passes through.

    With shift s and patch size p, the inner part is
    :math:`[s_h,\ H - p_h + s_h) \times [s_w,\ W - p_w + s_w)`, so that a patch grid laid over it
    is the image's own grid moved by s. The frame has log-det 0. Layers before it have to leave
    positions in their order (an even number of ``RLULinear`` does), which is not checked here.

    Args:
        image_shape: (C, H, W).
        patch_size: p, or (height, width).
        shift: s, or (height, width), with 0 < s < p.
        transform: a factory ``inner_image_shape -> transform``, or a transform of the inner shape
            (C, H - p_h, W - p_w).

    Shapes:
        inputs and outputs [B, C, H, W]; context [B, F] goes to ``transform``.

    Raises:
        TypeError: if ``transform`` is no nflows transform and no factory of one.
        ValueError: if the shift is not between 0 and the patch size, the image is not two or
            more whole patches, or inputs or the transform have another shape.

    References:
        MixerFlow, Section 4, "Shift layer".

    Example:
        >>> import torch
        >>> from nflows.transforms import PointwiseAffineTransform
        >>> double = PointwiseAffineTransform(scale=2.0)
        >>> layer = ShiftTransform((1, 4, 4), patch_size=2, shift=1, transform=double)
        >>> layer(torch.ones(1, 1, 4, 4))[0][0, 0].tolist()[:2]
        [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 1.0]]
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        shift: int | Sequence[int],
        transform: ImageTransformLike,
    ) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape, "ShiftTransform")
        channels, *sizes = self.image_shape
        self.shift = as_pair(shift, "ShiftTransform", "shift")
        patch_size = as_pair(patch_size, "ShiftTransform", "patch_size")
        for axis, s, patch, size in zip(("height", "width"), self.shift, patch_size, sizes):
            if not 0 < s < patch:
                raise mismatch(
                    "ShiftTransform",
                    f"0 < shift < patch size {patch} along the {axis}",
                    s,
                    "shifts of 0 and of a whole patch land on the old grid; choose one between",
                )
            if size % patch or size <= patch:
                raise mismatch(
                    "ShiftTransform",
                    f"an image {axis} of two or more patches of {patch}",
                    size,
                    "inside the frame there has to be a whole number of patches; use smaller ones",
                )
        inner_height, inner_width = (size - patch for size, patch in zip(sizes, patch_size))
        self.inner_shape = (channels, inner_height, inner_width)
        self.transform = built(transform, self.inner_shape, "ShiftTransform.transform")
        shape = getattr(self.transform, "image_shape", None) or self.inner_shape
        if tuple(shape) != self.inner_shape:
            raise mismatch(
                "ShiftTransform.transform",
                f"a transform of the inner shape {self.inner_shape}",
                f"{type(self.transform).__name__} of {tuple(shape)}",
                "pass a factory, `lambda inner_shape: ...`, so that it is built for its place",
            )
        self._passes_context = takes_context(self.transform)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform the inner part."""
        return self._map_inner(self.transform, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform the inner part back."""
        return self._map_inner(self.transform.inverse, inputs, context)

    def passage(self, inputs: Tensor) -> Passage:
        """The inner part, and back into the frame."""
        return Passage(
            self.transform,
            lambda images: images[self._inner],
            self._into_frame,
            lambda context: context if self._passes_context else None,
        )

    def _into_frame(self, inner: Tensor, images: Tensor) -> Tensor:
        outputs = images.clone()
        outputs[self._inner] = inner
        return outputs

    @property
    def _inner(self) -> tuple:
        (top, left), (_, height, width) = self.shift, self.inner_shape
        return (..., slice(top, top + height), slice(left, left + width))

    def _map_inner(self, function, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if inputs.shape[1:] != self.image_shape:
            raise wrong_event(
                inputs, self.image_shape, "ShiftTransform", "pass images of that shape"
            )
        context = context if self._passes_context else None
        mapped, logabsdet = function(inputs[self._inner], context)
        if mapped.shape[1:] != self.inner_shape:
            raise wrong_event(
                mapped, self.inner_shape, "ShiftTransform.transform", "keep the shape of images"
            )
        return self._into_frame(mapped, inputs), logabsdet
