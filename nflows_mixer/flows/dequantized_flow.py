"""Flows on real images: what lies below the dequantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nflows.distributions.base import Distribution
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import (
    check_context,
    check_image_shape,
    check_positive,
    mismatch,
    wrong_event,
)
from nflows_mixer._modes import in_mode, in_own_precision, warn_of_batch_statistics
from nflows_mixer.core.as_transform import adapted
from nflows_mixer.core.context import (
    check_takes_context,
    shape_after,
    stochastic_part,
    takes_context,
)
from nflows_mixer.distributions import BaseDistribution, DiagonalNormal, as_base
from nflows_mixer.nn import TakesLabels

CONTEXT_ADVICE = "build it with context_features=..., or num_classes=... for labels"


class CheckedFlow(Flow):
    """What the flows above and below the dequantizer share: checks of images and context, sampling.

    Abstract: use ``ImageFlow`` or ``DequantizedFlow``, whose arguments these are.
    """

    takes_noise = False

    def __init__(
        self,
        transform: Transform,
        image_shape: Sequence[int],
        base: Distribution | None = None,
        context_features: int | None = None,
        embedding_net: nn.Module | None = None,
        validate_args: bool = True,
    ) -> None:
        owner = type(self).__name__
        image_shape = check_image_shape(image_shape, owner)
        transform = adapted(transform, owner)
        base = DiagonalNormal(image_shape) if base is None else base
        if not isinstance(base, Distribution):
            base = as_base(base, shape_after(transform, image_shape), owner)
        super().__init__(transform, base, embedding_net)
        self.image_shape = image_shape
        self.context_features = context_features
        self.validate_args = validate_args
        self._takes_context = any(map(takes_context, (self._transform, base)))
        if not self.takes_noise and (got := stochastic_part(self._transform)) is not None:
            advice = "an ImageFlow takes it, whose log_prob is a bound"
            raise mismatch(owner, "a deterministic transform", got, advice)
        check_takes_context(owner, context_features, self._transform, base)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """``log_prob``: what wraps a module (DDP, accelerate) runs its forward."""
        return self.log_prob(*args, **kwargs)

    def _check_images(self, images: Tensor) -> None:
        owner = type(self).__name__
        if not isinstance(images, Tensor):
            raise mismatch(owner, "a torch tensor", type(images).__name__, "torch.from_numpy it")
        advice = "resize the images, or build the flow for them"
        if images.shape[1:] != self.image_shape:
            raise wrong_event(images, self.image_shape, owner, advice)

    def _checked_values(self, images: Tensor, advice: str) -> Tensor:
        """Return images, real and where that is looked at finite, in the precision of the flow."""
        owner = type(self).__name__
        self._check_images(images)
        if not images.is_floating_point():
            raise mismatch(owner, "real pixels, floating point", images.dtype, advice)
        if self.validate_args and (broken := (~torch.isfinite(images)).sum().item()):
            got = f"{broken} that are NaN or infinite"
            raise mismatch(owner, "finite pixels", got, "look at the data")
        return in_own_precision(self, images)

    def _check_context(self, context: Tensor | None, batch: int) -> Tensor | None:
        """Return the context in the precision of the flow."""
        owner, length = type(self).__name__, self.context_features
        if context is None:
            if length is not None:
                expected = f"context of {length} features"
                if isinstance(self._embedding_net, TakesLabels):
                    expected = f"class labels, 0 to {self._embedding_net.num_classes - 1}"
                raise mismatch(owner, expected, "None", "pass one row per image")
            return None
        if not isinstance(context, Tensor):
            got = type(context).__name__
            raise mismatch(owner, "context as a tensor", got, "torch.as_tensor it")
        if not self._takes_context:
            expected = "no context, as no part of this flow takes one"
            got = f"context of shape {list(context.shape)}"
            raise mismatch(owner, expected, got, CONTEXT_ADVICE)
        if isinstance(self._embedding_net, nn.Identity):
            check_context(context, batch, owner)
            if length is not None and context.shape[1] != length:
                got = f"{context.shape[1]} features"
                raise mismatch(owner, f"context of {length} features", got, "pass what it is for")
        elif _rows(context) != batch or context.dim() == 0:
            expected = f"context with one row for each of {batch} images"
            raise mismatch(owner, expected, list(context.shape), "pass one row per image")
        return in_own_precision(self, context)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw images, with running statistics and without gradients.

        Args:
            num_samples: how many, for each row of the context if there is one.
            context: [M, F], or what the embedding net takes.
            batch_size: how many images are inverted at a time; it bounds the memory and does not
                change the images. All at once if None.
            temperature: multiplies the scales of the base.

        Returns:
            [num_samples, C, H, W], or [M, num_samples, C, H, W] with a context; real pixels here
            and of a ``DequantizedFlow``, uint8 ones of an ``ImageFlow`` that dequantizes.

        Raises:
            ValueError: if an argument is out of range, or the base knows no temperature.
            RuntimeError: if ActNorm was not initialized before.
        """
        num_samples = check_positive("sample", "num_samples", num_samples)
        if batch_size is not None:
            batch_size = check_positive("sample", "batch_size", batch_size)
        context = self._check_context(context, _rows(context))
        if context is not None and _rows(context) == 0:
            got = list(context.shape)
            raise mismatch(type(self).__name__, "a row of context or more", got, "or leave it out")
        warn_of_batch_statistics(self)
        chunks = []
        with in_mode(self, training=False):
            embedded = self._embedding_net(context)
            # A base of nflows draws in the default precision.
            latents = in_own_precision(self, self._sample_base(num_samples, embedded, temperature))
            if embedded is not None:
                latents = latents.flatten(0, 1)
                embedded = embedded.repeat_interleave(num_samples, dim=0)
            for start in range(0, len(latents), batch_size or len(latents)):
                rows = slice(start, start + (batch_size or len(latents)))
                given = None if embedded is None else embedded[rows]
                chunks.append(self._transform.inverse(latents[rows], given)[0])
        images = torch.cat(chunks)
        return images if context is None else images.unflatten(0, (-1, num_samples))

    def _sample_base(self, num_samples: int, context: Tensor | None, temperature: float) -> Tensor:
        if isinstance(self._distribution, BaseDistribution):
            return self._distribution.sample(num_samples, context, temperature=temperature)
        if temperature != 1.0:
            raise mismatch(
                "sample",
                "a base of nflows_mixer.distributions, to set its temperature",
                type(self._distribution).__name__,
                "use one of these, or temperature=1",
            )
        return self._distribution.sample(num_samples, context)


