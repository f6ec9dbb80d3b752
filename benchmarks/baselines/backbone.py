"""The multi-scale backbone that the baselines of MixerFlow's tables share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nflows.transforms import Transform

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.distributions import DiagonalNormal, ProductDistribution
from nflows_mixer.flows import ImageFlow
from nflows_mixer.nn.dense_block import zero_convolution
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    MultiScaleTransform,
    PixelScaling,
    SqueezeAndSplit,
    SqueezeTransform,
)

ImageShape = tuple[int, int, int]
Part = Callable[[ImageShape], Transform]
"""A factory: (C, H, W) -> transform of images of this shape, which keeps it."""


def multi_scale_flow(
    image_shape: Sequence[int],
    linear: Part,
    coupling: Part,
    scales: int = 3,
    steps: int = 8,
    levels: int = 256,
) -> ImageFlow:
    r"""Glow's backbone, with any linear map and any coupling in its steps of flow.

    .. math:: (h_i, z_i) = \mathrm{split}(g_i(\mathrm{squeeze}(h_{i-1}))), \qquad
              z_i \sim \mathcal N(\mu_i(h_i), \sigma_i^2(h_i)), \qquad
              g_i = \big(\mathrm{coupling} \circ \mathrm{linear} \circ \mathrm{ActNorm}\big)^K

    The last scale has no split, and a normal base with a mean and a scale for each channel. The
    normal of a split is the standard one behind an affine coupling whose network is one 3x3
    convolution, which starts at zero.

    Args:
        image_shape: (C, H, W), of which two to the power of ``scales`` divides H and W.
        linear: factory of the linear map of a step; it may be a chain of several transforms.
        coupling: factory of the coupling of a step.
        scales: number of resolutions, L.
        steps: of flow at each scale, K.
        levels: number of pixel values.

    Returns:
        A flow on uint8 images; ActNorm wants one batch before evaluation, as in training.

    Raises:
        ValueError: if the sizes do not fit.

    References:
        Kingma and Dhariwal, Glow, 2018, Figure 2; Dinh et al., Density estimation using Real NVP,
        2017, Section 3.6.

    Example:
        >>> from nflows_mixer.transforms import InvertibleConv1x1
        >>> def conv1x1(shape):
        ...     return InvertibleConv1x1(shape[0], "full")
        >>> def coupling(shape):
        ...     return AffineCoupling(shape[0], zero_conv3x3)
        >>> flow = multi_scale_flow((3, 8, 8), conv1x1, coupling, scales=2, steps=1)
        >>> sum(parameter.numel() for parameter in flow.parameters())
        4776
    """
    for name, value in (("scales", scales), ("steps", steps)):
        check_positive("multi_scale_flow", name, value)
    channels, height, width = image_shape
    if height % 2**scales or width % 2**scales:
        expected = f"a height and width of which {2**scales} = 2^scales is a divisor"
        raise mismatch("multi_scale_flow", expected, [height, width], "use fewer scales")
    parts: list[Transform] = [PixelScaling(levels)]
    for scale in range(scales):
        channels, height, width = 4 * channels, height // 2, width // 2
        shape = (channels, height, width)
        flow: list[Transform] = []
        for _ in range(steps):
            flow += [ActNorm(channels), linear(shape), coupling(shape)]
        parts += [SqueezeTransform(2), CompositeTransform(flow)]
        if scale < scales - 1:
            parts += [AffineCoupling(channels, zero_conv3x3, "exp"), SqueezeAndSplit(1)]
            channels = (channels + 1) // 2
    transform = MultiScaleTransform(parts, image_shape)
    base = ProductDistribution(
        {
            name: DiagonalNormal(shape, learnable=name == "final", per_channel=True)
            for name, shape in transform.latent_shapes.items()
        }
    )
    return ImageFlow(transform, image_shape, base, levels)


zero_conv3x3 = partial(zero_convolution, kernel_size=3)
"""A 3x3 convolution that starts at zero: (in_channels, out_channels) -> network."""
