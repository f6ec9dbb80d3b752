"""Wrong input: each an error that says what was expected, what came, and what to do."""

from functools import partial

import numpy as np
import pytest
import torch
from nflows.transforms import CompositeTransform, IdentityTransform, ReversePermutation, Transform
from nflows.transforms import LULinear as nflows_LULinear
from torch import nn, zeros

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
from tests.helpers import expect

SHAPE = (1, 6, 6)


def small(**options) -> ImageFlow:
    sizes = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 2}
    return mixerflow(**{**sizes, "hidden_features": 8, **options})


def images(*shape, dtype=torch.uint8):
    return zeros(*(shape or (4, *SHAPE)), dtype=dtype)


def ready():
    return small().initialize(images())


def conditional():
    return small(context_features=3)


def masked():
    return small(channel_flow=identity_maf, patch_flow=identity_maf, context_features=3)


def broken(value):
    batch = torch.rand(4, *SHAPE) if value != value else images()
    batch[1, 0, 2, 2] = value
    return batch


class Cut(Transform):
    def forward(self, inputs, context=None):
        return inputs[:, 1:], inputs.new_zeros(len(inputs))


def refused(call, pattern, kind=ValueError):
    with expect(kind, pattern):
        call()


@pytest.mark.parametrize(
    "call, pattern",
    [
        (lambda: small().log_prob(images(4, 1, 8, 8)), r"\[B, 1, 6, 6\], got \[4, 1, 8, 8\]"),
        (lambda: small().log_prob(images(1, 6, 6)), r"\[B, 1, 6, 6\], got \[1, 6, 6\]"),
        (lambda: small().log_prob(torch.rand(4, *SHAPE)), "from 0 to 16, got torch.float32"),
        (lambda: small().log_prob(broken(17)), "pixels from 0 to 16, got one of 17"),
        (lambda: small().log_prob(np.zeros((4, *SHAPE), np.uint8)), "tensor, got ndarray"),
        (lambda: ready().deterministic.log_prob(broken(torch.nan)), "finite pixels, got 1 that"),
        (lambda: small().deterministic.log_prob(images()), "floating point, got torch.uint8"),
        (lambda: small().log_prob(images(), zeros(4, 3)), r"no context.*got .* \[4, 3\]"),
        (lambda: conditional().log_prob(images(), zeros(5, 3)), r"\[4, F\], .* got \[5, 3\]"),
        (lambda: conditional().log_prob(images(), zeros(4, 5)), "3 features, got 5 features"),
        (lambda: conditional().log_prob(images()), "context of 3 features, got None"),
        (lambda: masked().log_prob(images(), zeros(4, 5)), "3 features, got 5 features"),
        (lambda: masked().log_prob(images()), "context of 3 features, got None"),
        (lambda: masked().sample(2), "context of 3 features, got None"),
        (lambda: small().log_prob(images(), None, zeros(1)), r"noise .*\[4, 1, 6, 6\], got \[1\]"),
        (lambda: small().log_prob(images(), None, zeros(4, *SHAPE) - 7), "0 to 1, got -7 to -7"),
        (
            lambda: small(levels=None).log_prob(images()),
            "floating point, got torch.uint8; .*levels",
        ),
        (lambda: small(levels=None).log_prob(broken(torch.nan)), "finite pixels, got 1 that"),
        (
            lambda: small(levels=None).log_prob(zeros(4, *SHAPE), None, zeros(4, *SHAPE)),
            r"no noise, as .*, got noise of shape \[4, 1, 6, 6\]",
        ),
        (lambda: ready().sample(0), "num_samples to be a positive integer, got 0"),
        (lambda: ready().sample(-1), "num_samples to be a positive integer, got -1"),
        (lambda: ready().sample(2.5), "num_samples to be a positive integer, got 2.5"),
        (lambda: ready().sample(2, batch_size=0), "batch_size to be a positive integer, got 0"),
        (lambda: ready().sample(2, temperature=-1.0), "temperature of at least 0, got -1"),
        (
            lambda: ImageFlow(
                PixelScaling(17), SHAPE, None, None, None, None, UniformDequantization(17)
            ),
            "no dequantization of real images .*, got 17",
        ),
        (lambda: ActNorm(4).initialize(zeros(0, 4)), "to initialize from, got none"),
    ],
)
def test_images_noise_and_context_are_checked_at_the_boundary(call, pattern):
    refused(call, pattern)


