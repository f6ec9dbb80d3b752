"""MixerFlow's residual MLP, which conditions couplings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_sizes
from nflows_mixer._distributed import world_size
from nflows_mixer.nn.conditioner import (
    Conditioner,
    Statistics,
    append_context,
    half_precision,
    zero_linear,
)
from nflows_mixer.nn.norm import BatchNorm1d, make_norm, normalize_batch

BATCH_NORMS = (BatchNorm1d, nn.BatchNorm1d)


class ResidualBlock(nn.Module):
    r"""Pre-activation residual block on rows of features.

    .. math:: h + W_2\, g(N_2(W_1\, g(N_1(h)))), \qquad g = \mathrm{GELU}

    Args:
        features: width.
        norm: N, "layer", "batch" or None.

    References:
        He et al., Identity mappings in deep residual networks, 2016.

    Example:
        >>> ResidualBlock(128)(torch.randn(7, 128)).shape
        torch.Size([7, 128])
    """

    def __init__(self, features: int, norm: str | None = "layer") -> None:
        super().__init__()
        self.norm1 = make_norm(norm, features, "ResidualMLP")
        self.linear1 = nn.Linear(features, features)
        self.norm2 = make_norm(norm, features, "ResidualMLP")
        self.linear2 = nn.Linear(features, features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, features] to [N, features]."""
        hidden = self.linear1(F.gelu(self.norm1(inputs)))
        return inputs + self.linear2(F.gelu(self.norm2(hidden)))


class _BlockWeights(NamedTuple):
    """A block; ``outer`` is None where it is multiplied out, norms where they are folded."""

    norm1: tuple[Tensor, Tensor] | None
    inner: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor] | None
    outer: tuple[Tensor, Tensor] | None


class PreparedResidualMLP(NamedTuple):
    """Weights of ``ResidualMLP.evaluate``.

    ``entry`` leads to what the first norm sees, and is None where blocks start from the ``stream``;
    ``skip`` acts on the inputs then, else on the stream before the last block.
    """

    entry: tuple[Tensor, Tensor] | None
    stream: tuple[Tensor, Tensor] | None
    blocks: tuple[_BlockWeights, ...]
    output: Tensor
    skip: Tensor
    output_bias: Tensor


