"""Whether a transform is a bijection of rows, tried on a few of them when a flow is built."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from nflows.transforms import Transform
from nflows.transforms.base import InverseNotAvailable
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from nflows_mixer._checks import mismatch
from nflows_mixer.core.context import context_lengths, row_lengths, takes_context
from nflows_mixer.numerics.autoregressive import inverse_of

_ROWS = 4
# Rows leave the intervals that bounded transforms are defined on, of which [-pi, pi] is the widest,
# and stay where a Gaussianization of float32 still has an inverse.
_WIDTH = 4.0
# Tells a wrong map from an imprecise one; relative to max(1, |value|).
_TOLERANCE = 1e-2
_LONGEST_JACOBIAN = 256
_USABLE: WeakSet[nn.Module] = WeakSet()
# What has passed of a factory that is still there: its next one need not be tried if made alike.
_MAKES: WeakKeyDictionary[Callable, set[Hashable]] = WeakKeyDictionary()


def check_usable(
    transform: Transform,
    owner: str,
    features: int | None = None,
    validate_args: bool = True,
    factory: Callable | None = None,
) -> None:
    r"""Raise unless a transform maps rows of R^D to R^D and back, as far as a few rows can tell.

    .. math:: f^{-1}(f(x)) = x, \qquad f(f^{-1}(z)) = z, \qquad
              \log|\det J_f| = -\log|\det J_{f^{-1}}| = \log|\det \partial f / \partial x|

    Four rows x and four z of elements in [-4, 4] are mapped, and autograd gives the Jacobian at
    one of them (of up to 256 features): by a copy in evaluation mode, with every ActNorm (whatever
    has a method ``initialize_identity``) at the identity. The random state is restored. That takes
    some 20 ms, and for a stack of masked splines, which are inverted in many passes, 100.

    A transform of this package is probed only for the parts of other libraries, or of a user's
    own, within. What has passed is not probed again, nor what the same factory makes alike: of the
    same classes, sizes, options and buffers. Not probed are transforms on the meta or a fake
    device, those for which the length of rows or of the context is not known, and those whose
    inverse iterates, which say so by an attribute ``iterative``; those whose inverse raises
    ``InverseNotAvailable`` or ``NotImplementedError`` are probed one way.

    Args:
        transform: any nflows transform.
        owner: whose argument this is, for the error.
        features: row length D, for transforms that do not say it.
        validate_args: False takes the transform for right.
        factory: what made the transform, if it may make others.

    Raises:
        ValueError: if the transform raises an error on these rows, returns what is not finite or
            of another shape, is not undone by its inverse, or has another log-det.

    Example:
        >>> from nflows.transforms import CompositeTransform, Logit, Sigmoid
        >>> check_usable(CompositeTransform([Sigmoid(), Logit()]), "example", 4)
        >>> check_usable(Sigmoid(), "example", 4)
        Traceback (most recent call last):
        ValueError: example: expected a bijection of rows R^D -> R^D, got Sigmoid, ...
    """
    lengths = {features} if features is not None else row_lengths(transform)
    if len(lengths) != 1 or _is_known(transform):
        return
    (features,) = lengths
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in _tensors(transform)):
        return
    if validate_args:
        make = features, *((type(part), _make(vars(part))) for part in transform.modules())
        passed = _passed(factory)
        problem = None if make in passed else _problem_of_a_copy(transform, features)
        if problem is not None:
            raise mismatch(
                owner,
                "a bijection of rows R^D -> R^D",
                f"{transform._get_name()}, which {problem}",
                f"it has to take all real numbers ({-_WIDTH:g} to {_WIDTH:g} were tried): give a "
                "spline tails='linear', and put what is bounded between Sigmoid and Logit",
            )
        passed.add(make)
    _USABLE.add(transform)


def _tensors(transform: Transform) -> list[Tensor]:
    return [*transform.parameters(), *transform.buffers(), torch.empty(0)]


def _passed(factory: Callable | None) -> set[Hashable]:
    """The makes of a factory that have passed; of one that cannot be kept, none."""
    try:
        return set() if factory is None else _MAKES.setdefault(factory, set())
    except TypeError:
        return set()


def _make(value: Any) -> Hashable:
    """What transforms have in common that are built alike, of an attribute of one of them."""
    if value is None or isinstance(value, (bool, int, float, str, type)):
        return value
    if isinstance(value, nn.Parameter):
        return tuple(value.shape), value.dtype, value.device.type
    if isinstance(value, Tensor):
        values = value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tuple(value.shape), value.dtype, value.device.type, values
    if isinstance(value, (list, tuple)):
        return tuple(map(_make, value))
    if isinstance(value, dict):
        return tuple((str(key), _make(item)) for key, item in value.items())
    if isinstance(value, partial):
        return _make(value.func), _make(value.args), _make(value.keywords)
    kind: Any = type(value)
    return getattr(value, "__code__", kind)


def _is_known(module: nn.Module) -> bool:
    """Whether it has passed, or is of this package's parts and of parts that have passed."""
    kind = type(module).__module__
    ours = kind.startswith("nflows_mixer.") and not kind.startswith("nflows_mixer.adapters.")
    if module in _USABLE or getattr(module, "iterative", False):
        return True
    return (ours or not isinstance(module, Transform)) and all(map(_is_known, module.children()))


