"""Wrong input: each an error that says what was expected, what came, and what to do."""

from functools import partial

import numpy as np
import pytest
import torch
from nflows.transforms import (
    CompositeTransform,
    IdentityTransform,
    ReversePermutation,
    Transform,
)
from nflows.transforms import LULinear as nflows_LULinear
from torch import nn

from nflows_mixer.distributions import DiagonalNormal, NormalMixture, StudentT
from nflows_mixer.flows import ImageFlow, Pixels, mixerflow
from nflows_mixer.nn import MLP, ResidualMLP, sinusoidal_positions
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    ChannelMixingTransform,
    FlowLayer,
    InvertibleConv1x1,
    LogitTransform,
    LULinear,
    PatchMixerTransform,
    PatchTransform,
    PermutePixels,
    PixelScaling,
    RLULinear,
    ShiftTransform,
    SqueezeTransform,
    UniformDequantization,
    identity_maf,
)

SHAPE = (1, 6, 6)


def small(**options) -> ImageFlow:
    sizes = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 2}
    return mixerflow(**{**sizes, "hidden_features": 8, **options})


def images(*shape, dtype=torch.uint8):
    return torch.zeros(*(shape or (4, *SHAPE)), dtype=dtype)


def expect(kind, pattern):
    """The three parts of every message: expected, got, and what to do."""
    return pytest.raises(kind, match=f"(?s)(?=.*expected .*got .*; ).*{pattern}")


# What the boundary refuses.


def test_images_of_another_shape():
    with expect(ValueError, r"shape \[B, 1, 6, 6\], got \[4, 1, 8, 8\]"):
        small().log_prob(images(4, 1, 8, 8))


def test_images_without_a_batch():
    with expect(ValueError, r"shape \[B, 1, 6, 6\], got \[1, 6, 6\]"):
        small().log_prob(images(1, 6, 6))


def test_images_of_another_dtype():
    with expect(ValueError, "uint8 pixels from 0 to 16, got torch.float32"):
        small().log_prob(torch.rand(4, *SHAPE))


def test_images_out_of_range():
    batch = images()
    batch[1, 0, 2, 2] = 17
    with expect(ValueError, "pixels from 0 to 16, got one of 17"):
        small().log_prob(batch)


def test_nan_pixels_in_the_deterministic_flow():
    batch = torch.rand(4, *SHAPE)
    batch[1, 0, 2, 2] = torch.nan
    with expect(ValueError, "finite pixels, got 1 that are NaN or infinite"):
        small().initialize(images()).deterministic.log_prob(batch)


def test_integer_pixels_in_the_deterministic_flow():
    with expect(ValueError, "floating point, got torch.uint8"):
        small().deterministic.log_prob(images())


def test_context_that_no_part_takes():
    with expect(ValueError, r"no context.*got context of shape \[4, 3\]"):
        small().log_prob(images(), torch.zeros(4, 3))


def test_context_of_another_batch():
    with expect(ValueError, r"context of shape \[4, F\], one row per image, got \[5, 3\]"):
        small(context_features=3).log_prob(images(), torch.zeros(5, 3))


@pytest.mark.parametrize("kind", [AffineCoupling, identity_maf])
def test_context_of_another_length(kind):
    flow = small(context_features=3, channel_flow=kind, patch_flow=kind)
    with expect(ValueError, "context of 3 features, got 5 features"):
        flow.log_prob(images(), torch.zeros(4, 5))


def test_context_that_is_missing():
    with expect(ValueError, "context of 3 features, got None"):
        small(context_features=3).log_prob(images())


def test_noise_of_another_shape():
    with expect(ValueError, r"noise of shape \[4, 1, 6, 6\], got \[1\]"):
        small().log_prob(images(), noise=torch.rand(1))


def test_sampling_before_actnorm_is_initialised():
    with expect(RuntimeError, "initialised from data.*got no batch yet"):
        small().sample(2)


def test_evaluation_before_actnorm_is_initialised():
    with expect(RuntimeError, "initialised from data.*got no batch yet"):
        small().eval().log_prob(images())


def test_sample_and_log_prob_of_a_flow_with_dequantization():
    with expect(RuntimeError, "deterministic flow.*got one with dequantization"):
        small().sample_and_log_prob(2)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_number_of_samples(count):
    with expect(ValueError, "num_samples to be a positive integer, got"):
        small().initialize(images()).sample(count)


