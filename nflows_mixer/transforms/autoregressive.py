"""Masked affine autoregressive transforms that start at the identity, with a fast inverse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from torch import Tensor, nn

from nflows_mixer._checks import ROWS_ADVICE, as_python, check_choice, check_event, mismatch
from nflows_mixer._modes import is_transformed, running_statistics, widened, without_autocast
from nflows_mixer.nn.masked import MaskedMLP, MaskedResidualMLP
from nflows_mixer.numerics.autoregressive import NFLOWS_EPSILON, nflows_log_scale, why_not_foldable
from nflows_mixer.numerics.fixed_point import report_inversion, requested_method, until_unchanged
from nflows_mixer.numerics.masked_inverse import degrees_of, invert_affine
from nflows_mixer.transforms.coupling import LOG_SCALES

_LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {**LOG_SCALES, "nflows": nflows_log_scale}


class AffineAutoregressive(Transform):
    r"""Masked affine autoregressive transform: every feature is scaled and shifted by those before.

    .. math:: y_d = e^{s(u_d)} x_d + t_d, \quad (u_d, t_d) = f_d(x_{<d}), \qquad
              \log|\det J| = \sum_d s(u_d)

    The scales are those of ``AffineCoupling`` and a fifth, "nflows", with
    :math:`e^s = \mathrm{softplus}(u) + 10^{-3}`, the one of
    ``nflows.transforms.MaskedAffineAutoregressiveTransform``. Starts at the identity. The inverse
    goes through the features in their order, but computes each hidden unit once, so that it costs
    about as much as forward, not D times as much; gradients go through it.

    Args:
        features: D.
        hidden_features: width of the network, a ``MaskedResidualMLP``.
        num_blocks: its residual blocks.
        context_features: length F of the context; None takes none.
        norm: None or "batch", of its blocks.
        scale: "exp", "tanh", "sigmoid", "softplus" or "nflows".

    Shapes:
        inputs and outputs [N, D]; context [N, F].

    Raises:
        ValueError: if a size is not positive, the scale is unknown, inputs are no rows of this
            length, or the context is missing, unwanted or of another shape.

    References:
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017; Germain et
        al., MADE: masked autoencoder for distribution estimation, 2015; MixerFlow, Table 8,
        column MNIST.

    Example:
        >>> flow = AffineAutoregressive(48).eval()
        >>> rows = torch.randn(7, 48)
        >>> torch.equal(flow(rows)[0], rows)
        True
        >>> _ = torch.nn.init.normal_(flow.network.final_layer.weight, std=0.01)
        >>> torch.allclose(flow.inverse(flow(rows)[0])[0], rows, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        hidden_features: int = 64,
        num_blocks: int = 1,
        context_features: int | None = None,
        norm: str | None = None,
        scale: str = "exp",
    ) -> None:
        super().__init__()
        check_choice("AffineAutoregressive", "scale", scale, tuple(_LOG_SCALES))
        self.features = features = as_python(features)
        self.scale = scale
        self.network: MaskedResidualMLP | MaskedMLP = MaskedResidualMLP(
            features, 2, hidden_features, num_blocks, context_features, norm
        )
        if scale == "nflows":
            # Its outputs are pairs (u, t), and its scale is 1 at this u.
            with torch.no_grad():
                self.network.final_layer.bias[::2] = math.log(math.expm1(1 - NFLOWS_EPSILON))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D], in one pass."""
        check_event(inputs, (self.features,), "AffineAutoregressive", ROWS_ADVICE)
        unconstrained, shift = self._parameters_of(inputs, context)
        log_scale = _LOG_SCALES[self.scale](unconstrained)
        return inputs * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows [N, D] back, with running statistics even in training mode."""
        check_event(inputs, (self.features,), "AffineAutoregressive", ROWS_ADVICE)
        self.network.check_context(inputs, context)
        latents, log_scale = widened(self, inputs), _LOG_SCALES[self.scale]
        at_once = requested_method()[0] in ("jacobi", "gauss-seidel")
        if not at_once or torch.is_grad_enabled() or is_transformed():
            report_inversion(self, "sequential", self.features, self.features)
            return invert_affine(self.network, latents, context, log_scale)

        def one_pass(rows: Tensor) -> tuple[Tensor, Tensor]:
            unconstrained, shift = self._parameters_of(rows, context)
            scales = log_scale(unconstrained)
            return (latents - shift) * (-scales).exp(), -scales.sum(1)

        with running_statistics(self), without_autocast(latents):
            rows, logabsdet, passes = until_unchanged(one_pass, torch.zeros_like(latents))
        report_inversion(self, "jacobi", self.features, passes)
        return rows, logabsdet

    def _parameters_of(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # Under autocast a network answers in half precision; the flow itself never runs in it.
        parameters = self.network(rows, context).to(rows.dtype)
        unconstrained, shift = rearrange(parameters, "n (d two) -> two n d", two=2)
        return unconstrained, shift

    @classmethod
    def from_nflows(cls, transform: MaskedAffineAutoregressiveTransform) -> AffineAutoregressive:
        """Take over a ``MaskedAffineAutoregressiveTransform`` of nflows: the same function.

        Args:
            transform: with residual or feed-forward blocks, with or without batch normalization
                and context, with any elementwise activation. Nothing is shared with it.

        Returns:
            A flow with copies of its parameters, statistics and mode.

        Raises:
            ValueError: if it is of another class, has parts that are not nflows' own, dropout,
                hooks, or an activation that is not elementwise.

        Example:
            >>> theirs = MaskedAffineAutoregressiveTransform(6, 16).eval()
            >>> ours = AffineAutoregressive.from_nflows(theirs)
            >>> latents = torch.randn(5, 6)
            >>> torch.allclose(ours.inverse(latents)[0], theirs.inverse(latents)[0], atol=1e-4)
            True
        """
        owner = "AffineAutoregressive.from_nflows"
        if found := why_not_foldable(transform):
            raise mismatch(
                owner,
                "a plain MaskedAffineAutoregressiveTransform of nflows",
                found,
                "use that transform itself, as it is",
            )
        made = transform.autoregressive_net
        dropout = max((part.p for part in made.modules() if type(part) is nn.Dropout), default=0)
        if dropout > 0:
            raise mismatch(
                owner,
                "a transform without dropout",
                f"dropout_probability={dropout:g}",
                "build it with dropout_probability=0, and load its state_dict",
            )
        network = _copy_of(made)
        flow = cls(transform.features, scale="nflows")
        flow.network = network
        return flow.train(transform.training)


def _copy_of(made: Any) -> MaskedResidualMLP | MaskedMLP:
    """Return a network of ours with the function of a ``MADE``, sharing nothing."""
    made = copy.deepcopy(made)
    first, final = made.initial_layer, made.final_layer
    norms = [part for part in made.modules() if isinstance(part, nn.BatchNorm1d)]
    options: dict[str, Any] = {
        "features": first.in_features,
        "outputs_per_feature": final.out_features // first.in_features,
        "context_features": getattr(getattr(made, "context_layer", None), "in_features", None),
        "norm": "batch" if norms else None,
        "activation": made.activation,
    }
    network: MaskedResidualMLP | MaskedMLP
    if made.use_residual_blocks:
        network = MaskedResidualMLP(
            hidden_features=first.out_features, num_blocks=len(made.blocks), **options
        )
    else:
        layers = [first, *(block.linear for block in made.blocks)]
        network = MaskedMLP(degrees=[degrees_of(layer) for layer in layers], **options)
    state = made.state_dict()
    network.to(first.weight).load_state_dict(
        {name: value for name, value in state.items() if not name.endswith("degrees")}
    )
    ours = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d)]
    for norm, theirs in zip(ours, norms):
        norm.eps, norm.momentum = theirs.eps, theirs.momentum
    return network


