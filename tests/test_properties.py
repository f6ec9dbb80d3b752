"""What holds for every transform, at parameters away from their start.

A transform that draws noise is given it: ``case.draw`` makes all arguments of a call. Options
``--device`` and ``--dtype`` say where and in what precision; each precision has bounds of its own.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import cache, partial

import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from torch import Tensor

from nflows_mixer import transforms
from nflows_mixer.core.context import takes_context
from nflows_mixer.nn import CrossUnitNetwork, DenseEncoder
from nflows_mixer.transforms import (
    ConditionalNoise,
    CrossUnitCoupling,
    LearnedAugmentation,
    UniformDequantization,
    VariationalDequantization,
)
from tests.helpers import moved
from tests.jacobian import jacobian_logabsdet
from tests.registry import LEARNABLE, TRANSFORMS, Case
from tests.test_noise import NORMAL, UNIFORM

BATCH = 3


# Round trips, log-determinants against autograd, and slopes against central differences.
ROUND_TRIP = {torch.float64: 1e-10, torch.float32: 2e-4}
LOGABSDET = {torch.float64: 1e-8, torch.float32: 2e-3}
SLOPE = {torch.float64: 1e-4, torch.float32: 1e-2}
# Of the same numbers in another order.
SAME = {torch.float64: 1e-7, torch.float32: 2e-4}


@cache
def built(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Transform, Tensor]:
    torch.manual_seed(1)
    transform = case.make().to(device=device, dtype=dtype)
    transform.train()
    with torch.no_grad():
        transform(*case.draw(64, dtype, device))
        moved(transform, case.std)
    return transform.eval(), torch.get_rng_state()


def build(case: Case, dtype=torch.float64, device="cpu") -> Transform:
    """Return the transform in evaluation mode, initialized from data, all parameters moved."""
    transform, state = built(case, dtype, torch.device(device))
    torch.set_rng_state(state)
    return copy.deepcopy(transform)


def over(select, names=TRANSFORMS):
    """Run a test over the cases that it is about."""
    chosen = {name: TRANSFORMS[name] for name in names if select(TRANSFORMS[name])}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


everything = over(lambda case: True)
deterministic = over(lambda case: case.noise is None)
stochastic = over(lambda case: case.noise is not None)
learnable = over(lambda case: True, [name for name in TRANSFORMS if name in LEARNABLE])


def close(first, second, tolerance):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


@everything
@torch.no_grad()
def test_outputs_and_logabsdet_have_their_shapes_and_dtype(case, device, dtype):
    transform = build(case, dtype, device)
    inputs, context, *noise = case.draw(BATCH, dtype, device)
    assert getattr(transform, "stochastic_forward", False) == bool(noise)
    for given in (noise, []):  # noise that is not given is drawn
        outputs, logabsdet = transform(inputs, context, *given)
        assert outputs.shape == (BATCH, *(case.out_shape or case.shape))
        assert logabsdet.shape == (BATCH,)
        assert outputs.dtype == logabsdet.dtype == dtype


@everything
@torch.no_grad()
@pytest.mark.parametrize("precision", [None, torch.float32], ids=["", "float32"])
def test_inverse_undoes_forward_and_forward_the_inverse(case, device, dtype, precision):
    """Whatever the noise was, which the inverse drops."""
    dtype = precision or dtype
    transform = build(case, dtype, device)
    inputs, context, *noise = case.draw(BATCH, dtype, device)
    tolerance = 5e-4 if noise and dtype == torch.float32 else ROUND_TRIP[dtype]
    for given in (noise, [])[: 1 + bool(noise)]:
        outputs, logabsdet = transform(inputs, context, *given)
        back, logabsdet_back = transform.inverse(outputs, context)
        assert back.dtype == inputs.dtype and logabsdet_back.shape == (BATCH,)
        close(back, inputs, tolerance)
    if not noise:
        torch.testing.assert_close(logabsdet_back, -logabsdet, atol=10 * tolerance, rtol=tolerance)
        latents = outputs + 0.01 * torch.randn_like(outputs)
        there, _ = transform.inverse(latents, context)
        close(transform(there, context)[0], latents, tolerance)


@learnable
@torch.no_grad()
def test_inverse_in_training_mode_is_that_of_evaluation_and_leaves_statistics(case, device, dtype):
    """nflows' Flow.sample does not leave training mode, and BatchNorm must not notice."""
    transform = build(case, dtype, device)
    inputs, context, *noise = case.draw(BATCH, dtype, device)
    outputs, _ = transform(inputs, context, *noise)
    expected = transform.inverse(outputs, context)
    before = copy.deepcopy(transform.state_dict())
    torch.testing.assert_close(transform.train().inverse(outputs, context), expected)
    assert all(module.training for module in transform.modules())
    for name, value in transform.state_dict().items():
        assert torch.equal(value, before[name]), name


