"""Batch normalisation over the batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        normalised = (shifted - mean.reshape(aligned)) * (variance + self.eps).rsqrt().reshape(
            aligned
        )
        self._track(mean.detach(), (variance * rows / (rows - 1).clamp_min(1)).detach())
        if self.weight is None:
            return normalised
        return normalised * self.weight.reshape(aligned) + self.bias.reshape(aligned)

    def _track(self, shifted_mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # torch's sign for a plain average over all batches
            momentum = 1 / self.num_batches_tracked.item()
        self.running_mean.add_(shifted_mean * momentum)
        self.running_var.lerp_(variance, momentum)


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

    References:
        Ioffe and Szegedy, Batch normalization, 2015.

    Example:
        >>> BatchNorm2d(3)(torch.randn(50, 3, 4, 4)).shape
        torch.Size([50, 3, 4, 4])
    """


def all_reduce_batch_norm(module: nn.Module) -> nn.Module:
    """Let the batch normalisations of any network see the batch of all processes, in place.

    Args:
        module: a network with parts of torch's classes ``BatchNorm1d`` or ``BatchNorm2d``.

    Returns:
        The module itself; its parameters, buffers and their names stay as they are.

    Example:
        >>> type(all_reduce_batch_norm(nn.Sequential(nn.BatchNorm1d(3)))[0]).__module__
        'nflows_mixer.nn.batch_norm'
    """
    ours: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}
    for part in module.modules():
        # Ours have the same state, so that the class is all that changes: names, hooks and
        # references to the part, of an optimiser for one, stay good.
        part.__class__ = ours.get(type(part), type(part))
    return module
