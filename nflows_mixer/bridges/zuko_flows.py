"""Flows of zuko as nflows transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.distributions import constraints

from nflows_mixer._checks import check_event, mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.bridges.implicit import first_order, with_implicit_gradient
from nflows_mixer.bridges.invert import until_unchanged
from nflows_mixer.bridges.monotone import check_solution, invert_monotone

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
    does, and its log-determinant taken with the outputs. Three things are mended on the way.
    Masked flows are inverted by as many passes as change something; monotone networks by Newton's
    steps, to the precision of the dtype, beyond [-10, 10] too; and gradients reach the parameters
    of NAF, UNAF and CNF in evaluation mode, where zuko leaves them wrong or out. What an inverse
    returns has gradients of first order. An inverse that has no solution, or does not reach it, is
    an error: for free-form flows (CNF), if x is not taken back to y within 100 (atol + rtol).

    Args:
        flow: a flow (its base is left behind) or a lazy transform on rows. A raw transform goes
            into ``zuko.lazy.UnconditionalTransform`` first, which registers its tensors.
        features: row length; read from masked, coupling, elementwise and free-form parts.
        context_features: length of the context; read from the flow where it says it. A flow of
            another kind is tried without a context, and takes one if it fails so.
        identity_start: whether the last layers of its networks are set to zero, which makes
            affine, spline, additive and free-form (CNF) transforms start at the identity.

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
    sizes = [_sizes(part) for part in _parts(lazy)]
    if sizes:
        length = sizes[0][0]
        if features not in (None, length):
            raise mismatch(
                "from_zuko",
                f"rows of length {length}, as the {type(flow).__name__} was built for",
                features,
                "pass the class itself, or a factory, so that it is built for its place",
            )
        features = length
    if features is None:
        raise mismatch(
            "from_zuko",
            "a flow that says how long its rows are",
            "one that does not",
            "pass features",
        )
    if context_features is None and sizes:
        context_features = max(context for _, context in sizes)
    return ZukoTransform(lazy, features, context_features)


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
        self._free_form = _free_form(transform)
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
        outputs, ladj = _call(built, inputs)
        return outputs, _sum(ladj, inputs)

    def _inverse(self, built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = _invert(built, inputs)
        again, ladj = _call(built, outputs)
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
        return outputs, -_sum(ladj, inputs)

    def _run(
        self, inputs: Tensor, context: Tensor | None, function: Callable
    ) -> tuple[Tensor, Tensor]:
        self._check(inputs, context)
        if len(inputs) == 0:
            # zuko cannot reshape what is empty.
            return inputs, inputs.new_zeros(0)
        # In half precision its splines and integrals would be off, not only their conditioners.
        self._check_tolerances(inputs.dtype)
        with torch.autocast(inputs.device.type, enabled=False), self._gradients_for_all():
            return function(self.transform(context), inputs)

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

    def _check(self, inputs: Tensor, context: Tensor | None) -> None:
        check_event(inputs, (self.features,), self._owner, "build it for these rows")
        got = 0 if context is None else context.shape[-1]
        if self.context_features is not None and got != self.context_features:
            raise mismatch(
                self._owner,
                f"context of {self.context_features} features",
                f"{got} features",
                "build the flow with context=..., and pass that context",
            )

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

    @torch.no_grad()
    def _try_out(self) -> None:
        """Find out on two rows of zeros what zuko does not check."""
        tensors = (*self.transform.parameters(), *self.transform.buffers())
        like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        rows = like.new_zeros(2, self.features)
        if self.context_features is None:
            try:
                self.transform(None).call_and_ladj(rows)
            except Exception:
                # It takes a context of a length that is its own affair.
                return
            self.context_features, self.takes_context = 0, False
        context = rows.new_zeros(2, self.context_features) if self.context_features else None
        built = self.transform(context)
        for constraint in _outer(built, rows):
            if constraint is not constraints.real:
                raise mismatch(
                    self._owner,
                    "a transform from all real numbers to all real numbers",
                    f"one from or to {constraint}",
                    "use zuko.flows.NSF in place of NCSF, and Softclip and the like only between "
                    "other transforms",
                )
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


def _outer(built: Any, rows: Tensor) -> tuple[Any, Any]:
    """Domain of the first and codomain of the last elementary part of a built transformation."""
    from zuko import transforms

    if isinstance(built, transforms.ComposedTransform):
        return _outer(built.transforms[0], rows)[0], _outer(built.transforms[-1], rows)[1]
    if isinstance(built, transforms.AutoregressiveTransform):
        return _outer(built.meta(rows), rows)
    if isinstance(built, transforms.CouplingTransform):
        return _outer(built.meta(built.split(rows)[0]), rows)
    if isinstance(built, transforms.DependentTransform):
        return _outer(built.base, rows)
    ends = [built.domain, built.codomain]
    for index, end in enumerate(ends):
        while isinstance(end, constraints.independent):
            end = end.base_constraint
        ends[index] = end
    return ends[0], ends[1]


def _call(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and the log-det of a built transformation, summed where it has several parts."""
    from torch.distributions.transforms import _InverseTransform
    from zuko.transforms import ComposedTransform

    if isinstance(built, ComposedTransform):
        total = inputs.new_zeros(inputs.shape[0])
        for part in built.transforms:
            inputs, ladj = _call(part, inputs)
            total = total + _sum(ladj, inputs)
        return inputs, total
    if isinstance(built, _InverseTransform):
        outputs = _invert(built.inv, inputs)
        return outputs, -_call(built.inv, outputs)[1]
    return built.call_and_ladj(inputs)


