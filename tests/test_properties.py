"""What holds for every transform, at parameters away from their start.

``--device`` and ``--dtype`` say where and in what precision; each precision has its own bounds.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from dataclasses import replace
from functools import cache

import pytest
import torch
from nflows.transforms import Transform
from torch import Tensor, distributions

from nflows_mixer import transforms
from nflows_mixer.core.context import takes_context
from tests.jacobian import jacobian_logabsdet
from tests.registry import TRANSFORMS, Case
from tests.stochastic_registry import STOCHASTIC_TRANSFORMS

BATCH = 3
CASES = TRANSFORMS | STOCHASTIC_TRANSFORMS

# Round trips, log-determinants against autograd, and slopes against central differences.
ROUND_TRIP = {torch.float64: 1e-10, torch.float32: 2e-4}
LOGABSDET = {torch.float64: 1e-8, torch.float32: 2e-3}
SLOPE = {torch.float64: 1e-4, torch.float32: 1e-2}
# Of the same numbers in another order.
SAME = {torch.float64: 1e-7, torch.float32: 1e-4}


@cache
def built(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Transform, Tensor]:
    torch.manual_seed(1)
    transform = case.make().to(device=device, dtype=dtype)
    with torch.no_grad():
        transform.train()(*case.draw(64, dtype, device))
        for parameter in transform.parameters():
            parameter += case.std * torch.randn_like(parameter)
    return transform.eval(), torch.get_rng_state()


def build(case: Case, dtype=torch.float64, device="cpu") -> Transform:
    """Return the transform in evaluation mode, initialised from data, all parameters moved."""
    transform, state = built(case, dtype, torch.device(device))
    torch.set_rng_state(state)
    return copy.deepcopy(transform)


def draw(case: Case, batch=BATCH, dtype=torch.float64, device="cpu"):
    return case.draw(batch, dtype, device)


def over(select):
    """Run a test over the cases that it is about."""
    chosen = {name: case for name, case in CASES.items() if select(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


@cache
def parameters_of(case: Case) -> int:
    return len(list(case.make().parameters()))


everything = over(lambda case: True)
learnable = over(parameters_of)


def close(first, second, tolerance):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


@everything
@torch.no_grad()
def test_outputs_and_logabsdet_have_their_shapes_and_dtype(case, device, dtype):
    transform = build(case, dtype, device)
    arguments = case.draw(BATCH, dtype, device)
    if case.noise is not None:
        assert transform.stochastic_forward and transform.noise_shape(case.shape) == case.noise
    for given in (arguments, arguments[:2]):
        outputs, logabsdet = transform(*given)
        assert outputs.shape == (BATCH, *(case.out_shape or case.shape))
        assert logabsdet.shape == (BATCH,)
        assert outputs.dtype == logabsdet.dtype == dtype


@everything
@torch.no_grad()
@pytest.mark.parametrize("precision", [None, torch.float32])
def test_inverse_undoes_forward_and_forward_the_inverse(case, device, dtype, precision):
    """Noise is dropped, whatever it was; what draws some need not undo its inverse."""
    dtype = precision or dtype
    transform = build(case, dtype, device)
    arguments = inputs, context, *noise = case.draw(BATCH, dtype, device)
    tolerance = ROUND_TRIP[dtype]
    if noise:
        tolerance = max(tolerance, 5e-4 * (dtype == torch.float32))
        for given in (arguments, arguments[:2]):
            back, logabsdet = transform.inverse(transform(*given)[0], context)
            assert back.dtype == inputs.dtype and logabsdet.shape == (BATCH,)
            close(back, inputs, tolerance)
        return
    outputs, logabsdet = transform(inputs, context)
    back, logabsdet_back = transform.inverse(outputs, context)
    close(back, inputs, tolerance)
    torch.testing.assert_close(logabsdet_back, -logabsdet, atol=10 * tolerance, rtol=tolerance)
    latents = outputs + 0.01 * torch.randn_like(outputs)
    there, _ = transform.inverse(latents, context)
    close(transform(there, context)[0], latents, tolerance)


@learnable
@torch.no_grad()
def test_inverse_in_training_mode_is_that_of_evaluation_and_leaves_statistics(case, device, dtype):
    """nflows' Flow.sample does not leave training mode, and BatchNorm must not notice."""
    transform = build(case, dtype, device)
    arguments = case.draw(BATCH, dtype, device)
    outputs, _ = transform(*arguments)
    expected = transform.inverse(outputs, arguments[1])
    before = copy.deepcopy(transform.state_dict())
    torch.testing.assert_close(transform.train().inverse(outputs, arguments[1]), expected)
    assert all(module.training for module in transform.modules())
    for name, value in transform.state_dict().items():
        assert torch.equal(value, before[name]), name


