"""What holds for every transform, at parameters away from their start."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

from nflows_mixer import transforms
from tests.jacobian import jacobian_logabsdet
from tests.registry import TRANSFORMS, Case

BATCH = 3


def build(case: Case, dtype=torch.float64, device="cpu"):
    """Return the transform in evaluation mode, initialised from data, all parameters moved."""
    torch.manual_seed(1)
    transform = case.make().to(device=device, dtype=dtype)
    inputs, context = draw(case, 64, dtype, device)
    transform.train()
    with torch.no_grad():
        transform(inputs, context)
        for parameter in transform.parameters():
            parameter += case.std * torch.randn_like(parameter)
    return transform.eval()


def draw(case: Case, batch=BATCH, dtype=torch.float64, device="cpu"):
    inputs = case.domain(batch, *case.shape, dtype=dtype, device=device)
    shape = case.context
    context = None if shape is None else torch.randn(batch, *shape, dtype=dtype, device=device)
    return inputs, context


def over(select):
    """Run a test over the cases that it is about."""
    chosen = {name: case for name, case in TRANSFORMS.items() if select(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


everything = over(lambda case: True)


@everything
@torch.no_grad()
def test_shapes(case, device):
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    outputs, logabsdet = transform(inputs, context)
    assert outputs.shape == (BATCH, *(case.out_shape or case.shape))
    assert logabsdet.shape == (BATCH,)
    assert outputs.dtype == logabsdet.dtype == torch.float64


@everything
@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_round_trip_both_ways(case, dtype, tolerance, device):
    transform = build(case, dtype, device)
    inputs, context = draw(case, dtype=dtype, device=device)
    outputs, logabsdet = transform(inputs, context)
    back, logabsdet_back = transform.inverse(outputs, context)
    torch.testing.assert_close(back, inputs, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(logabsdet_back, -logabsdet, atol=10 * tolerance, rtol=tolerance)
    latents = outputs + 0.01 * torch.randn_like(outputs)
    there, _ = transform.inverse(latents, context)
    torch.testing.assert_close(
        transform(there, context)[0], latents, atol=tolerance, rtol=tolerance
    )


@over(lambda case: list(case.make().parameters()))
@torch.no_grad()
def test_inverse_in_training_mode_is_that_of_evaluation_and_leaves_statistics(case, device):
    """nflows' Flow.sample does not leave training mode, and BatchNorm must not notice."""
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    outputs, _ = transform(inputs, context)
    expected = transform.inverse(outputs, context)
    before = copy.deepcopy(transform.state_dict())
    torch.testing.assert_close(transform.train().inverse(outputs, context), expected)
    assert all(module.training for module in transform.modules())
    for name, value in transform.state_dict().items():
        assert torch.equal(value, before[name]), name


@everything
def test_logabsdet_is_that_of_the_jacobian_both_ways(case, device):
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    outputs, logabsdet = transform(inputs, context)
    expected = jacobian_logabsdet(transform.forward, inputs, context)
    torch.testing.assert_close(logabsdet, expected, atol=1e-8, rtol=1e-8)
    outputs = outputs.detach()
    _, logabsdet = transform.inverse(outputs, context)
    expected = jacobian_logabsdet(transform.inverse, outputs, context)
    torch.testing.assert_close(logabsdet, expected, atol=1e-8, rtol=1e-8)


@over(lambda case: list(case.make().parameters()))
def test_gradient_of_each_parameter(case, device):
    """Along a random direction for each parameter, against central differences."""
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    weights = torch.randn(BATCH, *(case.out_shape or case.shape), dtype=torch.float64).to(device)

    def loss() -> Tensor:
        outputs, logabsdet = transform(inputs, context)
        return (weights * outputs).sum() + logabsdet.sum()

    loss().backward()
    for name, parameter in transform.named_parameters():
        direction = torch.randn_like(parameter)
        slope = (parameter.grad * direction).sum()
        step = 1e-7  # so short that no rectifier changes its side
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            below = loss()
            parameter += step * direction
        numeric = (above - below) / (2 * step)
        assert torch.isclose(slope, numeric, rtol=1e-4, atol=1e-6), (name, slope, numeric)
        assert parameter.grad.norm() > 0, name