@deterministic
def test_logabsdet_is_that_of_the_jacobian_both_ways(case, device, dtype):
    transform = build(case, dtype, device)
    inputs, context = case.draw(BATCH, dtype, device)
    outputs, logabsdet = transform(inputs, context)
    close(logabsdet, jacobian_logabsdet(transform.forward, inputs, context), LOGABSDET[dtype])
    outputs = outputs.detach()
    _, logabsdet = transform.inverse(outputs, context)
    close(logabsdet, jacobian_logabsdet(transform.inverse, outputs, context), LOGABSDET[dtype])


@stochastic
def test_logabsdet_is_that_of_the_joint_jacobian_less_the_density_of_the_noise(case, device, dtype):
    """Of outputs as a function of inputs and noise; of noise alone where inputs are integers."""
    transform = build(case, dtype, device)
    inputs, context, noise = case.draw(BATCH, dtype, device)
    _, logabsdet = transform(inputs, context, noise)
    if inputs.is_floating_point():

        def joint(rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            values, drawn = rows.split([math.prod(case.shape), math.prod(case.noise)], dim=1)
            values, drawn = values.reshape(-1, *case.shape), drawn.reshape(-1, *case.noise)
            return transform(values, context, drawn)

        rows = torch.cat((inputs.flatten(1), noise.flatten(1)), dim=1)
        expected = jacobian_logabsdet(joint, rows, context)
    else:
        expected = jacobian_logabsdet(lambda e, pixels: transform(pixels, None, e), noise, inputs)
    kind = {"normal": NORMAL, "uniform": UNIFORM}[transform.noise_kind]
    density = kind.log_prob(noise.cpu()).flatten(1).sum(1).to(expected)
    close(logabsdet, expected - density, LOGABSDET[dtype])


@learnable
def test_gradient_of_each_parameter_is_that_of_central_differences(case, device, dtype):
    """Along a random direction for each parameter; differences are taken in float64."""
    transform = build(case, dtype, device)
    exact = copy.deepcopy(transform).double()
    arguments = case.draw(BATCH, dtype, device)
    weights = torch.randn(BATCH, *(case.out_shape or case.shape), dtype=torch.float64).to(device)

    def loss(transform: Transform) -> Tensor:
        wide = next(transform.parameters()).dtype
        outputs, logabsdet = transform(
            *(t.to(wide) if t is not None and t.is_floating_point() else t for t in arguments)
        )
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


@over(lambda case: case.context)
@torch.no_grad()
def test_context_matters_where_it_is_taken(case, device, dtype):
    transform = build(case, dtype, device)
    inputs, context, *noise = case.draw(BATCH, dtype, device)
    outputs, _ = transform(inputs, context, *noise)
    other = context.clone()
    other[0] += 1
    changed, _ = transform(inputs, other, *noise)
    assert not torch.allclose(outputs[0], changed[0])
    torch.testing.assert_close(outputs[1:], changed[1:])
    if noise:
        with pytest.raises(ValueError, match="expected .*context.*, got None"):
            transform(inputs, None, *noise)


@stochastic
def test_context_is_taken_where_there_is_use_for_it_alone(case):
    assert takes_context(case.make()) == (case.context is not None)


@everything
@torch.no_grad()
def test_batch_is_its_rows(case, device, dtype):
    transform = build(case, dtype, device)
    arguments = case.draw(BATCH, dtype, device)

    def part(rows: slice) -> list[Tensor | None]:
        return [None if argument is None else argument[rows] for argument in arguments]

    outputs, logabsdet = transform(*arguments)
    for i in range(BATCH):
        output, single = transform(*part(slice(i, i + 1)))
        close(output[0], outputs[i], SAME[dtype])
        close(single[0], logabsdet[i], SAME[dtype])
    inputs, context, *_ = nothing = part(slice(0))
    for given in (nothing, [inputs, context]):
        empty, logabsdet = transform(*given)
        assert empty.shape == (0, *outputs.shape[1:]) and logabsdet.shape == (0,)
    if case.noise is not None:
        assert transform.inverse(empty, context)[0].shape == inputs.shape


@everything
@torch.no_grad()
def test_state_dict_pickle_and_deepcopy_keep_the_function(case, device, dtype):
    transform = build(case, dtype, device)
    inputs, context, *noise = case.draw(BATCH, dtype, device)
    outputs, logabsdet = transform(inputs, context, *noise)
    back, _ = transform.inverse(outputs, context)
    buffer = io.BytesIO()
    torch.save(transform.state_dict(), buffer)
    buffer.seek(0)
    loaded = case.make().to(device=device, dtype=dtype).eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    pickled = pickle.loads(pickle.dumps(transform))
    for other in (loaded, copy.deepcopy(transform), pickled):
        again, logabsdet_again = other(inputs, context, *noise)
        assert torch.equal(again, outputs) and torch.equal(logabsdet_again, logabsdet)
        assert torch.equal(other.inverse(outputs, context)[0], back)


@over(lambda case: not case.any_shape)
def test_inputs_of_another_shape_are_an_error(case):
    transform = build(case)
    wrong = case.domain(BATCH, *(n + 1 for n in case.shape), dtype=torch.float64)
    with pytest.raises(ValueError, match="expected .*got .*;"):
        transform(wrong)


@pytest.mark.slow
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
    bound, of_logabsdet = {"atol": 0.05, "rtol": 0.05}, {"atol": 0.05, "rtol": 0.05}
    if any(isinstance(m, MaskedAffineAutoregressiveTransform) for m in transform.modules()):
        # nflows' masked flow computes all of itself in half precision, its log-scales too.
        of_logabsdet["atol"] = 0.01 * math.prod(case.shape)
    if case.noise is not None:  # moved further from their start
        bound, of_logabsdet = {"atol": 0.1, "rtol": 0.05}, {"atol": 0.5, "rtol": 0.01}
    torch.testing.assert_close(outputs, exact, **bound)
    torch.testing.assert_close(logabsdet, logabsdet_exact, **of_logabsdet)


# What holds for those that draw noise.

APPENDS_OR_ADDS = (
    CrossUnitCoupling,
    LearnedAugmentation,
    UniformDequantization,
    VariationalDequantization,
)


@stochastic
@torch.no_grad()
def test_logabsdet_of_the_inverse_is_that_of_the_deterministic_parts(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    of_noise = []
    for module in transform.modules():
        if isinstance(module, APPENDS_OR_ADDS):
            module.register_forward_hook(lambda *call: of_noise.append(call[2][1]))
    outputs, logabsdet = transform(inputs, context, noise)
    _, there = transform.inverse(outputs, context)
    torch.testing.assert_close(there, sum(of_noise) - logabsdet, atol=1e-8, rtol=1e-8)


@stochastic
@torch.no_grad()
def test_drawn_noise_does_what_given_noise_does(case, monkeypatch):
    transform = build(case)
    inputs, context, _ = case.draw(BATCH)
    drawn = []

    def recorded(draw, *arguments, **options):
        drawn.append(draw(*arguments, **options))
        return drawn[-1]

    for draw in (torch.randn, torch.rand):
        monkeypatch.setattr(torch, draw.__name__, partial(recorded, draw))
    outputs, logabsdet = transform(inputs, context)
    noise = torch.cat([part.flatten(1) for part in drawn], dim=1).reshape(BATCH, *case.noise)
    for _ in range(2):
        again, logabsdet_again = transform(inputs, context, noise)
        assert torch.equal(again, outputs) and torch.equal(logabsdet_again, logabsdet)
    other, _ = transform(inputs, context)
    assert not torch.equal(other, outputs)


@stochastic
@torch.no_grad()
def test_every_number_of_the_noise_is_used(case):
    transform = build(case)
    inputs, context, noise = (None if t is None else t[:1] for t in case.draw(BATCH))
    size = math.prod(case.noise)
    assert transform.noise_shape(case.shape) == case.noise
    moved = noise + 1e-3 * torch.eye(size, dtype=noise.dtype).reshape(size, *case.noise)
    rows = inputs.expand(size, *case.shape)
    given = None if context is None else context.expand(size, *case.context)
    outputs, _ = transform(rows, given, moved)
    before, _ = transform(inputs, context, noise)
    assert ((outputs - before).flatten(1).abs().amax(1) > 1e-6).all()


@stochastic
def test_noise_of_another_shape_is_an_error(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    for wrong in (noise[:, :-1], noise[:2], noise.flatten(), torch.cat((noise, noise), 1)):
        with pytest.raises(ValueError, match=r"expected .*noise of shape \[3, .*got .*;"):
            transform(inputs, context, wrong)


@stochastic
@torch.no_grad()
def test_inverse_evaluates_no_network_of_the_noise(case):
    transform = build(case)
    inputs, context, noise = case.draw(BATCH)
    outputs, _ = transform(inputs, context, noise)

    def fail(*arguments, **options):
        raise AssertionError("evaluated")

    of_noise = (CrossUnitNetwork, DenseEncoder, ConditionalNoise)
    found = [module for module in transform.modules() if isinstance(module, of_noise)]
    for module in found:
        module.forward = fail
    torch.testing.assert_close(transform.inverse(outputs, context)[0], inputs)
    if found:
        with pytest.raises(AssertionError, match="evaluated"):
            transform(inputs, context, noise)


def test_no_transform_is_forgotten():
    used = {type(m).__name__ for case in TRANSFORMS.values() for m in case.make().modules()}
    public = [getattr(transforms, name) for name in transforms.__all__]
    kinds = [kind for kind in public if isinstance(kind, type) and not is_abstract(kind)]
    assert {kind.__name__ for kind in kinds} <= used


def is_abstract(kind: type) -> bool:
    members = [getattr(kind, name) for name in dir(kind)]
    return any(getattr(member, "__isabstractmethod__", False) for member in members)
