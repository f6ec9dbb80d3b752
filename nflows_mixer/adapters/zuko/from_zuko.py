"""Flows of zuko as nflows transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.continuous import FFJTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.flows.neural import MNN, UMNN
from zuko.lazy import (
    Flow,
    LazyComposedTransform,
    LazyDistribution,
    LazyInverse,
    LazyTransform,
    UnconditionalTransform,
)

from nflows_mixer._checks import check_event, mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.adapters.zuko.walk import iterates, row_sum, run


def from_zuko(
    flow: Flow | LazyTransform,
    features: int | None = None,
    context_features: int | None = None,
    identity_start: bool = False,
) -> ZukoTransform:
    r"""Return a flow of zuko as an nflows transform; both run from data to noise.

    .. math:: y = f(x \mid c), \qquad \log|\det J| = \log|\det \partial f / \partial x|

    The parameters are shared. The transformation is built anew from them at each call, as zuko
    does, and its log-determinant taken with the outputs. Four things differ from zuko's own. The
    log-det of UNAF is that of the quadrature that it computes, not of the integral it stands for.
    Masked flows are inverted by as many passes as change something; monotone networks by Newton's
    steps, to the precision of the dtype, beyond [-10, 10] too; and gradients reach the parameters
    of NAF, UNAF and CNF in evaluation mode, where zuko leaves them wrong or out. What an inverse
    returns has gradients of first order. An inverse that has no solution, or does not reach it, is
    an error: for free-form flows (CNF), if x is not taken back to y within 100 (atol + rtol), or
    1e-6 if that is more. Their log-det is as exact as the solver.

    Args:
        flow: a flow (its base is left behind) or a lazy transform on rows. A raw transform goes
            into ``zuko.lazy.UnconditionalTransform`` first, which registers its tensors.
        features: row length; read from masked, coupling, elementwise and free-form parts.
        context_features: length of the context; read from the flow where it says it. A flow of
            another kind is tried without a context, and takes one if it fails so.
        identity_start: whether the last layers of its networks are set to zero, in place, which
            makes affine, spline, additive and free-form (CNF) transforms start at the identity.

    Shapes:
        inputs and outputs [N, features]; context [N, context_features]; log-dets [N].

    Raises:
        TypeError: if ``flow`` is no lazy transform and no flow of zuko.
        ValueError: if its parts are for rows or contexts of several lengths, or for others than
            given, it has a stochastic log-det (``CNF(exact=False)``), or it cannot start at the
            identity.

    References:
        zuko, https://zuko.readthedocs.io.

    Example:
        >>> import zuko
        >>> transform = from_zuko(zuko.flows.NSF(6, context=2, transforms=1))
        >>> outputs, logabsdet = transform(torch.randn(5, 6), torch.randn(5, 2))
        >>> outputs.shape, logabsdet.shape, transform.context_features
        (torch.Size([5, 6]), torch.Size([5]), 2)
    """
    if not isinstance(flow, (Flow, LazyTransform)):
        advice = "a raw transform is wrapped as zuko.lazy.UnconditionalTransform(Class, *tensors)"
        if isinstance(flow, LazyDistribution):
            advice = "a distribution without a map to noise is a base: use a flow such as NSF here"
        raise TypeError(
            f"from_zuko: expected a zuko Flow or LazyTransform, got {type(flow).__name__}; {advice}"
        )
    lazy = flow.transform if isinstance(flow, Flow) else flow
    if not all(part.exact for part in lazy.modules() if isinstance(part, FFJTransform)):
        raise mismatch(
            "from_zuko",
            "a log-determinant that is exact",
            "CNF(exact=False), whose log-determinant is a stochastic estimate, and its log_prob "
            "no likelihood",
            "leave exact at True: rows are short here",
        )
    given = {"rows": features, "context": context_features}
    for index, what in enumerate(given):
        lengths = {_sizes(part)[index] for part in _known_parts(lazy)}
        if (asked := given[what]) is not None:
            lengths.add(asked)
        if len(lengths) > 1:
            raise mismatch(
                f"from_zuko({type(flow).__name__})",
                f"{what} of one length",
                " and ".join(map(str, sorted(lengths))),
                "pass the class itself, or a factory, so that every part is built for its place",
            )
        given[what] = next(iter(lengths), None)
    if given["rows"] is None:
        raise mismatch(
            "from_zuko",
            "a flow that says how long its rows are",
            "one that does not",
            "pass features",
        )
    transform = ZukoTransform(lazy, given["rows"], given["context"])
    if identity_start:
        transform.start_at_identity()
    return transform


class ZukoTransform(Transform):
    """A lazy transform of zuko in nflows' contract; ``from_zuko`` builds, checks and describes it.

    Args:
        transform: lazy transform, data to noise.
        features: row length.
        context_features: length of the context, 0 for none, None where it is to be found out.
    """

    def __init__(
        self, transform: LazyTransform, features: int, context_features: int | None
    ) -> None:
        super().__init__()
        self._owner = f"from_zuko({type(transform).__name__})"  # which is its name in repr too
        self.transform = transform
        self.features = features
        self._free_form = [part for part in transform.modules() if isinstance(part, FFJTransform)]
        self.context_features = context_features
        self.iterative = self._look()
        self.takes_context = self.context_features != 0

    def _get_name(self) -> str:
        return self._owner

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] from data to noise."""
        return self._run(inputs, context, run)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] from noise to data."""
        return self._run(inputs, context, self._invert)

    def _invert(self, built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs, ladj = run(built, inputs, inverse=True)
        again = run(built, outputs)[0] if self._free_form else inputs
        for part in self._free_form:
            # Integrating back and forth need not meet where the ODE is stiff.
            tolerance = max(100 * (part.atol + part.rtol), 1e-6)
            error = ((again - inputs).abs() / inputs.abs().clamp(min=1)).max().item()
            if not error <= tolerance:
                raise mismatch(
                    f"{self._owner}.inverse",
                    f"an x that the ODE takes back to y within {tolerance:.1e}",
                    f"an error of {error:.1e}",
                    "give smaller atol and rtol, run it in float64, or regularize the flow",
                )
        return outputs, ladj

    def _run(
        self, inputs: Tensor, context: Tensor | None, function: Callable
    ) -> tuple[Tensor, Tensor]:
        context = self._checked(inputs, context)
        if len(inputs) == 0:
            # zuko cannot reshape what is empty.
            return inputs, inputs.new_zeros(0)
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                # zuko takes derivatives for its log-dets, which inference tensors refuse.
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
                inputs, context = inputs.clone(), None if context is None else context.clone()
            # In half precision its splines and integrals would be off, not its networks alone.
            stack.enter_context(torch.autocast(inputs.device.type, enabled=False))
            for module in self.transform.modules() if torch.is_grad_enabled() else ():
                # In evaluation mode these three hide parameters from their solvers.
                if isinstance(module, (FFJTransform, MNN, UMNN)):
                    stack.enter_context(in_mode(module, training=True))
            # The search for a spline's bin warns of inputs that it would have to copy.
            outputs, ladj = function(self.transform(context), inputs.contiguous())
            return outputs, row_sum(ladj, inputs)

    def _checked(self, inputs: Tensor, context: Tensor | None) -> Tensor | None:
        check_event(inputs, (self.features,), self._owner, "build it for these rows")
        finest = 8 * torch.finfo(inputs.dtype).eps
        for part in self._free_form:
            if part.atol + part.rtol < finest:
                raise mismatch(
                    self._owner,
                    f"atol + rtol of at least {finest:.1e} in {inputs.dtype}",
                    f"{part.atol + part.rtol:.1e}",
                    "its solver would never end: give larger tolerances, or run the flow in "
                    "float64, .double()",
                )
        if not self.takes_context:
            # As the transforms of nflows do with a context that they do not take.
            return None
        got = 0 if context is None else context.shape[-1]
        if self.context_features is not None and got != self.context_features:
            raise mismatch(
                self._owner,
                f"context of {self.context_features} features",
                f"{got} features",
                "build the flow with context=..., and pass that context",
            )
        # An encoder under autocast answers in half precision.
        return None if context is None else context.to(inputs.dtype)

    @torch.no_grad()
    def start_at_identity(self) -> None:
        """Set the last layers of its networks to zero, or raise where that is no identity."""
        built, rows = self._built_apart(torch.randn, _start_at_identity)
        if not (run(built, rows)[0] - rows).abs().max() < 0.01:
            raise mismatch(
                self._owner,
                "an affine, spline, additive or free-form transform, to start at the identity",
                "one that is not so with its networks at zero (a rotation, a monotone network)",
                "leave identity_start out",
            )
        _start_at_identity(self.transform)

    def _built_apart(
        self, values: Callable[..., Tensor], change: Callable[[nn.Module], object] = nn.Module.train
    ) -> tuple[Any, Tensor]:
        """A transformation of a copy, which touches no statistics, and two rows for it."""
        copied = copy.deepcopy(self.transform).train()
        change(copied)
        tensors = (*copied.parameters(), *copied.buffers())
        like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        context = like.new_zeros(2, self.context_features) if self.context_features else None
        return copied(context), values(2, self.features).to(like)

    @torch.no_grad()
    def _look(self) -> bool:
        """Whether it iterates; and find out whether it takes a context, which zuko does not say."""
        known = self.context_features is not None
        try:
            built, rows = self._built_apart(torch.zeros)
            if not known:
                built.call_and_ladj(rows)
                self.context_features = 0
        except Exception as error:
            plain = (LazyComposedTransform, LazyInverse, UnconditionalTransform)
            parts = [m for m in self.transform.modules() if isinstance(m, LazyTransform)]
            if known or all(isinstance(part, plain) for part in parts):
                raise mismatch(
                    self._owner,
                    f"a transform of rows of length {self.features}",
                    f"{type(error).__name__}: {error}",
                    "build it for these rows",
                ) from error
            return False
        return iterates(built, rows)


_KNOWN = (
    MaskedAutoregressiveTransform,
    GeneralCouplingTransform,
    ElementWiseTransform,
    FFJTransform,
)


def _known_parts(lazy: nn.Module) -> list[Any]:
    """The parts of a lazy transform whose sizes can be read from them."""
    return [module for module in lazy.modules() if isinstance(module, _KNOWN)]


def _sizes(part: Any) -> tuple[int, int]:
    """(features, context features) of one known part."""
    if isinstance(part, FFJTransform):
        features = part.ode[-1].out_features
        return features, part.ode[0].in_features - features - 2 * len(part.freqs)
    if isinstance(part, GeneralCouplingTransform):
        return len(part.mask), part.hyper[0].in_features - int(part.mask.sum())
    if not hasattr(part, "hyper"):
        return len(part.phi[0]), 0
    features, inputs = part.hyper[-1].out_features // part.total, part.hyper[0].in_features
    masked = isinstance(part, MaskedAutoregressiveTransform)
    return features, inputs - features if masked else inputs


def _start_at_identity(lazy: nn.Module) -> None:
    """Set the last layers of its networks to zero."""
    for part in _known_parts(lazy):
        network = part.ode if isinstance(part, FFJTransform) else getattr(part, "hyper", None)
        if network is not None:
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)
