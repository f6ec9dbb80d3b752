"""The same MixerFlow of nflows' own parts, as a user of nflows alone would write it; and in zuko.

nflows' ActNorm, LULinear, AffineCouplingTransform with a mask, ResidualNet with BatchNorm and
GELU, OneByOneConvolution and CompositeTransform; patches and rows by plain reshapes. The base,
the scaling and the dequantization of pixels are the library's, and cost next to nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    ActNorm,
    AffineCouplingTransform,
    CompositeTransform,
    LULinear,
    OneByOneConvolution,
    Transform,
)
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from nflows_mixer.adapters import to_zuko
from nflows_mixer.flows import MIXERFLOW_PRESETS, ImageFlow
from nflows_mixer.flows.mixerflow_spec import SHIFT_PERIOD
from nflows_mixer.transforms import PixelScaling, UniformDequantization

RowsFlow = Callable[[int], Transform]
"""Row length -> channel or patch flow."""


def stock_nflows(setting: Setting) -> Variant:
    """The preset's MixerFlow of nflows' parts."""
    spec = {**MIXERFLOW_PRESETS[setting.preset].arguments, **setting.changes}
    if others := sorted(spec.keys() - set(inspect.signature(stock_mixerflow).parameters)):
        raise Unavailable(f"is of the paper's affine coupling model, without {', '.join(others)}")
    flow = stock_mixerflow(**{**spec, "num_layers": setting.num_layers})
    return Variant(flow, setting)


def stock_mixerflow(
    image_shape: tuple[int, int, int],
    patch_size: int,
    num_layers: int = 30,
    num_flow_layers: int = 4,
    hidden_features: int = 128,
    shift: int | None = 1,
    levels: int = 256,
    norm: str = "batch",
) -> ImageFlow:
    """Build the paper's affine coupling model of nflows' parts, which have its BatchNorm alone."""
    if norm != "batch":
        raise Unavailable("nflows' networks have no norm but BatchNorm")
    rows_flow = partial(_rows_flow, num_flow_layers, hidden_features)
    transforms = [PixelScaling(levels), OneByOneConvolution(image_shape[0])]
    for index in range(num_layers):
        if shift is not None and index % SHIFT_PERIOD == 0:
            transforms.append(StockShift(rows_flow, patch_size, image_shape, shift))
        else:
            transforms.append(StockMixer(rows_flow, patch_size, image_shape))
    return ImageFlow(CompositeTransform(transforms), image_shape, levels=levels)


class StockMixer(Transform):
    """A mixer layer of patches of p x p pixels, by reshapes and permutes."""

    def __init__(self, rows_flow: RowsFlow, patch_size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.patch_size = shape, patch_size
        channels, height, width = shape
        self.n_patches = (height // patch_size) * (width // patch_size)
        self.channels = channels * patch_size**2
        self.channel_flow = rows_flow(self.channels)
        self.patch_flow = rows_flow(self.n_patches)

    def forward(self, inputs: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W]."""
        matrix = self._cut(inputs)
        matrix, of_channels = _mix(self.channel_flow.forward, matrix)
        columns, of_patches = _mix(self.patch_flow.forward, matrix.transpose(1, 2))
        return self._join(columns.transpose(1, 2)), of_channels + of_patches

    def inverse(self, inputs: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] back."""
        columns = self._cut(inputs).transpose(1, 2)
        columns, of_patches = _mix(self.patch_flow.inverse, columns)
        matrix, of_channels = _mix(self.channel_flow.inverse, columns.transpose(1, 2))
        return self._join(matrix), of_channels + of_patches

    def _cut(self, images: Tensor) -> Tensor:
        (channels, height, width), p = self.shape, self.patch_size
        blocks = images.reshape(-1, channels, height // p, p, width // p, p)
        return blocks.permute(0, 2, 4, 3, 5, 1).reshape(-1, self.n_patches, self.channels)

    def _join(self, matrix: Tensor) -> Tensor:
        (channels, height, width), p = self.shape, self.patch_size
        blocks = matrix.reshape(-1, height // p, width // p, p, p, channels)
        return blocks.permute(0, 5, 1, 3, 2, 4).reshape(-1, *self.shape)


class StockShift(Transform):
    """A mixer layer of the inner part of the image, whose rim passes unchanged."""

    def __init__(
        self, rows_flow: RowsFlow, patch_size: int, shape: tuple[int, int, int], shift: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.shift = shift
        inner = (channels, height - patch_size, width - patch_size)
        self.mixer = StockMixer(rows_flow, patch_size, inner)

    def forward(self, inputs: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W]."""
        return self._map_inner(self.mixer.forward, inputs)

    def inverse(self, inputs: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] back."""
        return self._map_inner(self.mixer.inverse, inputs)

    def _map_inner(self, function, inputs: Tensor) -> tuple[Tensor, Tensor]:
        _, height, width = self.mixer.shape
        rows = slice(self.shift, self.shift + height)
        columns = slice(self.shift, self.shift + width)
        mapped, logabsdet = function(inputs[:, :, rows, columns])
        outputs = inputs.clone()
        outputs[:, :, rows, columns] = mapped
        return outputs, logabsdet


def _mix(function, matrix: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, length = matrix.shape
    outputs, logabsdet = function(matrix.reshape(batch * rows, length))
    return outputs.reshape(batch, rows, length), logabsdet.reshape(batch, rows).sum(1)


def _rows_flow(num_flow_layers: int, hidden_features: int, features: int) -> CompositeTransform:
    parts: list[Transform] = [ActNorm(features)]
    conditioner = partial(
        ResidualNet,
        hidden_features=hidden_features,
        num_blocks=1,
        activation=F.gelu,
        use_batch_norm=True,
    )
    # nflows transforms where the mask is 1; as in the library, the larger part conditions.
    mask = torch.arange(features) >= features - features // 2
    for _ in range(num_flow_layers):
        parts.append(LULinear(features))
        parts.append(AffineCouplingTransform(mask.int(), conditioner))
        parts.append(ActNorm(features))
    return CompositeTransform(parts)


def inside_zuko(setting: Setting) -> Variant:
    """``to_zuko`` of the library's flow."""
    return Variant(ZukoImages(setting.flow()), setting)


class ZukoImages(nn.Module):
    """Dequantized images in a flow of zuko."""

    def __init__(self, flow: ImageFlow) -> None:
        super().__init__()
        self.dequantization = UniformDequantization(flow.dequantization.levels)
        self.flow = to_zuko(flow)

    def log_prob(self, images: Tensor) -> Tensor:
        """Log-likelihoods [B], one draw of the bound."""
        values, of_noise = self.dequantization(images)
        return of_noise + self.flow().log_prob(values)

    def sample(self, num_samples: int) -> Tensor:
        """Images, uint8 [num_samples, C, H, W]."""
        return self.dequantization.inverse(self.flow().sample((num_samples,)))[0]
