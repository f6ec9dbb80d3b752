"""Transforms and flows of nflows, MixerFlow among them, inside the other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nflows.flows import Flow
from nflows.transforms import Transform

from nflows_mixer.core.as_transform import deterministic_transform

if TYPE_CHECKING:
    import normflows
    from zuko.lazy import LazyTransform


def to_zuko(
    flow: Transform | Flow,
    context_features: int = 0,
    event_shape: Sequence[int] | None = None,
    noise_shape: Sequence[int] | None = None,
) -> LazyTransform:
    """Return a transform of nflows, or what lies above the base of an nflows flow, for zuko.

    Of an ``ImageFlow`` that is the deterministic part below its dequantiser: it takes
    dequantised pixels [..., C, H, W]. Use it in ``zuko.flows.Flow`` with a base of the noise's
    shape, or among zuko's own lazy transforms. Parameters are shared; what has to be initialised
    from data (``ActNorm``) is so by the first training call, or before. An embedding net of the
    flow is left behind: ``c`` is what the transform itself takes.

    Args:
        flow: transform, or flow, whose base is left behind.
        context_features: length of the context ``c``, 0 where no part takes one.
        event_shape: shape of one input, (D,) or (C, H, W), for transforms that do not say it; of
            a plain nflows flow, that of its base where None.
        noise_shape: shape of one output, where that is another and no base says it.

    Shapes:
        inputs ``[..., *event_shape]``, c [..., context_features], log-dets [...]; batches
        broadcast.

    Raises:
        TypeError: if ``flow`` is no transform and no flow of nflows.
        ValueError: if it is stochastic, does not say its shape, or takes another context.

    References:
        zuko, https://zuko.readthedocs.io (lazy transforms).

    Example:
        >>> import torch, zuko
        >>> from nflows_mixer.flows import mixerflow
        >>> mixer = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> base = zuko.lazy.UnconditionalDistribution(
        ...     zuko.distributions.DiagNormal, torch.zeros(1, 4, 4), torch.ones(1, 4, 4), ndims=3
        ... )
        >>> flow = zuko.lazy.Flow(to_zuko(mixer), base)
        >>> flow().log_prob(256 * torch.rand(5, 1, 4, 4)).shape
        torch.Size([5])
        >>> flow().sample((2,)).shape
        torch.Size([2, 1, 4, 4])
    """
    from nflows_mixer.adapters.inside_zuko import lazy_transform

    return lazy_transform(flow, context_features, event_shape, noise_shape)


def to_normflows(flow: Transform | Flow) -> normflows.flows.Flow:
    """Return a transform of nflows, or what lies above the base of an nflows flow, for normflows.

    Of an ``ImageFlow`` that is the deterministic part below its dequantiser. Use it in
    ``normflows.NormalizingFlow(base, [to_normflows(flow)])`` with a base of the noise's shape.

    Args:
        flow: transform, or flow, whose base is left behind.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is stochastic.

    Example:
        >>> import torch
        >>> from nflows_mixer.transforms import LULinear
        >>> import normflows as nf
        >>> base = nf.distributions.DiagGaussian(4)
        >>> model = nf.NormalizingFlow(base, [to_normflows(LULinear(4))])
        >>> model.log_prob(torch.randn(3, 4)).shape
        torch.Size([3])
    """
    from nflows_mixer.adapters.inside_normflows import NflowsFlow

    return NflowsFlow(deterministic_transform(flow, "to_normflows"))
