"""The rational-quadratic spline against hand, autograd and rounding; the coupling made of it."""

import math
from functools import partial

import pytest
import torch

from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms.spline import RationalQuadraticCoupling, rational_quadratic_spline
from tests.helpers import Constant


def pieces(parameters, inputs):
    """Split [P, 3 K - 1] into widths, heights and derivatives for inputs of [P, M]."""
    bins = (parameters.shape[1] + 1) // 3
    sizes = [bins, bins, bins - 1]
    return [p[:, None].expand(*inputs.shape, -1) for p in parameters.split(sizes, dim=1)]


def spline(inputs, parameters, tail_bound, inverse):
    return rational_quadratic_spline(inputs, *pieces(parameters, inputs), tail_bound, inverse)


def unconstrained(factor):
    """Return the u for which exp(c tanh(u / c)) is ``factor``, with c = ln 4."""
    return math.log(4) * math.atanh(math.log(factor) / math.log(4))


def patterns(length):
    i = torch.arange(length)
    spike = torch.where(i == length - 1, 1.0, -1.0)
    step = torch.where(2 * i < length, 1.0, -1.0)
    alternating = 1.0 - 2 * (i % 2)
    one_sided = torch.ones(length)
    return [sign * p for p in (one_sided, alternating, step, spike) for sign in (1, -1)]


def adversarial(bins, size=10.0, draws=100):
    """Return [P, 3 K - 1] parameters, none above ``size``, drawn and patterned."""
    shape = (draws, 3 * bins - 1)
    patterned = [
        torch.cat([w, h, d])
        for w in patterns(bins)
        for h in patterns(bins)
        for d in patterns(bins - 1)
    ]
    return torch.cat(
        [
            size * torch.randn(shape).sign(),
            size * (2 * torch.rand(shape) - 1),
            (size * torch.randn(shape)).clamp(-size, size),
            size * torch.stack(patterned),
        ]
    )


def dense(parameters, tail_bound, points=121):
    """Return [P, M] inputs in [-1.2 B, 1.2 B], both bounds among them."""
    inputs = torch.linspace(-1.2 * tail_bound, 1.2 * tail_bound, points, dtype=parameters.dtype)
    inputs = torch.cat([inputs, torch.tensor([-tail_bound, tail_bound]).to(inputs)])
    return inputs.sort().values.expand(len(parameters), -1)


def test_spline_by_hand():
    # Two bins of [-2, 2]. Width shares 0.05 + 0.9 (1/3, 2/3) = (0.35, 0.65): widths 1.4 and 2.6.
    # Heights of equal v: both slopes 1, and y knots at x knots, -2, -0.6, 2. The inner derivative
    # is 1 * 2. Thus in the first bin s = 1, d0 = 1, d1 = 2; at its middle, theta = 1/2:
    #   y = -2 + 1.4 * (1/4 + 1/4) / (1 + (1 + 2 - 2) / 4) = -2 + 0.7 / 1.25 = -1.44
    #   f' = (2/4 + 2/4 + 1/4) / 1.25^2 = 1.25 / 1.5625 = 0.8
    widths = torch.tensor([[0.0, math.log(2)]]).double()
    heights = torch.tensor([[3.0, 3.0]]).double()
    derivatives = torch.tensor([[unconstrained(2.0)]]).double()
    x = torch.tensor([-1.3]).double()
    y, logabsdet = rational_quadratic_spline(x, widths, heights, derivatives, 2.0)
    assert y.item() == pytest.approx(-1.44, abs=1e-7)
    assert logabsdet.item() == pytest.approx(math.log(0.8), abs=1e-7)
    back, logabsdet = rational_quadratic_spline(y, widths, heights, derivatives, 2.0, inverse=True)
    assert back.item() == pytest.approx(-1.3, abs=1e-7)
    assert logabsdet.item() == pytest.approx(-math.log(0.8), abs=1e-7)


