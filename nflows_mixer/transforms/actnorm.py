"""Activation normalization, initialized from data once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import as_size, mismatch
from nflows_mixer._distributed import all_reduce_sum
from nflows_mixer._modes import is_transformed
from nflows_mixer.transforms.linear import AffineMaps


class ActNorm(Transform):
    r"""Scale and shift, set from the first training batch to give mean 0 and variance 1.

    .. math:: y = e^s \odot x + t, \qquad
              \log|\det J| = \frac{D}{\#s} \sum s \quad (D \text{ values per input})

    ``shape`` are the leading axes of an input that have scales of their own; the axes behind them
    share one. So ``ActNorm(48)`` is per feature of rows [N, 48], ``ActNorm(3)`` per channel of
    images [B, 3, H, W], and ``ActNorm((3, 32, 32))`` per activation.

    The first forward in training mode initializes (the statistics of that batch, batch 1
    included; a feature that does not vary keeps its scale), or ``initialize(batch)`` does. In a
    distributed run the batch is that of all processes, each of which has to bring its part.
    The state is part of the state_dict.

    Args:
        shape: number of features, or shape.

    Raises:
        ValueError: if inputs have another shape, or a batch to initialize from is not finite.
        RuntimeError: if used in evaluation mode, or inverted, before it is initialized.

    References:
        Kingma and Dhariwal, Glow, 2018, Section 3.1; MixerFlow, Section 4, "ActNorm layer".

    Example:
        >>> norm = ActNorm(3)
        >>> outputs, logabsdet = norm(4 * torch.randn(1000, 3) + 1)
        >>> bool(outputs.mean(0).abs().max() < 1e-5), bool((outputs.std(0) - 1).abs().max() < 1e-2)
        (True, True)
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(as_size(shape))
        self.log_scale = nn.Parameter(torch.zeros(self.shape))
        self.shift = nn.Parameter(torch.zeros(self.shape))
        # The buffer travels with the state_dict; layers ask the attribute, which needs no
        # synchronisation with a device.
        self.register_buffer("initialized_flag", torch.tensor(0, dtype=torch.uint8))
        self.initialized = False

    @property
    def features(self) -> int | None:
        """Row length, for an ActNorm of rows."""
        return self.shape[0] if len(self.shape) == 1 else None

    @classmethod
    def affine_maps(cls, parts: Sequence[ActNorm]) -> AffineMaps:
        """Scales and shifts of G of them, as diagonal maps."""
        log_scales = torch.stack([part.log_scale for part in parts])
        shifts = torch.stack([part.shift for part in parts])
        return AffineMaps(log_scales.exp(), shifts, log_scales.sum(1))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize ``[B, *shape, ...]``."""
        if self.training and not self.initialized:
            self.initialize(inputs)
        log_scale, shift = self._aligned(inputs)
        return inputs * log_scale.exp() + shift, self._logabsdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo the normalization of ``[B, *shape, ...]``."""
        log_scale, shift = self._aligned(inputs)
        return (inputs - shift) * (-log_scale).exp(), -self._logabsdet(inputs)

    @torch.no_grad()
    def initialize(self, batch: Tensor) -> None:
        """Set scale and shift so that a batch ``[B, *shape, ...]`` gets mean 0 and variance 1.

        Statistics and parameters keep the parameters' own dtype (at least float32 within).
        """
        if is_transformed():
            raise self._uninitialized("a batch within torch.func")
        self._check_shape(batch)
        axes = [0, *range(1 + len(self.shape), batch.dim())]
        aligned = (*self.shape, *(1,) * (batch.dim() - 1 - len(self.shape)))
        batch = batch.to(torch.promote_types(self.shift.dtype, torch.float32))
        count = all_reduce_sum(batch.new_tensor(batch.numel() / math.prod(self.shape)))
        if count == 0:
            raise mismatch("ActNorm", "a batch to initialize from", "none", "pass some inputs")
        mean = all_reduce_sum(batch.sum(axes)) / count
        std = (all_reduce_sum((batch - mean.reshape(aligned)).square().sum(axes)) / count).sqrt()
        if not torch.isfinite(mean + std).all():
            broken = (~torch.isfinite(batch)).sum().item()
            raise mismatch(
                "ActNorm.initialize",
                "a batch of finite mean and variance",
                f"{broken} values that are not finite, of up to {batch.abs().max().item():.0e}",
                "look at the data, and at the transforms before this one",
            )
        # Below this, what varies is rounding error, and dividing by it would amplify that.
        constant = std <= 32 * torch.finfo(batch.dtype).eps * mean.abs() + 1e-12
        log_scale = torch.where(constant, torch.zeros_like(std), -std.log())
        self.log_scale.copy_(log_scale)
        self.shift.copy_(-mean * log_scale.exp())
        self._mark_initialized()

    @torch.no_grad()
    def initialize_identity(self) -> None:
        """Start as the identity: what a layer needs that is added to a flow already trained."""
        self.log_scale.zero_()
        self.shift.zero_()
        self._mark_initialized()

    def _mark_initialized(self) -> None:
        self.initialized_flag.fill_(1)
        self.initialized = True

    @staticmethod
    def _uninitialized(got: str) -> RuntimeError:
        return RuntimeError(
            "ActNorm: expected to be initialized before it is evaluated or inverted, got "
            f"{got}; call initialize(flow, batch) of nflows_mixer.transforms, or, without data, "
            "its initialize_identity(flow), or train on a batch first"
        )

    def _aligned(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.initialized:
            raise self._uninitialized("no batch yet")
        self._check_shape(inputs)
        shared = (1,) * (inputs.dim() - 1 - len(self.shape))
        aligned = (*self.shape, *shared)
        return self.log_scale.reshape(aligned), self.shift.reshape(aligned)

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        repeats = math.prod(inputs.shape[1 + len(self.shape) :])
        return repeats * self.log_scale.sum() * inputs.new_ones(inputs.shape[0])

    def _check_shape(self, inputs: Tensor) -> None:
        if tuple(inputs.shape[1 : 1 + len(self.shape)]) != self.shape:
            raise mismatch(
                "ActNorm",
                f"inputs of shape [B, {', '.join(map(str, self.shape))}, ...]",
                list(inputs.shape),
                "build it for these features",
            )

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.initialized = bool(self.initialized_flag)
