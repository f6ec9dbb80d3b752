"""DenseFlow: its sizes against published ones, and small flows as a whole."""

from __future__ import annotations

import copy
import math
import pickle
from functools import cache, partial
from unittest import mock

import pytest
import torch
from nflows.transforms import Permutation
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows import DENSEFLOW_PRESETS, ImageFlow, Pixels, denseflow, mixerflow
from nflows_mixer.nn import (
    ConvConditioner,
    CrossUnitNetwork,
    DenseAttentionConditioner,
    DenseBlock,
    DenseEncoder,
    NystromAttention,
)
from nflows_mixer.transforms import (
    ActNorm,
    CrossUnitCoupling,
    DenseFlowBlock,
    FullLinear,
    GlowStep,
    LearnedAugmentation,
    ReversibleCompositeTransform,
    UniformDequantization,
    VariationalDequantization,
)
from nflows_mixer.transforms.reversible import COMPILES
from tests.helpers import expect, moved, pixels, size
from tests.test_noise import NORMAL
from tests.test_reversible import saved_numbers

SHAPE = (1, 8, 8)


def fused(**options):
    """A factory of small coupling networks."""
    sizes = {"hidden_channels": 8, "num_layers": 1, "growth": 4, "attention_channels": 4}
    return partial(DenseAttentionConditioner, **{**sizes, **options})


SMALL = {
    "image_shape": SHAPE,
    "levels": 17,
    "units": (2, 2),
    "modules": (1, 2),
    "growth": 2,
    "conditioner": fused(),
    "noise_channels": 8,
}
CONV = {"conditioner": partial(ConvConditioner, hidden_channels=8)}


def build(std=0.05, seed=0, **options) -> ImageFlow:
    """A small flow in float64 and evaluation mode, its parameters away from their start."""
    if options.get("dequantization") == "uniform":
        options["noise_channels"] = None
    torch.manual_seed(seed)
    flow = denseflow(**{**SMALL, **options}).double()
    for part in flow.modules():
        if getattr(part, "compiled", None) is not None:
            part.compiled.backend = "aot_eager"
    context = None
    if options.get("num_classes"):
        context = torch.randint(options["num_classes"], (40,))
    elif options.get("context_features"):
        context = torch.randn(40, options["context_features"]).double()
    flow.initialize(pixels(40, flow.image_shape, flow.dequantization.levels), context)
    return moved(flow, std).eval()


def noise_of(flow: ImageFlow, count: int, step=0) -> Tensor:
    return flow.draw_noise(3, step, torch.arange(count), torch.float64)


def count_of(flow: ImageFlow, kind: type) -> int:
    return sum(type(module) is kind for module in flow.modules())


# Sizes.


@cache
def on_paper(name: str, **options) -> ImageFlow:
    """A preset without memory, and without first weights."""
    unset = mock.patch.object(_ConvNd, "reset_parameters", lambda self: None)
    with torch.device("meta"), unset:
        return denseflow(name, **options)


def parts_of(flow: ImageFlow) -> dict[str, int]:
    blocks = [module for module in flow.modules() if isinstance(module, DenseFlowBlock)]
    return {
        "flow": size(flow),
        "dequantizer": size(flow.dequantization),
        **{f"block {i + 1}": size(block) for i, block in enumerate(blocks)},
        **{f"cross-unit {i + 1}": size(block.couplings) for i, block in enumerate(blocks)},
        "prior": size(flow._distribution),
    }


