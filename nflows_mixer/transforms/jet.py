"""Couplings of images whose networks are vision transformers: the parts of Jet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from nflows.transforms import Transform
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer._checks import as_pair, check_choice, check_image_shape, mismatch
from nflows_mixer.core.composite import CompositeTransform, InverseTransform
from nflows_mixer.nn import ImageTransformerConditioner, TransformerConditioner
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.coupling import ConditionerLike, Coupling
from nflows_mixer.transforms.patches import PatchTransform
from nflows_mixer.transforms.squeeze import SqueezeTransform

KINDS = ("channels", "checkerboard", "columns", "rows")


class JetCoupling(Coupling):
    r"""Affine coupling of Jet: a shift, and then a scale between 0 and 2.

    .. math:: y_a = x_a, \quad y_b = 2 \sigma(u) \odot (x_b + t), \quad (t, u) = f(x_a), \qquad
              \log|\det J| = \sum_k \log 2 \sigma(u_k)

    Args, shapes, errors: as ``Coupling``; the network gives t and u one behind the other.

    References:
        Kolesnikov et al., Jet: a modern transformer-based normalizing flow, 2024, Section 3.

    Example:
        >>> outputs, logabsdet = JetCoupling(6)(torch.randn(5, 6))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([5, 6]), torch.Size([5]))
    """

    parameters_per_feature = 2

    @staticmethod
    def elementwise(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale."""
        shift, unconstrained = parameters.chunk(2, dim=1)
        log_scale = F.logsigmoid(unconstrained) + math.log(2)
        return (moved + shift) * log_scale.exp(), log_scale.flatten(1).sum(1)

    @staticmethod
    def elementwise_inverse(moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Undo scale and shift."""
        shift, unconstrained = parameters.chunk(2, dim=1)
        log_scale = F.logsigmoid(unconstrained) + math.log(2)
        return moved * (-log_scale).exp() - shift, -log_scale.flatten(1).sum(1)


def jet_coupling(
    image_shape: Sequence[int],
    kind: str = "channels",
    patch_size: int | Sequence[int] = 4,
    hidden_features: int = 512,
    num_blocks: int = 2,
    num_heads: int = 8,
    actnorm: bool = False,
    conditioning: str = "first",
    index: int = 0,
    context_features: int | None = None,
) -> CompositeTransform:
    """Return a coupling of the patches of images by a vision transformer, as a map of images.

    Of kind "channels" half of the numbers of each patch condition the others, which half is drawn
    for ``index``; of another kind half of the patches, as ``mask_order`` says. Pixels stay at their
    places, so that it stands in any chain of transforms of images, or between mixer layers
    (``mixerflow(local_flow=jet_coupling)``).

    Args:
        image_shape: (C, H, W).
        kind: "channels", "checkerboard", "columns" or "rows".
        patch_size: p, for both sides, of patches that are the tokens.
        hidden_features, num_blocks, num_heads, context_features: of the network, see
            ``VisionTransformer``.
        actnorm: whether an ActNorm of all activations is before it.
        conditioning: which half conditions, "first" or "second".
        index: place in depth, the seed of the draw.

    Raises:
        ValueError: if the kind is unknown, or sizes do not fit.

    References:
        Kolesnikov et al., Jet: a modern transformer-based normalizing flow, 2024, Section 3.

    Example:
        >>> flow = jet_coupling((3, 8, 8), hidden_features=32, num_blocks=1, num_heads=2)
        >>> outputs, logabsdet = flow(torch.randn(5, 3, 8, 8))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """
    check_choice("jet_coupling", "kind", kind, KINDS)
    shape = check_image_shape(image_shape, "jet_coupling")
    size, other = as_pair(patch_size, "jet_coupling", "patch_size")
    if size != other:
        advice = "give one number"
        raise mismatch("jet_coupling", "patches of one height and width", patch_size, advice)
    network = {
        "hidden_features": hidden_features,
        "num_blocks": num_blocks,
        "num_heads": num_heads,
    }
    there: Transform
    back: Transform
    conditioner: ConditionerLike
    if kind == "channels":
        there, back = SqueezeTransform(size), SqueezeTransform(size)
        features, *grid = there.output_shape(shape)
        conditioner = partial(ImageTransformerConditioner, image_size=grid, **network)
        generator = torch.Generator().manual_seed(int(index))
        drawn = torch.randperm(features, generator=generator, device="cpu")
        mask: str | list[bool] = (drawn < features - features // 2).tolist()
        cut: tuple[int, ...] = (features, *grid)
    else:
        there, back = (PatchTransform(shape, size, mask=kind) for _ in range(2))
        features, channels = there.n_patches, there.channels
        conditioner = partial(TransformerConditioner, token_features=channels, **network)
        mask, cut = "halves", (features, channels)
    coupling = JetCoupling(
        features, conditioner, conditioning, context_features=context_features, mask=mask
    )
    norms = [ActNorm(cut)] if actnorm else []
    return CompositeTransform([there, *norms, coupling, InverseTransform(back)])
