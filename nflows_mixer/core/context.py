"""What a transform of any library says of itself: lengths of rows, shapes, noise and context."""

from __future__ import annotations

from collections.abc import Sequence

from nflows.transforms import CompositeTransform as NflowsComposite
from nflows.transforms import (
    InverseTransform,
    OneByOneConvolution,
    Permutation,
    SqueezeTransform,
    Transform,
)
from torch import nn

from nflows_mixer._checks import as_python, mismatch


def row_lengths(transform: Transform) -> set[int]:
    """Row lengths that a transform, and the parts of a composite, were built for.

    Args:
        transform: any nflows transform; one that does not say adds nothing.

    Returns:
        One length where all agree; an empty set where none says.

    Example:
        >>> from nflows.transforms import LULinear, ReversePermutation
        >>> row_lengths(NflowsComposite([ReversePermutation(3), LULinear(3)]))
        {3}
    """
    if isinstance(transform, (NflowsComposite, InverseTransform)):
        parts = [part for part in transform.modules() if part is not transform]
        return set().union(*(row_lengths(p) for p in parts if isinstance(p, Transform)))
    if isinstance(transform, Permutation):
        return {len(transform._permutation)}
    features = as_python(getattr(transform, "features", None))
    return {features} if isinstance(features, int) else set()


def shape_after(transform: Transform, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of one output of a transform, for inputs of this shape.

    A transform that changes the shape says so by a method ``output_shape(shape)``; nflows' own
    squeeze is known, and composites are asked for their parts. Everything else keeps it.

    Args:
        transform: any nflows transform.
        shape: of one input, such as (C, H, W).

    Example:
        >>> from nflows.transforms import LULinear
        >>> shape_after(NflowsComposite([SqueezeTransform(2)]), (3, 8, 8))
        (12, 4, 4)
        >>> shape_after(LULinear(3), (3,))
        (3,)
    """
    if hasattr(transform, "output_shape"):
        return tuple(transform.output_shape(shape))  # type: ignore[operator]
    if isinstance(transform, NflowsComposite):
        for part in transform._transforms:
            shape = shape_after(part, shape)
    elif isinstance(transform, SqueezeTransform):
        return tuple(transform.get_output_shape(*shape))
    return tuple(shape)


def takes_context(module: nn.Module) -> bool:
    """Whether a transform, base or network makes use of the context that it is handed.

    A module answers by an attribute ``takes_context``, or by ``context_features`` (nflows and this
    package set it); nflows' masked networks have a ``context_layer`` and its conditional bases a
    ``_context_encoder`` where they take one. Everything else is asked for its parts. A module that
    gives no sign is taken not to, so a transform of your own that does take one says so:
    ``takes_context = True``.

    Args:
        module: any module.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF
        >>> takes_context(MAF(8, 16)), takes_context(MAF(8, 16, context_features=3))
        (False, True)
    """
    declared = getattr(module, "takes_context", None)
    if declared is not None:
        return bool(declared)
    asks = bool(getattr(module, "context_features", None))
    asks = asks or hasattr(module, "context_layer") or hasattr(module, "_context_encoder")
    return asks or any(takes_context(child) for child in module.children())


def check_takes_context(owner: str, context_features: int | None, *modules: nn.Module) -> None:
    """Raise if a context is to be given, and none of the modules takes one.

    Args:
        owner: whose argument ``context_features`` is, for the error.
        context_features: length of the context; None or 0 for none.
        modules: who may take it.

    Raises:
        ValueError: if none does.

    Example:
        >>> check_takes_context("example", None, nn.Identity())
    """
    if context_features and not any(map(takes_context, modules)):
        raise mismatch(
            owner,
            f"a part that takes context of {context_features} features",
            "none",
            "give a factory that names context_features, or one with a context of its own, such "
            f"as partial(zuko.flows.MAF, context={context_features}); set takes_context = True on "
            "a part of your own",
        )


def stochastic_part(module: nn.Module) -> str | None:
    """Kind and name of the first part of a module that draws noise; None where there is none.

    Args:
        module: any module; a part says it by ``stochastic_forward``.

    Example:
        >>> from nflows_mixer.transforms import UniformDequantization
        >>> stochastic_part(NflowsComposite([UniformDequantization()]))
        "UniformDequantization at '_transforms.0'"
    """
    for name, part in module.named_modules():
        if getattr(part, "stochastic_forward", False):
            return type(part).__name__ + (f" at {name!r}" if name else "")
    return None


def context_lengths(module: nn.Module) -> set[int]:
    """Lengths of the context that the parts of a transform or base were built for.

    Args:
        module: any module; one that does not say adds nothing.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform as MAF
        >>> context_lengths(MAF(8, 16, context_features=3))
        {3}
    """
    lengths = {getattr(part, "context_features", None) for part in module.modules()}
    layers = [getattr(part, "context_layer", None) for part in module.modules()]
    lengths |= {layer.in_features for layer in layers if isinstance(layer, nn.Linear)}
    return {length for length in lengths if length}


def input_shape(transform: Transform) -> tuple[int, ...] | None:
    """Shape of one input of a transform, or None where it does not say.

    One of images says it by ``image_shape``, None for images of any size, one of rows by
    ``features``; of a composite of images the first part that says it is asked.

    Args:
        transform: any nflows transform.

    Example:
        >>> from nflows.transforms import LULinear
        >>> input_shape(LULinear(3)), input_shape(SqueezeTransform(2))
        ((3,), None)
    """
    known = getattr(transform, "image_shape", getattr(transform, "input_shape", None))
    if known is not None:
        return tuple(known)
    if any(_is_of_images(part) for part in transform.modules()):
        # Rows within it are no inputs of it. The first part that says, if none before changes it.
        for part in transform._transforms if isinstance(transform, NflowsComposite) else ():
            shape = input_shape(part)
            if shape is not None and (len(shape) == 3 or hasattr(part, "input_shape")):
                return shape
            if hasattr(part, "output_shape") or isinstance(part, SqueezeTransform):
                break
        return None
    lengths = row_lengths(transform)
    return (next(iter(lengths)),) if len(lengths) == 1 else None


def _is_of_images(part: nn.Module) -> bool:
    return hasattr(part, "image_shape") or isinstance(part, (SqueezeTransform, OneByOneConvolution))
