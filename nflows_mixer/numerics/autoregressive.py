"""Inverses of masked autoregressive flows that do no more than they have to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nflows.transforms import Transform
from nflows.transforms.autoregressive import AutoregressiveTransform
from torch import Tensor

from nflows_mixer._modes import running_statistics
from nflows_mixer.numerics.foldable import nflows_log_scale, nflows_scale, why_not_foldable
from nflows_mixer.numerics.implicit import with_implicit_gradient
from nflows_mixer.numerics.masked_inverse import invert_affine


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
        if why_not_foldable(transform) is None and _fit(transform, inputs, context):
            scales = nflows_log_scale, nflows_scale
            return invert_affine(transform.autoregressive_net, inputs, context, *scales)
        return invert_autoregressive(transform, inputs, context)

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
    passes, bit for bit. Gradients are those of the inverse function, of first order. It runs in
    evaluation mode, whatever the mode is.

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
            outputs, logabsdet = until_unchanged(one_pass, torch.zeros_like(inputs))
        if not torch.is_grad_enabled():
            return outputs, logabsdet
        outputs = with_implicit_gradient(
            lambda x: flow._elementwise_forward(x, flow.autoregressive_net(x, context))[0],
            outputs,
            inputs,
        )
        return outputs, one_pass(outputs)[1]


def until_unchanged(
    one_pass: Callable[[Tensor], tuple[Tensor, Any]], start: Tensor
) -> tuple[Tensor, Any]:
    """Repeat ``one_pass`` on rows [N, D] until it changes no bit, at most D times.

    Args:
        one_pass: rows -> (rows, anything that comes with them); after D passes the rows have to
            have reached their fixed point.
        start: where to begin.

    Returns:
        What the last pass returned.

    Example:
        >>> until_unchanged(lambda x: (x.cumsum(1).clamp(max=2.0), "last"), torch.ones(1, 5))
        (tensor([[1., 2., 2., 2., 2.]]), 'last')
    """
    values, with_them = one_pass(start)
    before = start
    for _ in range(1, start.shape[1]):
        if torch.equal(before, values):
            break
        before = values
        values, with_them = one_pass(values)
    return values, with_them