class ResidualMLP(Conditioner):
    r"""Residual MLP from the conditioning half of a row to the coupling's parameters.

    .. math:: W_3\, (\mathrm{block}_n \circ \dots \circ \mathrm{block}_1)(W_0 [a, c] + b_0) + b_3

    The last layer starts at zero, so that a coupling starts at the identity.

    Args:
        in_features: length of the conditioning part.
        out_features: number of parameters to give.
        hidden_features: width of the residual stream.
        num_blocks: residual blocks.
        context_features: length of the context, concatenated to the input; None takes no context.
        norm: of the blocks: "layer"; "batch", with batch statistics in training and running
            statistics in evaluation, as in the papers; or None.

    Raises:
        ValueError: if a size is not positive, the norm is unknown, or the context is missing, not
            expected or of another length.

    References:
        MixerFlow, Section 4, "Flow layer" and "Identity initialization".

    Example:
        >>> net = ResidualMLP(24, 48, hidden_features=128)
        >>> sum(p.numel() for p in net.parameters())
        42928
        >>> net(torch.randn(7, 24)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        num_blocks: int = 1,
        context_features: int | None = None,
        norm: str | None = "layer",
    ) -> None:
        super().__init__(context_features)
        check_sizes("ResidualMLP", hidden_features=hidden_features, num_blocks=num_blocks)
        self.norm = norm
        self.initial = nn.Linear(in_features + (context_features or 0), hidden_features)
        self.blocks = nn.Sequential(
            *(ResidualBlock(hidden_features, norm) for _ in range(num_blocks))
        )
        self.final = zero_linear(hidden_features, out_features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_features] (and context [N, context_features]) to [N, out_features]."""
        hidden = self.initial(append_context(inputs, context, self.context_features))
        return self.final(self.blocks(hidden))

    def prepares(self) -> bool:
        """Whether it is of plain linear layers, and of norms that agree in their mode."""
        parts: list[Any] = [self.initial, self.final]
        norms: list[Any] = []
        for block in self.blocks:
            if type(block) is not ResidualBlock:
                return False
            parts += [block.linear1, block.linear2]
            norms += [block.norm1, block.norm2]
        alike = {(type(norm), norm.training, getattr(norm, "eps", None)) for norm in norms}
        kinds = {None: (nn.Identity,), "layer": (nn.LayerNorm,), "batch": BATCH_NORMS}
        return (
            len(alike) == 1
            and type(norms[0]) in kinds[self.norm]
            and {type(part) for part in parts} == {nn.Linear}
        )

    def options(self, inputs: Tensor) -> tuple:
        """Norm, its eps, whether it is over the batch of all processes, half precision or None."""
        half = half_precision(inputs)
        if self.norm is None:
            return None, 0.0, False, half
        norm: Any = self.blocks[0].norm1
        used = self.norm if self.norm == "layer" or norm.training else "running"
        reduced = used == "batch" and isinstance(norm, BatchNorm1d) and world_size() > 1
        return used, norm.eps, reduced, half

    def _sizes(self) -> tuple:
        """What networks share that are prepared together."""
        weight = self.initial.weight
        sizes = (weight.shape, self.final.weight.shape, len(self.blocks), self.norm)
        first: Any = self.blocks[0]
        training = self.norm == "batch" and first.norm1.training
        return (*sizes, training, weight.dtype, weight.device)

    def batch_norms(self) -> list[Any]:
        """Two of each block, where there are any."""
        if self.norm != "batch":
            return []
        return [norm for block in self.blocks for norm in (block.norm1, block.norm2)]

    @classmethod
    def prepare(cls, networks: Sequence[ResidualMLP]) -> list[PreparedResidualMLP]:
        r"""Multiply out what is linear behind the last activation, and fold running statistics.

        Nothing non-linear follows the last block's :math:`W_2`, so that, for one block,

        .. math:: W_3 (W_0 a + b_0 + W_2 r + b_2) + b_3 = (W_3 W_2)\, r + (W_3 W_0)\, a + c,
                  \qquad c = W_3 (b_0 + b_2) + b_3,

        which saves a third of the multiplications of each row. With more blocks, or where
        :math:`W_3 W_0` has more numbers than both of its factors, :math:`W_3` goes on to act on
        the stream before the last block. Batch normalization in evaluation mode is an affine map,
        and joins the linear layer before it. Gradients reach the parameters.

        Args:
            networks: of any sizes; those of a size are prepared in one batch.

        Example:
            >>> weights, = ResidualMLP.prepare([ResidualMLP(24, 48)])
            >>> weights.output.shape, weights.skip.shape
            (torch.Size([48, 128]), torch.Size([48, 24]))
        """
        groups: dict[tuple, list[ResidualMLP]] = {}
        for network in networks:
            groups.setdefault(network._sizes(), []).append(network)
        prepared: dict[ResidualMLP, PreparedResidualMLP] = {}
        for alike in groups.values():
            prepared.update(zip(alike, cls._prepare_alike(alike)))
        return [prepared[network] for network in networks]

    @staticmethod
    def _prepare_alike(networks: Sequence[ResidualMLP]) -> list[PreparedResidualMLP]:
        """``prepare`` of networks of the same sizes, norm, mode, dtype and device."""
        first: Any = networks[0]
        last: list[Any] = [list(network.blocks)[-1].linear2 for network in networks]
        final = torch.stack([network.final.weight for network in networks])
        outputs = torch.bmm(final, torch.stack([linear.weight for linear in last]))
        biases = torch.stack([linear.bias for linear in last])
        (hidden, in_features), out_features = first.initial.weight.shape, final.shape[1]
        narrow = in_features * out_features <= hidden * (in_features + out_features)
        direct = narrow and len(first.blocks) == 1
        skips = final
        if direct:
            initial = torch.stack([network.initial.weight for network in networks])
            initial_bias = torch.stack([network.initial.bias for network in networks])
            skips, biases = torch.bmm(final, initial), biases + initial_bias
        final_biases = torch.stack([network.final.bias for network in networks])
        biases = torch.baddbmm(final_biases.unsqueeze(2), final, biases.unsqueeze(2)).squeeze(2)
        blocks = list(zip(*(_prepared_blocks(networks, i) for i in range(len(first.blocks)))))
        entries: list[Any] = [(net.initial.weight, net.initial.bias) for net in networks]
        if direct and first.norm == "batch" and not first.blocks[0].norm1.training:
            scales, shifts = _affine([network.blocks[0].norm1 for network in networks])
            folded = initial * scales.unsqueeze(2), torch.addcmul(shifts, initial_bias, scales)
            entries = list(zip(*map(torch.unbind, folded)))
            blocks = [(block._replace(norm1=None),) for (block,) in blocks]
        streams: list[Any] = [None] * len(networks)
        if not direct:
            entries, streams = streams, entries
        prepared = zip(entries, streams, blocks, outputs, skips, biases)
        return [PreparedResidualMLP(*weights) for weights in prepared]

    @staticmethod
    def evaluate(
        inputs: Tensor, weights: PreparedResidualMLP, options: tuple
    ) -> tuple[Tensor, Statistics]:
        r"""Map rows with prepared weights.

        .. math:: V g(N_2(W_1 g(N_1(W_0 a + b_0)) + b_1)) + U a + c

        Args:
            inputs: a, [N, in_features], context appended.
            weights: from ``prepare``.
            options: from ``options``. Products are in half precision where that is given,
                statistics and the result are not.

        Example:
            >>> net = ResidualMLP(24, 48).eval()
            >>> _ = nn.init.normal_(net.final.weight)
            >>> rows = torch.randn(7, 24)
            >>> outputs, _ = net.evaluate(rows, *net.prepare([net]), net.options(rows))
            >>> torch.allclose(outputs, net(rows), atol=1e-4)
            True
        """
        dtype = options[3]
        statistics: list[Tensor] = []
        skipped = inputs
        if weights.entry is not None:
            hidden = _linear(inputs, weights.entry, dtype)
        else:
            assert weights.stream is not None
            skipped = hidden = F.linear(inputs, *weights.stream)
        for block in weights.blocks:
            hidden = _activate(hidden, block.norm1, options, statistics)
            hidden = _linear(hidden, block.inner, dtype)
            hidden = _activate(hidden, block.norm2, options, statistics)
            if block.outer is not None:
                skipped = hidden = skipped + _linear(hidden, block.outer, dtype).to(skipped.dtype)
        if dtype is None:
            outputs = F.linear(skipped, weights.skip, weights.output_bias)
            return torch.addmm(outputs, hidden, weights.output.t()), tuple(statistics)
        products = F.linear(hidden.to(dtype), weights.output.to(dtype))
        products = products + F.linear(skipped.to(dtype), weights.skip.to(dtype))
        return products.to(inputs.dtype) + weights.output_bias, tuple(statistics)


