"""Inverses of masked autoregressive flows that do no more than they have to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.made import (
    MADE,
    MaskedFeedforwardBlock,
    MaskedLinear,
    MaskedResidualBlock,
)
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._modes import running_statistics
from nflows_mixer.nn.norm import BatchNorm1d
from nflows_mixer.numerics.fixed_point import report_inversion, requested_method, until_unchanged
from nflows_mixer.numerics.implicit import with_implicit_gradient
from nflows_mixer.numerics.masked_inverse import degrees_of, invert_affine


def inverse_of(transform: Transform) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the inverse of ``transform``; of nflows' masked flows, one that takes no D passes.

    That of a ``MaskedAffineAutoregressiveTransform`` computes every hidden unit once (see
    ``invert_incrementally``); those of other masked flows, of subclasses, and of one with hooks
    or with parts that are not nflows' own stop early (see ``invert_autoregressive``). The
    composites and mixing layers of this package invert their parts by it. A subclass with an
    inverse of its own keeps it. What a flow is made of may change, and so is looked up at each
    inverse: its masks and its activation too, for which a GPU is waited for.
    ``AffineAutoregressive.from_nflows`` looks once.

    Args:
        transform: any nflows transform.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> maf = MaskedAffineAutoregressiveTransform(48, 64).eval()
        >>> latents = torch.randn(2, 48)
        >>> torch.allclose(inverse_of(maf)(latents, None)[0], maf.inverse(latents)[0], atol=1e-4)
        True
    """
    if not isinstance(transform, AutoregressiveTransform):
        return transform.inverse
    if type(transform).inverse is not AutoregressiveTransform.inverse:
        return transform.inverse

    def inverse(inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 2:
            return transform.inverse(inputs, context)
        at_once = requested_method()[0] in ("jacobi", "gauss-seidel")
        if at_once or why_not_foldable(transform) or not _fit(transform, inputs, context):
            return invert_autoregressive(transform, inputs, context)
        report_inversion(transform, "sequential", inputs.shape[1], inputs.shape[1])
        scales = nflows_log_scale, nflows_scale
        return invert_affine(transform.autoregressive_net, inputs, context, *scales)

    return inverse


def _fit(flow: Any, inputs: Tensor, context: Tensor | None) -> bool:
    """Whether a masked affine flow can be computed here; if not, its network says why not."""
    network = flow.autoregressive_net
    fits = inputs.shape[1] == flow.features and inputs.dtype == network.final_layer.weight.dtype
    if context is None:
        return fits
    # One row of context for all is nflows' broadcasting.
    rows = (1, len(inputs))
    return (
        fits and hasattr(network, "context_layer") and context.dim() == 2 and len(context) in rows
    )


def invert_autoregressive(
    flow: Any, inputs: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Invert a masked flow by the passes that it takes, but no more than change something.

    .. math:: x^{(k + 1)} = f^{-1}\big(y;\ \theta(x^{(k)})\big), \qquad x^{(0)} = 0

    Feature d is exact after pass d, as it depends on those before it alone: D passes suffice, and
    a pass that changes no bit is followed by others that change none. So the result is that of D
    passes, bit for bit; a row whose solution overflows is NaN throughout. Gradients are those of
    the inverse function, of first order. It runs in evaluation mode, whatever the mode is.

    Args:
        flow: a flow with ``autoregressive_net`` and ``_elementwise_inverse``, as those of nflows
            and of normflows.
        inputs: [N, D].
        context: [N, F], or None.

    References:
        Papamakarios et al., Masked autoregressive flow, 2017; Song et al., Accelerating
        feedforward computation via parallel nonlinear equation solving, 2021 (Jacobi iteration).

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> maf = MaskedAffineAutoregressiveTransform(48, 64).eval()
        >>> passes = []
        >>> handle = maf.autoregressive_net.register_forward_hook(lambda *_: passes.append(1))
        >>> outputs, logabsdet = invert_autoregressive(maf, torch.randn(2, 48))
        >>> len(passes) < 48
        True
    """

    def one_pass(outputs: Tensor) -> tuple[Tensor, Tensor]:
        return flow._elementwise_inverse(inputs, flow.autoregressive_net(outputs, context))

    # In training mode every pass would move the statistics of a batch normalization.
    with running_statistics(flow):
        with torch.no_grad():
            outputs, logabsdet, passes = until_unchanged(one_pass, torch.zeros_like(inputs))
        report_inversion(flow, "jacobi", inputs.shape[1], passes)
        if not torch.is_grad_enabled():
            return outputs, logabsdet
        outputs = with_implicit_gradient(
            lambda x: flow._elementwise_forward(x, flow.autoregressive_net(x, context))[0],
            outputs,
            inputs,
        )
        return outputs, one_pass(outputs)[1]


NFLOWS_EPSILON = 1e-3
"""What the scale of nflows' masked affine transform, softplus(u) + epsilon, stays above."""


def nflows_scale(u: Tensor) -> Tensor:
    """That scale."""
    return F.softplus(u) + NFLOWS_EPSILON


def nflows_log_scale(u: Tensor) -> Tensor:
    """Its logarithm."""
    return nflows_scale(u).log()


_NORMS = (nn.BatchNorm1d, BatchNorm1d)
_PARTS = {
    MaskedAffineAutoregressiveTransform,
    MADE,
    MaskedLinear,
    MaskedResidualBlock,
    MaskedFeedforwardBlock,
    nn.Linear,
    nn.Dropout,
    nn.ModuleList,
    *_NORMS,
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_not_foldable(flow: Any) -> str | None:
    """Return what keeps a flow from being computed by its weights alone; None if nothing does.

    It has to be a ``MaskedAffineAutoregressiveTransform`` of nflows with nflows' own parts, masks
    that follow from degrees, an elementwise activation, no hooks and no replaced methods.

    Args:
        flow: any object.

    Example:
        >>> from nflows.transforms import LULinear
        >>> why_not_foldable(MaskedAffineAutoregressiveTransform(4, 8))
        >>> why_not_foldable(LULinear(4))
        'LULinear'
    """
    if type(flow) is not MaskedAffineAutoregressiveTransform:
        return type(flow).__name__
    if flow._epsilon != NFLOWS_EPSILON:
        return f"a scale of softplus(u) + {flow._epsilon:g}"
    network = flow.autoregressive_net
    activation = getattr(network, "activation", None)
    inside = set(activation.modules()) if isinstance(activation, nn.Module) else set()
    for part in flow.modules():
        name = type(part).__name__
        if any(getattr(part, hooks) for hooks in HOOKS):
            return f"{name} with hooks"
        if part in inside:
            continue
        if type(part) not in _PARTS:
            return f"{name} in it"
        if replaced := [key for key in vars(part) if callable(getattr(type(part), key, None))]:
            return f"{name} with a {replaced[0]} of its own"
        if isinstance(part, _NORMS) and not (part.affine and part.track_running_stats):
            return "BatchNorm1d without weights or running statistics"
        if getattr(part, "activation", activation) is not activation:
            return "blocks with activations of their own"
    try:
        if not _follow_from_degrees(network):
            return "masks that do not follow from degrees"
    except AttributeError:
        return "layers without masks"
    if not _is_elementwise(activation, network.initial_layer.weight):
        return "an activation that is not elementwise"
    return None


def _follow_from_degrees(network: Any) -> bool:
    """Whether every mask is that of the degrees which its layer says it has."""
    first, final = network.initial_layer, network.final_layer
    per_feature = final.out_features // first.in_features
    degrees = torch.arange(1, first.in_features + 1)
    layers = [(first, torch.tensor(degrees_of(first)))]
    agree = True
    for block in network.blocks:
        linear = block.linear_layers if network.use_residual_blocks else [block.linear]
        layers += [(layer, torch.tensor(degrees_of(layer))) for layer in linear]
        if network.use_residual_blocks:
            # The block adds its inputs to its outputs, unit by unit.
            agree &= bool((layers[-3][1] <= layers[-1][1]).all())
    layers.append((final, torch.arange(final.out_features) // per_feature))
    for layer, ours in layers:
        mask = degrees <= ours[:, None]
        agree &= torch.equal(layer.mask, mask.to(layer.mask))
        degrees = ours
    return agree


def _is_elementwise(activation: Any, like: Tensor) -> bool:
    """Whether it does the same to numbers in a matrix as to numbers in a column."""
    numbers = torch.linspace(-2, 2, 6, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        try:
            column, matrix = activation(numbers[:, None]), activation(numbers.unflatten(0, (2, 3)))
        except Exception:
            # Whatever it needs, it is more than an element.
            return False
    return column.shape == (6, 1) and torch.allclose(column, matrix.flatten()[:, None])