@over(lambda case: case.noise is None)
def test_logabsdet_is_that_of_the_jacobian_both_ways(case, device, dtype):
    transform = build(case, dtype, device)
    inputs, context = case.draw(BATCH, dtype, device)
    outputs, logabsdet = transform(inputs, context)
    expected = jacobian_logabsdet(transform.forward, inputs, context)
    close(logabsdet, expected, LOGABSDET[dtype])
    outputs = outputs.detach()
    _, logabsdet = transform.inverse(outputs, context)
    expected = jacobian_logabsdet(transform.inverse, outputs, context)
    close(logabsdet, expected, LOGABSDET[dtype])


@over(lambda case: case.noise)
def test_logabsdet_is_that_of_the_joint_jacobian_less_the_density_of_the_noise(case, device, dtype):
    """Of outputs as a function of inputs and noise; of noise alone where inputs are integers."""
    transform = build(case, dtype, device)
    inputs, context, noise = case.draw(BATCH, dtype, device)
    _, logabsdet = transform(inputs, context, noise)
    free = math.prod(case.noise)

    def joint(rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        values, drawn = rows.split([rows.shape[1] - free, free], dim=1)
        if case.pixels:
            values = inputs.repeat_interleave(len(rows) // BATCH, 0)
        return transform(values.reshape(-1, *case.shape), context, drawn.reshape(-1, *case.noise))

    rows = noise.flatten(1)
    rows = rows if case.pixels else torch.cat((inputs.flatten(1), rows), dim=1)
    # By torch's own distributions.
    one = torch.ones((), dtype=dtype, device=device)
    normal, uniform = distributions.Normal(0 * one, one), distributions.Uniform(0 * one, one)
    density = (uniform if transform.noise_kind == "uniform" else normal).log_prob(noise)
    expected = jacobian_logabsdet(joint, rows, context) - density.flatten(1).sum(1)
    close(logabsdet, expected, LOGABSDET[dtype])


@learnable
def test_gradient_of_each_parameter_is_that_of_central_differences(case, device, dtype):
    """Along a random direction for each parameter; differences are taken in float64."""
    transform = build(case, dtype, device)
    exact = transform if dtype == torch.float64 else copy.deepcopy(transform).double()
    arguments = case.draw(BATCH, dtype, device)
    weights = torch.randn(BATCH, *(case.out_shape or case.shape), dtype=dtype, device=device)

    def loss(transform: Transform) -> Tensor:
        dtype = next(transform.parameters()).dtype
        given = [
            None if t is None else t.to(dtype) if t.is_floating_point() else t for t in arguments
        ]
        outputs, logabsdet = transform(*given)
        return (weights * outputs).sum() + logabsdet.sum()

    loss(transform).backward()
    others = dict(exact.named_parameters())
    rtol = SLOPE[dtype]
    atol = (1e-6 if case.noise is None else 1e-5) * rtol / 1e-4
    step = 1e-7  # so short that no rectifier changes its side
    directions, slopes = {}, {}
    for name, parameter in transform.named_parameters():
        assert parameter.grad.norm() > 0, name
        directions[name] = torch.randn_like(parameter)
        slopes[name] = (parameter.grad * directions[name]).sum().item()

    @torch.no_grad()
    def numeric(names: list[str]) -> float:
        ends = []
        for factor in (1, -2):
            for name in names:
                others[name].add_(directions[name].double(), alpha=factor * step)
            ends.append(loss(exact).item())
        for name in names:
            others[name].add_(directions[name].double(), alpha=step)
        return (ends[0] - ends[1]) / (2 * step)

    for start in range(0, len(slopes), 8):
        # Several at once, to within what would be allowed for the least of them; or one by one.
        names = list(slopes)[start : start + 8]
        allowed = atol + rtol * min(abs(slopes[name]) for name in names)
        if abs(numeric(names) - sum(slopes[name] for name in names)) > allowed:
            for name in names:
                assert numeric([name]) == pytest.approx(slopes[name], rel=rtol, abs=atol), name


@over(lambda case: case.noise and not case.context)
def test_no_context_is_taken_where_there_is_no_use_for_it(case):
    assert not takes_context(case.make())


@over(lambda case: case.context)
@torch.no_grad()
def test_context_matters_where_it_is_taken_to_its_own_row(case, device, dtype):
    transform = build(case, dtype, device)
    assert takes_context(transform)
    inputs, context, *noise = case.draw(BATCH, dtype, device)
    outputs, _ = transform(inputs, context, *noise)
    other = context.clone()
    other[0] += 1
    changed, _ = transform(inputs, other, *noise)
    assert not torch.allclose(outputs[0], changed[0])
    torch.testing.assert_close(outputs[1:], changed[1:])


@everything
@torch.no_grad()
def test_batch_is_its_rows(case, device, dtype):
    transform = build(case, dtype, device)
    arguments = case.draw(BATCH, dtype, device)
    outputs, logabsdet = transform(*arguments)

    def rows(part: slice) -> list[Tensor | None]:
        return [None if given is None else given[part] for given in arguments]

    for i in range(BATCH):
        output, single = transform(*rows(slice(i, i + 1)))
        close(output[0], outputs[i], SAME[dtype])
        close(single[0], logabsdet[i], SAME[dtype])
    none = rows(slice(0))
    for given in (none, none[:2]):
        empty, logabsdet = transform(*given)
        assert empty.shape == (0, *outputs.shape[1:]) and logabsdet.shape == (0,)
    assert transform.inverse(empty, none[1])[0].shape == (0, *case.shape)


@everything
@torch.no_grad()
def test_state_dict_pickle_and_deepcopy_keep_the_function(case, device, dtype):
    transform = build(case, dtype, device)
    arguments = case.draw(BATCH, dtype, device)
    outputs, logabsdet = transform(*arguments)
    back, _ = transform.inverse(outputs, arguments[1])
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    loaded = case.make().to(device=device, dtype=dtype).eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    pickled = pickle.loads(pickle.dumps(transform))
    for other in (loaded, copy.deepcopy(transform), pickled):
        again, logabsdet_again = other(*arguments)
        assert torch.equal(again, outputs) and torch.equal(logabsdet_again, logabsdet)
        assert torch.equal(other.inverse(outputs, arguments[1])[0], back)


@over(lambda case: not case.any_shape)
def test_inputs_of_another_shape_are_an_error(case, device, dtype):
    transform = build(case, dtype, device)
    _, context, *_ = case.draw(BATCH, dtype, device)
    wrong = replace(case, shape=tuple(n + 1 for n in case.shape)).draw(BATCH, dtype, device)[0]
    with pytest.raises(ValueError, match="expected .*got .*;"):
        transform(wrong, context)


@over(lambda case: case.compiles)
def test_compiles_whole_with_its_gradients(case, request):
    # Whole models are made of the other cases, and their gradients take minutes to trace.
    whole = any(name in request.node.name for name in ("MixerFlow", "MultiScale"))
    transform = build(case)
    inputs, context = case.draw(BATCH)
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
def test_autocast_stays_inside_networks(case, device):
    transform = build(case, torch.float32, device)
    arguments = case.draw(BATCH, torch.float32, device)
    exact, logabsdet_exact = transform(*arguments)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, logabsdet = transform(*arguments)
    assert outputs.dtype == logabsdet.dtype == torch.float32
    if case.noise is None:
        close(outputs, exact, 0.05)
        close(logabsdet, logabsdet_exact, 0.05)
    else:
        torch.testing.assert_close(outputs, exact, atol=0.1, rtol=0.05)
        torch.testing.assert_close(logabsdet, logabsdet_exact, atol=0.5, rtol=0.01)


def test_no_transform_is_forgotten():
    used = {type(m).__name__ for case in CASES.values() for m in case.make().modules()}
    assert set(transforms.__all__) - used == {"StochasticTransform"}
