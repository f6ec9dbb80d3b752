"""Inverses of masked autoregressive flows that stop when nothing changes any more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from nflows.transforms import Transform
from nflows.transforms.autoregressive import AutoregressiveTransform
from torch import Tensor

from nflows_mixer._modes import running_statistics
from nflows_mixer.bridges.implicit import with_implicit_gradient


def inverse_of(transform: Transform) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the inverse of ``transform``; of nflows' masked flows, the one that stops early.

    The composites and mixing layers of this package invert their parts by it. A subclass with an
    inverse of its own keeps it.

    Args:
        transform: any nflows transform.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> maf = MaskedAffineAutoregressiveTransform(48, 64).eval()
        >>> latents = torch.randn(2, 48)
        >>> torch.equal(inverse_of(maf)(latents, None)[0], maf.inverse(latents)[0])
        True
    """
    if type(transform).inverse is AutoregressiveTransform.inverse:
        return partial(invert_autoregressive, transform)
    return transform.inverse


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

    # In training mode every pass would move the statistics of a batch normalisation.
    with running_statistics(flow):
        with torch.no_grad():
            outputs = until_unchanged(lambda x: one_pass(x)[0], torch.zeros_like(inputs))
        outputs = with_implicit_gradient(
            lambda x: flow._elementwise_forward(x, flow.autoregressive_net(x, context))[0],
            outputs,
            inputs,
        )
        return outputs, one_pass(outputs)[1]


def until_unchanged(one_pass: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Repeat ``one_pass`` on rows [N, D] until it changes no bit, at most D times.

    Args:
        one_pass: rows -> rows; after D passes it has to have reached its fixed point.
        start: where to begin.

    Example:
        >>> until_unchanged(lambda x: torch.cumsum(x, 1).clamp(max=1.0), torch.ones(1, 5))
        tensor([[1., 1., 1., 1., 1.]])
    """
    values = start
    for _ in range(start[0].numel() if len(start) else 1):
        before, values = values, one_pass(values)
        if torch.equal(before, values):
            break
    return values
