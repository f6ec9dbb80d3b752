"""Affine maps of patches, each conditioned by a transformer on the patches before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflows_mixer._checks import as_python, check_choice, check_event, check_positive, mismatch
from nflows_mixer._modes import is_transformed, widened, without_autocast
from nflows_mixer.core.composite import CompositeTransform, InverseTransform
from nflows_mixer.nn.causal_transformer import CausalTransformer
from nflows_mixer.nn.transformer import KeysValues
from nflows_mixer.numerics.fixed_point import (
    nan_rows,
    report_inversion,
    requested_method,
    until_unchanged,
)
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import LOG_SCALES
from nflows_mixer.transforms.patches import PatchTransform

TOLERANCE = 1e-5
"""Change of an element that counts as none in float32, relative to its size where above 1."""


class CausalPatchTransform(Transform):
    r"""Autoregressive map of patches: each is scaled and shifted by those before it.

    .. math:: z_t = e^{-s(u_t)} \odot (x_t - b_t), \quad (u_t, b_t) = f_t(x_{<t}, y), \qquad
              \log|\det J| = -\sum_{t, k} s(u_{t k})

    with a ``CausalTransformer`` f. One pass maps all patches to latents; the inverse,
    :math:`x_t = e^{s(u_t)} \odot z_t + b_t`, needs the patches before. It goes through segments of
    them, each of which is solved by repeated passes (Jacobi) until no bit changes, in float32 until
    nothing changes by more than 1e-5, relative to its size where that is above 1, with the keys and
    values of finished segments kept: of one patch that is patch by patch with a cache, and of
    all plain Jacobi iteration. Where gradients are recorded, and in what torch.func or a compiler
    watches, it goes patch by patch. ``inverse_method`` asks for one of them, and reports. Starts at
    the identity.

    Args:
        num_patches: T.
        channels: numbers of a patch, c.
        hidden_features, num_blocks, num_heads, context_features, positions, start_token: of the
            network, see ``CausalTransformer``.
        reverse: whether the order is that from the last patch to the first; patches stand where
            they stood.
        scale: s, one of those of ``AffineCoupling``: "exp", "tanh", "sigmoid" or "softplus".
        soft_clip: m, with which the network's answers o become :math:`m \tanh(o / m)`; None for o.
        segment: patches of a segment of the inverse; all of them where None.

    Shapes:
        inputs and outputs [B, T, c], as ``PatchTransform`` gives them; context [B, F].

    Raises:
        ValueError: if a size is not positive, the scale or the positions are unknown, inputs have
            another shape, or the context is missing, unwanted or of another shape.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024, Section 3 (TarFlow); Gu
        et al., STARFlow, 2025 (start token, soft clip, softplus); Liu and Qin, Accelerate TarFlow
        sampling with GS-Jacobi iteration, 2025.

    Example:
        >>> flow = CausalPatchTransform(9, channels=4, hidden_features=32, num_blocks=1)
        >>> matrix = torch.randn(2, 9, 4)
        >>> torch.equal(flow(matrix)[0], matrix)
        True
        >>> _ = torch.nn.init.normal_(flow.network.final.weight, std=0.1)
        >>> torch.allclose(flow.inverse(flow(matrix)[0])[0], matrix, atol=1e-4)
        True
    """

    def __init__(
        self,
        num_patches: int,
        channels: int,
        hidden_features: int = 128,
        num_blocks: int = 4,
        num_heads: int | None = None,
        context_features: int | None = None,
        reverse: bool = False,
        scale: str = "exp",
        soft_clip: float | None = None,
        positions: str = "learned",
        start_token: bool = False,
        segment: int | None = 1,
    ) -> None:
        super().__init__()
        check_choice("CausalPatchTransform", "scale", scale, tuple(LOG_SCALES))
        if soft_clip is not None and not soft_clip > 0:
            advice = "4 is usual, None for none"
            raise mismatch("CausalPatchTransform", "soft_clip above 0", soft_clip, advice)
        if segment is not None:
            segment = check_positive("CausalPatchTransform", "segment", segment)
        self.num_patches, self.channels = as_python((num_patches, channels))
        self.context_features = context_features
        self.reverse, self.scale, self.soft_clip, self.segment = reverse, scale, soft_clip, segment
        self.network = CausalTransformer(
            self.num_patches,
            self.channels,
            2 * self.channels,
            hidden_features,
            num_blocks,
            num_heads,
            context_features,
            positions,
            start_token,
        )

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map patches [B, T, c] to latents, in one pass."""
        patches = self._ordered(self._checked(inputs))
        log_scale, shift = self._scale_and_shift(self.network(patches, context), inputs)
        outputs = (patches - shift) * (-log_scale).exp()
        return self._ordered(outputs), -log_scale.flatten(1).sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latents [B, T, c] to patches, segment by segment."""
        latents = self._ordered(widened(self, self._checked(inputs)))
        with without_autocast(latents):
            patches, logabsdet = self._solve(latents, context, self._segment())
        return self._ordered(patches), logabsdet

    def _solve(
        self, latents: Tensor, context: Tensor | None, segment: int
    ) -> tuple[Tensor, Tensor]:
        # Without a start token the first patch passes as it is.
        first = 0 if self.network.start is not None else 1
        seen, passes = self.network.no_tokens(len(latents)), 0
        solved, log_scales = [latents[:, :first]], [torch.zeros_like(latents[:, :first])]
        for begin in range(first, self.num_patches, segment):
            targets = latents[:, begin : begin + segment]
            one_pass = partial(self._pass, targets, solved[-1][:, -1:], begin, context, seen)
            tolerance = 0.0 if latents.dtype == torch.float64 else TOLERANCE
            found = until_unchanged(one_pass, targets, tolerance=tolerance)
            patches, (log_scale, seen), count = found
            solved.append(patches)
            log_scales.append(log_scale)
            passes += count
        method = {1: "sequential", self.num_patches: "jacobi"}.get(segment, "gauss-seidel")
        report_inversion(self, method, self.num_patches, passes)
        return nan_rows(torch.cat(solved, dim=1)), torch.cat(log_scales, dim=1).flatten(1).sum(1)

    def _pass(
        self,
        targets: Tensor,
        last: Tensor,
        begin: int,
        context: Tensor | None,
        before: list[KeysValues],
        guess: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, list[KeysValues]]]:
        """Patches of a segment from latents and a guess; their log-scales; keys and values of all.

        Args:
            targets: latents of the segment, [B, S, c].
            last: the patch before the segment, [B, 1, c], or [B, 0, c] where there is none.
            begin: place of the segment.
            context: as ``inverse``.
            before: keys and values of what is before.
            guess: patches of the segment, [B, S, c].
        """
        # The answer for a patch is that of the one before it, or of the start token.
        tokens = torch.cat([last, guess[:, :-1]], dim=1)
        hidden = self.network.hidden(tokens, context, begin == 0, max(begin - 1, 0))
        answers, seen = self.network.extend(hidden, before)
        log_scale, shift = self._scale_and_shift(answers, targets)
        return targets * log_scale.exp() + shift, (log_scale, seen)

    def _segment(self) -> int:
        """Patches of a segment, as asked for."""
        method, asked = requested_method()
        watched = torch.compiler.is_compiling() or is_transformed()
        if torch.is_grad_enabled() or watched or method == "sequential":
            return 1
        chosen = {"jacobi": None, "gauss-seidel": asked}.get(method, self.segment)
        return self.num_patches if chosen is None else min(chosen, self.num_patches)

    def _scale_and_shift(self, answers: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of scales, and shifts; under autocast answers are in half precision."""
        answers = answers.to(like.dtype)
        if self.soft_clip is not None:
            answers = self.soft_clip * torch.tanh(answers / self.soft_clip)
        unconstrained, shift = answers.chunk(2, dim=-1)
        return LOG_SCALES[self.scale](unconstrained), shift

    def _ordered(self, patches: Tensor) -> Tensor:
        return patches.flip(1) if self.reverse else patches

    def _checked(self, matrix: Tensor) -> Tensor:
        shape = (self.num_patches, self.channels)
        check_event(matrix, shape, "CausalPatchTransform", "PatchTransform makes such of images")
        return matrix