@pytest.mark.parametrize(
    "call, pattern",
    [
        (lambda: small().sample(2), "initialized before .*got no batch yet"),
        (lambda: small().eval().log_prob(images()), "initialized before .*got no batch yet"),
        (lambda: small().sample_and_log_prob(2), "got one that draws noise"),
    ],
)
def test_calls_that_a_flow_cannot_answer_are_refused(call, pattern):
    refused(call, pattern, RuntimeError)


@pytest.mark.parametrize(
    "call, pattern",
    [
        (lambda: PatchTransform((3, 6, 8), 3), "divides the image's width 8, got 3"),
        (lambda: PatchTransform((3, 6, 8), 3, "dilated"), "divides the image's width 8, got 3"),
        (lambda: PatchTransform((1, 4, 4), 2, "ring"), "layout to be one of .*, got 'ring'"),
        (lambda: small(patch_size=4, shift=None), "divides the image's height 6, got 4"),
        *[
            (
                lambda s=shift: ShiftTransform((1, 6, 6), 2, s, IdentityTransform()),
                f"0 < shift < patch size 2 along the height, got {shift}",
            )
            for shift in (0, -1, 2, 3)
        ],
        (lambda: ShiftTransform((1, 12, 6), 6, 2, LULinear), "width .* patches of 6, got 6"),
        (lambda: ShiftTransform((1, 7, 8), 2, 1, LULinear), "height .* patches of 2, got 7"),
        (lambda: small(image_shape=(1, 4, 4)), "at least 2 features, got 1"),
        (lambda: small(image_shape=(8, 8)), r"\(channels, height, width\), got \(8, 8\)"),
        (lambda: LULinear(6)(zeros(2, 4, 6)), r"\[B, 6\], got \[2, 4, 6\].*ChannelMixing"),
        (
            lambda: FlowLayer(6, None, nflows_LULinear, None)(zeros(2, 4, 6)),
            r"\[B, 6\], got \[2, 4, 6\].*ChannelMixing",
        ),
        (lambda: ChannelMixingTransform(LULinear(6))(zeros(2, 1, 4, 6)), r"got \[2, 1, 4, 6\]"),
        (lambda: SqueezeTransform(2)(zeros(1, 1, 3, 4)), r"of 2, got \[1, 1, 3, 4\]"),
        (lambda: SqueezeTransform(2).inverse(zeros(1, 3, 2, 2)), r"of 4, got \[1, 3, 2, 2\]"),
        (
            lambda: small(image_shape=(1, 7, 8), patch_size=1, pixels=Pixels(squeeze=2)),
            r"a squeeze that divides \(7, 8\), got 2",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, pattern):
    refused(call, pattern)


NO_COUPLINGS = {"channel_flow": LULinear, "patch_flow": LULinear, "hidden_features": None}


@pytest.mark.parametrize(
    "call, pattern",
    [
        (lambda: small(linear=RLULinear, num_flow_layers=3), "even number of RLU .*, got 3"),
        (
            lambda: small(linear=None, num_flow_layers=1, channel_flow=RLULinear),
            "even number of RLU flow layers before a shift, got 1",
        ),
        (lambda: PatchMixerTransform(SHAPE, 2, LULinear(4), LULinear(4)), "9, got .* length 4"),
        (
            lambda: PatchMixerTransform(
                SHAPE, 2, lambda d: CompositeTransform([IdentityTransform(), LULinear(5)]), LULinear
            ),
            "rows of length 4, got CompositeTransform of length 5",
        ),
        (
            lambda: PatchMixerTransform(
                SHAPE, 2, CompositeTransform([LULinear(4), ReversePermutation(5)]), LULinear
            ),
            "rows of length 4, got CompositeTransform of length 4, 5",
        ),
        (lambda: ChannelMixingTransform(Cut())(zeros(2, 4, 6)), r"\[8, 6\], got \[8, 5\] from Cut"),
        (
            lambda: ShiftTransform(
                (1, 6, 6), 2, 1, PatchMixerTransform((1, 6, 6), 2, LULinear, LULinear)
            ),
            r"inner shape \(1, 4, 4\), got PatchMixerTransform of \(1, 6, 6\)",
        ),
        (lambda: AffineCoupling(6, nn.Linear(3, 5))(zeros(2, 6)), r"\[2, 6\], got \[2, 5\]"),
        # One that would broadcast.
        (
            lambda: AffineCoupling(4, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 4, 1)))(
                zeros(1, 4, 3, 3)
            ),
            r"shape \[1, 4, 3, 3\], got \[1, 4, 1, 1\]",
        ),
        *[
            (lambda n=name: small(**{n: LULinear(4)}), f"{name} as a factory, got a ready LULinear")
            for name in ("channel_flow", "patch_flow", "conditioner", "linear")
        ],
        (lambda: small(channel_flow=identity_maf, linear=None), "a linear block .*got linear=None"),
        (lambda: small(**NO_COUPLINGS, context_features=3), "context of 3 features, got none"),
        (lambda: ChannelMixingTransform(LULinear(6), sinusoidal_positions(4, 2)), "got LULinear"),
        (
            lambda: ChannelMixingTransform(
                AffineCoupling(6, partial(ResidualMLP, context_features=2)),
                sinusoidal_positions(4, 2),
            )(zeros(2, 5, 6)),
            "one position for each of 5 rows, got 4 positions",
        ),
        (lambda: mixerflow("cifar"), "preset to be one of 'cifar10', .*, got 'cifar'"),
    ],
)
def test_flows_and_factories_that_do_not_fit_are_refused(call, pattern):
    refused(call, pattern)