@over(lambda case: case.context)
@torch.no_grad()
def test_context_matters_where_it_is_taken(case, device):
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    outputs, _ = transform(inputs, context)
    other = context.clone()
    other[0] += 1
    changed, _ = transform(inputs, other)
    assert not torch.allclose(outputs[0], changed[0])
    torch.testing.assert_close(outputs[1:], changed[1:])


@everything
@torch.no_grad()
def test_batch_is_its_rows(case, device):
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    outputs, logabsdet = transform(inputs, context)
    for i in range(BATCH):
        given = None if context is None else context[i : i + 1]
        output, single = transform(inputs[i : i + 1], given)
        torch.testing.assert_close(output[0], outputs[i])
        torch.testing.assert_close(single[0], logabsdet[i])
    empty, logabsdet = transform(inputs[:0], None if context is None else context[:0])
    assert empty.shape == (0, *outputs.shape[1:]) and logabsdet.shape == (0,)


@everything
@torch.no_grad()
def test_state_dict_pickle_deepcopy(case, device):
    transform = build(case, device=device)
    inputs, context = draw(case, device=device)
    outputs, logabsdet = transform(inputs, context)
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    loaded = case.make().to(device=device, dtype=torch.float64).eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    pickled = pickle.loads(pickle.dumps(transform))
    for other in (loaded, copy.deepcopy(transform), pickled):
        again, logabsdet_again = other(inputs, context)
        assert torch.equal(again, outputs) and torch.equal(logabsdet_again, logabsdet)


@over(lambda case: not case.any_shape)
def test_wrong_shape_is_an_error(case):
    transform = build(case)
    with pytest.raises(ValueError, match="expected .*got .*;"):
        transform(torch.rand(BATCH, *(n + 1 for n in case.shape), dtype=torch.float64))


@over(lambda case: case.compiles)
def test_compiles_whole_with_its_gradients(case, request):
    # Whole models are made of the other cases, and their gradients take minutes to trace.
    whole = any(name in request.node.name for name in ("MixerFlow", "MultiScale"))
    transform = build(case)
    inputs, context = draw(case)
    torch._dynamo.reset()
    for function in (transform.forward, transform.inverse):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        results = []
        for call in (compiled, function):
            own = inputs.detach().clone().requires_grad_()
            with torch.set_grad_enabled(not whole):
                outputs, logabsdet = call(own, context)
            if whole:
                results.append((outputs, logabsdet))
                continue
            loss = outputs.square().sum() + logabsdet.sum()
            wanted = [own, *transform.parameters()]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            results.append((outputs, logabsdet, grads))
        torch.testing.assert_close(*results)
        inputs = results[1][0].detach()


@everything
@torch.no_grad()
def test_autocast_stays_inside_conditioners(case, device):
    transform = build(case, torch.float32, device)
    inputs, context = draw(case, dtype=torch.float32, device=device)
    exact, logabsdet_exact = transform(inputs, context)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, logabsdet = transform(inputs, context)
    assert outputs.dtype == logabsdet.dtype == torch.float32
    torch.testing.assert_close(outputs, exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(logabsdet, logabsdet_exact, atol=0.05, rtol=0.05)


def test_no_transform_is_forgotten():
    used = {type(m).__name__ for case in TRANSFORMS.values() for m in case.make().modules()}
    # Those that draw noise are in a registry of their own; the two others draw some in places.
    noisy = {name for name in transforms.__all__ if is_noisy(getattr(transforms, name))}
    assert set(transforms.__all__) - used == noisy - {"DenseFlowBlock", "MultiScaleTransform"}


def is_noisy(kind: type) -> bool:
    return issubclass(kind, transforms.StochasticTransform)
