"""Flows on images, of integer pixels or of real ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from nflows.distributions.base import Distribution
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Tensor, nn

from nflows_mixer._checks import mismatch
from nflows_mixer._modes import in_mode
from nflows_mixer.flows.architecture import Architecture
from nflows_mixer.flows.dequantized_flow import CheckedFlow, DequantizedFlow
from nflows_mixer.noise import mixed_noise
from nflows_mixer.transforms.initialize import initialize
from nflows_mixer.transforms.multiscale import MultiScaleTransform
from nflows_mixer.transforms.pixels import PixelScaling
from nflows_mixer.transforms.reversible import ReversibleCompositeTransform
from nflows_mixer.transforms.stochastic import (
    StochasticTransform,
    UniformDequantization,
    check_noise_is_passed,
    cut,
)
from nflows_mixer.transforms.variational import VariationalDequantization


class _RealPixels(StochasticTransform):
    """Stands where the dequantization does, in a flow on images that are real already."""

    stochastic_forward = False
    noise_kind = "uniform"
    levels: Any = None

    def noise_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """No noise."""
        return (0,)

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the images as they are."""
        if noise is not None and noise.numel():
            expected, got = "no noise, as real images are not dequantized", list(noise.shape)
            raise mismatch("ImageFlow", expected, f"noise of shape {got}", "leave it out")
        return inputs, inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the images as they are."""
        return inputs, inputs.new_zeros(inputs.shape[0])


class ImageFlow(CheckedFlow):
    r"""A flow on integer images: an nflows ``Flow`` with the dequantization inside.

    .. math:: \log P(x) \ge \mathbb E_u \big[\log p_Z(f(x + u)) + \log|\det J_f(x + u)|\big],
              \qquad u \sim \mathcal U[0, 1)^D

    ``log_prob`` is an unbiased one-draw estimate of the bound on the right. Where the
    dequantization is another one, or the transform draws noise of its own, their log-dets carry
    its -log q, and the bound is over all of it. Images are checked here, at the boundary, and
    nowhere deeper.

    With ``levels=None`` images are real, and go into the transform as they are: ``log_prob`` is
    the log-density of its image (a bound on it where the transform draws noise), ``sample`` gives
    real images, and ``sample_and_log_prob`` gives them with their log-densities.

    Args:
        transform: from pixels in [0, levels), or real images, to the base's shape; ends of the
            range and scales are its own affair (see ``PixelScaling``). It may be stochastic (see
            ``StochasticTransform``).
        image_shape: (C, H, W).
        base: distribution of the latents; ``DiagonalNormal(image_shape)`` where None.
        levels: number of pixel values; None for images that are real.
        context_features: length of the context that has to be given; None where there is none,
            or where its parts check it themselves.
        embedding_net: encoder of the context, as for nflows' flows.
        dequantization: of the same levels; ``UniformDequantization`` where None.
        validate_args: whether values are looked at, the range of pixels and of noise given, which
            waits for a GPU. Shapes, the dtype and ActNorm's flag always are. May be set later.

    Shapes:
        images [B, C, H, W], uint8, or of floating point where ``levels`` is None; context [B, F];
        log-likelihoods [B], in nats.

    Raises:
        ValueError: if images have another shape, dtype or range, the context is missing, of
            another shape, or has no part that takes it, or a part of the transform draws noise
            that cannot be given to it.

    References:
        MixerFlow, Section 5 (uniform dequantization); Theis et al., 2016, Section 3.1.

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(256), image_shape=(3, 8, 8))
        >>> images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> flow.log_prob(images).shape, flow.sample(2).dtype
        (torch.Size([4]), torch.uint8)
        >>> real = ImageFlow(PixelScaling(2, -1.0, 3.0), image_shape=(3, 8, 8), levels=None)
        >>> real.sample(2).dtype, real.draw_noise(seed=0, step=0, index=torch.arange(2)).shape
        (torch.float32, torch.Size([2, 0]))
    """

    takes_noise = True

    def __init__(
        self,
        transform: Transform,
        image_shape: Sequence[int],
        base: Distribution | None = None,
        levels: int | None = 256,
        context_features: int | None = None,
        embedding_net: nn.Module | None = None,
        dequantization: UniformDequantization | VariationalDequantization | None = None,
        validate_args: bool = True,
    ) -> None:
        super().__init__(
            transform, image_shape, base, context_features, embedding_net, validate_args
        )
        check_noise_is_passed(self._transform, "ImageFlow")
        own = _RealPixels() if levels is None else UniformDequantization(levels)
        kinds = (UniformDequantization, VariationalDequantization)
        if dequantization is not None and not isinstance(dequantization, kinds):
            raise TypeError(
                "ImageFlow: expected a UniformDequantization or VariationalDequantization, got "
                f"{dequantization!r}; build one"
            )
        if dequantization is not None and dequantization.levels != levels:
            expected = "no dequantization of real images (levels=None)"
            if levels is not None:
                expected = f"a dequantization of {levels} levels"
            got, advice = dequantization.levels, "build both with the number of levels of the data"
            raise mismatch("ImageFlow", expected, got, advice)
        self.dequantization = own if dequantization is None else dequantization
        self.architecture: Architecture | None = None

    @classmethod
    def from_flow(
        cls,
        flow: Flow,
        image_shape: Sequence[int],
        levels: int | None = 256,
        dequantization: UniformDequantization | VariationalDequantization | None = None,
    ) -> ImageFlow:
        """Put the scaling and dequantization of pixels before any nflows flow on real images.

        Args:
            flow: an nflows flow on [B, C, H, W], which sees pixels in [-1/2, 1/2) and is shared,
                not copied.
            image_shape: (C, H, W).
            levels: number of pixel values; None for real images, which ``flow`` sees as they are.
            dequantization: of the same levels; ``UniformDequantization`` where None.

        Returns:
            A flow on uint8 images, or on real ones, which takes context where ``flow`` does.

        Example:
            >>> from nflows.distributions import StandardNormal
            >>> from nflows_mixer.transforms import FlowLayer, PatchMixerTransform
            >>> layer = PatchMixerTransform((1, 8, 8), 2, FlowLayer, FlowLayer)
            >>> plain = Flow(layer, StandardNormal((1, 8, 8)))
            >>> flow = ImageFlow.from_flow(plain, (1, 8, 8), levels=17)
            >>> flow.log_prob(torch.randint(17, (5, 1, 8, 8), dtype=torch.uint8)).shape
            torch.Size([5])
        """
        base, net = flow._distribution, flow._embedding_net
        if levels is None:
            return cls(flow._transform, image_shape, base, None, None, net, dequantization)
        parts = [PixelScaling(levels), flow._transform]
        transform: Transform
        if getattr(flow._transform, "stochastic_forward", False):
            transform = MultiScaleTransform(parts, image_shape)
        else:
            transform = ReversibleCompositeTransform(parts, memory="full")
        return cls(transform, image_shape, base, levels, None, net, dequantization)

    @property
    def deterministic(self) -> DequantizedFlow:
        """The flow below the dequantizer, a plain nflows flow that shares these modules.

        Raises:
            RuntimeError: if the transform draws noise of its own, which leaves no density.
        """
        if self._is_stochastic:
            raise RuntimeError(
                "ImageFlow.deterministic: expected a deterministic transform, got one that appends "
                "noise, whose log_prob is a bound and no density; use log_prob, or "
                "importance_weighted_log_prob"
            )
        flow = DequantizedFlow(
            self._transform,
            self.image_shape,
            self._distribution,
            self.context_features,
            self._embedding_net,
            self.validate_args,
        )
        flow.training = self.training
        return flow

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that ``log_prob`` takes for one image.

        That of the dequantization; if the transform draws noise, too, one row with both, flat.
        (0,) where nothing draws any.
        """
        shapes = [shape for _, shape in self._noises]
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    def draw_noise(
        self, seed: int, step: int, index: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """All noise of these images, as a function of (seed, step, index): see ``uniform_noise``.

        Args:
            seed: of the run.
            step: of the training, or number of the draw.
            index: of each image, integers [B].
            dtype: of the noise, float32 or float64.

        Returns:
            ``[B, *noise_shape]``, on the device of ``index``.
        """
        row = mixed_noise(seed, step, index, self._noises, dtype)
        return row.reshape(len(index), *self.noise_shape)

    def log_prob(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """One-draw, unbiased estimate of the bound on the log-likelihood of images, [B], in nats.

        In training mode BatchNorm, where it was asked for, sees the batch: call ``eval()`` before
        what is to be reported.

        Args:
            inputs: uint8 [B, C, H, W], or real where ``levels`` is None.
            context: [B, F], or what the embedding net takes.
            noise: of ``noise_shape``, such as ``draw_noise`` returns; drawn if not given.
        """
        return self.transform_and_log_prob(inputs, context, noise)[1]

    def transform_and_log_prob(
        self, inputs: Tensor, context: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents of dequantized images, and what ``log_prob`` gives, in one pass.

        For objectives that read both, in the mode that the flow is in; arguments as ``log_prob``.
        """
        values, of_noise, given, context = self._dequantize(inputs, context, noise)
        embedded = self._embedding_net(context)
        latents, logabsdet = self._transform(values, embedded, *given)
        log_prob = self._distribution.log_prob(latents, embedded)
        return latents, of_noise + logabsdet + log_prob

    def transform_to_noise(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents of images, of the base's shape, in evaluation mode; a function of each image.

        All noise is at its median: 1/2 where it is uniform, 0 where it is normal. Gradients reach
        the parameters. Arguments as ``log_prob``.
        """
        with in_mode(self, training=False):
            noise = self._median_noise(inputs)
            values, _, given, context = self._dequantize(inputs, context, noise)
            return self._transform(values, self._embedding_net(context), *given)[0]

    def dequantize_mid(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Real pixels in [0, levels) that ``transform_to_noise`` maps, [B, C, H, W].

        Images that are real are these themselves.
        """
        with in_mode(self, training=False):
            return self._dequantize(inputs, context, self._median_noise(inputs))[0]

    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw images, uint8 unless ``levels`` is None; else as ``DequantizedFlow.sample``.

        A ``RuntimeWarning`` says how many samples overflowed, if any did.
        """
        values = super().sample(num_samples, context, batch_size, temperature)
        broken = (~torch.isfinite(values)).flatten(-3).any(-1)
        if broken.any():
            warnings.warn(
                f"{broken.sum().item()} of {broken.numel()} samples have pixels that are not "
                "finite: the inverse overflowed; train for longer, or lower the temperature",
                RuntimeWarning,
                stacklevel=2,
            )
        return self.dequantization.inverse(values)[0]

    def sample_and_log_prob(
        self, num_samples: int, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw real images with their log-densities, where nothing draws noise.

        Raises:
            RuntimeError: if something does: the density of a dequantized sample is not the
                likelihood of its pixels.
        """
        if self.dequantization.levels is None and not self._is_stochastic:
            return self.deterministic.sample_and_log_prob(num_samples, context)
        raise RuntimeError(
            "ImageFlow.sample_and_log_prob: expected a deterministic flow, got one that draws "
            "noise (of its dequantization, or on the way), where the density of what was sampled "
            "is not the likelihood of its pixels; call log_prob(sample(n)), or, where the "
            "transform draws no noise of its own, deterministic.sample_and_log_prob(n)"
        )

    def initialize(
        self,
        images: Tensor,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        whiten: bool = False,
    ) -> ImageFlow:
        """Initialize every ActNorm that is not yet, from one batch, as training's first step does.

        In a distributed run every process has to call it, with its part of the batch. Arguments
        as ``log_prob``, and ``whiten`` as ``nflows_mixer.transforms.initialize`` has it; returns
        the flow itself.
        """
        return initialize(self, images, context, noise=noise, whiten=whiten)

    def _dequantize(
        self, images: Tensor, context: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
        """Real pixels, the log-det of making them so, the transform's noise, and the context."""
        levels = self.dequantization.levels
        if levels is None:
            advice = "build the flow with levels=256 for integer pixels, or make them real"
            images = self._checked_values(images, advice)
        else:
            self._check_images(images)
            if images.dtype != torch.uint8:
                expected = f"uint8 pixels from 0 to {levels - 1}"
                advice = "pass raw pixels, .to(torch.uint8), which the flow dequantizes and scales"
                advice += "; images that are real by nature have a flow of levels=None"
                raise mismatch("ImageFlow", expected, images.dtype, advice)
        context = self._check_context(context, len(images))
        own, given = self._split_noise(noise, len(images))
        if self.validate_args and images.numel() and levels is not None:
            self._check_range(images, levels - 1, own)
        return (*self.dequantization(images, noise=own), given, context)

    def _check_range(self, images: Tensor, top: int, noise: Tensor | None) -> None:
        # 255 is all that uint8 has.
        if top < 255 and (largest := images.max().item()) > top:
            advice = "build the flow with the number of levels of the data"
            raise mismatch("ImageFlow", f"pixels from 0 to {top}", f"one of {largest}", advice)
        if noise is None or self.dequantization.noise_kind != "uniform":
            return
        if not 0 <= noise.min() <= noise.max() <= 1:
            got = f"{noise.min().item():g} to {noise.max().item():g}"
            raise mismatch("ImageFlow", "noise from 0 to 1", got, "draw it with torch.rand")

    @property
    def _is_stochastic(self) -> bool:
        return getattr(self._transform, "stochastic_forward", False)

    @property
    def _noises(self) -> list[tuple[str, tuple[int, ...]]]:
        """Kind and shape of the noise of each part that draws some, of one image."""
        parts: list[Any] = [self.dequantization]
        parts += [self._transform] if self._is_stochastic else []
        return [(part.noise_kind, part.noise_shape(self.image_shape)) for part in parts]

    def _median_noise(self, inputs: Tensor) -> Tensor:
        medians = [
            torch.full((len(inputs), math.prod(shape)), 0.0 if kind == "normal" else 0.5)
            for kind, shape in self._noises
        ]
        rows = torch.cat(medians, dim=1).reshape(len(inputs), *self.noise_shape)
        return rows.to(inputs.device)

    def _split_noise(self, noise: Tensor | None, batch: int) -> tuple[Tensor | None, list[Tensor]]:
        """Noise of the dequantization, and that of the transform if it takes some."""
        if noise is None or not self._is_stochastic:
            return noise, []
        if tuple(noise.shape) != (batch, *self.noise_shape):
            raise mismatch(
                "ImageFlow",
                f"noise of shape {[batch, *self.noise_shape]}",
                list(noise.shape),
                "draw it with flow.draw_noise(seed, step, index)",
            )
        own, rest = cut(noise, [shape for _, shape in self._noises])
        return own, [rest]
