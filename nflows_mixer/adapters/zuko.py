"""Flows of zuko as nflows transforms, and transforms of nflows inside zuko.

Importing this module imports zuko, which changes torch.distributions for the whole process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.distributions.base import Distribution
from nflows.flows import Flow as NflowsFlow
from nflows.transforms import Transform
from torch import Size, Tensor, nn
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Transform as TorchTransform
from torch.distributions import constraints
from torch.distributions.transforms import _InverseTransform
from zuko import transforms
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
from zuko.utils import GaussLegendre

from nflows_mixer._checks import check_event, mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.core.as_transform import deterministic_transform
from nflows_mixer.core.context import (
    context_lengths,
    input_shape,
    shape_after,
    takes_context,
)
from nflows_mixer.numerics.autoregressive import inverse_of, until_unchanged
from nflows_mixer.numerics.implicit import (
    check_solution,
    first_order,
    invert_monotone,
    with_implicit_gradient,
)


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


def to_zuko(
    flow: Transform | NflowsFlow,
    context_features: int | None = None,
    event_shape: Sequence[int] | None = None,
    noise_shape: Sequence[int] | None = None,
) -> LazyNflowsTransform | Flow:
    """Return a flow of nflows as one of zuko, base and all, or a transform as a lazy transform.

    Of an ``ImageFlow`` that is the deterministic part below its dequantizer, with its base: it
    takes dequantized pixels [..., C, H, W]. A transform goes into a ``zuko.lazy.Flow`` with a base
    of the noise's shape, or among zuko's own lazy transforms. Parameters are shared; what has to
    be initialized from data (``ActNorm``) is so by the first training call, or before. An
    embedding net of the flow is left behind: ``c`` is what the transform itself takes.

    Args:
        flow: transform, or flow.
        context_features: length of the context ``c``, 0 where no part takes one; read from the
            parts where None.
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
        >>> flow = to_zuko(mixer)
        >>> flow().log_prob(256 * torch.rand(5, 1, 4, 4)).shape
        torch.Size([5])
        >>> flow().sample((2,)).shape
        torch.Size([2, 1, 4, 4])
    """
    transform = deterministic_transform(flow, "to_zuko")
    base = flow._distribution if isinstance(flow, NflowsFlow) else None
    known = getattr(flow, "image_shape", None) or input_shape(transform)
    if base is not None:
        noise_shape = noise_shape or getattr(base, "shape", getattr(base, "_shape", None))
    if None not in (known, event_shape) and tuple(known or ()) != tuple(event_shape or ()):
        raise mismatch(
            "to_zuko", f"event_shape {tuple(known or ())}", tuple(event_shape or ()), "leave it out"
        )
    shape = event_shape or known or noise_shape
    if shape is None:
        raise mismatch(
            "to_zuko",
            "a transform that says what it is for (features, image_shape)",
            f"a {type(flow).__name__} that does not",
            "pass event_shape=(D,), or (C, H, W)",
        )
    context_features = _agreed_context(transform, base, context_features)
    noise_shape = noise_shape or shape_after(transform, shape)
    lazy = LazyNflowsTransform(transform, shape, noise_shape, context_features)
    return lazy if base is None else Flow(lazy, LazyNflowsBase(base, noise_shape))


def _agreed_context(transform: Transform, base: Distribution | None, given: int | None) -> int:
    """Length of the context that a transform and its base take, 0 for none."""
    parts = [part for part in (transform, base) if part is not None and takes_context(part)]
    lengths = set().union(*map(context_lengths, parts))
    if given is None and not parts:
        return 0
    if given is None and len(lengths) == 1:
        return lengths.pop()
    expected = " or ".join(map(str, sorted(lengths))) if parts else "0"
    if given is None or (given > 0) != bool(parts) or (lengths and given not in lengths):
        raise mismatch(
            "to_zuko",
            "context_features" + (f"={expected}" if expected else " as its transform takes them"),
            given,
            "pass the length of its context (of class labels, of their vectors: labels go through "
            "the flow's embedding net first), and 0 where no part takes one",
        )
    return given


class LazyNflowsTransform(LazyTransform):
    """A lazy transform of zuko that runs a transform of nflows; ``to_zuko`` builds it.

    Args:
        transform: nflows transform, data to noise.
        event_shape: shape of one input.
        noise_shape: shape of one output.
        context_features: length of the context, 0 for none.
    """

    def __init__(
        self,
        transform: Transform,
        event_shape: Sequence[int],
        noise_shape: Sequence[int],
        context_features: int,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.event_shape = Size(event_shape)
        self.noise_shape = Size(noise_shape)
        self.context_features = context_features

    def forward(self, c: Tensor | None = None) -> NflowsTransform:
        """Build the transformation given a context [..., context_features]."""
        if c is not None and not c.is_floating_point():
            raise mismatch(
                "to_zuko",
                "a context of real features",
                c.dtype,
                "class labels go through the embedding net of their flow first",
            )
        got = 0 if c is None else c.shape[-1]
        if got != self.context_features:
            raise mismatch(
                "to_zuko",
                f"context of {self.context_features} features",
                f"{got} features",
                "pass flow(c) that context, and to_zuko the context_features of its transform",
            )
        return NflowsTransform(self, c)


class LazyNflowsBase(LazyDistribution):
    """A lazy distribution of zuko that is a base of nflows; ``to_zuko`` builds it.

    Args:
        base: distribution of nflows.
        shape: of one latent.

    Example:
        >>> from nflows_mixer.distributions import DiagonalNormal
        >>> LazyNflowsBase(DiagonalNormal(3), (3,))().rsample((2,)).requires_grad
        True
    """

    def __init__(self, base: Distribution, shape: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.shape = Size(shape)

    def forward(self, c: Tensor | None = None) -> NflowsBase:
        """Build the distribution given a context [..., context_features]."""
        return NflowsBase(self, c if takes_context(self.base) else None)


class NflowsBase(TorchDistribution):
    """What ``LazyNflowsBase`` builds: a distribution of torch, over any batch shape.

    Args:
        lazy: where it comes from.
        context: [..., context_features], or None.
        batch_shape: of the distribution; that of the context where None.

    Example:
        >>> import torch
        >>> from nflows.distributions import StandardNormal
        >>> built = NflowsBase(LazyNflowsBase(StandardNormal([3]), (3,)), None)
        >>> built.expand((4,)).log_prob(torch.zeros(2, 4, 3)).shape
        torch.Size([2, 4])
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self, lazy: LazyNflowsBase, context: Tensor | None, batch_shape: Size | None = None
    ) -> None:
        if batch_shape is None:
            batch_shape = Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, lazy.shape, validate_args=False)
        self.lazy = lazy
        self.context = context

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples have gradients of the parameters."""
        base = self.lazy.base
        known = (StandardNormal, ConditionalDiagonalNormal)
        return getattr(base, "has_rsample", isinstance(base, known))

    def expand(self, batch_shape: Any, _instance: Any = None) -> NflowsBase:
        """The same over a larger batch."""
        return NflowsBase(self.lazy, self.context, Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities of [..., *event_shape], of the batch's shape."""
        batch = value.shape[: value.dim() - len(self.event_shape)]
        batch = torch.broadcast_shapes(batch, self.batch_shape)
        rows = value.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        return self.lazy.base.log_prob(rows, self._rows_of_context(batch)).reshape(batch)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw [*sample_shape, *batch_shape, *event_shape], with gradients where there are some."""
        batch = self._extended_shape(Size(sample_shape))
        batch = batch[: len(batch) - len(self.event_shape)]
        base, count = self.lazy.base, batch.numel()
        context = self._rows_of_context(batch)
        if context is not None:
            drawn = base.sample(1, context)
        else:
            drawn = base.rsample(count) if hasattr(base, "rsample") else base.sample(count)
        return drawn.reshape(*batch, *self.event_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            if self.has_rsample or self.context is not None:
                return self.rsample(sample_shape)
            batch = self._extended_shape(Size(sample_shape))
            count = batch[: len(batch) - len(self.event_shape)].numel()
            return self.lazy.base.sample(count).reshape(batch)

    def _rows_of_context(self, batch: Size) -> Tensor | None:
        if self.context is None:
            return None
        return self.context.expand(*batch, -1).reshape(-1, self.context.shape[-1])


class NflowsTransform(TorchTransform, nn.Module):
    """What ``LazyNflowsTransform`` builds: it runs over any batch shape, as zuko's own.

    A module too, so that who holds one (a guide of pyro, a ``TransformedDistribution`` in a module)
    holds its parameters.

    Args:
        lazy: where it comes from.
        context: [..., context_features], broadcast against the batch of the inputs; None for none.
        inverted: whether it runs from noise to data.

    Example:
        >>> from nflows.transforms import LULinear
        >>> to_zuko(LULinear(4))().call_and_ladj(torch.zeros(7, 2, 4))[1].shape
        torch.Size([7, 2])
    """

    bijective = True

    def __init__(
        self, lazy: LazyNflowsTransform, context: Tensor | None, inverted: bool = False
    ) -> None:
        TorchTransform.__init__(self)
        nn.Module.__init__(self)
        self.lazy = lazy
        self.context = context
        self.inverted = inverted
        shapes = (lazy.event_shape, lazy.noise_shape)
        self.in_shape, self.out_shape = shapes[::-1] if inverted else shapes
        self.domain = constraints.independent(constraints.real, len(self.in_shape))
        self.codomain = constraints.independent(constraints.real, len(self.out_shape))

    @property
    def inv(self) -> NflowsTransform:
        """The transformation the other way."""
        return NflowsTransform(self.lazy, self.context, not self.inverted)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NflowsTransform)
            and (self.lazy, self.inverted) == (other.lazy, other.inverted)
            and self.context is other.context
        )

    def __hash__(self) -> int:
        return hash((self.lazy, self.inverted))

    def __repr__(self) -> str:
        arrow = "noise to data" if self.inverted else "data to noise"
        return f"NflowsTransform({type(self.lazy.transform).__name__}, {arrow})"

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, and log-dets of the batch's shape, for inputs [..., *in_shape]."""
        rank = len(self.in_shape)
        if x.shape[x.dim() - rank :] != self.in_shape:
            expected = ", ".join(["...", *map(str, self.in_shape)])
            raise mismatch(
                "to_zuko", f"inputs of shape [{expected}]", list(x.shape), "build it for this shape"
            )
        batch, context = x.shape[: x.dim() - rank], self.context
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            context = context.expand(*batch, -1).reshape(-1, context.shape[-1])
        rows = x.expand(*batch, *self.in_shape).reshape(-1, *self.in_shape)
        transform = self.lazy.transform
        function = inverse_of(transform) if self.inverted else transform
        outputs, logabsdet = function(rows, context)
        if outputs.shape[1:] != self.out_shape:
            raise mismatch(
                "to_zuko",
                f"outputs of shape {[len(rows), *self.out_shape]}",
                list(outputs.shape),
                "pass to_zuko the event_shape of its inputs and the noise_shape of its outputs",
            )
        return outputs.reshape(*batch, *self.out_shape), logabsdet.reshape(batch)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-dets of the batch's shape; prefer ``call_and_ladj``, which gives the outputs too."""
        return self.call_and_ladj(x)[1]

    def forward_shape(self, shape: Size) -> Size:
        """Shape of the outputs for inputs of ``shape``."""
        return Size((*shape[: len(shape) - len(self.in_shape)], *self.out_shape))

    def inverse_shape(self, shape: Size) -> Size:
        """Shape of the inputs for outputs of ``shape``."""
        return Size((*shape[: len(shape) - len(self.out_shape)], *self.in_shape))


