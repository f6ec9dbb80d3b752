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

from nflows_mixer._checks import as_python, check_choice, check_outputs, mismatch
from nflows_mixer._modes import running_statistics, widened
from nflows_mixer.core.context import check_takes_context, takes_context
from nflows_mixer.core.factory import UNSET, Unset, call_factory, check_read
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms.gradients import Gradients, Pair
from nflows_mixer.transforms.masks import mask_order

ConditionerLike = Union[nn.Module, Callable[[int, int], nn.Module]]
"""A network, or a factory: (in_features, out_features) -> network."""

_FLOOR = 0.1


LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda u: u,
    "tanh": lambda u: 2 * torch.tanh(u / 2),
    "sigmoid": lambda u: torch.log(_FLOOR + (1 - _FLOOR) * 2 * torch.sigmoid(u)),
    "softplus": lambda u: torch.log(_FLOOR + (1 - _FLOOR) * F.softplus(u) / math.log(2)),
}


class Coupling(Transform):
    r"""Base of couplings: one part of the features conditions an elementwise map of the other.

    .. math:: y_a = x_a, \quad y_b = g(x_b;\ f(x_a)), \qquad
              \log|\det J| = \sum_k \log|\partial g / \partial x_{b, k}|

    A subclass sets ``parameters_per_feature`` and defines g and its inverse, as functions of
    tensors and of the constants in ``constants`` alone, so that one compilation serves all layers
    of a size.

    Args:
        features: D, of which ceil(D / 2) condition, or as many as ``mask`` says.
        conditioner: network f, or a factory ``(in_features, out_features) -> network``, which is
            given those of ``context_features``, ``norm``, ``hidden_features``, ``moved_features``
            (how many move), ``axes`` and ``positions`` (of what conditions and of what moves, in
            the row) that its signature names. It gets the conditioning part (and the context, if it
            takes one) and gives ``parameters_per_feature`` parameters for each feature that moves.
        conditioning: which part conditions, "first" or "second".
        context_features: length of the context, for the factory; refused where it takes none.
        norm: of the conditioner, for the factory: "layer", "batch" or None; its own default where
            not given. Refused, like the next, where the factory does not take it.
        hidden_features: width of the conditioner, for the factory; its own default likewise.
        mask: which features are the first part: a name, see ``mask_order``, or one boolean for each
            feature. They move to the front and back again, at the cost of two copies;
            ``PatchTransform`` has the named masks for all layers at once.
        axes: sizes that a row was flattened from, for a named mask; (D,) where None.

    Shapes:
        inputs and outputs [N, D], or [B, D, ...] with a conditioner of such shapes.

    Raises:
        ValueError: if a choice is unknown, nothing would read an argument, D is below 2, or inputs
            have another shape.

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
        norm: str | None | Unset = UNSET,
        hidden_features: int | Unset = UNSET,
        mask: str | Sequence[bool] | Tensor = "halves",
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_choice(owner, "conditioning", conditioning, ("first", "second"))
        features = as_python(features)
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
        order, count = _order_of(owner, mask, axes, features, conditioning)
        self.register_buffer("order", order)
        self.conditioning_features = count
        self.transformed_features = features - count
        # The number of conditioning features, and whether they are the first.
        self.split = (self.conditioning_features, conditioning == "first")
        check_read(owner, conditioner, positional=2, norm=norm, hidden_features=hidden_features)
        if not isinstance(conditioner, nn.Module):
            conditioner = call_factory(
                conditioner,
                self.conditioning_features,
                self.parameters_per_feature * self.transformed_features,
                context_features=UNSET if context_features is None else context_features,
                norm=norm,
                hidden_features=hidden_features,
                moved_features=self.transformed_features,
                axes=(features,) if axes is None else tuple(axes),
                positions=tuple(p[0] for p in self.split_parts(torch.arange(features)[None])),
            )
        if not isinstance(conditioner, nn.Module):
            got = type(conditioner).__name__
            raise mismatch(owner, "a conditioner that is an nn.Module", got, "return one")
        self.conditioner = conditioner
        check_takes_context(owner, context_features, conditioner)
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
            return self._map_part(self.elementwise_inverse, widened(self, inputs), context)

    def rebuild(
        self,
        outputs: Tensor,
        grads: Pair,
        context: Tensor | None,
        gradients: Gradients,
        parameters_of: Callable[..., Tensor] | None = None,
        tensors: Sequence[Tensor] | None = None,
    ) -> Pair:
        """Inputs and their gradient, from the outputs, by one evaluation of the conditioner.

        What conditions passes through, so that the network sees what it saw, in the mode that it
        is in.

        Args:
            outputs: of ``forward``.
            grads: gradients of these and of the log-dets.
            context: as given to ``forward``.
            gradients: those of ``tensors`` and of the context are added here.
            parameters_of: the network, as a function of (fixed part, moved part, context); the
                conditioner where None.
            tensors: what that network reads; the conditioner's parameters where None.
        """
        fixed, moved = self.split_parts(outputs)
        grad_fixed, grad_moved = self.split_parts(grads[0])
        context = context if self._passes_context else None
        with torch.enable_grad():
            fixed = fixed.detach().requires_grad_()
            parameters = (parameters_of or self._parameters_of)(fixed, moved, context)
        before = self.elementwise_inverse(moved, parameters.detach(), *self.constants)[0]
        before, given = before.detach().requires_grad_(), parameters.detach().requires_grad_()
        with torch.enable_grad():
            mapped = self.elementwise(before, given, *self.constants)
        own = Gradients()
        grad_before = own.backward(mapped, (grad_moved, grads[1]), before, [given])
        if (grad_parameters := own.of(given)) is not None:
            read = [context, *(self.conditioner.parameters() if tensors is None else tensors)]
            found = gradients.backward([parameters], [grad_parameters], fixed, read)
            grad_fixed = grad_fixed + found
        inputs = self._join(fixed.detach(), before.detach())
        return inputs, self._join(grad_fixed, grad_before)

    def split_parts(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The part that conditions and the part that moves, of [N, D, ...].

        Example:
            >>> [part.tolist() for part in AdditiveCoupling(3).split_parts(torch.ones(1, 3))]
            [[[1.0, 1.0]], [[1.0]]]
        """
        count, first = self.split
        if self.order is not None:
            inputs = inputs.index_select(1, self.order)
        if first:
            return inputs[:, :count], inputs[:, count:]
        moved = inputs.shape[1] - count
        return inputs[:, moved:], inputs[:, :moved]

    def _map_part(self, function, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if inputs.dim() < 2 or inputs.shape[1] != self.features:
            raise mismatch(
                type(self).__name__,
                f"inputs of shape [B, {self.features}, ...]",
                list(inputs.shape),
                "build it for this number of features",
            )
        fixed, moved = self.split_parts(inputs)
        parameters = self._parameters_of(fixed, moved, context)
        moved, logabsdet = function(moved, parameters, *self.constants)
        return self._join(fixed, moved), logabsdet

    def _parameters_of(self, fixed: Tensor, moved: Tensor, context: Tensor | None) -> Tensor:
        given = (fixed, context) if self._passes_context else (fixed,)
        # Under autocast a conditioner answers in half precision; the flow itself never runs in it.
        parameters = self.conditioner(*given).to(moved.dtype)
        count = self.parameters_per_feature * self.transformed_features
        shape = len(moved), count, *moved.shape[2:]
        check_outputs(parameters, shape, f"{type(self).__name__}.conditioner", "parameters")
        return parameters

    def _join(self, fixed: Tensor, moved: Tensor) -> Tensor:
        joined = torch.cat((fixed, moved) if self.split[1] else (moved, fixed), 1)
        return joined if self.order is None else joined.index_select(1, self.order.argsort())


def _order_of(
    owner: str,
    mask: str | Sequence[bool] | Tensor,
    axes: Sequence[int] | None,
    features: int,
    conditioning: str,
) -> tuple[Tensor | None, int]:
    """Order of the features, None for as they are, and how many of them condition."""
    # The larger part conditions: ceil(D / 2) of D.
    count = features - features // 2
    if isinstance(mask, str):
        order = mask_order(mask, (features,) if axes is None else axes)
        if len(order) != features:
            raise mismatch(owner, f"axes of {features} features", tuple(axes or ()), "give theirs")
        return (None if mask == "halves" else order), count
    # Counted here, also where the flow is built on the meta device.
    chosen = mask if isinstance(mask, Tensor) else torch.tensor(mask, device="cpu")
    if chosen.dtype != torch.bool or chosen.shape != (features,):
        got = f"{chosen.dtype} of shape {list(chosen.shape)}"
        raise mismatch(owner, f"a mask of {features} booleans", got, "or name one")
    count = int(chosen.sum() if conditioning == "first" else features - chosen.sum())
    if not 0 < count < features:
        advice = "let some condition and others move"
        raise mismatch(owner, f"1 to {features - 1} features that condition", count, advice)
    order = (~chosen).to(torch.uint8).argsort(stable=True)
    return order.to(torch.empty(0).device), count


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
        features, conditioner, conditioning, context_features, norm, hidden_features, mask, axes:
            as ``Coupling``; the network gives u and t one behind the other.
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
        norm: str | None | Unset = UNSET,
        hidden_features: int | Unset = UNSET,
        mask: str | Sequence[bool] | Tensor = "halves",
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            features,
            conditioner,
            conditioning,
            context_features=context_features,
            norm=norm,
            hidden_features=hidden_features,
            mask=mask,
            axes=axes,
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