PUBLISHED = {
    "denseflow-74-10": {
        "flow": 130_647_294,
        "dequantizer": 2_395_784,
        "block 1": 48_061_410,
        "block 2": 46_453_404,
        "block 3": 33_736_080,
        "cross-unit 1": 863_140,
        "cross-unit 2": 8_084_340,
        "cross-unit 3": 0,
        "prior": 616,
    },
    "denseflow-45-6": {
        "flow": 75_020_522,
        "dequantizer": 2_395_784,
        "block 1": 23_823_096,
        "block 2": 24_656_346,
        "block 3": 24_144_960,
        "cross-unit 1": 253_776,
        "cross-unit 2": 944_376,
        "cross-unit 3": 0,
        "prior": 336,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_published_models(name):
    flow = on_paper(name)
    assert parts_of(flow) == PUBLISHED[name]
    modules, growth = map(int, name.split("-")[1:])
    assert count_of(flow, GlowStep) == modules and flow.architecture.arguments["growth"] == growth


def test_channels_of_the_published_model():
    """12 at 16^2 to 62; 248 at 8^2, of which 124 are kept, to 154; 616 at 4^2, of which 308."""
    flow = on_paper("denseflow-74-10")
    widths = [step.channels for step in flow.modules() if isinstance(step, GlowStep)]
    expected = [12, 22, 32, 42, 52, 62] * 5 + [124, 134, 144, 154] * 6 + [308] * 20
    assert sorted(widths) == sorted(expected)
    latents = {"split_1": (124, 8, 8), "split_2": (308, 4, 4), "final": (308, 4, 4)}
    assert flow._transform.latent_shapes == latents
    assert [math.prod(shape) for shape in latents.values()] == [7936, 4928, 4928]
    # 3072 numbers for the pixels, and 14,720 that are appended.
    assert flow.noise_shape == (17_792,) and flow._distribution.shape == (17_792,)
    of_transform = flow._transform.noise_shape((3, 32, 32))
    assert of_transform == (14_720,) == (10 * (5 * 16**2 + 3 * 8**2),)


@pytest.mark.parametrize(
    "small, large", [("denseflow-74-10", "-imagenet64"), ("denseflow-45-6", "-64")]
)
def test_larger_images_have_the_same_count(small, large):
    flow = on_paper(small + large)
    assert parts_of(flow) == PUBLISHED[small] and flow.image_shape == (3, 64, 64)
    shapes = on_paper(small)._transform.latent_shapes
    larger = {name: (c, 2 * h, 2 * w) for name, (c, h, w) in shapes.items()}
    assert flow._transform.latent_shapes == larger


def cross_unit(width: int, growth: int) -> int:
    """3x3 from C to 4 C, and 1x1 to a scale and a shift for each channel of noise."""
    return 9 * width * 4 * width + 4 * width + (4 * width + 1) * 2 * growth


STANDARD = partial(DiagonalNormal, learnable=False)
RESHAPED = partial(DenseAttentionConditioner, tokens="reshaped")
DENSE_ALONE = partial(DenseAttentionConditioner, attention=False)


def test_readings_of_the_paper_by_argument():
    name, whole = "denseflow-45-6", PUBLISHED["denseflow-45-6"]
    # A swap of halves, and how memory is cut into tokens, have no parameters.
    assert parts_of(on_paper(name, swap=False, conditioner=RESHAPED)) == whole
    # A mean and a scale for each of 168 channels less.
    flow = on_paper(name, base=STANDARD)
    assert parts_of(flow) == {**whole, "prior": 0, "flow": whole["flow"] - 2 * 168}
    # Without the attention of 45 modules: 1,568,840 has 4,656 + 2,400 of it, and its half of the
    # 96 channels that are normalized and joined.
    flow = on_paper(name, conditioner=DENSE_ALONE)
    of_attention = 24 * 49 + 4 * 24 * 24 + 48 * 25 + 2 * 48 + 48 * 48
    assert size(flow) == whole["flow"] - 45 * of_attention
    # Block 1 has representations of 12, 12, 18, 24, 30 channels, of which coupling i reads the
    # first i; block 2 of 72, 72, 78.
    first, second = [12, 12, 18, 24, 30], [72, 72, 78]
    flow = on_paper(name)
    assert parts_of(flow)["cross-unit 1"] == sum(cross_unit(sum(first[:i]), 6) for i in range(1, 5))
    assert parts_of(flow)["cross-unit 2"] == sum(cross_unit(sum(second[:i]), 6) for i in (1, 2))
    # The paper's z_<i: those of block 2 read all 96 channels of block 1, squeezed to 4 times 96.
    flow = on_paper(name, preconditioning="all")
    of_all = sum(cross_unit(4 * 96 + sum(second[:i]), 6) for i in (1, 2))
    found = parts_of(flow)
    assert found["cross-unit 2"] == of_all
    difference = of_all - whole["cross-unit 2"]
    expected = {"flow", "block 2", "cross-unit 2"}
    assert found == {k: n + difference * (k in expected) for k, n in whole.items()}
    # The previous one alone.
    found = parts_of(on_paper(name, preconditioning="previous"))
    assert found["cross-unit 1"] == sum(cross_unit(width, 6) for width in first[:4])
    assert found["cross-unit 2"] == sum(cross_unit(width, 6) for width in second[:2])


@pytest.mark.parametrize("name", DENSEFLOW_PRESETS)
def test_presets_build(name):
    presets = DENSEFLOW_PRESETS.items()
    same = [other for other, p in presets if p.arguments == DENSEFLOW_PRESETS[name].arguments]
    flow = on_paper(same[0])
    assert flow.image_shape == ((3, 64, 64) if "64" in name or "celeba" in name else (3, 32, 32))
    assert flow.architecture.arguments["norm"] == "batch"


@pytest.mark.parametrize(
    "name, augmented, preconditioned, fused, count",
    [
        ("table4-none", False, False, False, 22_996_700),
        ("table4-white", True, False, False, 42_769_130),
        ("table4-preconditioned", True, True, False, 43_967_282),
        ("table4-fused", False, False, True, 73_133_540),
        ("table4-fused-white", True, False, True, 73_822_370),
        ("denseflow-45-6", True, True, True, 75_020_522),
    ],
)
def test_rows_of_table_4(name, augmented, preconditioned, fused, count):
    """Augmentation, preconditioned noise, two-way fusion; 45 modules in each."""
    flow = on_paper(name)
    assert count_of(flow, GlowStep) == 45 and size(flow) == count
    assert (
        count_of(flow, DenseAttentionConditioner) == count_of(flow, NystromAttention) == 45 * fused
    )
    assert count_of(flow, ConvConditioner) == 45 * (not fused)
    assert count_of(flow, CrossUnitCoupling) == 6 * augmented
    assert count_of(flow, CrossUnitNetwork) == 6 * (augmented and preconditioned)
    blocks = [module for module in flow.modules() if isinstance(module, DenseFlowBlock)]
    units = [(5, 3), (3, 5), (1, 15)] if augmented else [(1, 15)] * 3
    assert [(len(block.units), len(block.units[0]._transforms)) for block in blocks] == units


@pytest.mark.parametrize("name, kind", [("vflow", LearnedAugmentation), ("anf", CrossUnitCoupling)])
def test_noise_at_the_input_alone(name, kind):
    """As many channels of noise as of pixels, so that latents are twice as many."""
    flow = on_paper(name)
    assert flow._distribution.shape == (2 * 3072,) and count_of(flow, GlowStep) == 45
    (found,) = [module for module in flow.modules() if type(module) is kind]
    assert found.noise_channels == 12 and count_of(flow, CrossUnitNetwork) == 0
    assert flow.noise_shape == (2 * 3072,)


def test_options_reach_the_modules():
    network = fused(hidden_channels=6)
    flow = denseflow(**{**SMALL, "conditioner": network, "scale": "exp"}, swap=False)
    for step in (module for module in flow.modules() if isinstance(module, GlowStep)):
        norm, convolution, coupling = step._transforms
        assert isinstance(norm, ActNorm) and isinstance(convolution.linear, FullLinear)
        assert coupling.constants == ("exp",) and coupling.conditioner.initial.out_channels == 6
    flow = denseflow(**{**SMALL, "conditioner": fused(dense=False)})
    swaps = [
        module._permutation.tolist() for module in flow.modules() if type(module) is Permutation
    ]
    # Both halves change places.
    assert swaps == [[2, 3, 0, 1], [3, 4, 5, 0, 1, 2]] + 2 * [[*range(6, 12), *range(6)]] + 2 * [
        [*range(7, 14), *range(7)]
    ]
    assert count_of(flow, DenseBlock) == count_of(flow.dequantization, DenseBlock)
    assert count_of(flow, NystromAttention) == 6


# Likelihoods and samples.


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preconditioning": "all", "dequantization": "uniform"},
        {"preconditioning": "previous", "swap": False, "base": STANDARD},
        {"preconditioning": None, "conditioner": fused(tokens="reshaped")},
        {"augmentation": "input", "preconditioning": "learned", "units": (1, 1)},
        {"augmentation": "input", "preconditioning": None},
        {"growth": 0, **CONV},
        {"context_features": 3, "preconditioning": "all"},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_log_prob_is_a_function_of_the_noise_and_latents_invert(options):
    flow = build(**options)
    images, noise = pixels(5, SHAPE), noise_of(flow, 5)
    context = torch.randn(5, 3).double() if "context_features" in options else None
    first = flow.log_prob(images, context, noise)
    assert first.shape == (5,) and first.isfinite().all()
    assert torch.equal(flow.log_prob(images, context, noise), first)
    assert not torch.equal(flow.log_prob(images, context, noise_of(flow, 5, 1)), first)
    assert not torch.equal(flow.log_prob(images, context), flow.log_prob(images, context))
    for i in range(5):
        given = None if context is None else context[i : i + 1]
        row = flow.log_prob(images[i : i + 1], given, noise[i : i + 1])
        torch.testing.assert_close(row[0], first[i])
    latents, again = flow.transform_and_log_prob(images, context, noise)
    assert torch.equal(again, first) and latents.shape == (5, *flow._distribution.shape)
    values, _ = flow._transform.inverse(latents, context)
    assert torch.equal(flow.dequantization.inverse(values)[0], images)
    if context is not None:
        assert not torch.isclose(flow.log_prob(images, context + 1, noise), first).any()


@torch.no_grad()
def test_log_prob_is_the_sum_of_what_the_parts_say():
    flow = build()
    images, noise = pixels(4, SHAPE), noise_of(flow, 4)
    own, appended = noise.split([64, 2 * 4 * 4 + 2 * 2 * 2], dim=1)
    values, of_pixels = flow.dequantization(images, noise=own.reshape(4, 4, 4, 4))
    latents, logabsdet = flow._transform(values, noise=appended)
    prior = flow._distribution.parts["final"]
    dropped, final = latents.split([12 * 4, latents.shape[1] - 12 * 4], dim=1)
    of_prior = NORMAL.log_prob(dropped).sum(1)
    normal = torch.distributions.Normal(prior.location, prior.log_scale.exp())
    of_prior += normal.log_prob(final.reshape(4, *prior.shape)).flatten(1).sum(1)
    expected = of_pixels + logabsdet + of_prior
    torch.testing.assert_close(flow.log_prob(images, noise=noise), expected)


@torch.no_grad()
def test_samples_are_as_frequent_as_their_likelihood():
    """All 16 images of four pixels of two levels."""
    sizes = {"image_shape": (1, 2, 2), "levels": 2, "units": (3,), "modules": (2,)}
    flow = build(**sizes, **CONV, dequantization="uniform")
    images = torch.cartesian_prod(*[torch.arange(2)] * 4).reshape(16, 1, 2, 2).to(torch.uint8)
    rows, of_pixels, appended = 3000 * 16, 4, 2 * 2
    uniform = torch.rand(rows, of_pixels, dtype=torch.float64)
    noise = torch.cat((uniform, torch.randn(rows, appended, dtype=torch.float64)), dim=1)
    likelihoods = (
        flow.log_prob(images.repeat(3000, 1, 1, 1), noise=noise).exp().unflatten(0, (-1, 16))
    )
    expected, error = likelihoods.mean(0), likelihoods.std(0) / 3000**0.5
    # Before pixels out of range are clamped.
    values, _ = flow._transform.inverse(flow._distribution.sample(20_000))
    found = (values.floor()[:, None] == images).flatten(2).all(2).double().mean(0)
    error = (error.square() + expected / 20_000).sqrt()
    assert ((found - expected).abs() < 5 * error).all()
    total = expected.sum().item()
    assert 0.1 < total < 1 and found.sum().item() == pytest.approx(total, rel=0.05)


def test_labels_reach_every_network_that_takes_them():
    flow = build(num_classes=3, context_features=5, std=0.1)
    flow.log_prob(pixels(6, SHAPE), torch.arange(6) % 3, noise_of(flow, 6)).sum().backward()
    read = [
        m.initial.weight.grad[:, -5:]
        for m in flow.modules()
        if isinstance(m, DenseAttentionConditioner)
    ]
    read += [m[0].weight.grad[:, -5:] for m in flow.modules() if isinstance(m, CrossUnitNetwork)]
    assert len(read) == 6 + 2 and all(slopes.norm() > 0 for slopes in read)
    # Representations of 4 channels, and of 24, and 5 of the labels behind them.
    networks = [module for module in flow.modules() if isinstance(module, CrossUnitNetwork)]
    assert [network[0].in_channels for network in networks] == [4 + 5, 24 // 2 + 5]
    assert flow._embedding_net.weight.grad.abs().min() > 0


def test_flow_with_noise_has_no_density():
    flow = build()
    with pytest.raises(
        RuntimeError, match="expected a deterministic transform, got .*; use log_prob"
    ):
        _ = flow.deterministic
    with pytest.raises(RuntimeError, match=r"call log_prob\(sample\(n\)\)"):
        flow.sample_and_log_prob(2)
    plain = build(growth=0)
    with torch.no_grad():
        values, log_prob = plain.deterministic.sample_and_log_prob(3)
        torch.testing.assert_close(plain.deterministic.log_prob(values), log_prob)


@torch.no_grad()
def test_latents_are_a_function_of_each_image():
    flow = build()
    images = pixels(4, SHAPE)
    latents = flow.transform_to_noise(images)
    assert torch.equal(flow.train().transform_to_noise(images), latents)
    torch.testing.assert_close(flow.transform_to_noise(images[2:3])[0], latents[2])
    zero = torch.zeros(4, *flow.noise_shape, dtype=torch.float64)
    torch.testing.assert_close(flow.eval().transform_and_log_prob(images, noise=zero)[0], latents)
    uniform = build(dequantization="uniform")
    zero = torch.zeros(4, *uniform.noise_shape, dtype=torch.float64)
    zero[:, :64] = 0.5
    expected = uniform.transform_and_log_prob(images, noise=zero)[0]
    torch.testing.assert_close(uniform.transform_to_noise(images), expected)
    torch.testing.assert_close(uniform.dequantize_mid(images), images.double() + 0.5)


# Memory, copies, dtypes.


def gradients(flow: ImageFlow, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    flow.train(training)
    loss = flow.log_prob(pixels_to_train, noise=noise_of(flow, 4)).mean()
    names, parameters = zip(*flow.named_parameters())
    return loss, dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=training)))


pixels_to_train = torch.arange(4 * 64).reshape(4, *SHAPE).remainder(17).to(torch.uint8)


@pytest.mark.parametrize("memory", ["checkpoint", "constant"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_do_not_depend_on_the_memory(memory, training):
    flow = build()
    other = build(memory=memory)
    other.load_state_dict(flow.state_dict())
    assert count_of(other, ReversibleCompositeTransform) == 4
    expected, slopes = gradients(flow, training)
    found, again = gradients(other, training)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for name, slope in slopes.items():
        torch.testing.assert_close(again[name], slope, atol=1e-9, rtol=1e-9, msg=name)
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["full", "constant"])
def test_compiled_networks_give_the_same_gradients(memory):
    if memory != "full" and not COMPILES:
        pytest.skip("compiling with it takes torch 2.11")
    torch._dynamo.reset()
    flow, other = build(norm="batch"), build(norm="batch", memory=memory, compile=True)
    units = [part for part in other.modules() if isinstance(part, ReversibleCompositeTransform)]
    other.load_state_dict(flow.state_dict())
    for training in (True, False):
        expected, slopes = gradients(flow, training)
        found, again = gradients(other, training)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        for name, slope in slopes.items():
            torch.testing.assert_close(again[name], slope, atol=1e-9, rtol=1e-9, msg=name)
    # One code for the networks of a unit, which have one size.
    assert [len(unit.compiled._compiled) for unit in units] == [1] * 4
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.isclose(gradients(copied, False)[0], expected)


@pytest.mark.slow
def test_memory_that_is_kept():
    """Bytes for the backward pass, with modules in one unit."""
    kept = {}
    both = [(memory, modules) for memory in ("full", "constant") for modules in (6, 12)]
    for memory, modules in [*both, ("checkpoint", 12)]:
        sizes = {"units": (1,), "modules": (modules,), "growth": 0}
        flow = build(**sizes, dequantization="uniform", memory=memory)
        images, noise = pixels(4, SHAPE), noise_of(flow, 4)
        sizes = [saved_numbers(flow, images[:n], noise[:n]) for n in (2, 4)]
        kept[memory, modules] = (sizes[1] - sizes[0]) / 2
    assert kept["full", 12] > 1.8 * kept["full", 6]
    assert kept["constant", 12] < kept["checkpoint", 12] < 0.2 * kept["full", 12]
    # What does not grow with the number of modules.
    assert kept["constant", 12] <= 1.01 * kept["constant", 6]


@torch.no_grad()
def test_copies_and_dtypes():
    flow = build()
    images, noise = pixels(3, SHAPE), noise_of(flow, 3)
    expected = flow.log_prob(images, noise=noise)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(images, noise=noise), expected)
        assert other.architecture == flow.architecture
    assert expected.dtype == torch.float64 and flow.sample(2).dtype == torch.uint8
    single = copy.deepcopy(flow).float()
    found = single.log_prob(images, noise=noise)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-2, rtol=1e-4)
    assert flow.log_prob(images[:0]).shape == (0,)


