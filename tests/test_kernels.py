"""Fused kernels against the formulas that they stand for, with gradients, on every device at hand.

Functions named ``interpreted_...`` are tests too: they need Triton's interpreter, which has to be
chosen before Triton is imported, and so run in a process of their own.
"""

import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nflows_mixer.bridges import incremental, inverse_of
from nflows_mixer.kernels import (
    conditioner,
    gelu_batch_norm,
    load_cpu_kernels,
    load_gpu_kernels,
    ops,
    without_kernels,
)
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms import AffineAutoregressive
from tests.test_incremental import KINDS, SIZES, contexts, drawn, maf, ours

ROOT = Path(__file__).parents[1]
EPS = 1e-3
# Of each number, relative to the largest of its tensor.
PRECISION = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 4e-2,
}
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(params=["torch", "cpp", *(["triton"] if torch.cuda.is_available() else [])])
def place(request):
    """The device of an implementation, which is the one in use."""
    if request.param == "cpp":
        request.getfixturevalue("cpp")
        yield "cpu"
        return
    with without_kernels():
        if request.param == "triton":
            load_gpu_kernels()
        yield "cuda" if request.param == "triton" else "cpu"


@pytest.fixture
def cpp():
    """The C++ kernels, which stay unused outside the tests that ask for them."""
    for program in (os.environ.get("CXX", "c++"), "ninja"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} is installed")
    with without_kernels():
        load_cpu_kernels()
        yield


@pytest.fixture(scope="session")
def interpreter():
    ops.register_triton("CPU")
    ops.use_triton("cpu")


def formula(inputs, weight, bias, eps=EPS):
    mean = inputs.mean(0)
    variance = (inputs - mean).square().mean(0)
    z = (inputs - mean) / (variance + eps).sqrt() * weight + bias
    return z * torch.erfc(-z / math.sqrt(2)) / 2, mean, variance


def draw_norm(rows, columns, dtype=torch.float32, device="cpu"):
    """Rows, weight and bias, and the gradient of what comes out."""
    inputs = (2 * torch.randn(rows, columns) + 3).to(dtype)
    parameters = torch.randn(2, columns).to(ops.statistics_dtype(inputs))
    tensors = [inputs, *parameters, torch.randn(rows, columns).to(dtype)]
    return [tensor.to(device) for tensor in tensors]


def results(function, tensors, dtype=None):
    """All that a function gives, then the gradients of its tensors; the last is of its output."""
    *leaves, gradient = (tensor.detach().to(dtype or tensor.dtype) for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    outputs, *statistics = function(*leaves)
    gradients = torch.autograd.grad(outputs, leaves, gradient)
    return [outputs.detach(), *statistics, *gradients]


def check_norm(rows, columns, dtype, device="cpu"):
    tensors = draw_norm(rows, columns, dtype, device)
    found = results(lambda *leaves: gelu_batch_norm(*leaves, EPS), tensors)
    expected = results(formula, tensors, torch.float64)
    assert found[0].dtype == found[3].dtype == dtype
    assert found[1].dtype == found[2].dtype == ops.statistics_dtype(tensors[0])
    for got, wanted in zip(found, expected, strict=True):
        bound = PRECISION[dtype] * (1 + wanted.abs().max())
        assert (got - wanted).abs().max() <= bound


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("rows, columns", [(2, 3), (31, 1), (100, 128), (257, 70)])
def test_gelu_of_batch_norm(rows, columns, dtype, place):
    check_norm(rows, columns, dtype, place)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(8, 200), columns=st.integers(1, 90), double=st.booleans())
def check_sizes(rows, columns, double):
    check_norm(rows, columns, torch.float64 if double else torch.float32)


@pytest.mark.usefixtures("cpp")
def test_cpp_takes_any_size():
    check_sizes()


def test_gradients_are_those_of_the_function(place):
    *leaves, _ = draw_norm(7, 3, torch.float64, place)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *given: gelu_batch_norm(*given, EPS)[0], leaves)


def test_plain_torch_has_second_derivatives():
    *leaves, _ = draw_norm(5, 2, torch.float64)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradgradcheck(lambda *given: gelu_batch_norm(*given, EPS)[0], leaves)