def test_slopes_by_hand():
    # Equal widths, 1 each on [-1, 1], and g(v) = (3, 1): slopes 3 / 2 and 1 / 2, knots -1, 0.5, 1.
    # The harmonic mean is 3 / 4: there y = 0.5 and f' = 0.75. In the second bin s = 1/2,
    # d0 = 3/4, d1 = 1; at theta = 1/2, denominator 1/2 + 3/4 / 4 = 11/16:
    #   y = 0.5 + 0.5 * (1/8 + 3/16) / (11/16) = 0.5 + 5/22
    #   f' = 1/4 * (1/4 + 1/4 + 3/16) / (11/16)^2 = 1/4 * 16/11 = 4/11
    heights = torch.tensor([[unconstrained(3.0), 0.0]]).double().expand(2, -1)
    x = torch.tensor([0.0, 0.5]).double()
    zeros = torch.zeros(2, 2).double()
    y, logabsdet = rational_quadratic_spline(x, zeros, heights, zeros[:, :1], 1.0)
    torch.testing.assert_close(y, torch.tensor([0.5, 0.5 + 5 / 22]).double())
    torch.testing.assert_close(logabsdet, torch.tensor([0.75, 4 / 11]).double().log())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tail_bound", [1.0, 3.3, 100.0])
def test_exact_identity_at_and_beyond_the_bounds(inverse, tail_bound):
    bound = torch.tensor(tail_bound)
    beyond = torch.nextafter(bound, torch.tensor(math.inf))
    sizes = torch.stack([bound, beyond, 2 * bound, torch.tensor(1e30)])
    inputs = torch.cat([sizes, -sizes])[None].expand(300, -1).clone().requires_grad_()
    parameters = (10 * torch.randn(300, 23)).requires_grad_()
    outputs, logabsdet = spline(inputs, parameters, tail_bound, inverse)
    assert torch.equal(outputs, inputs) and (logabsdet == 0).all()
    (outputs.sum() + logabsdet.sum()).backward()
    assert torch.equal(inputs.grad, torch.ones_like(inputs))
    assert torch.equal(parameters.grad, torch.zeros_like(parameters))


@pytest.mark.parametrize("inverse", [False, True])
def test_nan_stays_nan_and_harms_no_other(inverse):
    inputs = torch.tensor([[math.nan, 0.3, 9.0]])
    outputs, logabsdet = spline(inputs, torch.randn(1, 11), 3.0, inverse)
    assert outputs.isnan().tolist() == logabsdet.isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 3, 8, 16])
def test_zeros_are_the_identity(bins, inverse):
    parameters = torch.zeros(1, 3 * bins - 1)
    inputs = dense(parameters, 3.0, 2001)
    outputs, logabsdet = spline(inputs, parameters, 3.0, inverse)
    torch.testing.assert_close(outputs, inputs, rtol=0, atol=5e-7)
    assert (logabsdet == 0).all()


@pytest.mark.slow
def test_derivative_is_continuous_at_knots_and_bounds():
    parameters = torch.randn(50, 11).double()
    inputs = torch.linspace(-3.1, 3.1, 20_001).double().expand(50, -1)
    _, logabsdet = rational_quadratic_spline(inputs, *pieces(parameters, inputs), 3.0)
    assert logabsdet.abs().max() > 1
    assert logabsdet.diff().abs().max() < 0.05


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("tail_bound", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("bins", [2, 4, 8, 16])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_round_trip_at_adversarial_parameters(dtype, tolerance, bins, tail_bound):
    parameters = adversarial(bins).to(dtype)
    inputs = dense(parameters, tail_bound)
    given = pieces(parameters, inputs)
    for inverse in (False, True):
        there, logabsdet = rational_quadratic_spline(inputs, *given, tail_bound, inverse)
        back, _ = rational_quadratic_spline(there, *given, tail_bound, not inverse)
        assert (back - inputs).abs().max() < tolerance
        # The range that the docstring promises, a little rounding aside.
        log_derivative = -logabsdet if inverse else logabsdet
        assert log_derivative.min() > -math.log(160) - 1e-3
        assert log_derivative.max() <= math.log(64) + 1e-3


@torch.no_grad()
@pytest.mark.parametrize("inverse", [False, True])
def test_round_trip_at_knots(inverse):
    """Equal widths put the knots of x, equal slopes those of y, at known places."""
    bins, tail_bound = 8, 3.0
    parameters = adversarial(bins)
    parameters[:, :bins] = 0
    if inverse:
        parameters[:, bins : 2 * bins] = 0
    knots = torch.linspace(-tail_bound, tail_bound, bins + 1)
    infinity = torch.tensor(math.inf)
    around = torch.cat([knots, knots.nextafter(infinity), knots.nextafter(-infinity)])
    inputs = around.expand(len(parameters), -1)
    there, _ = spline(inputs, parameters, tail_bound, inverse)
    back, _ = spline(there, parameters, tail_bound, not inverse)
    assert (back - inputs).abs().max() < 1e-4


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_everything_is_finite_at_huge_parameters(size, inverse):
    parameters = adversarial(8, size).requires_grad_()
    inputs = dense(parameters, 3.0, 61).clone().requires_grad_()
    outputs, logabsdet = spline(inputs, parameters, 3.0, inverse)
    (outputs.sum() + logabsdet.sum()).backward()
    for tensor in (outputs, logabsdet, inputs.grad, parameters.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 8])