class DequantizedFlow(CheckedFlow):
    """The deterministic part of an ``ImageFlow``: a plain nflows flow of dequantized pixels.

    Its images are real, in [0, levels), and its ``log_prob`` is a density. It shares its modules
    with the ImageFlow that returned it; ``sample_and_log_prob`` is exact here.

    Args:
        transform: from images to the base's shape.
        image_shape: (C, H, W).
        base: distribution of [B, ...], see ``as_base``; ``DiagonalNormal(image_shape)`` where None.
        context_features: length of the context that has to be given; None where there is none.
        embedding_net: encoder of the context, as for nflows' flows.
        validate_args: whether images are checked to be finite.

    Raises:
        ValueError: if images have another shape, are no real numbers, or are not finite, or the
            context is missing, not expected or of another shape; or if the transform draws noise.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> flow = flow.initialize(torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)).eval()
        >>> images, log_prob = flow.deterministic.sample_and_log_prob(5)
        >>> torch.allclose(flow.deterministic.log_prob(images), log_prob, atol=1e-3)
        True
    """

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of dequantized images [B, C, H, W], in nats, [B]."""
        return super()._log_prob(*self._check_values(inputs, context))

    def transform_to_noise(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents of dequantized images [B, C, H, W], of the base's shape."""
        inputs, context = self._check_values(inputs, context)
        with in_mode(self, training=False):
            return super().transform_to_noise(inputs, context)

    def sample_and_log_prob(
        self, num_samples: int, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw dequantized images, in evaluation mode, with their log-densities."""
        context = self._check_context(context, _rows(context))
        warn_of_batch_statistics(self)
        with in_mode(self, training=False):
            return super().sample_and_log_prob(num_samples, context)

    def _check_values(self, images: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        images = self._checked_values(images, "pass integer pixels to the ImageFlow itself")
        return images, self._check_context(context, len(images))


def _rows(context: Tensor | None) -> int:
    return len(context) if isinstance(context, Tensor) and context.dim() else 0