@pytest.mark.usefixtures("cpp")
def test_kernel_refuses_a_second_derivative():
    *leaves, _ = draw_norm(5, 2)
    inputs = leaves[0].requires_grad_()
    outputs, *_ = gelu_batch_norm(*leaves, EPS)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_gradient_flows_through_the_statistics(place):
    *leaves, _ = draw_norm(9, 4, device=place)
    outputs, mean, variance = gelu_batch_norm(*(leaf.requires_grad_() for leaf in leaves), EPS)
    assert outputs.requires_grad and not mean.requires_grad and not variance.requires_grad


def test_variance_of_numbers_far_from_zero(place):
    inputs = (1000 + torch.randn(3000, 5)).to(place)
    _, mean, variance = gelu_batch_norm(inputs, *torch.ones(2, 5, device=place))
    expected = inputs.double().var(0, correction=0)
    torch.testing.assert_close(mean.double(), inputs.double().mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-4, atol=0)


def test_far_tails_of_gelu(place):
    """Below -14 the normal distribution has nothing left in float32, above 6 all."""
    inputs = torch.tensor([[-1.0], [1.0]], device=place)
    one = torch.ones(1, device=place)
    for weight in (6.0, 14.0, 1e4, 1e18):
        outputs, *_ = gelu_batch_norm(inputs, weight * one, 0 * one, 1e-12)
        expected = torch.tensor([[0.0], [weight]], device=place)
        torch.testing.assert_close(outputs, expected, rtol=1e-6, atol=1e-7)


def test_nan_stays_in_its_column(place):
    inputs, weight, bias, gradient = draw_norm(40, 5, device=place)
    inputs[7, 2] = torch.nan
    inputs.requires_grad_()
    outputs, *_ = gelu_batch_norm(inputs, weight, bias, EPS)
    (found,) = torch.autograd.grad(outputs, inputs, gradient)
    for tensor in (outputs, found):
        assert tensor[:, 2].isnan().all()
        assert tensor[:, [0, 1, 3, 4]].isfinite().all()