def run(built: Any, values: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Outputs and log-det of a transformation that a lazy one has built, or of its inverse.

    That is zuko's own wherever it is in closed form. Masked flows are inverted by as many passes as
    change something, and monotone ones by Newton's steps; such outputs have gradients of first
    order.

    Args:
        built: a transformation of rows, or of elements.
        values: [N, D]; for the inverse, what the outputs are to be mapped to.
        inverse: which way.

    Returns:
        outputs [N, D], and a log-det of each row [N], or of each element of an elementary part.

    Raises:
        ValueError: if a part that runs backwards has no solution.

    Example:
        >>> import zuko
        >>> built = zuko.flows.MAF(3).transform()
        >>> rows = torch.randn(2, 3)
        >>> torch.allclose(run(built, run(built, rows)[0], inverse=True)[0], rows, atol=1e-4)
        True
    """
    if isinstance(built, _InverseTransform):
        return run(built.inv, values, not inverse)
    if isinstance(built, transforms.ComposedTransform):
        total = values.new_zeros(values.shape[0])
        for part in built.transforms[::-1] if inverse else built.transforms:
            values, ladj = run(part, values, inverse)
            total = total + row_sum(ladj, values)
        return values, total
    if isinstance(built, transforms.DependentTransform):
        outputs, ladj = run(built.base, values, inverse)
        return outputs, row_sum(ladj, outputs)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(values)
        moved, ladj = run(built.meta(fixed), moved, inverse)
        return built.merge(fixed, moved, values.shape), ladj
    if inverse:
        if isinstance(built, (transforms.AutoregressiveTransform, transforms.MonotonicTransform)):
            return _invert_by_iteration(built, values)
        if isinstance(built, transforms.SoftclipTransform) and (values.abs() >= built.bound).any():
            raise mismatch(
                "from_zuko(SoftclipTransform).inverse",
                f"values between {-built.bound} and {built.bound}, its range",
                f"{values.abs().max().item():g} in size",
                "zuko puts it between the transforms of SOSPF, NAF and UNAF; use transforms=1, "
                "standardize the inputs (ActNorm before it), or lower the temperature of samples",
            )
        outputs = built.inv(values)
        return outputs, -run(built, outputs)[1]
    if isinstance(built, transforms.AutoregressiveTransform):
        return run(built.meta(values), values)
    quadrature = isinstance(built, transforms.UnconstrainedMonotonicTransform)
    # Of a polynomial the quadrature is exact.
    if quadrature and not isinstance(built, transforms.SOSPolynomialTransform):
        return _integrate(built, values)
    return built.call_and_ladj(values)


def iterates(built: Any, rows: Tensor) -> bool:
    """Whether a transformation has a part without inverse in closed form: monotone, or an ODE.

    Args:
        built: a transformation of rows, or of elements.
        rows: a few inputs [N, D], to build the elementwise transformations with.

    Example:
        >>> import zuko
        >>> iterates(zuko.flows.NAF(3).transform(), torch.zeros(2, 3))
        True
    """
    if isinstance(built, _InverseTransform):
        return iterates(built.inv, rows)
    if isinstance(built, transforms.ComposedTransform):
        return any(iterates(part, rows) for part in built.transforms)
    if isinstance(built, transforms.DependentTransform):
        return iterates(built.base, rows)
    if isinstance(built, transforms.AutoregressiveTransform):
        return iterates(built.meta(rows), rows)
    if isinstance(built, transforms.CouplingTransform):
        fixed, moved = built.split(rows)
        return iterates(built.meta(fixed), moved)
    endless = (transforms.MonotonicTransform, transforms.FreeFormJacobianTransform)
    return isinstance(built, endless)


def row_sum(ladj: Tensor, inputs: Tensor) -> Tensor:
    """Log-det of each row, of one that may be of each row, of each element, or one for all.

    Args:
        ladj: of shape [], [N] or [N, ...].
        inputs: [N, ...].

    Example:
        >>> row_sum(torch.ones(2, 3), torch.zeros(2, 3))
        tensor([3., 3.])
    """
    if ladj.dim() < 2:
        return ladj.expand(inputs.shape[0])
    return ladj.flatten(1).sum(1)


def _integrate(built: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of an integral by quadrature, and the logarithm of the quadrature's own slope.

    zuko reports the integrand, which is the slope of the integral: apart by 1e-5 and more.
    """
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view, so that the slope is that at the inputs, and the graph goes on to them.
        upper = inputs.view_as(inputs) if inputs.requires_grad else inputs.clone().requires_grad_()
        outputs = GaussLegendre.quadrature(built.g, torch.zeros_like(upper), upper, built.n)
        (slope,) = torch.autograd.grad(outputs.sum(), upper, create_graph=with_graph)
        # zuko before 1.5 keeps the constant here, later a transform of its own.
        outputs = outputs + getattr(built, "C", 0.0)
    return (outputs, slope.log()) if with_graph else (outputs.detach(), slope.log())


def _invert_by_iteration(built: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    masked = isinstance(built, transforms.AutoregressiveTransform)

    def one_pass(x: Tensor) -> tuple[Tensor, None]:
        return _invert_elementwise(built.meta(x), targets, x), None

    with torch.no_grad():
        if masked:
            solution, _ = until_unchanged(one_pass, torch.zeros_like(targets))
        else:
            solution = _invert_elementwise(built, targets, None)
    last = built.meta(solution) if masked else built
    values, ladj = run(last, solution)
    # Of a masked flow the parameters of a pass are not yet its own, so that the end alone counts.
    if iterates(last, solution):
        check_solution(values.detach(), targets, f"from_zuko({type(built).__name__}).inverse")
    if not torch.is_grad_enabled():
        return solution, -ladj
    if masked:
        solution = with_implicit_gradient(lambda x: run(built, x)[0], solution, targets)
    else:
        solution = first_order(solution, (targets - values) / ladj.detach().exp())
    return solution, -run(built, solution)[1]


def _invert_elementwise(built: Any, targets: Tensor, start: Tensor | None) -> Tensor:
    """Solve an elementwise ``built(x) = targets``, from a first guess where it iterates."""
    if isinstance(built, transforms.DependentTransform):
        return _invert_elementwise(built.base, targets, start)
    if isinstance(built, transforms.ComposedTransform):
        # The first part is the one that may iterate, and the guess is for it.
        *last, first = reversed(built.transforms)
        for part in last:
            targets = run(part, targets, inverse=True)[0]
        return _invert_elementwise(first, targets, start)
    if isinstance(built, transforms.MonotonicTransform):
        # For UNAF the integrand will do as the slope of a step of Newton.
        return invert_monotone(built.call_and_ladj, targets, start)
    return run(built, targets, inverse=True)[0]