def test_negative_temperature():
    with expect(ValueError, "temperature of at least 0, got -1"):
        small().initialize(images()).sample(2, temperature=-1.0)


# Geometry.


@pytest.mark.parametrize("layout", ["patch", "dilated"])
def test_patch_that_does_not_divide_the_image(layout):
    with expect(ValueError, "divides the image's width 8, got 3"):
        PatchTransform((3, 6, 8), 3, layout)


def test_patch_that_does_not_divide_the_image_of_a_mixerflow():
    with expect(ValueError, "divides the image's height 6, got 4"):
        small(patch_size=4, shift=None)


@pytest.mark.parametrize("shift", [0, -1, 2, 3])
def test_shift_outside_the_patch(shift):
    with expect(ValueError, f"0 < shift < patch size 2 along the height, got {shift}"):
        ShiftTransform((1, 6, 6), 2, shift, IdentityTransform())


def test_shift_with_nothing_inside():
    with expect(ValueError, "width of two or more patches of 6, got 6"):
        ShiftTransform((1, 12, 6), 6, 2, IdentityTransform())


def test_shift_of_patches_that_do_not_divide_the_image():
    with expect(ValueError, "height of two or more patches of 2, got 7"):
        ShiftTransform((1, 7, 8), 2, 1, IdentityTransform())


def test_shift_that_leaves_one_patch_for_a_coupling():
    with expect(ValueError, "at least 2 features, got 1"):
        small(image_shape=(1, 4, 4))


def test_unknown_layout():
    with expect(ValueError, "layout to be one of 'patch', .*, got 'ring'"):
        PatchTransform((1, 4, 4), 2, "ring")


def test_matrix_where_rows_are_expected():
    with expect(ValueError, r"shape \[B, 6\], got \[2, 4, 6\].*ChannelMixingTransform"):
        LULinear(6)(torch.zeros(2, 4, 6))


def test_image_where_a_matrix_is_expected():
    with expect(ValueError, r"matrices.*got \[2, 1, 4, 6\]"):
        ChannelMixingTransform(LULinear(6))(torch.zeros(2, 1, 4, 6))


def test_squeeze_that_does_not_divide():
    with expect(ValueError, r"multiples of 2, got \[1, 1, 3, 4\]"):
        SqueezeTransform(2)(torch.zeros(1, 1, 3, 4))
    with expect(ValueError, r"C a multiple of 4, got \[1, 3, 2, 2\]"):
        SqueezeTransform(2).inverse(torch.zeros(1, 3, 2, 2))


def test_image_shape_that_is_none():
    with expect(ValueError, r"\(channels, height, width\), got \(8, 8\)"):
        small(image_shape=(8, 8))


# Flows and factories.


def test_odd_number_of_rlu_layers_before_a_shift():
    with expect(ValueError, "even number of RLU flow layers before a shift, got 3"):
        small(linear=RLULinear, num_flow_layers=3)
    with expect(ValueError, "even number of RLU flow layers before a shift, got 1"):
        small(linear=None, num_flow_layers=1, channel_flow=RLULinear)
    small(linear=RLULinear, num_flow_layers=3, shift=None)


def test_factory_that_returns_no_transform():
    with expect(TypeError, "to return an nflows Transform, .* got Linear"):
        PatchMixerTransform(SHAPE, 2, lambda d: nn.Linear(d, d), LULinear)


def test_flow_that_is_no_transform():
    with expect(TypeError, "a factory, or an nflows Transform, .* got Linear"):
        PatchMixerTransform(SHAPE, 2, nn.Linear(4, 4), LULinear)


def test_transform_of_another_length():
    with expect(ValueError, "rows of length 9, got LULinear of length 4"):
        PatchMixerTransform(SHAPE, 2, LULinear(4), LULinear(4))


def test_factory_that_returns_another_length():
    with expect(ValueError, "rows of length 4, got CompositeTransform of length 5"):
        wrong = CompositeTransform([IdentityTransform(), LULinear(5)])
        PatchMixerTransform(SHAPE, 2, lambda d: wrong, LULinear)


def test_flow_that_changes_the_length_of_its_rows():
    class Cut(Transform):
        def forward(self, inputs, context=None):
            return inputs[:, 1:], inputs.new_zeros(len(inputs))

    with expect(ValueError, r"keeps rows of shape \[8, 6\], got \[8, 5\] from Cut"):
        ChannelMixingTransform(Cut())(torch.zeros(2, 4, 6))


