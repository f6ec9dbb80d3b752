"""What a chain of transforms is made of once neighbours are folded: the steps of its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch
from nflows.transforms import BatchNorm, Transform
from torch import Tensor

from nflows_mixer._modes import without_autocast
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.affine import apply_affine
from nflows_mixer.transforms.flow_step import FlowStep
from nflows_mixer.transforms.linear import LULinear
from nflows_mixer.transforms.mixing import _MixingTransform
from nflows_mixer.transforms.patches import PatchTransform
from nflows_mixer.transforms.recorded import Recorded
from nflows_mixer.transforms.shift import ShiftTransform


class Cut:
    """From image to matrix, or (``uncut``) back."""

    def __init__(self, patches: PatchTransform, uncut: bool = False, name: str = "") -> None:
        self.name = name
        self.patches = patches
        self.uncut = uncut

    def undoes(self, other: object) -> bool:
        """Whether it is the inverse of another step."""
        if not isinstance(other, Cut) or self.uncut == other.uncut:
            return False
        return self.patches.geometry == other.patches.geometry

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, None]:
        """Cut, or put together."""
        move = self.patches.inverse if self.uncut else self.patches.forward
        return move(inputs)[0], None

    def inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, None]:
        """Put together, or cut."""
        move = self.patches.forward if self.uncut else self.patches.inverse
        return move(inputs)[0], None


class Affine:
    """Affine neighbours, as one map of rows or of the channels of images.

    ``maps`` is set, before it is used, to the folded maps of its parts for the direction that is
    to be evaluated: weight, bias and the log-det at each position; ``inverse_maps`` to those of
    the other, where both are.
    """

    def __init__(self, parts: Sequence[Transform], name: str = "") -> None:
        self.name = name
        self.parts = list(parts)
        self.maps: tuple[Tensor, Tensor, Tensor] | None = None
        self.inverse_maps: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply the map."""
        assert self.maps is not None
        weight, bias, logabsdet = self.maps
        if inputs.dim() > 2:
            for part in self.parts:
                if isinstance(part, LULinear):
                    part._check_rows(inputs)
        with without_autocast(inputs):
            outputs = apply_affine(inputs, weight, bias)
        return outputs, (inputs.shape[2:].numel() * logabsdet).expand(len(inputs))

    inverse = forward


class Part:
    """Any transform, called as it is.

    One that ``records`` evaluates ``forward``, when it is called again, as it did the first time.
    """

    def __init__(self, transform: Transform, passes_context: bool) -> None:
        self.transform = transform
        self.name = ""
        self.passes_context = passes_context
        self.records = False
        self.record: Recorded | None = None

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map."""
        if not self.records:
            return self.call(self.transform.forward, inputs, context)
        if self.record is not None:
            with self.record.again():
                return self.call(self.transform.forward, inputs, context)
        self.record = Recorded(self.transform, inputs)
        with self.record.recording():
            if isinstance(self.transform, BatchNorm) and self.transform.training:
                statistics = inputs.detach().mean(0), inputs.detach().var(0)
                self.record.statistics[self.transform] = statistics
            return self.call(self.transform.forward, inputs, context)

    def parameters(self) -> list[Tensor]:
        """Those that it was called with, or would be."""
        if self.record is not None:
            return [parameter for *_, parameter in self.record.parameters]
        return list(self.transform.parameters())

    def inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map back."""
        return self.call(inverse_of(self.transform), inputs, context)

    def call(self, function, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Call with the context where it is taken, in the precision of the inputs or wider."""
        outputs, logabsdet = function(inputs, context if self.passes_context else None)
        if inputs.dtype.is_floating_point and outputs.is_floating_point():
            outputs = outputs.to(torch.promote_types(inputs.dtype, outputs.dtype))
        return outputs, logabsdet.to(torch.promote_types(logabsdet.dtype, torch.float32))


class Mix:
    """Steps on all rows, or on all columns, of a matrix."""

    def __init__(self, mixing: _MixingTransform, steps: list[Step]) -> None:
        self.name = ""
        self.mixing = mixing
        self.steps = steps

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map every row."""
        return self.mixing._map_rows(self._forward, inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map every row back."""
        return self.mixing._map_rows(self._inverse, inputs, context)

    def _forward(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return forward_through(self.steps, rows, context)

    def _inverse(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return inverse_through(self.steps, rows, context)


class Region:
    """Steps on the patches inside a shift: one gather out of the outer matrix, one scatter."""

    def __init__(self, shift: ShiftTransform, steps: list[Step]) -> None:
        self.name = ""
        cut = shift.transform._transforms[0]
        self.shape = (cut.n_patches, cut.channels)
        self.places = shift._places
        self.steps = steps

    def forward(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the inner patches."""
        outputs, logabsdet = forward_through(self.steps, self.gather(inputs), context)
        return self.scatter(inputs, outputs), logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the inner patches back."""
        outputs, logabsdet = inverse_through(self.steps, self.gather(inputs), context)
        return self.scatter(inputs, outputs), logabsdet

    def gather(self, outer: Tensor) -> Tensor:
        """The inner patches [B, *shape] of outer ones."""
        return outer.flatten(1).index_select(1, self.places).reshape(-1, *self.shape)

    def scatter(self, outer: Tensor, inner: Tensor) -> Tensor:
        """Outer patches with new inner ones."""
        return outer.flatten(1).index_copy(1, self.places, inner.flatten(1)).reshape(outer.shape)


Step = Union[Cut, Affine, FlowStep, Part, Mix, Region]


def forward_through(
    steps: Sequence[Step], inputs: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Evaluate steps in their order; the log-det is [B], in float32 or wider."""
    outputs, total = inputs, None
    for step in steps:
        outputs, logabsdet = step.forward(outputs, context)
        total = _sum(total, logabsdet)
    return outputs, _zeros(inputs) if total is None else total


def inverse_through(
    steps: Sequence[Step], inputs: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Evaluate the inverses of steps, from the last to the first."""
    outputs, total = inputs, None
    for step in reversed(steps):
        outputs, logabsdet = step.inverse(outputs, context)
        total = _sum(total, logabsdet)
    return outputs, _zeros(inputs) if total is None else total


def _sum(total: Tensor | None, logabsdet: Tensor | None) -> Tensor | None:
    if logabsdet is None:
        return total
    # One of half precision would lose the sum over many layers.
    logabsdet = logabsdet.to(torch.promote_types(logabsdet.dtype, torch.float32))
    return logabsdet if total is None else total + logabsdet


def _zeros(inputs: Tensor) -> Tensor:
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    return torch.zeros(len(inputs), dtype=dtype, device=inputs.device)