def test_rows_with_gaps_in_memory(place):
    inputs, weight, bias, gradient = draw_norm(40, 12, device=place)

    def every_third(rows, weight, bias):
        return gelu_batch_norm(rows[:, ::3], weight[::3], bias[::3], EPS)

    def apart(rows, weight, bias):
        return gelu_batch_norm(rows[:, ::3].clone(), weight[::3].clone(), bias[::3].clone(), EPS)

    tensors = (inputs, weight, bias, gradient[:, ::3])
    for got, wanted in zip(results(every_third, tensors), results(apart, tensors), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic, place):
    tensors = draw_norm(40, 12, device=place)

    def function(*leaves):
        return gelu_batch_norm(*leaves, EPS)

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for got, wanted in zip(results(compiled, tensors), results(function, tensors), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.usefixtures("cpp")
def test_number_of_threads_changes_nothing():
    tensors = draw_norm(3000, 70)
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(results(lambda *leaves: gelu_batch_norm(*leaves, EPS), tensors))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def run(*command, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *command]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def test_says_what_is_missing_where_nothing_can_be_compiled(tmp_path):
    script = "from nflows_mixer.kernels import load_cpu_kernels; load_cpu_kernels()"
    done = run("-c", script, CXX="/nowhere/c++", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert "load_cpu_kernels: expected a C++ compiler, got no program /nowhere/c++" in done.stderr


# It has a version, for which torch asks first, and compiles nothing.
FAILING = """#!/bin/sh
case " $* " in *" -c "*) echo "normal.h:7:1: error: not today" >&2; exit 1;; esac
echo 13.2.0
"""


def test_says_what_the_compiler_says(tmp_path):
    if shutil.which("ninja") is None:
        pytest.skip("no ninja is installed")
    compiler = tmp_path / "compiler"
    compiler.write_text(FAILING)
    compiler.chmod(0o755)
    script = "from nflows_mixer.kernels import load_cpu_kernels; load_cpu_kernels()"
    done = run("-c", script, CXX=str(compiler), TORCH_EXTENSIONS_DIR=str(tmp_path / "built"))
    assert "to compile the kernels, got normal.h:7:1: error: not today; " in done.stderr


@pytest.mark.usefixtures("cpp")
def test_kernels_are_in_use_up_to_the_end_of_their_block():
    rows = torch.ones(2, 3)
    assert ops.has_kernel("gelu_batch_norm", rows)
    with without_kernels():
        assert not ops.has_kernel("gelu_batch_norm", rows)
        with pytest.raises(KeyError), without_kernels():
            load_cpu_kernels()
            assert ops.has_kernel("gelu_batch_norm", rows)
            raise KeyError
        assert not ops.has_kernel("gelu_batch_norm", rows)
    assert ops.has_kernel("gelu_batch_norm", rows)


def test_what_is_compiled_changes_its_kernels_with_the_block(place):
    inputs, weight, bias, _ = draw_norm(40, 12, device=place)
    torch._dynamo.reset()
    function = torch.compile(gelu_batch_norm, backend="aot_eager", fullgraph=True)
    outside = gelu_batch_norm(inputs, weight, bias)[0]
    for _ in range(2):
        assert torch.equal(function(inputs, weight, bias)[0], outside)
        with without_kernels():
            inside = gelu_batch_norm(inputs, weight, bias)[0]
            assert torch.equal(function(inputs, weight, bias)[0], inside)


@pytest.fixture
def kernel_alone(cpp, monkeypatch):
    """The inverse of a masked flow by plain torch is an error."""
    for kind in ("_Written", "_Joined"):
        monkeypatch.setattr(incremental, kind, None)


@pytest.mark.usefixtures("kernel_alone")
@pytest.mark.parametrize("options", [{}, {"scale": "nflows"}, {"num_blocks": 3}], ids=str)
@contexts
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.no_grad()
def test_inverse_of_a_masked_flow(sizes, context, options):
    flow = ours(*sizes, context, **options)
    for count in (0, 1, 5, 77):
        latents, given = drawn(sizes[0], context, count)
        outputs, logabsdet = flow.inverse(latents, given)
        there, forward = flow(outputs, given)
        torch.testing.assert_close(there, latents, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(logabsdet, -forward, atol=1e-10, rtol=1e-10)


BY_KERNEL = [name for name in KINDS if name not in ("module", "own activation")]


@pytest.mark.usefixtures("kernel_alone")
@pytest.mark.parametrize("kind", BY_KERNEL)
@contexts
@torch.no_grad()
def test_inverse_of_a_masked_flow_of_nflows(context, kind):
    flow = maf(11, 32, context, **KINDS[kind])
    latents, given = drawn(11, context)
    expected = flow.inverse(latents, given)
    got = inverse_of(flow)(latents, given)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.usefixtures("kernel_alone")
def test_one_row_of_context_for_all_rows():
    flow = maf(5, 16, 3).requires_grad_(False)
    latents, context = drawn(5)[0], torch.randn(1, 3).double()
    torch.testing.assert_close(inverse_of(flow)(latents, context), flow.inverse(latents, context))


@pytest.mark.usefixtures("kernel_alone")
@pytest.mark.parametrize("scale", ["exp", "nflows"])
@torch.no_grad()
def test_inverse_of_a_masked_flow_in_single_precision(scale):
    flow = ours(11, 32, scale=scale)
    latents, _ = drawn(11, count=300)
    # With smaller scales latents in single precision tell less and less of the inputs.
    flow.network.final_layer.bias[::2] = torch.linspace(-3, 20, 11)
    latents = flow(latents)[0]
    outputs, logabsdet = flow.inverse(latents)
    got = flow.float().inverse(latents.float())
    assert got[0].dtype == got[1].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), outputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got[1].double(), logabsdet, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("cpp")
@torch.no_grad()
def test_scales_of_any_size_in_single_precision():
    """From where they are infinite to where they are subnormal, and 0."""
    flow, latents = ours(1).float(), torch.tensor([[1e-30], [0.0]])
    for unconstrained in (120.0, 88.5, 50.0, -80.0, -95.0, -120.0):
        flow.network.final_layer.bias[:] = torch.tensor([unconstrained, 0.0])
        outputs, logabsdet = flow.inverse(latents)
        with without_kernels():
            expected = flow.inverse(latents)
        torch.testing.assert_close(outputs, expected[0], rtol=1e-3, atol=0, equal_nan=True)
        torch.testing.assert_close(logabsdet, expected[1])


@pytest.mark.usefixtures("kernel_alone")
@torch.no_grad()
def test_a_row_that_is_not_finite_stays_alone():
    flow = ours(6).float()
    latents = torch.randn(70, 6)
    expected = flow.inverse(latents)[0]
    for bad in (torch.nan, torch.inf):
        latents[65, 2] = bad
        outputs = flow.inverse(latents)[0]
        others = torch.arange(70) != 65
        assert torch.equal(outputs[others], expected[others])
        assert torch.equal(outputs[65, :2], expected[65, :2])
        assert not outputs[65, 2].isfinite()


@pytest.mark.usefixtures("kernel_alone")
@torch.no_grad()
def test_number_of_threads_changes_no_inverse():
    flow = ours(11, 32).float()
    latents = torch.randn(3000, 11)
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(flow.inverse(latents))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.usefixtures("kernel_alone")
@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_inverse_of_a_masked_flow_compiles_whole(dynamic):
    flow = ours(5, 8)
    latents, _ = drawn(5)
    torch._dynamo.reset()
    compiled = torch.compile(flow.inverse, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(latents), flow.inverse(latents))


@pytest.mark.usefixtures("cpp")
def test_plain_torch_inverts_what_the_kernel_does_not():
    """Gradients, other scales and activations, half precision."""
    flow = ours(6)
    latents, _ = drawn(6, grad=True)
    assert torch.autograd.gradcheck(flow.inverse, latents)
    for other in (ours(6, scale="tanh"), maf(6, 16, **KINDS["own activation"])):
        with torch.no_grad():
            there = other(inverse_of(other)(latents)[0])[0]
        torch.testing.assert_close(there, latents)
    flow = AffineAutoregressive(6).bfloat16().eval()
    with torch.no_grad():
        latents = torch.randn(5, 6).bfloat16()
        assert torch.equal(flow.inverse(latents)[0], latents)


@pytest.mark.usefixtures("cpp")
# Torch's own preparations for it warn.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@torch.no_grad()
def test_no_tangent_of_an_inverse_is_lost():
    flow = ours(6)
    latents, _ = drawn(6)
    direction, step = torch.randn_like(latents), 1e-6
    tangent = torch.func.jvp(lambda y: flow.inverse(y)[0], (latents,), (direction,))[1]
    there, back = (flow.inverse(latents + sign * step * direction)[0] for sign in (1, -1))
    torch.testing.assert_close(tangent, (there - back) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", [True, False], ids=["cpp", "torch"])
def test_inverse_of_each_row_by_vmap(kernels, request):
    if kernels:
        request.getfixturevalue("cpp")
    flow = ours(11, 32)
    latents, _ = drawn(11)
    expected = flow.inverse(latents)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            each = torch.func.vmap(lambda row: flow.inverse(row[None]))(latents)
        torch.testing.assert_close(tuple(got[:, 0] for got in each), expected)


def test_says_what_is_missing_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with without_kernels():
        with pytest.raises(ValueError, match="load_gpu_kernels: expected .*; go without: plain"):
            load_gpu_kernels()
        assert not ops.KERNEL_DTYPES


def test_files_of_triton_are_no_hindrance_where_it_is_absent():
    options = ["--collect-only", "-p", "no:cacheprovider", "nflows_mixer/kernels"]
    script = "import sys, pytest; sys.modules['triton'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    done = run("-c", script, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels/batch_norm.py::" in done.stdout


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_less_than_two_rows_have_no_statistics(rows, dtype, place):
    with pytest.raises(ValueError, match="N of at least 2, got .*; batch statistics need two"):
        gelu_batch_norm(torch.ones(rows, 3, dtype=dtype, device=place), *torch.ones(2, 3))
    with pytest.raises(ValueError, match="conditioner: .* N of at least 2"):
        conditioner(torch.ones(rows, 3), *draw_weights(3, 8, 4))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2)])