def test_shift_factory_that_returns_no_transform():
    with expect(TypeError, r"factory\(\(1, 4, 4\)\) to return .* got Identity"):
        ShiftTransform((1, 6, 6), 2, 1, lambda shape: nn.Identity())


def test_shift_transform_of_another_shape():
    whole = PatchMixerTransform((1, 6, 6), 2, LULinear, LULinear)
    with expect(ValueError, r"inner shape \(1, 4, 4\), got PatchMixerTransform of \(1, 6, 6\)"):
        ShiftTransform((1, 6, 6), 2, 1, whole)


def test_conditioner_of_another_size():
    coupling = AffineCoupling(6, nn.Linear(3, 5))
    with expect(ValueError, r"parameters of shape \[2, 6\], got \[2, 5\]"):
        coupling(torch.zeros(2, 6))


def test_conditioner_that_would_broadcast():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 4, 1))
    coupling = AffineCoupling(4, pooled)
    with expect(ValueError, r"shape \[1, 4, 3, 3\], got \[1, 4, 1, 1\]"):
        coupling(torch.zeros(1, 4, 3, 3))


def test_composite_with_a_part_of_another_length():
    mixed = CompositeTransform([LULinear(4), ReversePermutation(5)])
    with expect(ValueError, "rows of length 4, got CompositeTransform of length 4, 5"):
        PatchMixerTransform(SHAPE, 2, mixed, LULinear)


def test_matrix_in_a_flow_layer():
    layer = FlowLayer(6, None, nflows_LULinear, None)
    with expect(ValueError, r"shape \[B, 6\], got \[2, 4, 6\].*ChannelMixingTransform"):
        layer(torch.zeros(2, 4, 6))


@pytest.mark.parametrize("name", ["channel_flow", "patch_flow", "conditioner", "linear"])
def test_ready_module_that_all_layers_would_share(name):
    with expect(ValueError, f"{name} as a factory, got a ready LULinear"):
        small(**{name: LULinear(4)})


def test_autoregressive_flows_without_a_linear_block():
    with expect(ValueError, "a linear block between autoregressive flows.*got linear=None"):
        small(channel_flow=identity_maf, linear=None)


def test_context_that_masked_flows_would_silently_do_without():
    flow = small(channel_flow=identity_maf, patch_flow=identity_maf, context_features=3)
    with expect(ValueError, "context of 3 features, got None"):
        flow.log_prob(images())
    with expect(ValueError, "context of 3 features, got None"):
        flow.sample(2)


def test_context_features_that_no_factory_takes():
    with expect(ValueError, "a part that takes context of 3 features, got none"):
        mixerflow(
            image_shape=SHAPE,
            patch_size=2,
            channel_flow=LULinear,
            patch_flow=LULinear,
            context_features=3,
        )


def test_squeeze_that_does_not_divide_the_image_of_a_mixerflow():
    with expect(ValueError, r"a squeeze that divides \(7, 8\), got 2"):
        mixerflow(image_shape=(1, 7, 8), patch_size=1, pixels=Pixels(squeeze=2))


def test_numpy_pixels():
    with expect(ValueError, "a torch tensor, got ndarray"):
        small().log_prob(np.zeros((4, *SHAPE), np.uint8))


def test_noise_out_of_range():
    with expect(ValueError, "noise from 0 to 1, got -7 to -7"):
        small().log_prob(images(), noise=torch.full((4, *SHAPE), -7.0))


def test_batch_size_of_samples():
    with expect(ValueError, "batch_size to be a positive integer, got 0"):
        small().initialize(images()).sample(2, batch_size=0)


def test_empty_batch_to_initialise_from():
    with expect(ValueError, "a batch to initialise from, got none"):
        ActNorm(4).initialize(torch.zeros(0, 4))


def test_positions_for_a_flow_without_context():
    with expect(ValueError, "transform that takes context, to be given positions, got LULinear"):
        ChannelMixingTransform(LULinear(6), sinusoidal_positions(4, 2))


def test_table_of_positions_of_another_length():
    flow = AffineCoupling(6, partial(ResidualMLP, context_features=2))
    with expect(ValueError, "one position for each of 5 rows, got 4 positions"):
        ChannelMixingTransform(flow, sinusoidal_positions(4, 2))(torch.zeros(2, 5, 6))