def test_odd_number_of_rlu_layers_is_taken_without_a_shift():
    small(linear=RLULinear, num_flow_layers=3, shift=None)


@pytest.mark.parametrize(
    "call, pattern",
    [
        (lambda: PatchMixerTransform(SHAPE, 2, lambda d: nn.Linear(d, d), LULinear), "got Linear"),
        (lambda: PatchMixerTransform(SHAPE, 2, nn.Linear(4, 4), LULinear), "factory.* got Linear"),
        (
            lambda: ShiftTransform((1, 6, 6), 2, 1, lambda shape: nn.Identity()),
            r"factory\(\(1, 4, 4\)\) to return .* got Identity",
        ),
        (lambda: ChannelMixingTransform(LULinear), "got the class LULinear"),
        (lambda: mixerflow(image_shape=SHAPE), "got no patch_size"),
    ],
)
def test_things_of_another_kind_are_type_errors(call, pattern):
    refused(call, pattern, TypeError)


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
        ({"levels": None, "pixels": Pixels(logit=1e-3)}, "levels=None, got logit=0.001"),
        ({"levels": None, "pixels": Pixels("variational")}, "dequantization='variational'"),
        ({"pixels": Pixels(logit=0.7)}, "0 < alpha < 0.5, got 0.7"),
        ({"pixels": "uniform"}, "pixels as Pixels"),
    ],
)
def test_choices_that_the_builder_does_not_know_are_refused(options, pattern):
    refused(lambda: small(**options), pattern)


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
        (lambda: InvertibleConv1x1(3)(torch.rand(2, 1, 4, 4)), r"\[B, 3, H, W\], got \[2, 1, 4, 4"),
        (lambda: ActNorm(3)(torch.rand(2, 4)), r"\[B, 3, ...\], got \[2, 4\]"),
        (lambda: DiagonalNormal((3,)).log_prob(torch.rand(2, 4)), r"\[B, 3\], got \[2, 4\]"),
        (lambda: RLULinear(3).inverse(torch.rand(2, 4)), r"\[B, 3\], got \[2, 4\]"),
        (lambda: FlowLayer(4)(torch.rand(8, 5)), r"\[B, 4\], got \[8, 5\]"),
    ],
)
def test_wrong_arguments_and_inputs_of_a_part_are_refused(make, pattern):
    refused(make, pattern)