# Errors.


@pytest.mark.parametrize(
    "options, pattern",
    [
        ({"units": (2, 2, 1)}, "modules for each of 3 blocks, got"),
        ({"units": ()}, "units as one number for each block"),
        ({"units": "2"}, "units as one number for each block, got 2"),
        ({"units": (2, 0)}, "units to be a positive integer, got 0"),
        (
            {"image_shape": (1, 6, 8)},
            r"a height and width that 4 divides, for 2 blocks, got \(6, 8\)",
        ),
        ({"image_shape": (8, 8)}, r"image_shape \(channels, height, width\)"),
        ({"levels": 1}, "2 to 256 levels, got 1"),
        ({"growth": -1}, "growth to be a positive integer, got -1"),
        ({"augmentation": "all"}, "augmentation to be one of 'units', 'input'"),
        ({"preconditioning": "learned"}, "preconditioning to be one of 'block', 'all', 'previous'"),
        ({"augmentation": "input"}, "preconditioning to be one of 'learned', None"),
        ({"conditioner": "conv"}, "conditioner as a factory, got 'conv'"),
        ({"conditioner": fused(dense=False, attention=False)}, "got neither; leave one of them on"),
        ({"conditioner": fused(heads=3)}, "attention_channels that 3 heads divide, got 4"),
        ({"conditioner": fused(tokens="rows")}, "tokens to be one of 'positions', 'reshaped'"),
        ({"scale": "relu"}, "scale to be one of"),
        ({"dequantization": "none"}, "dequantization to be one of 'uniform', 'variational'"),
        ({"num_classes": 0}, "num_classes to be a positive integer"),
        ({"context_features": 0}, "context_features to be a positive integer"),
        ({"memory": "none"}, "memory to be one of 'full'"),
        # Options that nothing would read.
        ({"dequantization": "uniform"}, "dequantization='variational' beside noise_channels=8"),
        (
            {"levels": None, "dequantization": "uniform", "noise_channels": None},
            "what reads dequantization='uniform', got .*levels=None",
        ),
        ({"levels": None}, "dequantization='variational' beside noise_channels=8"),
        ({**CONV, "norm": "batch"}, "what reads norm='batch', got conditioner="),
        ({"growth": 0, "preconditioning": "previous"}, "what reads preconditioning='previous'"),
        ({"growth": 0, "preconditioning": "banana"}, "preconditioning to be one of"),
        ({"units": (1, 1), "modules": (1, 1)}, r"two units or more.*got units=\(1, 1\)"),
        ({"growth": 0, "augmentation": "input"}, "what reads augmentation='input', got .*growth=0"),
    ],
)
def test_choices_that_are_refused(options, pattern):
    with expect(ValueError, pattern):
        denseflow(**{**SMALL, **options})