def _prepared_blocks(networks: Sequence[ResidualMLP], index: int) -> list[_BlockWeights]:
    """Weights of the block at ``index`` of each network."""
    is_last = index == len(networks[0].blocks) - 1
    blocks: list[Any] = [network.blocks[index] for network in networks]
    running = networks[0].norm == "batch" and not blocks[0].norm1.training
    inner: list[Any] = [(block.linear1.weight, block.linear1.bias) for block in blocks]
    norm1: list[Any] = [None] * len(blocks)
    norm2 = norm1
    if running:
        norm1 = list(zip(*map(torch.unbind, _affine([block.norm1 for block in blocks]))))
        scales, shifts = _affine([block.norm2 for block in blocks])
        weight, bias = (torch.stack(of_all) for of_all in zip(*inner))
        folded = weight * scales.unsqueeze(2), torch.addcmul(shifts, bias, scales)
        inner = list(zip(*map(torch.unbind, folded)))
    elif networks[0].norm is not None:
        norm1, norm2 = ([(n.weight, n.bias) for n in (getattr(block, name) for block in blocks)]
                        for name in ("norm1", "norm2"))  # fmt: skip
    outer = [None if is_last else (b.linear2.weight, b.linear2.bias) for b in blocks]
    return [_BlockWeights(*weights) for weights in zip(norm1, inner, norm2, outer)]


def _affine(norms: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Scales and shifts, [G, H] each, of batch normalization by running statistics."""
    of_all = ((norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in norms)
    weight, bias, mean, variance = (torch.stack(tensors) for tensors in zip(*of_all))
    scale = weight * (variance + norms[0].eps).rsqrt()
    return scale, torch.addcmul(bias, mean, scale, value=-1)


def _linear(rows: Tensor, layer: tuple[Tensor, Tensor], dtype: torch.dtype | None) -> Tensor:
    if dtype is None:
        return F.linear(rows, *layer)
    return F.linear(rows.to(dtype), layer[0].to(dtype), layer[1].to(dtype))


def _activate(
    rows: Tensor, norm: tuple[Tensor, Tensor] | None, options: tuple, statistics: list[Tensor]
) -> Tensor:
    """GELU of normalized rows; the statistics of a batch are appended."""
    if norm is None:
        return F.gelu(rows)
    kind, eps, reduced, dtype = options
    if kind == "running":
        return F.gelu(torch.addcmul(norm[1], rows, norm[0]))
    if kind == "layer":
        return F.gelu(F.layer_norm(rows.to(norm[0].dtype), norm[0].shape, *norm, eps))
    rows, mean, variance = normalize_batch(rows, *norm, eps, reduced)
    statistics += [mean, variance]
    return F.gelu(rows)