def test_unknown_preset_and_missing_argument():
    with expect(ValueError, "preset to be one of 'cifar10', .*, got 'cifar'"):
        mixerflow("cifar")
    with expect(TypeError, "got no patch_size"):
        mixerflow(image_shape=SHAPE)


@pytest.mark.parametrize(
    "options, pattern",
    [
        ({"linear": "lu"}, "linear as a factory, got 'lu'"),
        ({"channel_flow": "affine"}, "channel_flow as a factory, got 'affine'"),
        ({"conditioner": "mlp"}, "conditioner as a factory, got 'mlp'"),
        ({"base": "normal"}, "base as a factory, got 'normal'"),
        ({"positions": "learned"}, "positions as a factory, got 'learned'"),
        ({"norm": "group"}, "norm to be one of 'layer', 'batch', None, got 'group'"),
        ({"norm": "layer", "channel_flow": identity_maf}, "norm to be one of 'batch', None"),
        ({"num_layers": 0}, "num_layers to be a positive integer, got 0"),
        ({"hidden_features": 1.5}, "hidden_features to be a positive integer, got 1.5"),
        ({"patch_size": [(2, 2)]}, "one patch_size for each of 2 layers, got 1"),
        ({"patch_size": 2.0}, "patch_size for all layers, or a list, got 2.0"),
        ({"shift": [1, None, 1]}, "one shift for each of 2 layers, got 3"),
        ({"shift": "1"}, "shift for all layers, or a list, got '1'"),
        ({"levels": 300}, "2 to 256 levels, got 300"),
        ({"levels": 0}, "2 to 256 levels, got 0"),
        ({"pixels": Pixels(logit=0.7)}, "0 < alpha < 0.5, got 0.7"),
        ({"pixels": "uniform"}, "pixels as Pixels"),
    ],
)
def test_choice_of_the_builder(options, pattern):
    with expect(ValueError, pattern):
        small(**options)


def test_class_in_the_place_of_a_flow():
    with expect(TypeError, "got the class LULinear"):
        ChannelMixingTransform(LULinear)


# Parts.


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: AffineCoupling(4, conditioning="left"), "'first', 'second', got 'left'"),
        (lambda: AffineCoupling(4, lambda i, o: None), "an nn.Module, got NoneType"),
        (lambda: PixelScaling(0), "2 to 256 levels, got 0"),
        (lambda: PixelScaling(256, 1.0, 0.0), r"low < high, got \(1.0, 0.0\)"),
        (lambda: LogitTransform(0.0), "0 < alpha < 0.5, got 0"),
        (lambda: LULinear(0), "features to be a positive integer, got 0"),
        (lambda: MLP(2, 2, num_layers=0), "num_layers to be a positive integer, got 0"),
        (lambda: sinusoidal_positions(4, 3), "even number of features, got 3"),
        (lambda: StudentT((2,), degrees_of_freedom=0), "degrees_of_freedom above 0, got 0"),
        (lambda: NormalMixture((2,), scales=(1.0, -1.0)), r"scales above 0, got \(1.0, -1.0\)"),
        (lambda: PermutePixels(SHAPE, "local"), "patch_size=None"),
        (lambda: PermutePixels(SHAPE, "global", 2), "patch_size=2"),
        (lambda: Pixels(squeeze=0), "squeeze to be a positive integer, got 0"),
        (lambda: Pixels("none"), "dequantization to be one of 'uniform', 'variational'"),
        (lambda: Pixels(noise_channels=8), "dequantization='variational' beside noise_channels=8"),
        (lambda: UniformDequantization(1), "2 to 256 levels, got 1"),
        (lambda: UniformDequantization()(torch.rand(2, 3)), "integer pixels, got torch.float32"),
        (
            lambda: InvertibleConv1x1(3)(torch.rand(2, 1, 4, 4)),
            r"\[B, 3, H, W\], got \[2, 1, 4, 4\]",
        ),
        (lambda: ActNorm(3)(torch.rand(2, 4)), r"\[B, 3, ...\], got \[2, 4\]"),
        (lambda: DiagonalNormal((3,)).log_prob(torch.rand(2, 4)), r"\[B, 3\], got \[2, 4\]"),
        (lambda: RLULinear(3).inverse(torch.rand(2, 4)), r"\[B, 3\], got \[2, 4\]"),
        (lambda: FlowLayer(4)(torch.rand(8, 5)), r"\[B, 4\], got \[8, 5\]"),
    ],
)
def test_part(make, pattern):
    with expect(ValueError, pattern):
        make()
