"""Steps of Glow on the pixels of an image, as flow layers: a local flow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import (
    check_choice,
    check_image_shape,
    check_positive,
    mismatch,
    wrong_event,
)
from nflows_mixer.core.composite import Passage
from nflows_mixer.core.context import takes_context
from nflows_mixer.core.factory import UNSET, call_factory
from nflows_mixer.nn import Conditioner, ConvConditioner
from nflows_mixer.nn.conditioner import Statistics, half_precision
from nflows_mixer.transforms.coupling import AffineCoupling, ConditionerLike
from nflows_mixer.transforms.flow_layer import FlowLayer
from nflows_mixer.transforms.linear import FullLinear, LULinear
from nflows_mixer.transforms.mixing import RowsTransform
from nflows_mixer.transforms.reversible import ReversibleCompositeTransform
from nflows_mixer.transforms.squeeze import SqueezeTransform

_KERNELS, _PADDING = ((3, 3), (1, 1), (3, 3)), ((1, 1), (0, 0), (1, 1))
MATRICES = {"lu": partial(LULinear, bias=False), "full": FullLinear}


class GlowSteps(RowsTransform):
    r"""Steps of flow on the squeezed image, which is put back: a local flow of images.

    .. math:: \mathrm{squeeze}^{-1} \circ \big(\mathrm{coupling} \circ
              \mathrm{conv}_{1 \times 1} \circ \mathrm{ActNorm}\big)^K \circ \mathrm{squeeze}

    Convolutions see the neighbors of a pixel, which a channel flow does not see beyond its patch,
    and a patch flow only as it sees all other patches. A step is a ``FlowLayer`` whose rows are the
    pixels of all images, and whose network sees their neighbors. The halves of the channels
    condition each other in turn. With ``matrix="lu"`` all starts at the identity, and positions
    stay what they are; "full" mixes the channels of a square from the start.

    Args:
        image_shape: (C, H, W).
        num_steps: K.
        hidden_channels: width of the networks, convolutions of 3x3, 1x1 and 3x3.
        squeeze: pixels of a square that become channels, on a side; 1 for none.
        scale: of the couplings, see ``AffineCoupling``.
        matrix: of the 1x1 convolutions, see ``InvertibleConv1x1``.
        conditioner: factory of the couplings' networks of images, in place of those convolutions;
            a norm of theirs is bound to it.
        context_features: length of the context, for the factory of the networks.

    Shapes:
        inputs and outputs [B, C, H, W]; context [B, F].

    Raises:
        ValueError: if sizes do not fit.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3; MixerFlow, Section 7, names Glow-like layers
        before mixer layers as future work.

    Example:
        >>> import torch
        >>> local = GlowSteps((3, 8, 8), num_steps=2, hidden_channels=16)
        >>> images, logabsdet = local(torch.rand(5, 3, 8, 8))
        >>> images.shape, logabsdet.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_steps: int = 3,
        hidden_channels: int | None = None,
        squeeze: int = 2,
        scale: str = "tanh",
        matrix: str = "lu",
        conditioner: ConditionerLike | None = None,
        *,
        context_features: int | None = None,
    ) -> None:
        shape = check_image_shape(image_shape, "GlowSteps")
        num_steps = check_positive("GlowSteps", "num_steps", num_steps)
        check_choice("GlowSteps", "matrix", matrix, tuple(MATRICES))
        channels, height, width = SqueezeTransform(squeeze).output_shape(shape)
        if channels < 2:
            raise mismatch("GlowSteps", "2 channels or more", channels, "let squeeze be 2")
        if conditioner is not None and hidden_channels is not None:
            expected = f"networks of the usual kind beside hidden_channels={hidden_channels}"
            advice = "give the conditioner its own by functools.partial"
            raise mismatch("GlowSteps", expected, repr(conditioner), advice)
        usual = partial(ConvConditioner, hidden_channels=hidden_channels or 64)
        network = conditioner or usual
        of_pixels = partial(PixelConditioner, network=network, image_size=(height, width))
        steps = [
            FlowLayer(
                channels,
                linear=MATRICES[matrix],
                flow=AffineCoupling(
                    channels,
                    of_pixels,
                    scale,
                    ("first", "second")[index % 2],
                    context_features=context_features,
                ),
            )
            for index in range(num_steps)
        ]
        super().__init__(ReversibleCompositeTransform(steps, memory="full"))
        self.image_shape, self.squeeze = shape, squeeze

    def passage(self, inputs: Tensor) -> Passage:
        """Squeezed pixels out of images, and back."""
        if inputs.shape[1:] != self.image_shape:
            raise wrong_event(inputs, self.image_shape, "GlowSteps", "build it for these images")
        s = self.squeeze
        _, height, width = self.image_shape
        images, rows = "b c (h s) (w t)", "(b h w) (c s t)"
        sizes = {"h": height // s, "w": width // s, "s": s, "t": s}
        count = sizes["h"] * sizes["w"]
        return Passage(
            self.transform,
            lambda given: rearrange(given, f"{images} -> {rows}", s=s, t=s),
            lambda given, _: rearrange(given, f"{rows} -> {images}", **sizes),
            lambda context: self._row_context(context, len(inputs), count),
            count,
        )


class PixelConditioner(Conditioner):
    r"""A network of images as the conditioner of their pixels, of which each is a row.

    .. math:: f(x)_{n, i, j} = \mathrm{network}(x_n)_{:, i, j}

    Args:
        in_features: channels that condition.
        out_features: parameters of a pixel.
        network: factory ``(in_channels, out_channels) -> network``, or a network.
        image_size: height and width of the images that the rows are of.
        context_features: length of the context, for the factory.

    Shapes:
        [N, in_features], N a multiple of the pixels of an image, and context [N, F], of each image
        the same in all its pixels -> [N, out_features].

    Example:
        >>> import torch
        >>> network = PixelConditioner(6, 12, partial(ConvConditioner, hidden_channels=8), (4, 4))
        >>> network(torch.zeros(32, 6)).shape
        torch.Size([32, 12])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        network: ConditionerLike,
        image_size: tuple[int, int],
        context_features: int | None = None,
    ) -> None:
        made: Any = network
        if not isinstance(network, nn.Module):
            given = UNSET if context_features is None else context_features
            made = call_factory(network, in_features, out_features, context_features=given)
        # Of a network that takes none, or does not say how long it is, nothing is appended.
        super().__init__(getattr(made, "context_features", None))
        self.network = made
        self.image_size = image_size

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map rows of pixels."""
        height, width = self.image_size
        given = [_images(inputs, self.image_size)]
        if context is not None and takes_context(self.network):
            given.append(context[:: height * width])
        return _pixels(self.network(*given))

    def prepares(self) -> bool:
        """Whether the network is of the three convolutions that it was built with."""
        network = self.network
        if type(network) is not ConvConditioner:
            return False
        parts = (network.initial, network.middle, network.final)
        return all(
            type(part) is nn.Conv2d
            and (part.kernel_size, part.padding, part.stride) == (sizes, pads, (1, 1))
            and (part.dilation, part.groups, part.padding_mode) == ((1, 1), 1, "zeros")
            and part.bias is not None
            for part, sizes, pads in zip(parts, _KERNELS, _PADDING)
        )

    def options(self, inputs: Tensor) -> tuple:
        """Height and width, and half precision or None."""
        return (self.image_size, half_precision(inputs))

    @staticmethod
    def evaluate(inputs: Tensor, weights: Any, options: tuple) -> tuple[Tensor, Statistics]:
        """``ConvConditioner`` of rows of pixels, which is what weights are of."""
        size, half = options
        dtype = inputs.dtype
        if half is not None:
            inputs, weights = inputs.to(half), [weight.to(half) for weight in weights]
        first, bias1, middle, bias2, last, bias3 = weights
        hidden = F.relu(F.conv2d(_images(inputs, size), first, bias1, padding=1))
        hidden = F.relu(F.conv2d(hidden, middle, bias2))
        return _pixels(F.conv2d(hidden, last, bias3, padding=1)).to(dtype), ()


def _images(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows of pixels as images, channels last in memory."""
    height, width = size
    return rearrange(rows, "(b h w) c -> b c h w", h=height, w=width)


def _pixels(images: Tensor) -> Tensor:
    return rearrange(images, "b c h w -> (b h w) c")
