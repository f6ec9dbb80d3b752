"""Monotone rational-quadratic splines, and the coupling made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.core.factory import UNSET, Unset
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms.coupling import ConditionerLike, Coupling

# The one knob of conditioning. 4 gives f' in (1/160, 64]: a round trip in float32 at tail bound 5
# is then within 6e-5 for any parameters, of which 4e-5 is the rounding of y itself, over f'.
_LOG_FACTOR = math.log(4)
# Part of the widths that is shared evenly, so that no bin is lost between two floats.
_EVEN_SHARE = 0.1


def rational_quadratic_spline(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    tail_bound: float,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Monotone rational-quadratic spline on [-B, B], the identity outside, elementwise.

    With :math:`\theta = (x - x_k) / w_k` in the bin k of x, of width w, height h, slope s = h / w
    and derivatives d at its ends:

    .. math:: y = y_k + h_k \frac{s_k \theta^2 + d_k \theta (1 - \theta)}
              {s_k + (d_k + d_{k+1} - 2 s_k)\, \theta (1 - \theta)}

    .. math:: f'(x) = s_k^2 \frac{d_{k+1} \theta^2 + 2 s_k \theta (1 - \theta) + d_k (1 - \theta)^2}
              {[s_k + (d_k + d_{k+1} - 2 s_k)\, \theta (1 - \theta)]^2}

    Parameters are unconstrained, and all zero they give the identity. With
    :math:`g(u) = \exp(c \tanh(u / c))` in [1/4, 4], c = ln 4, and u, v, r for widths, heights and
    derivatives:

    .. math:: \frac{w_k}{2B} = \frac{0.1}{K} + 0.9\, \mathrm{softmax}(u)_k, \qquad
              s_k = \frac{2B\, g(v_k)}{\sum_j w_j g(v_j)}, \qquad
              d_k = \frac{2 s_{k-1} s_k}{s_{k-1} + s_k}\, g(r_k)

    and d = 1 at both bounds, where the derivative is thus continuous. Heights are relative to
    widths and derivatives to slopes because the inverse magnifies the rounding of y by 1 / f',
    which independent minima of w, h and d do not bound usefully: f' in a bin sinks to about
    2 s^2 / (d_k + d_{k+1}) when derivatives are steep. Here, for any parameters and any K,
    slopes are in [1/16, 16] and f' in (1/160, 64].

    Args:
        inputs: x, or y for the inverse.
        widths: u.
        heights: v.
        derivatives: r, at inner knots.
        tail_bound: B.
        inverse: whether to map y to x.

    Shapes:
        inputs and both results [...]; widths and heights [..., K], derivatives [..., K - 1].

    Raises:
        ValueError: if parameters have another shape.

    References:
        Durkan et al., Neural spline flows, 2019, Section 3; Gregory and Delbourgo, Piecewise
        rational quadratic interpolation to monotonic data, 1982.

    Example:
        >>> x = torch.tensor([-7.0, 0.5, 3.0])
        >>> u, v, r = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 7)
        >>> y, logabsdet = rational_quadratic_spline(x, u, v, r, tail_bound=3.0)
        >>> y[0].item(), y[2].item(), logabsdet[0].item()
        (-7.0, 3.0, 0.0)
        >>> back, _ = rational_quadratic_spline(y, u, v, r, tail_bound=3.0, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4)
        True
    """
    _check_shapes(inputs, widths, heights, derivatives)
    x_knots, y_knots, knot_derivatives = _knots(widths, heights, derivatives, tail_bound)
    # Outside inputs go through the spline too, at the bound: torch.where passes on NaN gradients
    # of the branch that it does not take. A NaN is not outside, and stays one.
    outside = inputs.abs() >= tail_bound
    within = inputs.clamp(-tail_bound, tail_bound)

    inner_knots = (y_knots if inverse else x_knots)[..., 1:-1]
    left = (within[..., None] >= inner_knots).sum(-1)
    ends = torch.stack((left, left + 1), dim=-1)[..., None, :].expand(*inputs.shape, 3, 2)
    at_knots = torch.stack((x_knots, y_knots, knot_derivatives), dim=-2)
    at_ends = at_knots.gather(-1, ends)
    (x0, y0, d0), (x1, y1, d1) = (end.unbind(-1) for end in at_ends.unbind(-1))

    width, height = x1 - x0, y1 - y0
    slope = height / width
    # Deviations from a straight line: written in them, a spline of zeros is exactly straight.
    bend0, bend1 = d0 / slope - 1, d1 / slope - 1
    bend = bend0 + bend1
    if inverse:
        part = (within - y0) / height
        theta = _solve(part * bend - bend0, 1 + bend0 - part * bend, part)
    else:
        theta = (within - x0) / width
    rest = 1 - theta
    denominator = 1 + bend * theta * rest
    numerator = 1 + bend1 * theta.square() + bend0 * rest.square()
    logabsdet = (slope * numerator / denominator.square()).log()
    if inverse:
        outputs, logabsdet = x0 + width * theta, -logabsdet
    else:
        outputs = y0 + height * theta * (1 + bend0 * rest) / denominator
    return torch.where(outside, inputs, outputs), logabsdet.masked_fill(outside, 0)


