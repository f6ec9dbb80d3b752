"""Transforms of several resolutions, which end in one flat latent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_event, check_image_shape, mismatch
from nflows_mixer._modes import running_statistics
from nflows_mixer.core.as_transform import adapted
from nflows_mixer.core.context import shape_after, takes_context
from nflows_mixer.numerics.autoregressive import inverse_of
from nflows_mixer.transforms.dense_flow_block import DenseFlowBlock
from nflows_mixer.transforms.squeeze import SqueezeAndSplit, SqueezeTransform
from nflows_mixer.transforms.stochastic import StochasticTransform, check_noise_is_passed, cut


class MultiScaleTransform(StochasticTransform):
    r"""Transforms of images one after the other, some of whose channels are latents early.

    .. math:: z = [d_1, \dots, d_n, h], \qquad \log|\det J| = \sum_i \log|\det J_{f_i}|

    At each ``SqueezeAndSplit`` among the parts, the channels :math:`d_i` that it splits off go to
    the latent as they are; h is what comes out of the last part. ``latent_shapes`` has the names
    and shapes of the pieces, ``unflatten`` cuts a latent into them, and ``ProductDistribution`` is
    the base that goes with it. It is stochastic where one of its parts is, and then takes the
    noise of all of them as one row.

    Args:
        transforms: the parts, from data to noise. Those that change the shape of an image say how
            (see ``core.shape_after``).
        image_shape: (C, H, W) of the input.

    Shapes:
        inputs [B, C, H, W], outputs [B, D], context [B, F], noise [B, N].

    Raises:
        ValueError: if shapes do not fit, or a part draws noise that is not normal.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 3.6; DenseFlow, Section 2.3
        and Figure 3.

    Example:
        >>> from nflows_mixer.distributions import DiagonalNormal, ProductDistribution
        >>> from nflows_mixer.transforms import InvertibleConv1x1, SqueezeTransform
        >>> parts = [SqueezeTransform(), InvertibleConv1x1(12), SqueezeAndSplit()]
        >>> glow = MultiScaleTransform([*parts, InvertibleConv1x1(24)], (3, 8, 8))
        >>> glow.latent_shapes
        {'split_1': (24, 2, 2), 'final': (24, 2, 2)}
        >>> latents, logabsdet = glow(torch.randn(5, 3, 8, 8))
        >>> {name: tuple(part.shape) for name, part in glow.unflatten(latents).items()}
        {'split_1': (5, 24, 2, 2), 'final': (5, 24, 2, 2)}
        >>> shapes = glow.latent_shapes.items()
        >>> base = ProductDistribution({name: DiagonalNormal(shape) for name, shape in shapes})
        >>> base.log_prob(latents).shape
        torch.Size([5])
    """

    def __init__(self, transforms: Iterable[Any], image_shape: Sequence[int]) -> None:
        super().__init__()
        owner = "MultiScaleTransform"
        self.image_shape = check_image_shape(image_shape, owner)
        self._transforms = nn.ModuleList(adapted(part, owner) for part in transforms)
        self._passes_context = [takes_context(part) for part in self._transforms]
        self.latent_shapes: dict[str, tuple[int, ...]] = {}
        self._noise_shapes: list[tuple[int, ...] | None] = []
        self._last_reader = -1
        shape: tuple[int, ...] = self.image_shape
        for i, part in enumerate(self._parts()):
            check_noise_is_passed(part, owner)
            noisy = getattr(part, "stochastic_forward", False)
            if noisy and part.noise_kind != "normal":
                got = f"{type(part).__name__} with {part.noise_kind} noise"
                advice = "dequantize before it, as ImageFlow does"
                raise mismatch(owner, "parts with normal noise", got, advice)
            self._noise_shapes.append(part.noise_shape(shape) if noisy else None)
            if _reads_earlier(part) and part.couplings:
                self._last_reader = i
            shape = shape_after(part, shape)
            if isinstance(part, SqueezeAndSplit):
                kept = part.number_kept(shape[0])
                name = f"split_{len(self.latent_shapes) + 1}"
                self.latent_shapes[name] = (shape[0] - kept, *shape[1:])
                shape = (kept, *shape[1:])
        self.latent_shapes["final"] = shape
        self.stochastic_forward = any(shape is not None for shape in self._noise_shapes)

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map images to flat latents, with ``noise`` standard normal, drawn where not given."""
        check_event(inputs, self.image_shape, "MultiScaleTransform", "build it for these images")
        noises = self._split_noise(inputs, noise)
        outputs = inputs
        pieces: list[Tensor] = []
        earlier: list[Tensor] = []
        total = torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
        for i, (part, own) in enumerate(zip(self._parts(), noises)):
            given = context if self._passes_context[i] else None
            if _reads_earlier(part):
                # A last block without noise reads nothing, and then nothing was kept for it.
                read = earlier if i <= self._last_reader else None
                outputs, logabsdet, earlier = part.run(outputs, given, own, read)
                if i >= self._last_reader:
                    earlier = []
            elif own is not None:
                outputs, logabsdet = part(outputs, given, own)
            else:
                outputs, logabsdet = part(outputs, given)
            total = total + logabsdet
            if isinstance(part, SqueezeTransform):
                earlier = [part(representation)[0] for representation in earlier]
            if isinstance(part, SqueezeAndSplit):
                outputs, latents = part.split(outputs)
                pieces.append(latents)
        pieces.append(outputs)
        got = [tuple(piece.shape[1:]) for piece in pieces]
        if got != list(self.latent_shapes.values()):
            expected = f"latents of shapes {list(self.latent_shapes.values())}"
            advice = "let parts that change the shape of an image say so by output_shape(shape)"
            raise mismatch("MultiScaleTransform", expected, got, advice)
        return torch.cat([piece.flatten(1) for piece in pieces], dim=1), total

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map flat latents back to images; noise is dropped, and its log-det is not counted."""
        *pieces, outputs = self.unflatten(inputs).values()
        total = torch.zeros(len(inputs), dtype=torch.float32, device=inputs.device)
        with running_statistics(self):
            for part, passes in zip(self._parts()[::-1], self._passes_context[::-1]):
                if isinstance(part, SqueezeAndSplit):
                    outputs = torch.cat((outputs, pieces.pop()), dim=1)
                outputs, logabsdet = inverse_of(part)(outputs, context if passes else None)
                total = total + logabsdet
        return outputs, total

    def unflatten(self, latents: Tensor) -> dict[str, Tensor]:
        """Cut latents [B, D] into the pieces of ``latent_shapes``, each [B, ...]."""
        advice = "pass what forward returned, or a sample of the base"
        check_event(latents, self.output_shape(self.image_shape), "MultiScaleTransform", advice)
        pieces = cut(latents, list(self.latent_shapes.values()))
        return dict(zip(self.latent_shapes, pieces))

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """One row for all latents."""
        return (sum(math.prod(shape) for shape in self.latent_shapes.values()),)

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """One row for the noise of all parts."""
        return (sum(math.prod(shape) for shape in self._noise_shapes if shape is not None),)

    def _parts(self) -> list[Any]:
        return list(self._transforms)

    def _split_noise(self, inputs: Tensor, noise: Tensor | None) -> list[Tensor | None]:
        """The noise of each part; None for those that take none, or draw theirs."""
        if noise is None:
            return [None] * len(self._noise_shapes)
        if not self.stochastic_forward:
            advice = "none of its parts draws any"
            raise mismatch("MultiScaleTransform", "no noise", list(noise.shape), advice)
        row = self.noise_for(inputs, noise, inputs.dtype)
        pieces = iter(cut(row, [shape for shape in self._noise_shapes if shape is not None]))
        return [None if shape is None else next(pieces) for shape in self._noise_shapes]


def _reads_earlier(part: nn.Module) -> bool:
    """Whether a part is a block that hands its representations on to later ones."""
    return isinstance(part, DenseFlowBlock) and part.preconditioning == "all"