def _invert(built: Any, targets: Tensor) -> Tensor:
    """Solve ``built(x) = targets``; zuko's own inverse wherever that is in closed form."""
    from torch.distributions.transforms import _InverseTransform
    from zuko import transforms

    if isinstance(built, _InverseTransform):
        return _call(built.inv, targets)[0]
    if isinstance(built, transforms.ComposedTransform):
        for part in reversed(built.transforms):
            targets = _invert(part, targets)
        return targets
    if isinstance(built, transforms.DependentTransform):
        return _invert(built.base, targets)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(targets)
        return built.merge(fixed, _invert(built.meta(fixed), moved), targets.shape)
    if isinstance(built, transforms.AutoregressiveTransform):
        with torch.no_grad():
            solution = until_unchanged(
                lambda x: _solve_elementwise(built.meta(x), targets, x), torch.zeros_like(targets)
            )
            _check_iterative(built.meta(solution), solution, targets)
        return with_implicit_gradient(lambda x: built.meta(x)(x), solution, targets)
    if isinstance(built, transforms.MonotonicTransform):
        with torch.no_grad():
            solution = _solve_elementwise(built, targets, None)
            _check_iterative(built, solution, targets)
        if not torch.is_grad_enabled():
            return solution
        with torch.no_grad():
            slope = built.call_and_ladj(solution)[1].exp()
        return first_order(solution, (targets - built(solution)) / slope)
    if isinstance(built, transforms.SoftclipTransform):
        if (targets.abs() >= built.bound).any():
            raise mismatch(
                "from_zuko(SoftclipTransform).inverse",
                f"values between {-built.bound} and {built.bound}, its range",
                f"{targets.abs().max().item():g} in size",
                "zuko puts it between the transforms of SOSPF, NAF and UNAF; use transforms=1, "
                "standardise the inputs (ActNorm before it), or lower the temperature of samples",
            )
    return built.inv(targets)


def _solve_elementwise(built: Any, targets: Tensor, start: Tensor | None) -> Tensor:
    """Solve an elementwise ``built(x) = targets``, from a first guess where it iterates."""
    from zuko import transforms

    if isinstance(built, transforms.DependentTransform):
        return _solve_elementwise(built.base, targets, start)
    if isinstance(built, transforms.ComposedTransform):
        # The parts before the last are the ones that may iterate, and the guess is for the first.
        *last, first = reversed(built.transforms)
        for part in last:
            targets = _invert(part, targets)
        return _solve_elementwise(first, targets, start)
    if isinstance(built, transforms.MonotonicTransform):
        return invert_monotone(built.call_and_ladj, targets, start)
    return _invert(built, targets)


def _check_iterative(built: Any, solution: Tensor, targets: Tensor) -> None:
    """Raise if an elementwise transformation that iterates has not found its solution.

    Of a masked flow that is asked at the end alone: before, the parameters are not yet its own.
    """
    from zuko import transforms

    parts = [built.base] if isinstance(built, transforms.DependentTransform) else [built]
    if isinstance(parts[0], transforms.ComposedTransform):
        parts = parts[0].transforms
    for part in parts:
        if isinstance(part, transforms.MonotonicTransform):
            owner = f"from_zuko({type(part).__name__}).inverse"
            check_solution(built(solution), targets, owner)


def _sum(ladj: Tensor, inputs: Tensor) -> Tensor:
    """Log-det [N] of one that may be per row, per element, or the same for all."""
    if ladj.dim() < 2:
        return ladj.expand(inputs.shape[0])
    return ladj.flatten(1).sum(1)


def _free_form(lazy: nn.Module) -> list[Any]:
    """Those parts of a lazy transform that solve an ODE."""
    from zuko.flows.continuous import FFJTransform

    return [module for module in lazy.modules() if isinstance(module, FFJTransform)]


def _refuse_stochastic(lazy: nn.Module) -> None:
    for module in _free_form(lazy):
        if not module.exact:
            raise mismatch(
                "from_zuko",
                "a log-determinant that is exact",
                "CNF(exact=False), whose log-determinant is a stochastic estimate, and its "
                "log_prob no likelihood",
                "leave exact at True: rows are short here",
            )


def _parts(lazy: nn.Module) -> Iterator[Any]:
    """Yield the parts of a lazy transform whose sizes can be read from them."""
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform
    from zuko.flows.continuous import FFJTransform
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.flows.gaussianization import ElementWiseTransform

    known = (
        MaskedAutoregressiveTransform,
        GeneralCouplingTransform,
        ElementWiseTransform,
        FFJTransform,
    )
    return (module for module in lazy.modules() if isinstance(module, known))


def _sizes(part: Any) -> tuple[int, int]:
    """(features, context features) of one known part."""
    if hasattr(part, "ode"):
        features = part.ode[-1].out_features
        return features, part.ode[0].in_features - features - 2 * len(part.freqs)
    if hasattr(part, "mask"):
        features = len(part.mask)
        return features, part.hyper[0].in_features - int(part.mask.sum())
    if hasattr(part, "passes"):
        features = part.hyper[-1].out_features // part.total
        return features, part.hyper[0].in_features - features
    if hasattr(part, "hyper"):
        return part.hyper[-1].out_features // part.total, part.hyper[0].in_features
    return len(part.phi[0]), 0


def _start_at_identity(lazy: nn.Module) -> None:
    from zuko.flows.continuous import FFJTransform

    starts = ("MonotonicAffineTransform", "MonotonicRQSTransform", "AdditiveTransform")
    for part in _parts(lazy):
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
