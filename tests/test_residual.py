"""The residual flow: its contraction, its exact log-det, its inverse and the gradients of all."""

from functools import partial

import pytest
import torch
from torch import nn

from nflows_mixer.nn.lipschitz import LipschitzMLP
from nflows_mixer.numerics.implicit import row_jacobian, with_implicit_gradient
from nflows_mixer.transforms.residual import ResidualTransform
from tests.helpers import central_difference, moved
from tests.jacobian import jacobian_logabsdet

narrow = partial(LipschitzMLP, hidden_features=16)


def drawn(transform, std=0.3):
    """Return the transform in float64, all parameters moved from their start."""
    return moved(transform.double(), std)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Linear(nn.Module):
    """g(x) = A x."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, rows):
        return rows @ self.matrix.mT


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("std", [0.1, 10.0])
def test_network_is_a_contraction_whatever_its_weights(num_layers, std):
    net = drawn(LipschitzMLP(12, 32, num_layers, lipschitz=0.9), std)
    _, jacobian = row_jacobian(net, 3 * draw(200, 12))
    largest = torch.linalg.matrix_norm(jacobian, 2).max()
    assert 0.001 < largest <= 0.9 + 1e-12


def test_bound_is_reached_by_a_network_that_is_nearly_linear():
    """The matrices use all of the constant; LipSwish far above 0 has slope 1 / 1.1."""
    net = LipschitzMLP(8, 8, num_layers=1, lipschitz=0.9).double()
    with torch.no_grad():
        for layer in (net.hidden[0], net.final):
            layer.weight.copy_(7 * torch.eye(8))
            layer.bias.fill_(100.0)
    _, jacobian = row_jacobian(net, draw(3, 8))
    expected = 0.9 / 1.1 * torch.eye(8, dtype=torch.float64).expand(3, 8, 8)
    torch.testing.assert_close(jacobian, expected)


def test_lipswish_is_steepest_below_one_for_any_beta():
    activation = LipschitzMLP(2).double().hidden[1]
    for beta in (-20.0, 0.5, 20.0):
        nn.init.constant_(activation.unconstrained_beta, beta)
        points = torch.linspace(-30, 30, 100_001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(activation(points).sum(), points)
        assert slope.abs().max() <= 1


def test_starts_at_the_identity_with_finite_gradients():
    residual = ResidualTransform(5, narrow)
    inputs = torch.randn(4, 5, requires_grad=True)
    outputs, logabsdet = residual(inputs)
    assert torch.equal(outputs, inputs) and torch.equal(logabsdet, torch.zeros(4))
    (outputs.square().sum() + logabsdet.sum()).backward()
    for name, parameter in residual.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert residual.network.final.weight.grad.norm() > 0
    assert inputs.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"lipschitz": 1.0}, "lipschitz above 0 and below 1"),
        ({"lipschitz": 0.0}, "lipschitz above 0 and below 1"),
        ({"hidden_features": 0}, "hidden_features to be a positive"),
        ({"num_layers": 0}, "num_layers to be a positive"),
        ({"features": -1}, "features to be a positive"),
        ({"context_features": 0}, "context_features to be a positive"),
    ],
)
def test_wrong_sizes_of_the_network(options, error):
    with pytest.raises(ValueError, match=f"{error}.*got .*;"):
        LipschitzMLP(**{"features": 3, **options})


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: ResidualTransform(0), "features to be a positive"),
        (lambda: ResidualTransform(3, max_iterations=0), "max_iterations to be a positive"),
        (lambda: ResidualTransform(3, tolerance=0.0), "tolerance above 0"),
        (lambda: ResidualTransform(3, lambda n: None), "network that is an nn.Module"),
        (lambda: ResidualTransform(3, nn.Linear(3, 1))(torch.rand(2, 3)), "outputs of shape"),
        (lambda: ResidualTransform(3)(torch.rand(2, 4)), "inputs of shape"),
        (lambda: ResidualTransform(3).inverse(torch.rand(2, 4)), "inputs of shape"),
        (lambda: ResidualTransform(3)(torch.rand(2, 3, 3)), "inputs of shape"),
    ],
)
def test_wrong_options_of_the_transform(make, error):
    with pytest.raises(ValueError, match=f"expected .*{error}.*got .*;"):
        make()


@pytest.mark.parametrize("rows_per_pass", [1, 10, 4096])
def test_logabsdet_is_exact_in_passes_of_any_size(rows_per_pass, monkeypatch):
    monkeypatch.setattr("nflows_mixer.numerics.implicit._ROWS_PER_PASS", {"cpu": rows_per_pass})
    residual = drawn(ResidualTransform(7, narrow))
    inputs = draw(3, 7)
    _, logabsdet = residual(inputs)
    assert logabsdet.abs().min() > 0.01
    torch.testing.assert_close(logabsdet, jacobian_logabsdet(residual.forward, inputs))


def test_linear_network_against_the_dense_matrix():
    matrix = 0.9 * torch.linalg.qr(draw(6, 6)).Q
    residual = ResidualTransform(6, Linear(matrix))
    whole = torch.eye(6, dtype=torch.float64) + matrix
    inputs = draw(4, 6)
    outputs, logabsdet = residual(inputs)
    torch.testing.assert_close(outputs, inputs @ whole.mT)
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(whole).logabsdet.expand(4))
    back, logabsdet_back = residual.inverse(inputs)
    torch.testing.assert_close(back, inputs @ torch.linalg.inv(whole).mT)
    torch.testing.assert_close(logabsdet_back, -logabsdet)


def test_gradients_of_forward_and_logabsdet_with_context():
    residual = drawn(ResidualTransform(3, partial(narrow, context_features=2)))
    inputs, context = draw(2, 3).requires_grad_(), draw(2, 2).requires_grad_()
    given = (inputs, context, *residual.parameters())  # gradcheck moves them where they are
    function = lambda inputs, context, *_: residual(inputs, context)  # noqa: E731
    assert torch.autograd.gradcheck(function, given, fast_mode=True)


def test_gradients_through_the_inverse_with_context():
    residual = drawn(ResidualTransform(3, partial(narrow, context_features=2), tolerance=1e-14))
    inputs, context = draw(2, 3).requires_grad_(), draw(2, 2).requires_grad_()
    parameters = list(residual.parameters())
    weights = draw(2, 3)

    def loss():
        outputs, logabsdet = residual.inverse(inputs, context)
        return (weights * outputs).sum() + logabsdet.sum()

    tensors = [inputs, context, *parameters]
    gradients = torch.autograd.grad(loss(), tensors)
    for tensor, gradient in zip(tensors, gradients):
        direction = torch.randn_like(tensor)
        numeric = central_difference(loss, tensor, direction, 1e-5)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-8)
        assert gradient.norm() > 0


def test_a_context_made_of_the_inputs_is_no_part_of_the_jacobian():
    residual = drawn(ResidualTransform(3, partial(narrow, context_features=2)))
    inputs = draw(2, 3).requires_grad_()
    _, logabsdet = residual(inputs, inputs[:, :2])
    _, expected = residual(inputs.detach(), inputs.detach()[:, :2])
    torch.testing.assert_close(logabsdet, expected)


def test_no_graph_where_none_is_wanted():
    residual = drawn(ResidualTransform(4, partial(narrow, context_features=2)))
    inputs, context = draw(3, 4), draw(3, 2)
    expected = [*residual(inputs, context), *residual.inverse(inputs, context)]
    assert all(tensor.requires_grad for tensor in expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            given = inputs.clone(), context.clone()
            results = [*residual(*given), *residual.inverse(*given)]
        for result, exact in zip(results, expected):
            assert not result.requires_grad
            torch.testing.assert_close(result, exact.detach())
    frozen = residual.requires_grad_(False)
    results = [*frozen(inputs, context), *frozen.inverse(inputs, context)]
    assert not any(tensor.requires_grad for tensor in results)
    assert not inputs.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_inverse_of_what_is_no_contraction_is_an_error(scale, dtype):
    residual = ResidualTransform(2, Linear(scale * torch.eye(2, dtype=dtype)))
    with pytest.raises(RuntimeError, match="expected .*, got .*; .*contraction"):
        residual.inverse(torch.ones(3, 2, dtype=dtype))


def test_too_few_iterations_and_nan_are_errors():
    residual = drawn(ResidualTransform(4, narrow, max_iterations=2))
    with pytest.raises(RuntimeError, match="below 1e-12 within 2 iterations"):
        residual.inverse(draw(2, 4))
    residual.tolerance = 0.1
    residual.inverse(draw(2, 4))
    with pytest.raises(RuntimeError, match="got nan; the inputs are not finite"):
        residual.inverse(draw(2, 4) * torch.nan)


@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("bias", [0.0, 30.0])
def test_tolerance_by_dtype_is_within_reach(dtype, tolerance, bias):
    """Large biases make y - g(x) a difference of large numbers."""
    residual = drawn(ResidualTransform(48), std=3.0)
    for name, parameter in residual.named_parameters():
        if name.endswith("bias"):
            parameter *= bias / 3
    inputs = draw(64, 48).to(dtype)
    back, _ = residual.to(dtype).inverse(residual(inputs)[0])
    torch.testing.assert_close(back, inputs, atol=tolerance * max(1, bias), rtol=0)


def test_implicit_gradient_leaves_the_values_of_the_solver():
    targets = draw(3, 2).requires_grad_()
    solution = targets.detach().sign() * targets.detach().abs() ** (1 / 3) + 1e-3
    outputs = with_implicit_gradient(lambda x: x**3, solution, targets)
    assert torch.equal(outputs, solution) and outputs.requires_grad
    (gradient,) = torch.autograd.grad(outputs.sum(), targets)
    torch.testing.assert_close(gradient, 1 / (3 * solution**2))
    assert not with_implicit_gradient(lambda x: x**3, solution, targets.detach()).requires_grad
    with torch.no_grad():
        assert not with_implicit_gradient(lambda x: x**3, solution, targets).requires_grad
