"""Flows of zuko as nflows transforms."""

from __future__ import annotations

import copy
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
        lengths = {_sizes(part)[index] for part in _parts(lazy)}
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
            outputs, _ = _call(copied(context), rows)
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
                if _may_take_context(self.transform):
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
        _check_domains(built, rows, self._owner)
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


def _check_domains(built: Any, rows: Tensor, owner: str) -> None:
    """Follow domains from part to part: together they have to map all of R^D to all of R^D."""
    from zuko.transforms import SoftclipTransform

    here: Any = constraints.real
    parts = list(_elementary(built, rows))
    for index, (part, inverted) in enumerate(parts):
        if isinstance(part, SoftclipTransform) and 0 < index < len(parts) - 1:
            # SOSPF, NAF and UNAF are made with it; ``_invert`` looks whether values are in range.
            continue
        ends = [_base(part.domain), _base(part.codomain)][:: -1 if inverted else 1]
        error = mismatch(
            owner,
            "a bijection from all real numbers to all real numbers",
            f"{type(part).__name__} from {ends[0]} to {ends[1]}",
            "use a transform of all real numbers, such as those of zuko.flows.NSF, or put this one "
            "between others that map to its domain and back",
        )
        if not part.bijective or not _same(here, ends[0]):
            raise error
        here = ends[1]
    if not _same(here, constraints.real):
        raise error


def _elementary(built: Any, rows: Tensor, inverted: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the elementary parts in the order of the map, and whether each runs backwards."""
    from torch.distributions.transforms import _InverseTransform
    from zuko import transforms

    if isinstance(built, _InverseTransform):
        yield from _elementary(built.inv, rows, not inverted)
    elif isinstance(built, transforms.ComposedTransform):
        for part in list(built.transforms)[:: -1 if inverted else 1]:
            yield from _elementary(part, rows, inverted)
    elif isinstance(built, transforms.AutoregressiveTransform):
        yield from _elementary(built.meta(rows), rows, inverted)
    elif isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(rows)
        yield from _elementary(built.meta(fixed), moved, inverted)
    elif isinstance(built, transforms.DependentTransform):
        yield from _elementary(built.base, rows, inverted)
    else:
        yield built, inverted


def _base(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _same(one: Any, other: Any) -> bool:
    """Constraints of torch compare by identity, so that their kind and bounds are compared here."""
    return type(one) is type(other) and vars(one) == vars(other)


def _call(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and the log-det of a built transformation, summed where it has several parts."""
    from torch.distributions.transforms import _InverseTransform
    from zuko import transforms

    if isinstance(built, transforms.ComposedTransform):
        total = inputs.new_zeros(inputs.shape[0])
        for part in built.transforms:
            inputs, ladj = _call(part, inputs)
            total = total + _sum(ladj, inputs)
        return inputs, total
    if isinstance(built, transforms.DependentTransform):
        outputs, ladj = _call(built.base, inputs)
        return outputs, _sum(ladj, inputs)
    if isinstance(built, transforms.AutoregressiveTransform):
        return _call(built.meta(inputs), inputs)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(inputs)
        moved, ladj = _call(built.meta(fixed), moved)
        return built.merge(fixed, moved, inputs.shape), ladj
    if isinstance(built, transforms.UnconstrainedMonotonicTransform):
        return _integrate(built, inputs)
    if isinstance(built, _InverseTransform):
        outputs = _invert(built.inv, inputs)
        return outputs, -_call(built.inv, outputs)[1]
    return built.call_and_ladj(inputs)


def _integrate(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of an integral by quadrature, and the logarithm of the quadrature's own slope.

    zuko reports the integrand, which is the slope of the integral: apart by 1e-5 and more.
    """
    from zuko.transforms import SOSPolynomialTransform
    from zuko.utils import GaussLegendre

    if isinstance(built, SOSPolynomialTransform):
        # Of a polynomial the quadrature is exact.
        return built.call_and_ladj(inputs)
    wants_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view, so that the slope is that at the inputs, and the graph goes on to them.
        upper = inputs.view_as(inputs) if inputs.requires_grad else inputs.clone().requires_grad_()
        outputs = GaussLegendre.quadrature(built.g, torch.zeros_like(upper), upper, built.n)
        (slope,) = torch.autograd.grad(outputs.sum(), upper, create_graph=wants_graph)
        # zuko before 1.5 keeps the constant here, later a transform of its own.
        outputs = outputs + getattr(built, "C", 0.0)
    return (outputs, slope.log()) if wants_graph else (outputs.detach(), slope.log())


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
            solution, _ = until_unchanged(
                lambda x: (_solve_elementwise(built.meta(x), targets, x), None),
                torch.zeros_like(targets),
            )
            _check_iterative(built.meta(solution), solution, targets)
        return with_implicit_gradient(lambda x: _call(built, x)[0], solution, targets)
    if isinstance(built, transforms.MonotonicTransform):
        with torch.no_grad():
            solution = _solve_elementwise(built, targets, None)
            _check_iterative(built, solution, targets)
        if not torch.is_grad_enabled():
            return solution
        values, log_slope = _call(built, solution)
        return first_order(solution, (targets - values) / log_slope.detach().exp())
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
        # For UNAF the integrand will do as the slope of a step of Newton.
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
            check_solution(_call(built, solution)[0], targets, owner)


def _sum(ladj: Tensor, inputs: Tensor) -> Tensor:
    """Log-det [N] of one that may be per row, per element, or the same for all."""
    if ladj.dim() < 2:
        return ladj.expand(inputs.shape[0])
    return ladj.flatten(1).sum(1)


def _may_take_context(lazy: nn.Module) -> bool:
    """Whether there is a lazy transform in it of which nothing is known."""
    from zuko import lazy as zuko_lazy

    plain = (
        zuko_lazy.LazyComposedTransform,
        zuko_lazy.LazyInverse,
        zuko_lazy.UnconditionalTransform,
    )
    lazies = [m for m in lazy.modules() if isinstance(m, zuko_lazy.LazyTransform)]
    return not all(isinstance(module, plain) for module in lazies)


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