def test_inputs_that_are_no_rows(shape):
    with pytest.raises(ValueError, match="gelu_batch_norm: expected inputs of shape .N, H. "):
        gelu_batch_norm(torch.ones(shape), *torch.ones(2, 3))
    with pytest.raises(ValueError, match="conditioner: expected inputs of shape .N, D., got"):
        conditioner(torch.ones(shape), *draw_weights(3, 8, 4))


def test_parameters_of_another_length():
    with pytest.raises(ValueError, match=r"expected bias of shape \[3\], got \[1\]; give one"):
        gelu_batch_norm(torch.ones(4, 3), torch.ones(3), torch.ones(1))
    weights = draw_weights(3, 8, 4)
    with pytest.raises(ValueError, match=r"expected weights of shapes .*, got .*\(8, 4\)"):
        conditioner(torch.ones(4, 3), *weights[:4], weights[4][:, :4], *weights[5:])


def test_statistics_of_another_length():
    weights, rows = draw_weights(3, 8, 4), torch.ones(4, 3)
    for statistics in (tuple(torch.ones(3, 8)), tuple(torch.ones(4, 7)), tuple(torch.ones(4, 1))):
        with pytest.raises(ValueError, match=r"expected four statistics of shape \[8\], got"):
            conditioner(rows, *weights, statistics=statistics)


