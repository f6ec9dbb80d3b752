"""Normalizations inside conditioners, batch normalization over all processes among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_choice, mismatch
from nflows_mixer._distributed import all_reduce_sum, world_size


class _AllReduced(nn.modules.batchnorm._BatchNorm):
    """In training, statistics of the batch of all processes together; else torch's layer.

    With :math:`d = x - r` for the running mean r, which all processes share and which keeps the
    difference below from cancelling,

    .. math:: \\mu = r + \\frac1n \\sum d, \\qquad
              \\sigma^2 = \\frac1n \\sum d^2 - \\Big(\\frac1n \\sum d\\Big)^2,

    with sums over all rows of all processes, in one exchange. State and arguments are those of
    torch's layer. (torch's SyncBatchNorm does the same and refuses the CPU.)
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if world_size() == 1 or not self.training or self.running_mean is None:
            return super().forward(inputs)
        self._check_input_dim(inputs)
        axes = [0, *range(2, inputs.dim())]
        aligned = (1, -1, *(1,) * (inputs.dim() - 2))
        shifted = inputs - self.running_mean.reshape(aligned)
        count = torch.full_like(self.running_mean, inputs.numel() / inputs.shape[1])
        total, squares, rows = all_reduce_sum(
            torch.stack([shifted.sum(axes), shifted.square().sum(axes), count])
        )
        mean = total / rows
        variance = (squares / rows - mean.square()).clamp_min(0)
        normalized = (shifted - mean.reshape(aligned)) * (variance + self.eps).rsqrt().reshape(
            aligned
        )
        unbiased = (variance * rows / (rows - 1).clamp_min(1)).detach()
        track_statistics([([self], [self.running_mean + mean.detach(), unbiased])])
        if self.weight is None:
            return normalized
        return normalized * self.weight.reshape(aligned) + self.bias.reshape(aligned)