def causal_patch_flow(
    image_shape: Sequence[int],
    patch_size: int | Sequence[int] = 4,
    hidden_features: int = 128,
    num_blocks: int = 4,
    num_heads: int | None = None,
    actnorm: bool = False,
    scale: str = "exp",
    soft_clip: float | None = None,
    positions: str = "learned",
    start_token: bool = False,
    segment: int | None = 1,
    layout: str = "patch",
    mask: str = "halves",
    index: int = 0,
    context_features: int | None = None,
) -> CompositeTransform:
    """Return a causal transformer over the patches of images, as a transform of images.

    So it stands in a chain of transforms of images, or between mixer layers
    (``mixerflow(local_flow=causal_patch_flow)``).

    Args:
        image_shape: (C, H, W).
        patch_size, layout, mask: of the patches, see ``PatchTransform``; their order is that of the
            mask.
        hidden_features, num_blocks, num_heads, context_features: as ``CausalPatchTransform``.
        scale, soft_clip, positions, start_token, segment: as ``CausalPatchTransform``.
        actnorm: whether an ActNorm of all activations is before it.
        index: place in depth; where it is odd the order is reversed.

    Raises:
        ValueError: as ``PatchTransform`` and ``CausalPatchTransform``.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024, Section 3.

    Example:
        >>> flow = causal_patch_flow((3, 8, 8), hidden_features=32, num_blocks=1)
        >>> outputs, logabsdet = flow(torch.randn(5, 3, 8, 8))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """
    patches, back = (PatchTransform(image_shape, patch_size, layout, mask) for _ in range(2))
    shape = patches.n_patches, patches.channels
    flow = CausalPatchTransform(
        *shape,
        hidden_features,
        num_blocks,
        num_heads,
        context_features,
        bool(index % 2),
        scale,
        soft_clip,
        positions,
        start_token,
        segment,
    )
    norms = [ActNorm(shape)] if actnorm else []
    return CompositeTransform([patches, *norms, flow, InverseTransform(back)])