def identity_maf(
    features: int,
    hidden_features: int = 128,
    context_features: int | None = None,
    norm: str | None = None,
    num_blocks: int = 1,
) -> MaskedAffineAutoregressiveTransform:
    """Return nflows' ``MaskedAffineAutoregressiveTransform`` with its last layer at the identity.

    Args:
        features, context_features: as ``AffineAutoregressive``.
        hidden_features: width of its masked network.
        norm: of its masked network, None or "batch"; a LayerNorm would break the masks.
        num_blocks: residual blocks of its network.

    Raises:
        ValueError: if the norm is another.

    References:
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017; MixerFlow,
        Section 5.3.

    Example:
        >>> rows = torch.randn(5, 16)
        >>> outputs, logabsdet = identity_maf(16, hidden_features=32)(rows)
        >>> torch.allclose(outputs, rows, atol=1e-6)
        True
    """
    check_choice("identity_maf", "norm", norm, ("batch", None))
    maf = MaskedAffineAutoregressiveTransform(
        features,
        hidden_features,
        context_features=context_features,
        num_blocks=num_blocks,
        use_batch_norm=norm == "batch",
    )
    # Its outputs are pairs (u, shift), and its scale softplus(u) + 1e-3: 1 at this u.
    start = torch.tensor([math.log(math.expm1(1 - NFLOWS_EPSILON)), 0.0])
    final = maf.autoregressive_net.final_layer
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(start.repeat(features))
    return maf
