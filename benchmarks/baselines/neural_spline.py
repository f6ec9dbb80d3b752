"""Neural spline flows on images: Glow with rational-quadratic spline couplings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nflows.transforms import Transform

from benchmarks.baselines.backbone import ImageShape, Part, multi_scale_flow
from benchmarks.baselines.glow import conv1x1
from nflows_mixer.flows import ImageFlow
from nflows_mixer.nn import ConvConditioner
from nflows_mixer.transforms import RationalQuadraticCoupling


def spline_coupling(hidden_channels: int, num_bins: int, tail_bound: float) -> Part:
    """Return a factory of spline couplings whose network is Glow's.

    Args:
        hidden_channels: of the network.
        num_bins: of each spline.
        tail_bound: beyond which a spline is the identity.
    """

    def build(shape: ImageShape) -> Transform:
        network = partial(ConvConditioner, hidden_channels=hidden_channels)
        return RationalQuadraticCoupling(shape[0], network, num_bins, tail_bound)

    return build


def neural_spline(
    image_shape: Sequence[int],
    hidden_channels: int = 256,
    scales: int = 3,
    steps: int = 8,
    num_bins: int = 4,
    tail_bound: float = 3.0,
    levels: int = 256,
) -> ImageFlow:
    r"""Build Glow with each affine coupling replaced by one of splines.

    .. math:: y_b = \mathrm{RQS}_{f(x_a)}(x_b), \qquad
              \log|\det J| = \sum_k \log \mathrm{RQS}'_k(x_{b,k})

    The paper on MixerFlow names neither width nor bins: these were chosen for its 10.91 million
    parameters.

    Args:
        image_shape: (C, H, W).
        hidden_channels: of the couplings' networks.
        scales: number of resolutions.
        steps: of flow at each scale.
        num_bins: of each spline.
        tail_bound: beyond which a spline is the identity.
        levels: number of pixel values.

    References:
        Durkan et al., Neural spline flows, 2019, Section 5.3.

    Example:
        >>> sum(parameter.numel() for parameter in neural_spline((3, 32, 32)).parameters())
        10907484
    """
    coupling = spline_coupling(hidden_channels, num_bins, tail_bound)
    return multi_scale_flow(image_shape, conv1x1, coupling, scales, steps, levels)