def _problem_of_a_copy(transform: Transform, features: int) -> str | None:
    """Return what is wrong with a transform, or None."""
    lengths_of_context = context_lengths(transform)
    if takes_context(transform) and len(lengths_of_context) != 1:
        return None
    try:
        copied = copy.deepcopy(transform)
    except RuntimeError:  # of tensors that are computed from parameters, as weight_norm keeps them
        return None
    like = next(tensor for tensor in _tensors(transform) if tensor.is_floating_point())
    like = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
    copied = copied.to(like.dtype).eval().requires_grad_(False)
    for part in copied.modules():
        part._forward_hooks.clear()  # of whoever listens to the original
        if hasattr(part, "initialize_identity"):
            part.initialize_identity()
    angles = 0.5 + 1.7 * torch.arange(2 * _ROWS * features, dtype=torch.float64)
    rows, noise = (_WIDTH * angles.sin()).to(like).reshape(2, _ROWS, features)
    context = torch.linspace(-1, 1, *lengths_of_context).to(like) if takes_context(copied) else None
    with torch.random.fork_rng([like.device] if like.is_cuda else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.inference_mode(False):
                _try_out(copied, rows, noise, context)
        except _Problem as problem:
            return str(problem)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            return f"raises {type(error).__name__}" + (f" ({reason})" if reason else "")
    return None


class _Problem(Exception):
    """What is wrong, as the end of a sentence."""


def _try_out(transform: Transform, rows: Tensor, noise: Tensor, context: Tensor | None) -> None:
    features = rows.shape[1]
    copies = features if features <= _LONGEST_JACOBIAN else 0
    with torch.enable_grad():
        # Each of D copies of a row gives the gradient of another output: one backward pass.
        point = rows[:1].repeat(copies, 1).requires_grad_()
        outputs, logabsdet = _run(transform, torch.cat([rows, point]), context)
        if copies:
            (jacobian,) = torch.autograd.grad(outputs[_ROWS:].diagonal().sum(), point)
            expected = torch.linalg.slogdet(jacobian).logabsdet
            _compare(logabsdet[:1], expected[None], "has a log-det that is not its Jacobian's")
    outputs, logabsdet = outputs[:_ROWS].detach(), logabsdet[:_ROWS].detach()
    with torch.no_grad():
        try:
            inverse = _run(inverse_of(transform), torch.cat([outputs, noise]), context)
        except (InverseNotAvailable, NotImplementedError):
            return
        back, logabsdet_back = inverse
        _compare(back[:_ROWS], rows, "is not undone by its inverse")
        again, _ = _run(transform, back[_ROWS:], context)
        _compare(again, noise, "does not undo its inverse")
        _compare(logabsdet_back[:_ROWS], -logabsdet, "has log-dets that differ both ways")


def _run(function: Callable, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    given = None if context is None else context.expand(len(rows), -1)
    outputs, logabsdet = function(rows, given)
    shapes = [tuple(outputs.shape), tuple(logabsdet.shape)]
    if shapes != [tuple(rows.shape), (len(rows),)]:
        raise _Problem(f"maps {tuple(rows.shape)} to outputs and log-dets of shapes {shapes}")
    if not (outputs.isfinite().all() and logabsdet.isfinite().all()):
        raise _Problem("gives values that are not finite")
    return outputs, logabsdet


def _compare(got: Tensor, expected: Tensor, what: str) -> None:
    error = ((got - expected).abs() / expected.abs().clamp(min=1)).max().item()
    if not error <= _TOLERANCE:  # so that a NaN is an error too
        raise _Problem(f"{what}, off by {error:.1e}")