def test_one_eps_is_that_of_both():
    given = [torch.randn(20, 3), *draw_weights(3, 8, 4)]
    assert torch.equal(conditioner(*given, eps=0.1)[0], conditioner(*given, eps=(0.1, 0.1))[0])


def draw_weights(inner, width, columns):
    """Weights of the conditioner in the order of its arguments, activations of about 1."""
    first = [(width, inner), (width,), (width,), (width,)]
    second = [(width, width), (width,), (width,), (width,)]
    shapes = [*first, *second, (columns, width), (columns, inner), (columns,)]
    weights = [torch.randn(shape) for shape in shapes]
    return [w / math.sqrt(w.shape[1]) if w.dim() == 2 else w for w in weights]


def conditioner_formula(a, w0, b0, g1, s1, w1, b1, g2, s2, v, u, c, eps=(EPS, 2 * EPS)):
    r0, *first = formula(a @ w0.mT + b0, g1, s1, eps[0])
    r1, *second = formula(r0 @ w1.mT + b1, g2, s2, eps[1])
    return r1 @ v.mT + a @ u.mT + c, *first, *second


def flat_conditioner(*leaves, **options):
    outputs, statistics = conditioner(*leaves, eps=(EPS, 2 * EPS), **options)
    return outputs, *statistics


def check_conditioner(rows, sizes, dtype, device="cpu"):
    """In training with all gradients, then in evaluation with the statistics found."""
    inputs = torch.randn(rows, sizes[0])
    tensors = [inputs, *draw_weights(*sizes), torch.randn(rows, sizes[2])]
    tensors = [tensor.to(device) for tensor in tensors]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    options = {} if dtype == wide else {"dtype": dtype}
    given = [tensor.to(wide) for tensor in tensors]
    found = results(lambda *leaves: flat_conditioner(*leaves, **options), given)
    expected = results(conditioner_formula, given, torch.float64)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wide
        # The gradient of a bias before normalisation is 0, as a sum of numbers that are not.
        slack = 20 if wanted.abs().max() < 1e-9 else 2
        bound = slack * PRECISION[dtype] * (1 + wanted.abs().max())
        assert (got - wanted).abs().max() <= bound
    with torch.no_grad():
        outputs, *_ = flat_conditioner(*given[:-1], statistics=tuple(found[1:5]), **options)
    bound = 2 * PRECISION[dtype] * (1 + expected[0].abs().max())
    assert (outputs - expected[0]).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, sizes", [(16, (3, 4, 5)), (300, (24, 128, 48)), (300, (3, 260, 5))])
def test_conditioner(rows, sizes, dtype, place):
    if place == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("highest")
    check_conditioner(rows, sizes, dtype, place)


@pytest.mark.parametrize("training", [True, False])
def test_conditioner_is_the_residual_mlp_with_its_tail_multiplied_out(training):
    net = ResidualMLP(6, 9, hidden_features=16).double().train(training)
    with torch.no_grad():
        for parameter in [*net.parameters(), *net.buffers()]:
            if parameter.is_floating_point():
                parameter += torch.rand_like(parameter)
    norm1, _, hidden, norm2, _, last = net.blocks[0].branch
    first, final = net.initial, net.final
    tail = (final.weight @ last.weight, final.weight @ first.weight)
    output_bias = final(first.bias + last.bias)
    statistics = (norm1.running_mean, norm1.running_var, norm2.running_mean, norm2.running_var)
    outputs, _ = conditioner(
        rows := torch.randn(20, 6, dtype=torch.float64),
        *(first.weight, first.bias, norm1.weight, norm1.bias),
        *(hidden.weight, hidden.bias, norm2.weight, norm2.bias),
        *(*tail, output_bias),
        statistics=None if training else statistics,
    )
    torch.testing.assert_close(outputs, net(rows))


