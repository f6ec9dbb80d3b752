"""Masked networks: each output sees the inputs before its own alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_sizes, mismatch
from nflows_mixer.nn.norm import make_norm

Activation = Callable[[Tensor], Tensor]


class MaskedLinear(nn.Linear):
    r"""Linear layer from units of some degrees to units of others.

    .. math:: y = (W \odot M)\, x + b, \qquad M_{ij} = 1 \text{ if } n_j \le m_i, \text{ else } 0

    Args:
        in_degrees: n, the degree of each input: how many features it may have seen.
        degrees: m, the degree of each output.

    Shapes:
        inputs [N, len(in_degrees)], outputs [N, len(degrees)].

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015, Section 3.

    Example:
        >>> MaskedLinear([1, 2], [1, 2, 1]).mask.tolist()
        [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
    """

    mask: Tensor

    def __init__(self, in_degrees: Sequence[int], degrees: Sequence[int]) -> None:
        super().__init__(len(in_degrees), len(degrees))
        self.degrees = tuple(degrees)
        below = torch.tensor(in_degrees) <= torch.tensor(degrees)[:, None]
        self.register_buffer("mask", below.to(self.weight.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, len(in_degrees)] to [N, len(degrees)]."""
        return nn.functional.linear(inputs, self.weight * self.mask, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # The last of the arguments is the list of errors. The inverse goes by the degrees.
        mask = state_dict.get(f"{prefix}mask")
        # On the meta device there is nothing to compare.
        if mask is not None and not mask.is_meta and not self.mask.is_meta:
            if not torch.equal(mask.to(self.mask), self.mask):
                others[-1].append(
                    f"{prefix}mask: expected that of the degrees this layer was built with, got "
                    "another; load it into a flow that was built from the same one"
                )
        super()._load_from_state_dict(state_dict, prefix, *others)


class _MaskedResidualBlock(nn.Module):
    r"""Pre-activation residual block of masked layers, from units of some degrees to the same.

    .. math:: h + W_2\, g(\mathrm{BN}(W_1\, g(\mathrm{BN}(h)) + b_1 + V c)) + b_2
    """

    def __init__(
        self,
        degrees: Sequence[int],
        context_features: int | None,
        norm: str | None,
        activation: Activation,
    ) -> None:
        super().__init__()
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, len(degrees))
        self.batch_norm_layers = nn.ModuleList(_norm(norm, len(degrees)) for _ in range(2))
        self.linear_layers = nn.ModuleList(MaskedLinear(degrees, degrees) for _ in range(2))
        self.activation = activation

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        hidden = self.linear_layers[0](self.activation(self.batch_norm_layers[0](inputs)))
        if context is not None:
            hidden = hidden + self.context_layer(context.to(inputs.dtype))
        hidden = self.activation(self.batch_norm_layers[1](hidden))
        return inputs + self.linear_layers[1](hidden)


class _MaskedFeedforwardBlock(nn.Module):
    r"""Masked layer behind a normalization: :math:`g(W\, \mathrm{BN}(h) + b)`."""

    def __init__(
        self,
        in_degrees: Sequence[int],
        degrees: Sequence[int],
        norm: str | None,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.batch_norm = _norm(norm, len(in_degrees))
        self.linear = MaskedLinear(in_degrees, degrees)
        self.activation = activation

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        # The context entered before the first block.
        return self.activation(self.linear(self.batch_norm(inputs)))


def _norm(norm: str | None, features: int) -> nn.Module:
    if norm == "layer":
        raise mismatch(
            "masked network",
            "norm 'batch' or None",
            "'layer'",
            "normalized over its layer, a unit would depend on units that its mask hides",
        )
    return make_norm(norm, features, "masked network")


class _MaskedNetwork(nn.Module):
    """First layer with the context, blocks, last layer; parts are named as those of nflows' MADE.

    So the weights of one can be loaded into the other, and one inverse reads both.
    """

    use_residual_blocks: bool

    def __init__(
        self,
        features: int,
        outputs_per_feature: int,
        degrees: Sequence[Sequence[int]],
        context_features: int | None,
        activation: Activation,
        blocks: Iterable[nn.Module],
    ) -> None:
        super().__init__()
        self.context_features = context_features
        self.activation = activation
        self.initial_layer = MaskedLinear(range(1, features + 1), degrees[0])
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, len(degrees[0]))
        self.blocks = nn.ModuleList(blocks)
        # Parameters of a feature lie side by side, and see the features before it.
        outputs = [index // outputs_per_feature for index in range(features * outputs_per_feature)]
        self.final_layer = MaskedLinear(degrees[-1], outputs)
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, D] (and context [N, context_features]) to [N, D * outputs_per_feature]."""
        self.check_context(inputs, context)
        hidden = self.initial_layer(inputs)
        if context is not None:
            hidden = hidden + self.activation(self.context_layer(context.to(inputs.dtype)))
        if not self.use_residual_blocks:
            hidden = self.activation(hidden)
        for block in self.blocks:
            hidden = block(hidden, context)
        return self.final_layer(hidden)

    def check_context(self, inputs: Tensor, context: Tensor | None) -> None:
        """Raise unless the context is one row of the agreed length for each row of inputs."""
        expected = None if self.context_features is None else [len(inputs), self.context_features]
        got = None if context is None else list(context.shape)
        if got != expected:
            raise mismatch(
                type(self).__name__,
                "no context" if expected is None else f"context of shape {expected}",
                "none" if got is None else got,
                "build it with context_features=... and pass that context, or neither",
            )


class MaskedResidualMLP(_MaskedNetwork):
    r"""Residual MLP whose outputs for feature d depend on the features before d alone.

    .. math:: W_3\, (\mathrm{block}_n \circ \dots \circ \mathrm{block}_1)
              (W_0 x + b_0 + g(V c + b)) + b_3, \qquad
              \mathrm{block}(h) = h + b_2 +
              W_2\, g(\mathrm{BN}(W_1\, g(\mathrm{BN}(h)) + b_1 + V c))

    Hidden units take the degrees 1 ... D - 1 in turn, and a unit is connected to those of its own
    degree and below. The last layer starts at zero, so that an autoregressive transform starts at
    the identity. Its parts, and their names, are those of nflows' ``MADE``.

    Args:
        features: D.
        outputs_per_feature: k, parameters to give for each feature.
        hidden_features: width of the residual stream.
        num_blocks: n, residual blocks.
        context_features: length of the context c; None takes none.
        norm: None, or "batch" for BN. There is no "layer": it would let a unit depend on units
            that its mask hides.
        activation: g, elementwise; GELU where None.

    Shapes:
        inputs [N, D], outputs [N, D k] with the k parameters of a feature side by side, context
        [N, context_features].

    Raises:
        ValueError: if a size is not positive, the norm is another, or the context is missing,
            unexpected or of another shape.

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015; Nash and
        Durkan, Autoregressive energy machines, 2019 (masked residual blocks).

    Example:
        >>> net = MaskedResidualMLP(48, norm="batch")
        >>> sum(p.numel() for p in net.parameters())
        17952
        >>> net(torch.randn(7, 48)).abs().max().item()
        0.0
        >>> net.initial_layer.degrees[:3], net.initial_layer.degrees[46:49]
        ((1, 2, 3), (47, 1, 2))
    """

    use_residual_blocks = True

    def __init__(
        self,
        features: int,
        outputs_per_feature: int = 2,
        hidden_features: int = 64,
        num_blocks: int = 1,
        context_features: int | None = None,
        norm: str | None = None,
        activation: Activation | None = None,
    ) -> None:
        sizes = {} if context_features is None else {"context_features": context_features}
        sizes |= {"features": features, "outputs_per_feature": outputs_per_feature}
        sizes |= {"hidden_features": hidden_features, "num_blocks": num_blocks}
        check_sizes("MaskedResidualMLP", **sizes)
        g = nn.functional.gelu if activation is None else activation
        # With one feature nothing may be seen, and all degrees are 0.
        last = features - 1
        degrees = [min(1, last) + index % max(1, last) for index in range(hidden_features)]
        blocks = (
            _MaskedResidualBlock(degrees, context_features, norm, g) for _ in range(num_blocks)
        )
        super().__init__(features, outputs_per_feature, [degrees], context_features, g, blocks)


class MaskedMLP(_MaskedNetwork):
    r"""MLP whose outputs for feature d depend on the features before d alone.

    .. math:: W_{n+1}\, h_n + b_{n+1}, \qquad h_i = g(W_i\, \mathrm{BN}(h_{i-1}) + b_i), \qquad
              h_0 = g(W_0 x + b_0 + g(V c + b))

    Args:
        features: D.
        degrees: how many features each hidden unit may have seen, layer by layer.
        outputs_per_feature, context_features, norm, activation: as ``MaskedResidualMLP``.

    Shapes: as ``MaskedResidualMLP``.

    Raises:
        ValueError: as ``MaskedResidualMLP``, or if there is no layer of degrees, or one of them is
            no integer of 0 ... D.

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015, Section 3.

    Example:
        >>> MaskedMLP(3, degrees=[[1, 2, 1, 2], [2, 1]])(torch.randn(7, 3)).shape
        torch.Size([7, 6])
    """

    use_residual_blocks = False

    def __init__(
        self,
        features: int,
        degrees: Sequence[Sequence[int]],
        outputs_per_feature: int = 2,
        context_features: int | None = None,
        norm: str | None = None,
        activation: Activation | None = None,
    ) -> None:
        check_sizes("MaskedMLP", features=features, outputs_per_feature=outputs_per_feature)
        _check_degrees(degrees, features)
        g = nn.functional.gelu if activation is None else activation
        blocks = (
            _MaskedFeedforwardBlock(before, after, norm, g)
            for before, after in zip(degrees[:-1], degrees[1:])
        )
        super().__init__(features, outputs_per_feature, degrees, context_features, g, blocks)


def _check_degrees(degrees: Any, features: int) -> None:
    layers = degrees if isinstance(degrees, Sequence) else []
    units = [unit for layer in layers if isinstance(layer, Sequence) for unit in layer]
    fit = all(isinstance(unit, (int, Integral)) and 0 <= int(unit) <= features for unit in units)
    if not (fit and layers and all(isinstance(layer, Sequence) and layer for layer in layers)):
        raise mismatch(
            "MaskedMLP",
            f"degrees as lists of integers from 0 to {features}, one list for each layer",
            degrees,
            "give each hidden unit how many features it may have seen, as [[1, 2, 1], [2, 1]]",
        )
