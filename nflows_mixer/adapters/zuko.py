"""Flows of zuko as nflows transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import check_event, mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.adapters.zuko_domains import check_domains
from nflows_mixer.adapters.zuko_maps import row_sum, run, solve
from nflows_mixer.adapters.zuko_sizes import free_form_parts, known_parts, may_take_context, sizes

if TYPE_CHECKING:
    from zuko.lazy import Flow, LazyTransform


def from_zuko(
    flow: Flow | LazyTransform,
    features: int | None = None,
    context_features: int | None = None,
    identity_start: bool = False,
) -> ZukoTransform:
    r"""Return a flow of zuko as an nflows transform; both run from data to noise.

    .. math:: y = f(x \mid c), \qquad \log|\det J| = \log|\det \partial f / \partial x|

    The parameters are shared. The transformation is built anew from them at each call, as zuko
    does, and its log-determinant taken with the outputs. Four things are mended on the way. The
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
        ValueError: if it is bounded (NCSF), changes the shape of rows, has a stochastic log-det
            (``CNF(exact=False)``), or cannot start at the identity.

    References:
        zuko, https://zuko.readthedocs.io.

    Example:
        >>> import zuko
        >>> transform = from_zuko(zuko.flows.NSF(6, context=2, transforms=1))
        >>> outputs, logabsdet = transform(torch.randn(5, 6), torch.randn(5, 2))
        >>> outputs.shape, logabsdet.shape, transform.context_features
        (torch.Size([5, 6]), torch.Size([5]), 2)
    """
    from zuko.lazy import Flow, LazyDistribution, LazyTransform

    if not isinstance(flow, (Flow, LazyTransform)):
        advice = "a raw transform is wrapped as zuko.lazy.UnconditionalTransform(Class, *tensors)"
        if isinstance(flow, LazyDistribution):
            advice = "a distribution without a map to noise is a base: use a flow such as NSF here"
        raise TypeError(
            f"from_zuko: expected a zuko Flow or LazyTransform, got {type(flow).__name__}; {advice}"
        )
    lazy = flow.transform if isinstance(flow, Flow) else flow
    _refuse_stochastic(lazy)
    if identity_start:
        _start_at_identity(lazy)
    given = {"rows": features, "context": context_features}
    for index, what in enumerate(given):
        lengths = {sizes(part)[index] for part in known_parts(lazy)}
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
        transform.check_identity()
    return transform


class ZukoTransform(Transform):
    """A lazy transform of zuko in nflows' contract; ``from_zuko`` builds, checks and describes it.

    Args:
        transform: lazy transform, data to noise.
        features: row length.
        context_features: length of the context, 0 for none, None where it is to be found out.

    Example:
        >>> import zuko
        >>> lazy = zuko.flows.MaskedAutoregressiveTransform(6)
        >>> ZukoTransform(lazy, 6, 0)(torch.randn(5, 6))[1].shape
        torch.Size([5])
    """

    def __init__(
        self, transform: LazyTransform, features: int, context_features: int | None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.features = features
        self.context_features = context_features
        self.takes_context = context_features != 0
        self._free_form = free_form_parts(transform)
        self._owner = f"from_zuko({type(transform).__name__})"
        self._try_out()

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] from data to noise."""
        return self._run(inputs, context, self._forward)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] from noise to data."""
        return self._run(inputs, context, self._inverse)

    @staticmethod
    def _forward(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs, ladj = run(built, inputs)
        return outputs, row_sum(ladj, inputs)

    def _inverse(self, built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = solve(built, inputs)
        again, ladj = run(built, outputs)
        for part in self._free_form:
            # Integrating back and forth need not meet where the ODE is stiff.
            tolerance = max(100 * (part.atol + part.rtol), 1e-6)
            error = ((again - inputs).abs() / inputs.abs().clamp(min=1)).max().item()
            if not error <= tolerance:
                raise mismatch(
                    f"{self._owner}.inverse",
                    f"an x that the ODE takes back to y within {tolerance:.1e}",
                    f"an error of {error:.1e}",
                    "give smaller atol and rtol, run it in float64, or regularise the flow",
                )
        return outputs, -row_sum(ladj, inputs)

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
            stack.enter_context(self._gradients_for_all())
            # The search for a spline's bin warns of inputs that it would have to copy.
            return function(self.transform(context), inputs.contiguous())

    def _gradients_for_all(self) -> AbstractContextManager:
        """Put those modules of zuko into training mode that hide parameters from it otherwise."""
        from zuko.flows.continuous import FFJTransform
        from zuko.flows.neural import MNN, UMNN

        stack = ExitStack()
        if torch.is_grad_enabled():
            for module in self.transform.modules():
                # In evaluation mode these three tell their solvers of no parameters.
                if isinstance(module, (FFJTransform, MNN, UMNN)):
                    stack.enter_context(in_mode(module, training=True))
        return stack

    def _checked(self, inputs: Tensor, context: Tensor | None) -> Tensor | None:
        check_event(inputs, (self.features,), self._owner, "build it for these rows")
        self._check_tolerances(inputs.dtype)
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

    def _check_tolerances(self, dtype: torch.dtype) -> None:
        finest = 8 * torch.finfo(dtype).eps
        for part in self._free_form:
            if part.atol + part.rtol < finest:
                raise mismatch(
                    self._owner,
                    f"atol + rtol of at least {finest:.1e} in {dtype}",
                    f"{part.atol + part.rtol:.1e}",
                    "its solver would never end: give larger tolerances, or run the flow in "
                    "float64, .double()",
                )

    def check_identity(self) -> None:
        """Raise unless it is the identity, to a hundredth, on a few random rows."""
        copied, rows, context = self._probe(torch.randn)
        with torch.no_grad():
            outputs, _ = run(copied(context), rows)
        if not (outputs - rows).abs().max() < 0.01:
            raise mismatch(
                self._owner,
                "a transform that starts at the identity with its networks at zero",
                "one with other parts (a rotation, a permutation)",
                "leave identity_start out",
            )

    def _probe(self, values: Callable[..., Tensor]) -> tuple[Any, Tensor, Tensor | None]:
        """A copy that can be run without touching statistics, with two rows and a context."""
        copied = copy.deepcopy(self.transform).train()
        tensors = (*copied.parameters(), *copied.buffers())
        like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        rows = values(2, self.features).to(like)
        context = rows.new_zeros(2, self.context_features) if self.context_features else None
        return copied, rows, context

    @torch.no_grad()
    def _try_out(self) -> None:
        """Find out on two rows of zeros what zuko does not check."""
        copied, rows, context = self._probe(torch.zeros)
        if self.context_features is None:
            try:
                copied(None).call_and_ladj(rows)
            except Exception as error:
                if may_take_context(self.transform):
                    # It takes a context of a length that is its own affair.
                    return
                raise mismatch(
                    self._owner,
                    f"a transform of rows of length {self.features}",
                    f"{type(error).__name__}: {error}",
                    "build it for these rows",
                ) from error
            self.context_features, self.takes_context = 0, False
        built = copied(context)
        check_domains(built, rows, self._owner)
        if self._free_form:
            # Their solver would take long, and does not change shapes.
            return
        outputs, _ = built.call_and_ladj(rows)
        if outputs.shape != rows.shape:
            raise mismatch(
                self._owner,
                f"a transform that keeps rows of length {self.features}",
                f"outputs of shape {list(outputs.shape)} from {list(rows.shape)}",
                "channel and patch flows map R^D to R^D; leave the reshaping out",
            )


def _refuse_stochastic(lazy: nn.Module) -> None:
    for module in free_form_parts(lazy):
        if not module.exact:
            raise mismatch(
                "from_zuko",
                "a log-determinant that is exact",
                "CNF(exact=False), whose log-determinant is a stochastic estimate, and its "
                "log_prob no likelihood",
                "leave exact at True: rows are short here",
            )


def _start_at_identity(lazy: nn.Module) -> None:
    from zuko.flows.continuous import FFJTransform

    starts = ("MonotonicAffineTransform", "MonotonicRQSTransform", "AdditiveTransform")
    for part in known_parts(lazy):
        univariate = getattr(part, "univariate", None)
        univariate = getattr(univariate, "func", univariate)
        network = part.ode if isinstance(part, FFJTransform) else getattr(part, "hyper", None)
        name = getattr(univariate, "__name__", type(univariate).__name__)
        if network is None or not (isinstance(part, FFJTransform) or name in starts):
            raise mismatch(
                "from_zuko",
                "an affine, spline, additive or free-form transform to start at the identity",
                name,
                "leave identity_start out",
            )
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