def test_logabsdet_is_that_of_autograd(bins, inverse):
    parameters = adversarial(bins).double()
    inputs = dense(parameters, 3.0).clone().requires_grad_()
    outputs, logabsdet = spline(inputs, parameters, 3.0, inverse)
    (derivative,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(logabsdet, derivative.log(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_are_those_of_differences(inverse):
    inputs = torch.tensor([[-2.2, -0.7, 0.1, 1.3, 2.9, 4.0]]).double().requires_grad_()
    given = [torch.randn(1, 6, k).double().requires_grad_() for k in (4, 4, 3)]
    function = partial(rational_quadratic_spline, tail_bound=3.0, inverse=inverse)
    assert torch.autograd.gradcheck(function, (inputs, *given))


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_wrong_shapes_of_parameters(wrong):
    shapes = [(7, 4), (7, 4), (7, 3)]
    shapes[wrong] = (1, shapes[wrong][1])
    with pytest.raises(ValueError, match="expected .* of shape .*, got .*;"):
        rational_quadratic_spline(torch.randn(7), *map(torch.zeros, shapes), tail_bound=3.0)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["first", "second"])
def test_coupling_is_a_spline_of_each_feature(conditioning):
    widths, heights, derivatives = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 3)
    values = torch.cat([p.T.flatten() for p in (widths, heights, derivatives)])
    coupling = RationalQuadraticCoupling(7, Constant(values), 4, 2.5, conditioning)
    rows = 2 * torch.randn(20, 7)
    outputs, logabsdet = coupling(rows)
    moved = slice(4, 7) if conditioning == "first" else slice(0, 3)
    expected, total = rows.clone(), torch.zeros(20)
    for row in range(20):
        expected[row, moved], parts = rational_quadratic_spline(
            rows[row, moved], widths, heights, derivatives, 2.5
        )
        total[row] = parts.sum()
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(logabsdet, total)
    assert not torch.allclose(outputs, rows)


@torch.no_grad()
@pytest.mark.parametrize("features", [2, 9])
def test_coupling_starts_at_the_identity(features):
    rows = 2 * torch.randn(20, features)
    outputs, logabsdet = RationalQuadraticCoupling(features, partial(ResidualMLP, num_blocks=2))(
        rows
    )
    torch.testing.assert_close(outputs, rows, rtol=0, atol=5e-7)
    assert torch.equal(logabsdet, torch.zeros(20))


@pytest.mark.parametrize(
    "arguments",
    [
        *({"num_bins": value} for value in (1, 0, 2.5)),
        *({"tail_bound": value} for value in (0.0, -1.0, math.inf, math.nan, "3")),
        {"conditioning": "third"},
        {"features": 1},
    ],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match="RationalQuadraticCoupling: expected .*, got .*;"):
        RationalQuadraticCoupling(**{"features": 6, **arguments})
