"""Affine and additive couplings."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Union

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer._modes import running_statistics
from nflows_mixer.core.context import takes_context
from nflows_mixer.core.factory import call_factory
from nflows_mixer.nn import ResidualMLP

ConditionerLike = Union[nn.Module, Callable[..., nn.Module]]
"""A network, or a factory: (in_features, out_features) -> network. It is also given those of
``context_features``, ``norm`` and ``hidden_features`` that its signature names."""

_FLOOR = 0.1


def _tanh_log_scale(u: Tensor) -> Tensor:
    return 2 * torch.tanh(u / 2)


def _sigmoid_log_scale(u: Tensor) -> Tensor:
    return torch.log(_FLOOR + (1 - _FLOOR) * 2 * torch.sigmoid(u))


def _softplus_log_scale(u: Tensor) -> Tensor:
    return torch.log(_FLOOR + (1 - _FLOOR) * F.softplus(u) / math.log(2))


LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda u: u,
    "tanh": _tanh_log_scale,
    "sigmoid": _sigmoid_log_scale,
    "softplus": _softplus_log_scale,
}


Map = Callable[..., tuple[Tensor, Tensor]]
Elementwise = tuple[Map, Map, tuple]
"""A map (moved, parameters, *constants) -> (moved, logabsdet), its inverse, and the constants."""


class _Coupling(Transform):
    """One part of the features conditions an elementwise map of the other."""

    parameters_per_feature: int

    def __init__(
        self,
        features: int,
        conditioner: ConditionerLike = ResidualMLP,
        conditioning: str = "first",
        *,
        context_features: int | None = None,
        norm: str | None = "layer",
        hidden_features: int = 128,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_choice(owner, "conditioning", conditioning, ("first", "second"))
        if features < 2:
            raise mismatch(
                owner,
                "at least 2 features",
                features,
                "one alone has nothing to condition it; use a grid of more patches (smaller "
                "patches, larger images, no shift)",
            )
        self.features = features
        self.conditioning = conditioning
        # The larger part conditions: ceil(D / 2) of D.
        self.transformed_features = features // 2
        self.conditioning_features = features - self.transformed_features
        if not isinstance(conditioner, nn.Module):
            conditioner = call_factory(
                conditioner,
                self.conditioning_features,
                self.parameters_per_feature * self.transformed_features,
                context_features=context_features,
                norm=norm,
                hidden_features=hidden_features,
            )
        if not isinstance(conditioner, nn.Module):
            got = type(conditioner).__name__
            raise mismatch(owner, "a conditioner that is an nn.Module", got, "return one")
        self.conditioner = conditioner
        self._passes_context = takes_context(conditioner)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map [N, D] or [B, D, H, W], conditioned on [N, F]."""
        return self._map_part(self._elementwise, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map [N, D] or [B, D, H, W] back, with running statistics even in training mode."""
        with running_statistics(self):
            return self._map_part(self._elementwise_inverse, inputs, context)

    def _map_part(self, function, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if inputs.dim() < 2 or inputs.shape[1] != self.features:
            raise mismatch(
                type(self).__name__,
                f"inputs of shape [B, {self.features}, ...]",
                list(inputs.shape),
                "build it for this number of features",
            )
        fixed, moved = self._split(inputs)
        given = (fixed, context) if self._passes_context else (fixed,)
        # Under autocast a conditioner answers in half precision; the flow itself never runs in it.
        parameters = self.conditioner(*given).to(inputs.dtype)
        expected = self.parameters_per_feature * self.transformed_features
        # One that broadcasts would be a right map with a wrong log-det.
        if parameters.shape != (inputs.shape[0], expected, *inputs.shape[2:]):
            raise mismatch(
                f"{type(self).__name__}.conditioner",
                f"parameters of shape {[inputs.shape[0], expected, *inputs.shape[2:]]}",
                list(parameters.shape),
                "give the network this many outputs, or pass a factory of it",
            )
        moved, logabsdet = function(moved, parameters)
        return self._join(fixed, moved), logabsdet

    @property
    @abstractmethod
    def elementwise(self) -> Elementwise:
        """The map of the moved part, its inverse, and the constants that both take."""

    def _elementwise(self, moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        forward, _, constants = self.elementwise
        return forward(moved, parameters, *constants)

    def _elementwise_inverse(self, moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        _, inverse, constants = self.elementwise
        return inverse(moved, parameters, *constants)

    def _split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.conditioning == "first":
            fixed, moved = inputs.tensor_split([self.conditioning_features], dim=1)
        else:
            moved, fixed = inputs.tensor_split([self.transformed_features], dim=1)
        return fixed, moved

    def _join(self, fixed: Tensor, moved: Tensor) -> Tensor:
        return torch.cat((fixed, moved) if self.conditioning == "first" else (moved, fixed), dim=1)


def is_plain_coupling(transform: Transform) -> bool:
    """Whether a transform is a coupling of this package, with nothing of it replaced.

    Example:
        >>> is_plain_coupling(AdditiveCoupling(5))
        True
    """
    kind = type(transform)
    if not isinstance(transform, _Coupling) or {"forward", "inverse"} & transform.__dict__.keys():
        return False
    own = ("forward", "inverse", "_map_part", "_split", "_join")
    return all(getattr(kind, name) is getattr(_Coupling, name) for name in own)


class AffineCoupling(_Coupling):
    r"""Affine coupling: one half of the features scales and shifts the other.

    .. math:: y_a = x_a, \quad y_b = e^{s(u)} \odot x_b + t, \quad (u, t) = f(x_a), \qquad
              \log|\det J| = \sum_k s(u_k)

    The conditioning part has ceil(D / 2) features. Named scales, each 1 at u = 0:

    =========  ==============================  =================
    scale      e^s                             range
    =========  ==============================  =================
    exp        e^u                             (0, inf)
    tanh       e^(2 tanh(u / 2))               (e^-2, e^2)
    sigmoid    0.1 + 0.9 * 2 sigmoid(u)        (0.1, 1.9)
    softplus   0.1 + 0.9 * softplus(u) / ln 2  (0.1, inf)
    =========  ==============================  =================

    Args:
        features: D.
        conditioner: network f, or a factory ``(in_features, out_features) -> network``; it gets
            the conditioning part (and the context, if it takes one) and gives u and t one behind
            the other, 2 * floor(D / 2) features.
        scale: one of the four above.
        conditioning: which part conditions, "first" or "second".
        context_features: length of the context; of the factory, as are the two below.
        norm: of the conditioner, "layer", "batch" or None.
        hidden_features: width of the conditioner.

    Shapes:
        inputs and outputs [N, D], or [B, D, H, W] with a conditioner of images.

    Raises:
        ValueError: if a choice is unknown, D is below 2, or inputs have another shape.

    References:
        Dinh et al., Density estimation using Real NVP, 2017; MixerFlow, Sections 3, 4 and, for
        scales bounded away from 0, Section 10; DenseFlow for tanh.

    Example:
        >>> from functools import partial
        >>> coupling = AffineCoupling(48, partial(ResidualMLP, hidden_features=64))
        >>> outputs, logabsdet = coupling(torch.randn(7, 48))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([7, 48]), torch.Size([7]))
    """

    parameters_per_feature = 2

    def __init__(
        self,
        features: int,
        conditioner: ConditionerLike = ResidualMLP,
        scale: str = "exp",
        conditioning: str = "first",
        *,
        context_features: int | None = None,
        norm: str | None = "layer",
        hidden_features: int = 128,
    ) -> None:
        super().__init__(
            features,
            conditioner,
            conditioning,
            context_features=context_features,
            norm=norm,
            hidden_features=hidden_features,
        )
        check_choice("AffineCoupling", "scale", scale, tuple(LOG_SCALES))
        self.scale = scale

    @property
    def elementwise(self) -> Elementwise:
        """The affine map, its inverse, and the name of the scale."""
        return _affine, _affine_inverse, (self.scale,)


def _affine(moved: Tensor, parameters: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    unconstrained, shift = parameters.chunk(2, dim=1)
    log_scale = LOG_SCALES[scale](unconstrained)
    return moved * log_scale.exp() + shift, log_scale.flatten(1).sum(1)


def _affine_inverse(moved: Tensor, parameters: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    unconstrained, shift = parameters.chunk(2, dim=1)
    log_scale = LOG_SCALES[scale](unconstrained)
    return (moved - shift) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)


class AdditiveCoupling(_Coupling):
    r"""Additive coupling: one half of the features shifts the other; volume preserving.

    .. math:: y_a = x_a, \quad y_b = x_b + f(x_a), \qquad \log|\det J| = 0

    Args:
        features: D.
        conditioner: network f, or a factory ``(in_features, out_features) -> network``; it gives
            floor(D / 2) features.
        conditioning: which part conditions, "first" or "second".
        context_features: length of the context; of the factory, as are the two below.
        norm: of the conditioner, "layer", "batch" or None.
        hidden_features: width of the conditioner.

    Shapes, errors: as ``AffineCoupling``.

    References:
        Dinh et al., NICE, 2015.

    Example:
        >>> AdditiveCoupling(5)(torch.randn(3, 5))[1]
        tensor([0., 0., 0.])
    """

    parameters_per_feature = 1

    @property
    def elementwise(self) -> Elementwise:
        """The addition, and the subtraction."""
        return _add, _subtract, ()


def _add(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    return moved + parameters, moved.new_zeros(moved.shape[0])


def _subtract(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    return moved - parameters, moved.new_zeros(moved.shape[0])