def test_gradient_of_the_conditioner_for_given_statistics():
    leaves = [torch.randn(5, 3), *draw_weights(3, 8, 4)]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    statistics = tuple(0.5 + torch.rand(4, 8, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda *given: conditioner(*given, statistics=statistics)[0], leaves
    )


@needs_triton
def test_triton_in_its_interpreter():
    options = ["-o", "python_functions=interpreted_*", "-p", "no:cacheprovider"]
    done = run("-m", "pytest", *options, __file__, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " skipped" not in done.stdout


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", ops.GPU_DTYPES)
@pytest.mark.parametrize("rows, columns", [(2, 3), (65, 1), (130, 70)])
def interpreted_gelu_of_batch_norm(rows, columns, dtype):
    check_norm(rows, columns, dtype)


@pytest.mark.usefixtures("interpreter")
def interpreted_gelu_of_batch_norm_over_many_tiles():
    check_norm(2200, 5, torch.float32)


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(8, 150), columns=st.integers(1, 90))
def check_interpreted_sizes(rows, columns):
    check_norm(rows, columns, torch.float32)


@pytest.mark.usefixtures("interpreter")
def interpreted_sizes():
    check_interpreted_sizes()


@pytest.mark.usefixtures("interpreter")
# The interpreter multiplies matrices of bfloat16 wrongly, so that float16 stands for both.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows, sizes", [(16, (3, 4, 5)), (70, (24, 128, 48)), (33, (40, 36, 130))])
def interpreted_conditioner(rows, sizes, dtype):
    check_conditioner(rows, sizes, dtype)


@pytest.mark.usefixtures("interpreter")
def interpreted_tensors_with_gaps():
    tensors = [torch.randn(40, 3), *draw_weights(3, 16, 4), torch.randn(40, 4)]
    spread = [torch.stack([tensor, torch.full_like(tensor, 7)], -1)[..., 0] for tensor in tensors]
    assert not any(tensor.is_contiguous() for tensor in spread)
    expected = results(flat_conditioner, tensors)
    for got, wanted in zip(results(flat_conditioner, spread), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    statistics = torch.stack(expected[1:5], 1)
    outputs, *_ = flat_conditioner(*spread[:-1], statistics=tuple(statistics.unbind(1)))
    torch.testing.assert_close(outputs, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("interpreter")
def interpreted_functions_compile_whole():
    inputs, *weights = torch.randn(40, 3), *draw_weights(3, 8, 4)
    statistics = tuple(torch.rand(4, 8) + 0.5)

    def evaluate(inputs):
        return conditioner(inputs, *weights, statistics=statistics)[0]

    functions = {
        lambda *leaves: gelu_batch_norm(*leaves, EPS): draw_norm(40, 12),
        flat_conditioner: [inputs, *weights, torch.randn(40, 4)],
    }
    for function, tensors in functions.items():
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        for got, wanted in zip(results(compiled, tensors), results(function, tensors)):
            torch.testing.assert_close(got, wanted)
    compiled = torch.compile(evaluate, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(inputs), evaluate(inputs))


# Launches are replaced by compilation, for which no GPU has to be there.
COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

driver.set_active(Driver())
run = JITFunction.run

def compiled(self, *arguments, warmup, **options):
    kernel = run(self, *arguments, warmup=True, **options)
    print(self.__name__, kernel.metadata.shared)
    return kernel

JITFunction.run = compiled
from nflows_mixer.kernels import batch_norm_triton, conditioner_triton

columns = torch.ones(16)
rows = torch.ones(40, 16, dtype=torch.bfloat16)
batch_norm_triton.gelu_batch_norm(rows, columns, columns, 1e-5)
statistics = [columns] * 4
batch_norm_triton.gelu_batch_norm_backward(rows, rows, *statistics, 1e-5)
square = torch.ones(16, 16)
weights = [square, *statistics[:3], square, *statistics[:3], square, square, columns]
arguments = [torch.ones(40, 16), *weights, 1e-5, 1e-5, torch.bfloat16]
conditioner_triton.conditioner(*arguments)
conditioner_triton.conditioner_of_statistics(*arguments, *statistics)
"""


ALLOWED = {
    "": "ieee",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
}


@needs_triton
@pytest.mark.parametrize("setting, expected", ALLOWED.items())
def test_tf32_is_used_where_it_is_allowed(setting, expected):
    """In a process of its own: the older setting is not to be asked for once the newer is used."""
    if "fp32_precision" in setting and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("from torch 2.9 on")
    script = "from nflows_mixer.kernels.conditioner_triton import _products; import torch"
    done = run("-c", f"{script}\n{setting}\nprint(_products(torch.float32)['PRECISION'])")
    assert done.stdout.strip() == expected, done.stderr


@needs_triton
def test_triton_kernels_compile_for_a_gpu():
    """The interpreter lets pass what the compiler does not."""
    done = run("-c", COMPILE, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    shared = dict(line.split() for line in done.stdout.splitlines())
    assert len(shared) == 8 and all(int(bytes) <= 2**16 for bytes in shared.values())
