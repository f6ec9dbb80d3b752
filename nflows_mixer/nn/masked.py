"""Masked networks: each output sees the inputs before its own alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.nn.batch_norm import BatchNorm1d


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


class MaskedResidualBlock(nn.Module):
    r"""Pre-activation residual block of masked layers.

    .. math:: h + W_2\, g(\mathrm{BN}(W_1\, g(\mathrm{BN}(h)) + b_1 + V c)) + b_2

    Args:
        in_degrees: of its inputs, and at most those of its outputs.
        degrees: of its inner units and its outputs.
        context_features: length of the context c; None takes none.
        batch_norm: whether the two batch normalisations are there.
        activation: g, elementwise.

    References:
        He et al., Identity mappings in deep residual networks, 2016; Nash and Durkan,
        Autoregressive energy machines, 2019 (masked residual blocks).

    Example:
        >>> MaskedResidualBlock([1, 2], [1, 2], None, True, nn.GELU())(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        in_degrees: Sequence[int],
        degrees: Sequence[int],
        context_features: int | None,
        batch_norm: bool,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, len(degrees))
        self.batch_norm_layers = nn.ModuleList(
            BatchNorm1d(len(units)) if batch_norm else nn.Identity()
            for units in (in_degrees, degrees)
        )
        self.linear_layers = nn.ModuleList(
            [MaskedLinear(in_degrees, degrees), MaskedLinear(degrees, degrees)]
        )
        self.activation = activation

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, units] (and context [N, context_features]) to [N, units]."""
        hidden = self.linear_layers[0](self.activation(self.batch_norm_layers[0](inputs)))
        if context is not None:
            hidden = hidden + self.context_layer(context)
        hidden = self.activation(self.batch_norm_layers[1](hidden))
        return inputs + self.linear_layers[1](hidden)


class MaskedFeedforwardBlock(nn.Module):
    r"""Batch normalisation, masked layer, activation.

    .. math:: g(W\, \mathrm{BN}(h) + b)

    Args:
        in_degrees: of its inputs.
        degrees: of its outputs.
        batch_norm: whether the batch normalisation is there.
        activation: g, elementwise.

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015.

    Example:
        >>> MaskedFeedforwardBlock([1, 2], [2], False, nn.GELU())(torch.randn(7, 2)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        in_degrees: Sequence[int],
        degrees: Sequence[int],
        batch_norm: bool,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.batch_norm = BatchNorm1d(len(in_degrees)) if batch_norm else nn.Identity()
        self.linear = MaskedLinear(in_degrees, degrees)
        self.activation = activation

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, inputs] to [N, outputs]; the context entered before the first block."""
        return self.activation(self.linear(self.batch_norm(inputs)))


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
        activation: Callable[[Tensor], Tensor],
        make_block: Callable[[Sequence[int], Sequence[int]], nn.Module],
    ) -> None:
        super().__init__()
        self.context_features = context_features
        self.activation = activation
        self.initial_layer = MaskedLinear(range(1, features + 1), degrees[0])
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, len(degrees[0]))
        self.blocks = nn.ModuleList(map(make_block, degrees[:-1], degrees[1:]))
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
            hidden = hidden + self.activation(self.context_layer(context))
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
              (W_0 x + b_0 + g(V c + b)) + b_3

    Hidden units take the degrees 1 ... D - 1 in turn, and a unit is connected to those of its own
    degree and below; see ``MaskedResidualBlock``. The last layer starts at zero, so that an
    autoregressive transform starts at the identity. Its parts, and their names, are those of
    nflows' ``MADE``.

    Args:
        features: D.
        outputs_per_feature: k, parameters to give for each feature.
        hidden_features: width of the residual stream.
        num_blocks: n, residual blocks.
        context_features: length of the context c; None takes none.
        batch_norm: whether blocks normalise over the batch; batch statistics in training,
            running statistics in evaluation.
        activation: g, elementwise; GELU by default.

    Shapes:
        inputs [N, D], outputs [N, D k] with the k parameters of a feature side by side, context
        [N, context_features].

    Raises:
        ValueError: if a size is not positive, or the context is missing, unwanted or of another
            shape.

    References:
        Germain et al., MADE: masked autoencoder for distribution estimation, 2015; Nash and
        Durkan, Autoregressive energy machines, 2019 (masked residual blocks).

    Example:
        >>> net = MaskedResidualMLP(48)
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
        batch_norm: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        sizes = {
            "features": features,
            "outputs_per_feature": outputs_per_feature,
            "hidden_features": hidden_features,
            "num_blocks": num_blocks,
            "context_features": 1 if context_features is None else context_features,
        }
        for name, size in sizes.items():
            check_positive("MaskedResidualMLP", name, size)
        activation = nn.functional.gelu if activation is None else activation
        # With one feature nothing may be seen, and all degrees are 0.
        last = features - 1
        degrees = [min(1, last) + index % max(1, last) for index in range(hidden_features)]

        def make_block(inputs: Sequence[int], outputs: Sequence[int]) -> nn.Module:
            return MaskedResidualBlock(inputs, outputs, context_features, batch_norm, activation)

        super().__init__(
            features,
            outputs_per_feature,
            [degrees] * (num_blocks + 1),
            context_features,
            activation,
            make_block,
        )


class MaskedMLP(_MaskedNetwork):
    r"""MLP whose outputs for feature d depend on the features before d alone.

    .. math:: W_{n+1}\, h_n + b_{n+1}, \qquad h_i = g(W_i\, \mathrm{BN}(h_{i-1}) + b_i), \qquad
              h_0 = g(W_0 x + b_0 + g(V c + b))

    Args:
        features: D.
        degrees: of the hidden units, layer by layer: how many features each may have seen.
        outputs_per_feature: k, parameters to give for each feature.
        context_features: length of the context c; None takes none.
        batch_norm: whether the layers after the first normalise over the batch.
        activation: g, elementwise; GELU by default.

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
        batch_norm: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name, size in [("features", features), ("outputs_per_feature", outputs_per_feature)]:
            check_positive("MaskedMLP", name, size)
        _check_degrees(degrees, features)
        activation = nn.functional.gelu if activation is None else activation

        def make_block(inputs: Sequence[int], outputs: Sequence[int]) -> nn.Module:
            return MaskedFeedforwardBlock(inputs, outputs, batch_norm, activation)

        super().__init__(
            features, outputs_per_feature, degrees, context_features, activation, make_block
        )


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
