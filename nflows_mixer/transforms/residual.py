"""The residual flow on rows: the identity plus a contraction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Union

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import ROWS_ADVICE, check_event, check_outputs, check_sizes, mismatch
from nflows_mixer._modes import running_statistics, widened
from nflows_mixer.core.context import check_takes_context, takes_context
from nflows_mixer.core.factory import UNSET, Unset, call_factory, check_read
from nflows_mixer.nn.lipschitz import LipschitzMLP
from nflows_mixer.numerics.implicit import row_jacobian, with_implicit_gradient

ContractionLike = Union[nn.Module, Callable[..., nn.Module]]
"""A network that is a contraction of rows, or a factory: features -> network. It is also given
those of ``context_features`` and ``hidden_features`` that its signature names."""


class ResidualTransform(Transform):
    r"""Residual flow: every feature of a row may move every other, with the log-det exact.

    .. math:: y = x + g(x), \qquad \log|\det J| = \log|\det(I + J_g(x))|, \qquad
              x \leftarrow y - g(x)

    g is a contraction, so that the map is invertible and the fixed point iteration converges. The
    log-det is that of the full Jacobian, by D vector-Jacobian products: with rows of 48 or 64
    features no estimator is needed, and the likelihood is exact. Its price is that of D backward
    passes and O(N D^3) for the determinants; memory is O(N D^2), in training O(N D (D + H)) with
    layers of width H.

    The inverse iterates without gradients and in evaluation mode, until no element of a row
    changes by more than ``tolerance`` times the largest of 1 and the magnitudes in the row's x and
    y; the error left is at most L / (1 - L) times the last change, with L the Lipschitz constant.
    Gradients come from the implicit function theorem, right to first order.

    Args:
        features: D.
        network: contraction g, or a factory ``features -> network``; called with the rows (and
            the context, if it takes one), gives rows of as many features. No batch normalization:
            it is no contraction, and mixes rows in training mode.
        tolerance: of the inverse; None is 1e-12 for float64 and 1e-6 for any other dtype.
        max_iterations: of the inverse; each shrinks the change by L or more.
        context_features: length of the context; of the factory, as is the next.
        hidden_features: width of the network; its own default where not given.

    Shapes:
        inputs and outputs [N, D].

    Raises:
        ValueError: if a size or the tolerance is not positive, inputs are no rows of this length,
            or the network's outputs are none.
        RuntimeError: if the inverse does not converge.

    References:
        Chen et al., Residual flows for invertible generative modeling, 2019; Behrmann et al.,
        Invertible residual networks, 2019; MixerFlow, Section 4, for any row flow as mixing flow.

    Example:
        >>> residual = ResidualTransform(48)
        >>> rows = torch.randn(7, 48)
        >>> outputs, logabsdet = residual(rows)
        >>> torch.equal(outputs, rows), logabsdet.shape
        (True, torch.Size([7]))
        >>> _ = torch.nn.init.normal_(residual.network.final.weight)
        >>> back, _ = residual.inverse(residual(rows)[0])
        >>> torch.allclose(back, rows, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        network: ContractionLike = LipschitzMLP,
        tolerance: float | None = None,
        max_iterations: int = 1000,
        *,
        context_features: int | None = None,
        hidden_features: int | Unset = UNSET,
    ) -> None:
        super().__init__()
        owner = "ResidualTransform"
        sizes = {"features": features, "max_iterations": max_iterations}
        features, max_iterations = check_sizes(owner, **sizes)
        if tolerance is not None and not tolerance > 0:
            raise mismatch(owner, "tolerance above 0", tolerance, "give None for one by dtype")
        check_read(owner, network, hidden_features=hidden_features)
        if not isinstance(network, nn.Module):
            network = call_factory(
                network,
                features,
                context_features=context_features,
                hidden_features=hidden_features,
            )
        if not isinstance(network, nn.Module):
            got = type(network).__name__
            raise mismatch(owner, "a network that is an nn.Module", got, "return one")
        self.features = features
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.network = network
        check_takes_context(owner, context_features, network)
        self._passes_context = takes_context(network)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D]."""
        check_event(inputs, (self.features,), "ResidualTransform", ROWS_ADVICE)
        network = self._network_given(context)
        # The log-det of a Jacobian in half precision is no likelihood.
        with torch.autocast(inputs.device.type, enabled=False):
            outputs, jacobian = row_jacobian(
                lambda rows: rows + network(rows), inputs, self._needs_graph(inputs, context)
            )
            return outputs, torch.linalg.slogdet(jacobian).logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back, by fixed point iteration."""
        check_event(inputs, (self.features,), "ResidualTransform", ROWS_ADVICE)
        network, inputs = self._network_given(context), widened(self, inputs)

        def function(rows: Tensor) -> Tensor:
            return rows + network(rows)

        with running_statistics(self), torch.autocast(inputs.device.type, enabled=False):
            outputs = with_implicit_gradient(function, self._fixed_point(network, inputs), inputs)
            _, jacobian = row_jacobian(function, outputs, self._needs_graph(inputs, context))
            return outputs, -torch.linalg.slogdet(jacobian).logabsdet

    def _network_given(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        if context is not None and context.is_inference():
            # Autograd, which the Jacobian needs, keeps no inference tensors.
            with torch.inference_mode(False):
                context = context.clone()

        def network(rows: Tensor) -> Tensor:
            # An encoder under autocast answers in half precision; see forward.
            cast = None if context is None else context.to(rows.dtype)
            moves = self.network(rows, cast) if self._passes_context else self.network(rows)
            check_outputs(moves, rows.shape, "ResidualTransform.network", "outputs")
            return moves

        return network

    def _needs_graph(self, inputs: Tensor, context: Tensor | None) -> bool:
        tensors = [inputs, *self.parameters(), *([] if context is None else [context])]
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    @torch.no_grad()
    def _fixed_point(self, network: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-12 if targets.dtype == torch.float64 else 1e-6
        # Rounding errors of y - g(x) grow with |y| and |x|, over the row because g mixes it.
        scale = targets.abs().amax(1).clamp(min=1)
        solution, change = targets, 0.0
        for _ in range(self.max_iterations if len(targets) else 0):
            previous, solution = solution, targets - network(solution)
            changes = (solution - previous).abs().amax(1)
            change = (changes / torch.maximum(scale, solution.abs().amax(1))).max().item()
            if change <= tolerance:
                return solution
            if not math.isfinite(change):
                break
        if len(targets) == 0:
            return solution
        raise RuntimeError(
            f"ResidualTransform.inverse: expected a change below {tolerance:g} within "
            f"{self.max_iterations} iterations, got {change:g}; the inputs are not finite, or the "
            "network is no contraction: use LipschitzMLP, or give more max_iterations or tolerance"
        )
