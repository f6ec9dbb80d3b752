"""Whether a transform is a bijection of rows, tried on a few of them when a flow is built."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary, WeakSet

import torch
from nflows.transforms import Transform
from nflows.transforms.base import InverseNotAvailable
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from nflows_mixer._checks import mismatch
from nflows_mixer.core.context import row_lengths, takes_context
from nflows_mixer.numerics.autoregressive import inverse_of

_ROWS = 4
# Rows leave the intervals that bounded transforms are defined on, of which [-pi, pi] is the widest,
# and stay where a Gaussianization of float32 still has an inverse.
_WIDTH = 4.0
# Tells a wrong map from an imprecise one; relative to max(1, |value|).
_TOLERANCE = 1e-2
_LONGEST_JACOBIAN = 256
_USABLE: WeakSet[nn.Module] = WeakSet()
_MADE_BY: WeakKeyDictionary[Hashable, set[tuple[type, int]]] = WeakKeyDictionary()


def check_usable(
    transform: Transform,
    owner: str,
    features: int | None = None,
    factory: object = None,
    validate_args: bool = True,
) -> None:
    r"""Raise unless a transform maps rows of R^D to R^D and back, as far as a few rows can tell.

    .. math:: f^{-1}(f(x)) = x, \qquad f(f^{-1}(z)) = z, \qquad
              \log|\det J_f| = -\log|\det J_{f^{-1}}| = \log|\det \partial f / \partial x|

    Four rows x and four z of elements in [-4, 4] are mapped, and autograd gives the Jacobian at
    one of them (of up to 256 features). This is done with a copy, in evaluation mode, with every
    ActNorm (whatever has a method ``initialize_identity``) at the identity, and the random state
    is restored. It takes some 20 ms; masked splines, which have no inverse in one pass, more.

    A transform of this package is probed only for the parts of other libraries, or of a user's
    own, within. What has passed is not probed again, nor what the same factory makes for rows of
    the same length. Not probed are transforms on the meta or a fake device, those for which the
    length of rows or of the context is not known, and those whose inverse iterates, which say so
    by an attribute ``iterative``; those whose inverse raises ``InverseNotAvailable`` or
    ``NotImplementedError`` are probed one way.

    Args:
        transform: any nflows transform.
        owner: whose argument this is, for the error.
        features: row length D, for transforms that do not say it.
        factory: what has made the transform.
        validate_args: False takes the transform for right.

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
    made: set[tuple[type, int]] = set()
    if isinstance(factory, Hashable) and factory is not None:
        made = _MADE_BY.setdefault(factory, made)
    if validate_args and (type(transform), features) not in made:
        if problem := _problem_of_a_copy(transform, features):
            raise mismatch(
                owner,
                "a bijection of rows R^D -> R^D",
                f"{transform._get_name()}, which {problem}",
                f"it has to take all real numbers ({-_WIDTH:g} to {_WIDTH:g} were tried): give a "
                "spline tails='linear', and put what is bounded between Sigmoid and Logit",
            )
        made.add((type(transform), features))
    _USABLE.add(transform)


def _is_known(module: nn.Module) -> bool:
    """Whether it has passed, or is of this package's parts and of parts that have passed."""
    kind = type(module).__module__
    ours = kind.startswith("nflows_mixer.") and not kind.startswith("nflows_mixer.adapters.")
    if module in _USABLE or getattr(module, "iterative", False):
        return True
    return (ours or not isinstance(module, Transform)) and all(map(_is_known, module.children()))


def _problem_of_a_copy(transform: Transform, features: int) -> str | None:
    """Return what is wrong with a transform, or None."""
    tensors = [*transform.parameters(), *transform.buffers(), torch.empty(0)]
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
        return None
    like = next(tensor for tensor in tensors if tensor.is_floating_point())
    context = None
    if takes_context(transform):
        lengths = _context_lengths(transform)
        if len(lengths) != 1:
            return None
        context = torch.linspace(-1, 1, *lengths)[None]
    try:
        copied = copy.deepcopy(transform)
    except RuntimeError:  # of tensors that are computed from parameters, as weight_norm keeps them
        return None
    dtype = torch.promote_types(like.dtype, torch.float32)
    copied = copied.to(dtype).eval().requires_grad_(False)
    for part in copied.modules():
        if hasattr(part, "initialize_identity"):
            part.initialize_identity()

    def run(function: Callable, rows: Tensor) -> tuple[Tensor, Tensor]:
        given = None if context is None else context.to(rows).expand(len(rows), -1)
        outputs, logabsdet = function(rows, given)
        shapes = [tuple(outputs.shape), tuple(logabsdet.shape)]
        if shapes != [tuple(rows.shape), (len(rows),)]:
            raise ValueError(f"outputs and log-dets of shapes {shapes} from {tuple(rows.shape)}")
        if not (outputs.isfinite().all() and logabsdet.isfinite().all()):
            raise ValueError("values that are not finite")
        return outputs, logabsdet

    angles = 0.5 + 1.7 * torch.arange(2 * _ROWS * features, device=like.device).double()
    rows, noise = (_WIDTH * angles.sin()).to(dtype).reshape(2, _ROWS, features)
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        with torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _problem(copied, run, rows, noise)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                return f"raises {type(error).__name__} on some" + (f" ({reason})" if reason else "")


def _problem(transform: Transform, run: Callable, rows: Tensor, noise: Tensor) -> str | None:
    features = rows.shape[1]
    copies = features if features <= _LONGEST_JACOBIAN else 0
    with torch.enable_grad():
        # Each of D copies of a row gives the gradient of another output: one backward pass.
        point = rows[:1].repeat(copies, 1).requires_grad_()
        outputs, logabsdet = run(transform, torch.cat([rows, point]))
        if copies:
            (jacobian,) = torch.autograd.grad(outputs[_ROWS:].diagonal().sum(), point)
            expected = torch.linalg.slogdet(jacobian).logabsdet
            if error := _error(logabsdet[:1], expected[None]):
                return f"has a log-det that is off by {error} from its Jacobian's"
    outputs, logabsdet = outputs[:_ROWS].detach(), logabsdet[:_ROWS].detach()
    with torch.no_grad():
        try:
            back, logabsdet_back = run(inverse_of(transform), torch.cat([outputs, noise]))
        except (InverseNotAvailable, NotImplementedError):
            return None
        if error := _error(back[:_ROWS], rows) or _error(run(transform, back[_ROWS:])[0], noise):
            return f"is not undone by its inverse, off by {error}"
        if error := _error(logabsdet_back[:_ROWS], -logabsdet):
            return f"has log-dets of its two directions that do not agree, off by {error}"
    return None


def _error(got: Tensor, expected: Tensor) -> str | None:
    """Return how far apart they are, relative to max(1, |expected|), unless that is little."""
    error = ((got - expected).abs() / expected.abs().clamp(min=1)).max().item()
    return None if error <= _TOLERANCE else f"{error:.1e}"


def _context_lengths(transform: Transform) -> set[int]:
    lengths = {getattr(part, "context_features", None) for part in transform.modules()}
    layers = [getattr(part, "context_layer", None) for part in transform.modules()]
    lengths |= {layer.in_features for layer in layers if isinstance(layer, nn.Linear)}
    return {length for length in lengths if length}