def test_wrong_arguments():
    with expect(ValueError, "preset to be one of 'denseflow-74-10'.*got 'denseflow'"):
        denseflow("denseflow")
    with expect(TypeError, "a preset, or image_shape, got no image_shape; name one of"):
        denseflow(units=(1,))
    cheap = {"image_shape": (1, 8, 8), "modules": (1, 1, 1), "conditioner": fused()}
    arguments = denseflow("vflow", **cheap).architecture.arguments
    assert {**DENSEFLOW_PRESETS["vflow"].arguments, **cheap}.items() <= arguments.items()


def test_wrong_calls():
    flow = build()
    images = pixels(3, SHAPE)
    with expect(ValueError, r"noise of shape \[3, 104\], got \[3, 1, 8, 8\]; .*draw_noise"):
        flow.log_prob(images, noise=torch.rand(3, *SHAPE))
    with expect(ValueError, r"no context, as no part of this flow takes one, got .*\[3, 2\]"):
        flow.log_prob(images, torch.zeros(3, 2))
    with expect(ValueError, r"shape \[B, 1, 8, 8\], got \[3, 1, 8, 4\]"):
        flow.log_prob(images[..., :4])
    uniform = build(dequantization="uniform")
    with expect(ValueError, "noise from 0 to 1"):
        uniform.log_prob(images, noise=torch.full((3, 104), 2.0))


