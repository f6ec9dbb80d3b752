"""Where a number that is not finite came from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nflows_mixer.flows.image_flow import ImageFlow


def clip_gradient(parameters: Sequence[nn.Parameter], bound: float | None) -> Tensor:
    r"""Scale gradients to a norm of at most ``bound``; leave them as they are if it is not finite.

    .. math:: g' = g \min(1, c / \lVert g \rVert)

    Args:
        parameters: whose gradients are scaled, all together.
        bound: c; None for none.

    Returns:
        The norm before, a scalar.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradient([weight], 1.0).item()
        5.0
    """
    bound = math.inf if bound is None else bound
    try:
        return nn.utils.clip_grad_norm_(parameters, bound, error_if_nonfinite=True)
    except RuntimeError:
        norm = _norm([p.grad for p in parameters if p.grad is not None])
        if torch.isfinite(norm):  # another error
            raise
        return norm


@torch.no_grad()
def find_non_finite(
    flow: ImageFlow, images: Tensor, context: Tensor | None, noise: Tensor | None
) -> str:
    """Run the flow once more, in its present mode, and name the first part that is not finite.

    Args:
        flow: the flow whose loss or gradient is NaN or infinite.
        images: uint8 [B, C, H, W], of that step.
        context: of that step, or None.
        noise: of that step, or None.

    Returns:
        A sentence that names the parameters that are broken; or the first part that makes a value
        that is not finite of ones that are, with its class; or the parameters whose gradients are
        broken, or whose finite gradient is the largest where the norm of all overflows; or says
        that nothing was found.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
        >>> images = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
        >>> _ = flow.initialize(images)
        >>> _ = nn.init.constant_(flow._transform._transforms[1].linear.packed, 1e30)
        >>> find_non_finite(flow, images, None, None)
        "'_transform._transforms.1.linear' (LULinear) made values that are not finite of ..."
    """
    for name, parameter in flow.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name!r} is not finite already"
    found: list[str] = []

    def watched(name: str, part: nn.Module, method: str) -> Any:
        forward = getattr(part, method)

        def run(*inputs: Any, **keywords: Any) -> Any:
            outputs = forward(*inputs, **keywords)
            # The innermost part ends first, and those around it only pass its values on.
            if not found and not _finite(outputs) and _finite(inputs):
                sizes = [t.abs().max().item() for t in _tensors(inputs) if t.numel()]
                found.append(
                    f"{name!r} ({type(part).__name__}) made values that are not finite of inputs "
                    f"up to {max(sizes, default=0.0):.3g}"
                )
            return outputs

        return run

    parts = [(name, part, "forward") for name, part in flow.named_modules() if name]
    parts.append(("_distribution", flow._distribution, "log_prob"))
    before = [(part, method, part.__dict__.get(method)) for _, part, method in parts]
    for name, part, method in parts:
        # Not a hook: composites call forward itself, which passes hooks by.
        part.__dict__[method] = watched(name, part, method)
    try:
        flow.log_prob(images, context, noise)
    except ValueError as error:  # a part may notice by itself
        found.append(str(error))
    finally:
        for part, method, own in before:
            del part.__dict__[method]
            if own is not None:
                part.__dict__[method] = own
    if found:
        return found[0]
    gradients = {n: p.grad for n, p in flow.named_parameters() if p.grad is not None}
    broken = [name for name, gradient in gradients.items() if not _finite(gradient)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        named = ", ".join(map(repr, broken[-3:])) + more
        return f"the forward pass is finite, and the gradients are not of {named}"
    if gradients and not _finite(_norm(list(gradients.values()))):
        sizes = {name: gradient.abs().max().item() for name, gradient in gradients.items()}
        largest = max(sizes, key=lambda name: sizes[name])
        return (
            "the forward pass and the gradients are finite, and the norm of the gradients "
            f"overflows; the largest is of {largest!r}, up to {sizes[largest]:.3g}"
        )
    return "the forward pass and the gradients of a second run are finite"


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _finite(values: Any) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in _tensors(values))
