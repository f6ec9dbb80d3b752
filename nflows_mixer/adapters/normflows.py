"""Flows of normflows, which run from noise to data, as nflows transforms, and the other way round.

Importing this module imports normflows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import normflows as nf
import torch
from nflows.distributions.base import Distribution
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import ROWS_ADVICE, check_event, mismatch
from nflows_mixer._modes import in_own_precision, running_statistics
from nflows_mixer.core.as_transform import deterministic_transform
from nflows_mixer.core.composite import CompositeTransform, InverseTransform
from nflows_mixer.core.context import takes_context
from nflows_mixer.numerics.autoregressive import inverse_of, invert_autoregressive
from nflows_mixer.transforms.residual import ResidualTransform


def from_normflows(
    flow: nf.flows.Flow | nf.NormalizingFlow, features: int | None = None
) -> Transform:
    r"""Return a flow of normflows as an nflows transform; its ``inverse`` becomes ``forward``.

    normflows maps noise to data, nflows data to noise. The parameters are shared. Log-dets are
    made one for each row; ``Composite`` and ``Reverse`` are taken apart. Masked flows are inverted
    by as many passes as change something. ``Residual`` becomes a ``ResidualTransform`` with its
    network: normflows' own log-determinant is a stochastic estimate, and no likelihood; here it is
    exact. normflows' ``LipschitzMLP`` still needs ``update_lipschitz`` after each optimizer step.

    Args:
        flow: a flow, or a ``NormalizingFlow`` or ``ClassCondFlow``, whose base is left behind.
        features: row length, to be checked; residual flows cannot do without.

    Shapes:
        inputs and outputs [N, D]; context [N, F] for the flows that take one; log-dets [N].

    Raises:
        TypeError: if ``flow`` is no flow of normflows.
        ValueError: if the flow is for rows of another length, or of an unknown one.

    References:
        Stimper et al., normflows: A PyTorch package for normalizing flows, 2023.

    Example:
        >>> import torch
        >>> import normflows as nf
        >>> spline = nf.flows.AutoregressiveRationalQuadraticSpline(6, 1, 16)
        >>> transform = from_normflows(spline)
        >>> rows = torch.randn(5, 6)
        >>> torch.equal(transform(rows)[0], spline.inverse(rows)[0])
        True
    """
    if isinstance(flow, (nf.NormalizingFlow, nf.ClassCondFlow)):
        return CompositeTransform(from_normflows(part, features) for part in flow.flows[::-1])
    if isinstance(flow, nf.flows.Composite):
        return CompositeTransform(from_normflows(part, features) for part in flow._flows[::-1])
    if isinstance(flow, nf.flows.Reverse):
        return InverseTransform(from_normflows(flow.flow, features))
    name = type(flow).__name__
    if not isinstance(flow, nf.flows.Flow):
        raise TypeError(
            f"from_normflows: expected a normflows Flow, NormalizingFlow or ClassCondFlow, got "
            f"{name}; a MultiscaleFlow splits images, and is no flow of rows"
        )
    declared = getattr(flow, "num_channels", getattr(flow, "features", features))
    if features is not None and declared != features:
        raise mismatch(
            f"from_normflows({name})",
            f"rows of length {declared}, as it was built for",
            features,
            "pass a factory, `lambda features: ...`, so that it is built for its place",
        )
    if isinstance(flow, nf.flows.Residual):
        if features is None:
            raise mismatch("from_normflows", "the row length of a Residual", None, "pass features")
        residual = ResidualTransform(features, flow.iresblock.nnet)
        return residual if flow.reverse else InverseTransform(residual)
    return NormflowsTransform(flow, declared)


class NormflowsTransform(Transform):
    """A flow of normflows in nflows' contract; ``from_normflows`` checks and builds it.

    Args:
        flow: a flow with both directions.
        features: row length, or None where it is not known.
    """

    def __init__(self, flow: nn.Module, features: int | None = None) -> None:
        super().__init__()
        self.flow = flow
        self.features = features
        # CCAffineConst calls its context y, and says nothing of its length.
        self.takes_context = takes_context(flow) or hasattr(flow, "s_cc")

    def _get_name(self) -> str:
        return f"from_normflows({type(self.flow).__name__})"

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] from data to noise: normflows' ``inverse``."""
        function: Any = self.flow.inverse
        if hasattr(self.flow, "autoregressive_net"):
            function = partial(invert_autoregressive, self.flow)
        return self._run(function, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] from noise to data: normflows' ``forward``, in evaluation mode."""
        with running_statistics(self):
            function = self.flow.forward
            # What this spline wraps is masked from data to noise.
            if (masked := getattr(self.flow, "mprqat", None)) is not None:
                function = partial(invert_autoregressive, masked)
            return self._run(function, inputs, context)

    def _run(self, function: Any, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is not None:
            # An encoder under autocast answers in half precision.
            context = context.to(inputs.dtype)
        if self.features is not None:
            check_event(inputs, (self.features,), type(self.flow).__name__, ROWS_ADVICE)
        if len(inputs) == 0:
            # normflows cannot reshape what is empty.
            return inputs, inputs.new_zeros(0)
        # In half precision its splines would be off, not only their conditioners.
        with torch.autocast(inputs.device.type, enabled=False):
            given = (context,) if self.takes_context else ()
            outputs, logabsdet = function(inputs, *given)
        # Where it depends on the parameters alone, it comes as one number or [1].
        return outputs, logabsdet.reshape(-1).expand(inputs.shape[0])


def to_normflows(flow: Transform | Flow) -> nf.flows.Flow | nf.NormalizingFlow:
    """Return a flow of nflows as one of normflows, with its base, or a transform as a flow of it.

    Of an ``ImageFlow`` that is the deterministic part below its dequantizer, with its base. One
    that takes context becomes a ``ConditionalNormalizingFlow``. A transform goes into
    ``normflows.NormalizingFlow(base, [to_normflows(transform)])`` with a base of the noise's shape.
    Parameters are shared.

    Args:
        flow: transform, or flow.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is stochastic.

    Example:
        >>> import torch
        >>> from nflows_mixer.transforms import LULinear
        >>> base = nf.distributions.DiagGaussian(4)
        >>> model = nf.NormalizingFlow(base, [to_normflows(LULinear(4))])
        >>> model.log_prob(torch.randn(3, 4)).shape
        torch.Size([3])
    """
    transform = deterministic_transform(flow, "to_normflows")
    if not isinstance(flow, Flow):
        return NflowsFlow(transform)
    base = NflowsBase(flow._distribution)
    conditional = any(map(takes_context, (transform, flow._distribution)))
    kind = nf.ConditionalNormalizingFlow if conditional else nf.NormalizingFlow
    return kind(base, [NflowsFlow(transform)])


class NflowsBase(nf.distributions.BaseDistribution):
    """A base of normflows that is one of nflows; ``to_normflows`` builds it.

    Args:
        base: distribution of nflows.
    """

    def __init__(self, base: Distribution) -> None:
        super().__init__()
        self.base = base
        self._passes_context = takes_context(base)

    def forward(self, num_samples: int = 1, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-densities; one for each row of a context."""
        context = in_own_precision(self, context) if self._passes_context else None
        if context is not None:
            z = self.base.sample(1, context).flatten(0, 1)
        elif getattr(self.base, "has_rsample", False):
            z = self.base.rsample(num_samples)
        else:
            z = self.base.sample(num_samples)
        return z, self.log_prob(z, context)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-densities [N]."""
        context = in_own_precision(self, context) if self._passes_context else None
        return self.base.log_prob(z, context)


class NflowsFlow(nf.flows.Flow):
    """A flow of normflows that runs a transform of nflows; ``to_normflows`` builds it.

    Args:
        transform: nflows transform, data to noise.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self._passes_context = takes_context(transform)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data."""
        return inverse_of(self.transform)(z, self._given(context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise."""
        return self.transform(z, self._given(context))

    def _given(self, context: Tensor | None) -> Tensor | None:
        return in_own_precision(self, context) if self._passes_context else None