class BatchNorm1d(_AllReduced, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` whose batch, in a distributed run, is that of all processes.

    References:
        Ioffe and Szegedy, Batch normalization, 2015.

    Example:
        >>> BatchNorm1d(3)(torch.randn(50, 3)).shape
        torch.Size([50, 3])
    """


class BatchNorm2d(_AllReduced, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` whose batch, in a distributed run, is that of all processes.

    References: as ``BatchNorm1d``.

    Example:
        >>> BatchNorm2d(3)(torch.randn(50, 3, 4, 4)).shape
        torch.Size([50, 3, 4, 4])
    """


def all_reduce_batch_norm(module: nn.Module) -> nn.Module:
    """Let the batch normalizations of any network see the batch of all processes, in place.

    Args:
        module: a network with parts of torch's classes ``BatchNorm1d`` or ``BatchNorm2d``.

    Returns:
        The module itself; its parameters, buffers and their names stay as they are.

    Example:
        >>> type(all_reduce_batch_norm(nn.Sequential(nn.BatchNorm1d(3)))[0]).__module__
        'nflows_mixer.nn.norm'
    """
    ours: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}
    for part in module.modules():
        # Ours have the same state, so that the class is all that changes: names, hooks and
        # references to the part, of an optimizer for one, stay good.
        part.__class__ = ours.get(type(part), type(part))
    return module


def normalize_batch(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, reduced: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Batch normalization of rows by their own statistics, which are returned and not tracked.

    .. math:: \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta

    Args:
        rows: [N, H], N of at least 2.
        weight: gamma, [H].
        bias: beta, [H].
        eps: epsilon.
        reduced: whether the batch is that of all processes.

    Returns:
        normalized rows, and mean and unbiased variance [H], which carry no gradient.

    Raises:
        ValueError: if there are less than two rows.

    Example:
        >>> rows = torch.tensor([[-3.0], [5.0]])
        >>> _, mean, variance = normalize_batch(rows, torch.ones(1), torch.zeros(1), 1e-5)
        >>> mean.item(), variance.item()
        (1.0, 32.0)
    """
    if reduced:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        total, count = all_reduce_sum(
            torch.stack([wide.sum(0), torch.full_like(wide[0], len(rows))])
        )
        mean = total / count
        centred = wide - mean
        variance = all_reduce_sum(centred.square().sum(0)) / count
        normalized = centred * (variance + eps).rsqrt() * weight + bias
        unbiased = variance.detach() * (count / (count - 1).clamp_min(1))
        return normalized.to(rows.dtype), mean.detach(), unbiased
    if len(rows) < 2:
        raise mismatch(
            "batch normalization",
            "two rows or more in training mode",
            list(rows.shape),
            "call eval(), which takes running statistics",
        )
    # With momentum 1 the layer's running statistics are those of this batch. That is much faster
    # than to compute them apart.
    mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
    normalized = F.batch_norm(rows, mean, variance, weight, bias, True, 1.0, eps)
    return normalized, mean, variance


@torch.no_grad()
def track_statistics(
    batches: Iterable[tuple[Sequence[Any], Sequence[Tensor]]],
) -> None:
    r"""Let batch normalizations keep the statistics of a batch, all in a few operations.

    .. math:: \bar\mu \leftarrow \bar\mu + m\, (\mu - \bar\mu), \qquad
              \bar\sigma^2 \leftarrow
              \bar\sigma^2 + m\, (\sigma^2 - \bar\sigma^2)

    Args:
        batches: norms; and mean and unbiased variance of each, one after the other. A norm that
            comes again is moved by one batch after the other.
    """
    rounds: dict[tuple[int, float], tuple[list, list, list]] = {}
    seen: dict[nn.Module, int] = {}
    for norms, statistics in batches:
        for norm, mean, variance in zip(norms, statistics[::2], statistics[1::2]):
            turn = seen[norm] = seen.get(norm, 0) + 1
            momentum = norm.momentum
            if momentum is None:  # torch's sign for a plain average over all batches
                momentum = 1 / (norm.num_batches_tracked.item() + 1)
            running, batch, counts = rounds.setdefault((turn, momentum), ([], [], []))
            running += [norm.running_mean, norm.running_var]
            batch += [mean, variance]
            counts.append(norm.num_batches_tracked)
    for (_, momentum), (running, batch, counts) in sorted(rounds.items(), key=lambda item: item[0]):
        torch._foreach_lerp_(running, [b.to(r.dtype) for b, r in zip(batch, running)], momentum)
        torch._foreach_add_(counts, 1)


@contextmanager
def scratch_buffers(module: nn.Module, keep: tuple[type, ...] = ()) -> Iterator[None]:
    """Let a module write to copies of its buffers, which are dropped at the end.

    A forward pass that is made again must not move running statistics again. The buffers
    themselves are not written to, so that what a graph has saved of them stays valid.

    Args:
        module: with its parts.
        keep: parts of these classes go on to write to their own.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with scratch_buffers(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> norm.running_mean.tolist()
        [0.0, 0.0]
    """
    places = [
        (part._buffers, name, buffer)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and not isinstance(part, keep)
    ]
    for buffers, name, buffer in places:
        buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for buffers, name, buffer in places:
            buffers[name] = buffer


NORMS = ("layer", "batch", None)


class ChannelLayerNorm(nn.LayerNorm):
    r"""Layer normalization of feature maps, over the channels of each pixel.

    .. math:: y_{chw} = w_c\, \frac{x_{chw} - \mu_{hw}}{\sqrt{\sigma^2_{hw} + \epsilon}} + b_c

    It has as many parameters as ``BatchNorm2d`` and no state: a pixel alone decides what becomes
    of it.

    Args:
        channels: C.

    Shapes:
        inputs and outputs [B, C, H, W].

    References:
        Ba et al., Layer normalization, 2016.

    Example:
        >>> import torch
        >>> ChannelLayerNorm(3)(torch.randn(2, 3, 4, 4)).mean(1).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize [B, C, H, W]."""
        return super().forward(inputs.movedim(1, -1)).movedim(-1, 1)


def make_norm(norm: str | None, features: int, owner: str, images: bool = False) -> nn.Module:
    """Return the normalization that a conditioner's ``norm`` names, for rows or for images.

    Args:
        norm: "layer", over the features of each row (the channels of each pixel); "batch", over
            the batch of all processes, with running statistics in evaluation; or None.
        features: width of a row, or channels.
        owner: whose argument this is, for the error.
        images: whether inputs are [B, features, H, W] and not [N, features].

    Raises:
        ValueError: if the name is unknown.

    Example:
        >>> [type(make_norm(norm, 16, "example", images=True)).__name__ for norm in NORMS]
        ['ChannelLayerNorm', 'BatchNorm2d', 'Identity']
    """
    check_choice(owner, "norm", norm, NORMS)
    if norm is None:
        return nn.Identity()
    if norm == "layer":
        return ChannelLayerNorm(features) if images else nn.LayerNorm(features)
    return BatchNorm2d(features) if images else BatchNorm1d(features)
