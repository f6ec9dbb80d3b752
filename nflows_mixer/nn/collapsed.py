"""The residual MLP with the linear layers of its tail multiplied out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import mismatch
from nflows_mixer._distributed import all_reduce_sum
from nflows_mixer.nn.batch_norm import BatchNorm1d
from nflows_mixer.nn.residual import ResidualBlock, ResidualMLP


class CollapsedWeights(NamedTuple):
    """What ``collapsed_mlp`` reads: parameters of a ``ResidualMLP``, and products of them.

    ``skip`` acts on the inputs, or ``wide`` on what the first layer makes of them. The scales and
    shifts are those of the two batch normalisations, the means and variances their
    running statistics; all six are None where there is no batch normalisation.
    """

    initial: Tensor
    initial_bias: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    output: Tensor
    skip: Tensor
    output_bias: Tensor
    wide: bool
    scales: tuple[Tensor, Tensor] | None
    shifts: tuple[Tensor, Tensor] | None
    means: tuple[Tensor, Tensor] | None
    variances: tuple[Tensor, Tensor] | None

    def tensors(self) -> list[Tensor]:
        """Those that have gradients."""
        return [*self[:7], *(self.scales or ()), *(self.shifts or ())]

    def detached(self) -> CollapsedWeights:
        """The same values, each the leaf of a graph of its own."""
        scales, shifts = self.scales, self.shifts
        return self._replace(
            initial=_leaf(self.initial),
            initial_bias=_leaf(self.initial_bias),
            hidden=_leaf(self.hidden),
            hidden_bias=_leaf(self.hidden_bias),
            output=_leaf(self.output),
            skip=_leaf(self.skip),
            output_bias=_leaf(self.output_bias),
            scales=None if scales is None else (_leaf(scales[0]), _leaf(scales[1])),
            shifts=None if shifts is None else (_leaf(shifts[0]), _leaf(shifts[1])),
        )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def is_collapsible(module: nn.Module) -> bool:
    """Whether ``module`` is a ``ResidualMLP`` of one block that nobody has changed or listens to.

    Parts that were exchanged, hooked or reparametrised are to be called themselves, and so are
    batch normalisations of different modes.

    Example:
        >>> net = ResidualMLP(4, 6, hidden_features=8)
        >>> is_collapsible(net), is_collapsible(ResidualMLP(4, 6, 8, num_blocks=2))
        (True, False)
        >>> handle = net.final.register_forward_hook(lambda *arguments: None)
        >>> is_collapsible(net)
        False
    """
    if not _is_plain(module, ResidualMLP):
        return False
    blocks = cast(ResidualMLP, module).blocks
    if not _is_plain(blocks, nn.Sequential) or len(blocks) != 1:
        return False
    block = cast(ResidualBlock, blocks[0])
    if not _is_plain(block, ResidualBlock) or not _is_plain(block.branch, nn.Sequential):
        return False
    if len(block.branch) != 6:
        return False
    norm1, gelu1, hidden, norm2, gelu2, last = block.branch
    if not all(_is_plain(gelu, nn.GELU) and gelu.approximate == "none" for gelu in (gelu1, gelu2)):
        return False
    linear = (cast(ResidualMLP, module).initial, cast(ResidualMLP, module).final, hidden, last)
    if not all(_is_plain(part, nn.Linear) and part.bias is not None for part in linear):
        return False
    if _is_plain(norm1, nn.Identity) and _is_plain(norm2, nn.Identity):
        return True
    alike = type(norm1) is type(norm2) and norm1.training == norm2.training
    return alike and all(map(_is_plain_norm, (norm1, norm2)))


def _is_plain_norm(norm: nn.Module) -> bool:
    if not (_is_plain(norm, BatchNorm1d) or _is_plain(norm, nn.BatchNorm1d)):
        return False
    norm = cast(nn.BatchNorm1d, norm)
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def _is_plain(module: nn.Module, kind: type) -> bool:
    listened = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    listened = listened or module._backward_hooks or module._backward_pre_hooks
    return type(module) is kind and not listened


def norms_of(network: ResidualMLP) -> tuple[nn.BatchNorm1d, nn.BatchNorm1d] | None:
    """Return the two batch normalisations of a collapsible network, or None.

    Example:
        >>> norms_of(ResidualMLP(4, 6, 8, batch_norm=False)) is None
        True
    """
    branch = cast(ResidualBlock, network.blocks[0]).branch
    if isinstance(branch[0], nn.Identity):
        return None
    return cast(nn.BatchNorm1d, branch[0]), cast(nn.BatchNorm1d, branch[3])


def collapse(networks: Sequence[ResidualMLP]) -> list[CollapsedWeights]:
    r"""Multiply out what is linear behind the last activation, for networks of the same sizes.

    Nothing non-linear follows :math:`W_2`, so that

    .. math:: W_3 (W_0 a + b_0 + W_2 r + b_2) + b_3 = (W_3 W_2)\, r + (W_3 W_0)\, a + c,
              \qquad c = W_3 (b_0 + b_2) + b_3,

    which saves a third of the multiplications of each row. Where :math:`W_3 W_0` has more numbers
    than both of its factors, :math:`W_3` goes on to act on :math:`W_0 a + b_0`. Gradients reach the
    parameters.

    Args:
        networks: collapsible, all of the same sizes.

    Returns:
        The weights for ``collapsed_mlp``, of each network.

    Example:
        >>> weights, = collapse([ResidualMLP(24, 48)])
        >>> weights.output.shape, weights.skip.shape
        (torch.Size([48, 128]), torch.Size([48, 24]))
    """
    branches = [cast(ResidualBlock, network.blocks[0]).branch for network in networks]
    initial = [network.initial for network in networks]
    last = [cast(nn.Linear, branch[5]) for branch in branches]
    final = torch.stack([network.final.weight for network in networks])
    outputs = torch.bmm(final, torch.stack([linear.weight for linear in last]))
    biases = torch.stack([linear.bias for linear in last])
    (hidden_features, in_features), out_features = initial[0].weight.shape, final.shape[1]
    wide = in_features * out_features > hidden_features * (in_features + out_features)
    if wide:
        skips = final
    else:
        skips = torch.bmm(final, torch.stack([linear.weight for linear in initial]))
        biases = biases + torch.stack([linear.bias for linear in initial])
    final_biases = torch.stack([network.final.bias for network in networks])
    biases = torch.baddbmm(final_biases.unsqueeze(2), final, biases.unsqueeze(2)).squeeze(2)
    collapsed = []
    for network, branch, output, skip, bias in zip(networks, branches, outputs, skips, biases):
        hidden = cast(nn.Linear, branch[2])
        norms = norms_of(network)
        weights = CollapsedWeights(
            initial=network.initial.weight,
            initial_bias=network.initial.bias,
            hidden=hidden.weight,
            hidden_bias=hidden.bias,
            output=output,
            skip=skip,
            output_bias=bias,
            wide=wide,
            scales=None,
            shifts=None,
            means=None,
            variances=None,
        )
        if norms is not None:
            one, two = cast(tuple[Any, Any], norms)
            weights = weights._replace(
                scales=(one.weight, two.weight),
                shifts=(one.bias, two.bias),
                means=(one.running_mean, two.running_mean),
                variances=(one.running_var, two.running_var),
            )
        collapsed.append(weights)
    return collapsed


def collapsed_mlp(
    inputs: Tensor,
    weights: CollapsedWeights,
    eps: tuple[float, float],
    training: bool,
    reduced: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:
    r"""Evaluate a collapsed network.

    .. math:: V g(\mathrm{BN}_2(W_1 g(\mathrm{BN}_1(W_0 a + b_0)) + b_1)) + U a + c

    In evaluation batch normalisation is folded into the linear layer before it. With wide weights
    :math:`W_3 (W_0 a + b_0)` takes the place of :math:`U a`.

    Args:
        inputs: a, [N, in_features], context appended.
        weights: from ``collapse``.
        eps: of the two batch normalisations.
        training: whether batch normalisation takes the statistics of the batch.
        reduced: whether these are over the batch of all processes.
        dtype: half precision for the products; statistics and the result stay in float32.

    Returns:
        The outputs [N, out_features], and in training the means and variances (biased) of the two
        normalised batches: mean, variance, mean, variance; else nothing.

    Example:
        >>> net = ResidualMLP(24, 48).eval()
        >>> _ = nn.init.normal_(net.final.weight)
        >>> rows = torch.randn(7, 24)
        >>> outputs, _ = collapsed_mlp(rows, *collapse([net]), (1e-5, 1e-5), training=False)
        >>> torch.allclose(outputs, net(rows), atol=1e-4)
        True
    """
    layers = [(weights.initial, weights.initial_bias), (weights.hidden, weights.hidden_bias)]
    output, skip = weights.output, weights.skip
    skipped = F.linear(inputs, *layers[0]) if weights.wide else inputs
    if weights.scales is not None and not training:
        layers = [_normalised(*layer, weights, i, eps[i]) for i, layer in enumerate(layers)]
    rows = inputs
    if dtype is not None:
        rows, skipped = rows.to(dtype), skipped.to(dtype)
        output, skip = output.to(dtype), skip.to(dtype)
        layers = [(weight.to(dtype), bias.to(dtype)) for weight, bias in layers]
    statistics: list[Tensor] = []
    for i, (weight, bias) in enumerate(layers):
        rows = F.linear(rows, weight, bias)
        if weights.scales is None or weights.shifts is None or not training:
            rows = F.gelu(rows)
            continue
        normalise = _gelu_of_all if reduced else gelu_batch_norm
        rows, mean, variance = normalise(rows, weights.scales[i], weights.shifts[i], eps[i])
        statistics += [mean, variance]
    if dtype is None:
        return torch.addmm(
            F.linear(skipped, skip, weights.output_bias), rows, output.t()
        ), statistics
    products = F.linear(rows, output) + F.linear(skipped, skip)
    return products.to(inputs.dtype) + weights.output_bias, statistics


def _normalised(
    weight: Tensor, bias: Tensor, weights: CollapsedWeights, index: int, eps: float
) -> tuple[Tensor, Tensor]:
    """A linear layer with the running statistics of the normalisation behind it folded in."""
    assert weights.scales is not None and weights.shifts is not None
    assert weights.means is not None and weights.variances is not None
    scale = weights.scales[index] * (weights.variances[index] + eps).rsqrt()
    bias = (bias - weights.means[index]) * scale + weights.shifts[index]
    return weight * scale.unsqueeze(1), bias


def _gelu_of_all(
    rows: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``gelu_batch_norm``, with the statistics of the rows of all processes."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    count = torch.full_like(wide[0], len(rows))
    total, count = all_reduce_sum(torch.stack([wide.sum(0), count]))
    mean = total / count
    centred = wide - mean
    variance = all_reduce_sum(centred.square().sum(0)) / count
    normalised = centred * (variance + eps).rsqrt() * scale + shift
    return F.gelu(normalised.to(rows.dtype)), mean.detach(), variance.detach()


def gelu_batch_norm(
    inputs: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """GELU after batch normalisation, with the mean and the biased variance of the batch."""
    if inputs.shape[0] < 2:
        raise mismatch(
            "batch normalisation",
            "two rows or more in training mode",
            list(inputs.shape),
            "call eval() for one, which takes the running statistics",
        )
    weight, bias = (p.to(torch.promote_types(inputs.dtype, torch.float32)) for p in (weight, bias))
    # With momentum 1 the layer's running statistics are those of this batch. That is much faster
    # than to compute them apart.
    mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
    normalised = F.batch_norm(inputs, mean, variance, weight, bias, True, 1.0, eps)
    rows = inputs.shape[0]
    return F.gelu(normalised), mean, variance * ((rows - 1) / rows)
