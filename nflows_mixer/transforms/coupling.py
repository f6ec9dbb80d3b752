"""Couplings: their base, the affine and the additive one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Union

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer._modes import running_statistics
from nflows_mixer.core.context import takes_context
from nflows_mixer.core.factory import call_factory
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.nn.batch_norm import scratch_buffers
from nflows_mixer.transforms.gradients import Gradients

ConditionerLike = Union[nn.Module, Callable[[int, int], nn.Module]]
"""A network, or a factory: (in_features, out_features) -> network."""

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


class Coupling(Transform):
    r"""Base of couplings: one part of the features conditions an elementwise map of the other.

    .. math:: y_a = x_a, \quad y_b = g(x_b;\ f(x_a)), \qquad
              \log|\det J| = \sum_k \log|\partial g / \partial x_{b, k}|

    A subclass sets ``parameters_per_feature`` and defines g and its inverse, as functions of
    tensors and of the constants in ``constants`` alone, so that one compilation serves all layers
    of a size.

    Args:
        features: D, of which ceil(D / 2) condition.
        conditioner: network f, or a factory ``(in_features, out_features) -> network``, which is
            given those of ``context_features``, ``norm`` and ``hidden_features`` that its
            signature names. It gets the conditioning part (and the context, if it takes one) and
            gives ``parameters_per_feature * floor(D / 2)`` features.
        conditioning: which part conditions, "first" or "second".
        context_features: length of the context, for the factory.
        norm: of the conditioner, for the factory: "layer", "batch" or None.
        hidden_features: width of the conditioner, for the factory.

    Shapes:
        inputs and outputs [N, D], or [B, D, H, W] with a conditioner of images.

    Raises:
        ValueError: if a choice is unknown, D is below 2, or inputs have another shape.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 3.

    Example:
        >>> class Scaling(Coupling):
        ...     parameters_per_feature = 1
        ...
        ...     @staticmethod
        ...     def elementwise(moved, parameters):
        ...         return moved * parameters.exp(), parameters.flatten(1).sum(1)
        ...
        ...     @staticmethod
        ...     def elementwise_inverse(moved, parameters):
        ...         return moved * (-parameters).exp(), -parameters.flatten(1).sum(1)
        >>> Scaling(6)(torch.randn(5, 6))[1].shape
        torch.Size([5])
    """

    parameters_per_feature: int
    constants: tuple = ()

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
        # The number of conditioning features, and whether they are the first.
        self.split = (self.conditioning_features, conditioning == "first")
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

    @staticmethod
    @abstractmethod
    def elementwise(moved: Tensor, parameters: Tensor, *constants: Any) -> tuple[Tensor, Tensor]:
        """Map the moved part.

        Args:
            moved: x_b, [N, floor(D / 2)] or [B, floor(D / 2), H, W].
            parameters: what the conditioner gave, with ``parameters_per_feature`` times the
                features.
            constants: those in ``constants``.

        Returns:
            y_b, and the log-dets [N].
        """

    @staticmethod
    @abstractmethod
    def elementwise_inverse(
        moved: Tensor, parameters: Tensor, *constants: Any
    ) -> tuple[Tensor, Tensor]:
        """Map the moved part back; arguments and results as for ``elementwise``."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map [N, D] or [B, D, H, W], conditioned on [N, F]."""
        return self._map_part(self.elementwise, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map [N, D] or [B, D, H, W] back, with running statistics even in training mode."""
        with running_statistics(self.conditioner):
            return self._map_part(self.elementwise_inverse, inputs, context)

    def rebuild(
        self,
        outputs: Tensor,
        grad_outputs: Tensor,
        grad_logabsdet: Tensor,
        context: Tensor | None,
        gradients: Gradients,
    ) -> tuple[Tensor, Tensor]:
        """Inputs and their gradient, from the outputs, by one evaluation of the conditioner.

        What conditions passes through, so that the network sees what it saw, in the mode that it
        is in; its buffers do not change.

        Args:
            outputs: of ``forward``.
            grad_outputs: their gradient.
            grad_logabsdet: that of the log-dets.
            context: as given to ``forward``.
            gradients: those of parameters and context are added here.
        """
        fixed, moved = self._split(outputs)
        with torch.enable_grad(), scratch_buffers(self.conditioner):
            fixed = fixed.detach().requires_grad_()
            parameters = self._parameters_of(fixed, moved, context)
        moved, grad_moved, grad_fixed = self.rebuild_moved(
            moved,
            parameters,
            self._split(grad_outputs)[1],
            grad_logabsdet,
            fixed,
            [context if self._passes_context else None, *self.conditioner.parameters()],
            gradients,
        )
        grad_fixed = self._split(grad_outputs)[0] + grad_fixed
        return self._join(fixed.detach(), moved), self._join(grad_fixed, grad_moved)

    def rebuild_moved(
        self,
        moved: Tensor,
        parameters: Tensor,
        grad_moved: Tensor,
        grad_logabsdet: Tensor,
        fixed: Tensor,
        tensors: Sequence[Tensor | None],
        gradients: Gradients,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The moved part before the map, its gradient, and that of the part that conditions.

        Args:
            moved: y_b.
            parameters: computed, in grad mode, from ``fixed`` and ``tensors``.
            grad_moved: gradient of y_b.
            grad_logabsdet: gradient of the log-dets.
            fixed: x_a.
            tensors: what else has gradients; these are added to ``gradients``.
            gradients: see ``rebuild``.
        """
        before = self.elementwise_inverse(moved, parameters.detach(), *self.constants)[0]
        before = before.detach().requires_grad_()
        given = parameters.detach().requires_grad_()
        with torch.enable_grad():
            mapped = self.elementwise(before, given, *self.constants)
        own = Gradients()
        grad_before = own.backward(mapped, (grad_moved, grad_logabsdet), before, [given])
        grad_parameters = own.of(given)
        if grad_parameters is None:
            return before.detach(), grad_before, torch.zeros_like(fixed)
        grad_fixed = gradients.backward([parameters], [grad_parameters], fixed, tensors)
        return before.detach(), grad_before, grad_fixed

    def _map_part(self, function, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if inputs.dim() < 2 or inputs.shape[1] != self.features:
            raise mismatch(
                type(self).__name__,
                f"inputs of shape [B, {self.features}, ...]",
                list(inputs.shape),
                "build it for this number of features",
            )
        fixed, moved = self._split(inputs)
        parameters = self._parameters_of(fixed, moved, context)
        moved, logabsdet = function(moved, parameters, *self.constants)
        return self._join(fixed, moved), logabsdet

    def _parameters_of(self, fixed: Tensor, moved: Tensor, context: Tensor | None) -> Tensor:
        given = (fixed, context) if self._passes_context else (fixed,)
        # Under autocast a conditioner answers in half precision; the flow itself never runs in it.
        parameters = self.conditioner(*given).to(moved.dtype)
        expected = self.parameters_per_feature * self.transformed_features
        # One that broadcasts would be a right map with a wrong log-det.
        if parameters.shape != (len(moved), expected, *moved.shape[2:]):
            raise mismatch(
                f"{type(self).__name__}.conditioner",
                f"parameters of shape {[len(moved), expected, *moved.shape[2:]]}",
                list(parameters.shape),
                "give the network this many outputs, or pass a factory of it",
            )
        return parameters

    def _split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return split_parts(inputs, self.split)

    def _join(self, fixed: Tensor, moved: Tensor) -> Tensor:
        return join_parts(fixed, moved, self.split)


def split_parts(inputs: Tensor, split: tuple[int, bool]) -> tuple[Tensor, Tensor]:
    """The part that conditions and the part that moves, of [N, D, ...]; see ``Coupling.split``.

    Example:
        >>> [part.tolist() for part in split_parts(torch.tensor([[1, 2, 3]]), (2, False))]
        [[[2, 3]], [[1]]]
    """
    count, first = split
    if first:
        return inputs[:, :count], inputs[:, count:]
    moved = inputs.shape[1] - count
    return inputs[:, moved:], inputs[:, :moved]


def join_parts(fixed: Tensor, moved: Tensor, split: tuple[int, bool]) -> Tensor:
    """Undo ``split_parts``.

    Example:
        >>> join_parts(torch.tensor([[2, 3]]), torch.tensor([[1]]), (2, False)).tolist()
        [[1, 2, 3]]
    """
    return torch.cat((fixed, moved) if split[1] else (moved, fixed), 1)


class AffineCoupling(Coupling):
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
        features, conditioner, conditioning, context_features, norm, hidden_features: as
            ``Coupling``; the network gives u and t one behind the other.
        scale: one of the four above.

    Shapes, errors: as ``Coupling``.

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
        self.constants = (scale,)

    @staticmethod
    def elementwise(moved: Tensor, parameters: Tensor, scale: str) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        unconstrained, shift = parameters.chunk(2, dim=1)
        log_scale = LOG_SCALES[scale](unconstrained)
        return moved * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    @staticmethod
    def elementwise_inverse(moved: Tensor, parameters: Tensor, scale: str) -> tuple[Tensor, Tensor]:
        """Undo shift and scale."""
        unconstrained, shift = parameters.chunk(2, dim=1)
        log_scale = LOG_SCALES[scale](unconstrained)
        return (moved - shift) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)


class AdditiveCoupling(Coupling):
    r"""Additive coupling: one half of the features shifts the other; volume preserving.

    .. math:: y_a = x_a, \quad y_b = x_b + f(x_a), \qquad \log|\det J| = 0

    Args, shapes, errors: as ``Coupling``.

    References:
        Dinh et al., NICE, 2015.

    Example:
        >>> AdditiveCoupling(5)(torch.randn(3, 5))[1]
        tensor([0., 0., 0.])
    """

    parameters_per_feature = 1

    @staticmethod
    def elementwise(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Add."""
        return moved + parameters, moved.new_zeros(moved.shape[0])

    @staticmethod
    def elementwise_inverse(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Subtract."""
        return moved - parameters, moved.new_zeros(moved.shape[0])