# MixerFlow with a learned dequantization.


def mixer_flow() -> ImageFlow:
    sizes = {"image_shape": (1, 4, 4), "patch_size": 2, "levels": 4, "num_layers": 1, "shift": None}
    sizes |= {"hidden_features": 8, "num_flow_layers": 1}
    return mixerflow(**sizes, pixels=Pixels("variational", noise_channels=4))


@pytest.mark.slow
def test_mixerflow_learns_its_dequantization():
    """Trained alone, q(u | x) tightens the bound of a flow that stays as it is."""
    torch.manual_seed(0)
    flow = mixer_flow()
    assert isinstance(flow.dequantization, VariationalDequantization)
    assert flow.noise_shape == (4, 2, 2) and not flow._is_stochastic
    images = pixels(32, (1, 4, 4), 2) * 3
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    index = torch.arange(32)
    (-flow.log_prob(images, noise=flow.draw_noise(0, 0, index)).mean()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    optimizer.step()
    with torch.no_grad():
        # A density that differs within the cell of a pixel.
        flow._distribution.log_scale -= 1.5
    flow.eval()

    def bound() -> float:
        noise = [flow.draw_noise(9, step, index) for step in range(10)]
        with torch.no_grad():
            return sum(flow.log_prob(images, noise=part).mean().item() for part in noise) / 10

    kept = copy.deepcopy(flow._transform.state_dict())
    before = bound()
    optimizer = torch.optim.Adam(flow.dequantization.parameters(), 1e-2)
    for step in range(100):
        optimizer.zero_grad()
        (-flow.log_prob(images, noise=flow.draw_noise(1, step, index)).mean()).backward()
        optimizer.step()
    assert bound() > before + 10
    for name, value in flow._transform.state_dict().items():
        assert torch.equal(value, kept[name])
    values, *_ = flow._dequantize(images, None, None)
    assert torch.equal(flow.dequantization.inverse(values)[0], images)
    latents, _ = flow.transform_and_log_prob(images)
    back, _ = flow._transform.inverse(latents)
    assert torch.equal(flow.dequantization.inverse(back)[0], images)


def test_mixerflow_takes_a_dequantization_by_name_and_by_factory():
    sizes = {"image_shape": (1, 4, 4), "patch_size": 2, "levels": 4, "num_layers": 1, "shift": None}
    assert isinstance(mixerflow(**sizes).dequantization, UniformDequantization)
    own = partial(VariationalDequantization, encoder=partial(DenseEncoder, hidden_channels=4))
    flow = mixerflow(**sizes, pixels=Pixels(own), memory="checkpoint")
    assert isinstance(flow.dequantization, VariationalDequantization)
    assert flow.dequantization.checkpoint and flow.dequantization.levels == 4
    odd = {**sizes, "image_shape": (1, 3, 6), "patch_size": 3}
    with expect(ValueError, r"an even height and width, got \(3, 6\)"):
        mixerflow(**odd, pixels=Pixels("variational"))