def _check_shapes(inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor) -> None:
    bins = widths.shape[-1] if widths.dim() else 0
    for name, given, count in [
        ("widths", widths, bins),
        ("heights", heights, bins),
        ("derivatives", derivatives, bins - 1),
    ]:
        if given.shape != (*inputs.shape, count):
            raise mismatch(
                "rational_quadratic_spline",
                f"{name} of shape {[*inputs.shape, count]}",
                list(given.shape),
                "give every input its K widths, K heights and K - 1 derivatives",
            )


def _solve(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """Return the root in [0, 1] of a t^2 + b t = part, in the form that a = 0 leaves well."""
    # The bounds on f' keep the discriminant away from 0; rounding alone shall not give a NaN, nor
    # the square root an infinite gradient. A Newton step after this gains nothing: measured, what
    # remains is the rounding of y.
    discriminant = (b.square() + 4 * a * part).clamp_min(torch.finfo(b.dtype).tiny)
    return 2 * part / (b + discriminant.sqrt())


def _bounded(unconstrained: Tensor) -> Tensor:
    return _LOG_FACTOR * torch.tanh(unconstrained / _LOG_FACTOR)


def _knots(
    widths: Tensor, heights: Tensor, derivatives: Tensor, tail_bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and f' at the K + 1 knots."""
    share = _EVEN_SHARE / widths.shape[-1] + (1 - _EVEN_SHARE) * widths.softmax(-1)
    # expm1, because shares add up to 1 only nearly, and slopes of zeros are to be exactly 1.
    excess = _bounded(heights).expm1()
    slope = (1 + excess) / (1 + (share * excess).sum(-1, keepdim=True))
    x, y = _cumulate(share, tail_bound), _cumulate(share * slope, tail_bound)
    # Of the rounded knots, as the spline sees them.
    slope = y.diff() / x.diff()
    before, after = slope[..., :-1], slope[..., 1:]
    harmonic_mean = 2 * before * after / (before + after)
    return x, y, F.pad(harmonic_mean * _bounded(derivatives).exp(), (1, 1), value=1.0)


def _cumulate(shares: Tensor, tail_bound: float) -> Tensor:
    """Return knots from -B to B, both exact, where a sum of all shares would be nearly B."""
    inner = 2 * tail_bound * shares[..., :-1].cumsum(-1) - tail_bound
    return F.pad(F.pad(inner, (1, 0), value=-tail_bound), (0, 1), value=tail_bound)


class RationalQuadraticCoupling(Coupling):
    r"""Spline coupling: one half of the features gives the splines that the other goes through.

    .. math:: y_a = x_a, \quad y_b = \mathrm{RQS}_{f(x_a)}(x_b), \qquad
              \log|\det J| = \sum_k \log \mathrm{RQS}'_k(x_{b,k})

    The conditioning part has ceil(D / 2) features. Features at or beyond the tail bound pass
    through unchanged, bit for bit; conditioners' last layers start at zero, and the coupling
    thus at the identity.

    It is not nflows' spline, whose forward raises for a feature exactly at a bound of 32 or more,
    and whose inverse, at parameters near 10, asserts against the rounding of a discriminant or is
    off by more than 1. This one has no data-dependent branch, so that it compiles whole and never
    waits for a GPU, and a range of derivatives that float32 can invert; see
    ``rational_quadratic_spline``.

    Args:
        features, conditioner, conditioning, context_features, norm, hidden_features, mask, axes:
            as ``Coupling``; the network gives K widths, K heights and K - 1 derivatives one behind
            the other, each of the features that move.
        num_bins: K, at least 2.
        tail_bound: B, above 0.

    Shapes: as ``Coupling``.

    Raises:
        ValueError: if K, B or a choice is out of range, D is below 2, or inputs have another shape.

    References:
        Durkan et al., Neural spline flows, 2019.

    Example:
        >>> coupling = RationalQuadraticCoupling(48, num_bins=4)
        >>> outputs, logabsdet = coupling(torch.randn(7, 48))
        >>> outputs.shape, logabsdet.abs().max().item()
        (torch.Size([7, 48]), 0.0)
    """

    def __init__(
        self,
        features: int,
        conditioner: ConditionerLike = ResidualMLP,
        num_bins: int = 8,
        tail_bound: float = 3.0,
        conditioning: str = "first",
        *,
        context_features: int | None = None,
        norm: str | None | Unset = UNSET,
        hidden_features: int | Unset = UNSET,
        mask: str | Sequence[bool] | Tensor = "halves",
        axes: Sequence[int] | None = None,
    ) -> None:
        owner = "RationalQuadraticCoupling"
        num_bins = check_positive(owner, "num_bins", num_bins)
        if num_bins < 2:
            raise mismatch(owner, "at least 2 bins", num_bins, "one alone is a straight line")
        if not isinstance(tail_bound, Real) or not 0 < tail_bound < math.inf:
            raise mismatch(
                owner, "a finite tail_bound above 0", repr(tail_bound), "give one, such as 3.0"
            )
        # Before super().__init__, which builds the conditioner from it.
        self.parameters_per_feature = 3 * num_bins - 1
        super().__init__(
            features,
            conditioner,
            conditioning,
            context_features=context_features,
            norm=norm,
            hidden_features=hidden_features,
            mask=mask,
            axes=axes,
        )
        self.constants = (int(num_bins), float(tail_bound))

    @staticmethod
    def elementwise(
        moved: Tensor, parameters: Tensor, bins: int, tail_bound: float
    ) -> tuple[Tensor, Tensor]:
        """Map each feature by its spline."""
        return _spline(moved, parameters, bins, tail_bound, inverse=False)

    @staticmethod
    def elementwise_inverse(
        moved: Tensor, parameters: Tensor, bins: int, tail_bound: float
    ) -> tuple[Tensor, Tensor]:
        """Map each feature back."""
        return _spline(moved, parameters, bins, tail_bound, inverse=True)


def _spline(
    moved: Tensor, parameters: Tensor, bins: int, tail_bound: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    of_each = rearrange(parameters, "b (k m) ... -> b m ... k", m=moved.shape[1])
    widths, heights, derivatives = of_each.split([bins, bins, bins - 1], dim=-1)
    outputs, logabsdet = rational_quadratic_spline(
        moved, widths, heights, derivatives, tail_bound, inverse
    )
    return outputs, logabsdet.flatten(1).sum(1)
