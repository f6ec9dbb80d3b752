"""Multi-scale transforms, their latents and their base, against what is computed by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from nflows import transforms as nflows_transforms
from nflows.flows import Flow
from nflows.transforms import Permutation
from torch import distributions

from nflows_mixer.distributions import (
    DiagonalNormal,
    NormalMixture,
    ProductDistribution,
    StudentT,
)
from nflows_mixer.transforms import (
    ActNorm,
    CompositeTransform,
    CrossUnitCoupling,
    DenseFlowBlock,
    GlowStep,
    InvertibleConv1x1,
    MultiScaleTransform,
    SqueezeAndSplit,
    SqueezeTransform,
)
from tests.helpers import expect, moved
from tests.registry import conv, glow


def randomized(transform, std=0.1):
    """In float64 and evaluation mode, every parameter away from its start."""
    transform.double().eval()
    for module in transform.modules():
        if isinstance(module, ActNorm):
            module.initialize_identity()
    return moved(transform, std)


def pieces(latents, shapes):
    """Cut by hand."""
    found, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        found.append(latents[:, start : start + size].reshape(len(latents), *shape))
        start += size
    assert start == latents.shape[1]
    return found


# Which pixels become latents where.


def test_dropped_channels_by_hand():
    """Of each 2 x 2 square the upper row goes on, and the lower row is dropped."""
    transform = MultiScaleTransform([SqueezeAndSplit(2), SqueezeAndSplit(2)], (1, 4, 4))
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    latents, logabsdet = transform(image)
    assert transform.latent_shapes == {
        "split_1": (2, 2, 2),
        "split_2": (4, 1, 1),
        "final": (4, 1, 1),
    }
    by_hand = {
        "split_1": [[[4, 6], [12, 14]], [[5, 7], [13, 15]]],
        "split_2": [[[1]], [[3]], [[9]], [[11]]],
        "final": [[[0]], [[2]], [[8]], [[10]]],
    }
    found = {name: piece[0].tolist() for name, piece in transform.unflatten(latents).items()}
    assert found == by_hand and logabsdet.tolist() == [0]
    assert torch.equal(transform.inverse(latents)[0], image)
    # Half, rounded up, where nothing is said.
    assert [SqueezeAndSplit(1, kept).number_kept(3) for kept in (None, 1, 2)] == [2, 1, 2]


def test_latents_are_cut_into_the_pieces_that_were_joined():
    parts = [SqueezeTransform(2), glow(12), SqueezeAndSplit(2, 10), glow(10), SqueezeAndSplit(1)]
    transform = randomized(MultiScaleTransform([*parts, glow(5)], (3, 8, 4)))
    expected = {"split_1": (38, 2, 1), "split_2": (5, 2, 1), "final": (5, 2, 1)}
    assert transform.latent_shapes == expected
    images = torch.randn(4, 3, 8, 4, dtype=torch.float64)
    outputs, total, by_hand = images, 0, []
    for part in transform._transforms:
        outputs, logabsdet = part(outputs)
        total = total + logabsdet
        if isinstance(part, SqueezeAndSplit):
            kept = {40: 10, 48: 10, 10: 5}[outputs.shape[1]]
            by_hand.append(outputs[:, kept:])
            outputs = outputs[:, :kept]
    by_hand.append(outputs)
    latents, logabsdet = transform(images)
    torch.testing.assert_close(logabsdet, total)
    found = transform.unflatten(latents)
    assert list(found) == list(expected)
    for piece, cut, plain in zip(found.values(), pieces(latents, expected.values()), by_hand):
        assert torch.equal(piece, cut)
        torch.testing.assert_close(piece, plain)


def test_glow_is_the_multi_scale_transform_of_nflows():
    """Which drops the first half where ours drops the second."""
    levels = [CompositeTransform([SqueezeTransform(2), glow(channels)]) for channels in (4, 8)]
    last = glow(4)
    ours = [levels[0], SqueezeAndSplit(1), levels[1], SqueezeAndSplit(1), last]
    for level, channels in zip(levels, (4, 8)):
        level.output_shape = lambda shape, c=channels: (c, shape[1] // 2, shape[2] // 2)
    ours = randomized(MultiScaleTransform(ours, (1, 8, 4)))
    theirs = nflows_transforms.MultiscaleCompositeTransform(num_transforms=3)
    for level, shape in zip(levels, [(4, 4, 2), (8, 2, 1)]):
        halves = torch.arange(shape[0]).roll(shape[0] // 2)
        swapped = CompositeTransform([level, Permutation(halves, dim=1)])
        theirs.add_transform(swapped, shape)
    theirs.add_transform(last, (4, 2, 1))
    images = torch.randn(3, 1, 8, 4, dtype=torch.float64)
    # The order of the latents is the same: what was dropped, and then the rest.
    torch.testing.assert_close(ours(images), theirs(images))
    latents = torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(ours.inverse(latents), theirs.inverse(latents))


def test_multi_scale_flow_of_linear_parts_has_the_density_of_its_normal_distribution():
    parts = [InvertibleConv1x1(2), SqueezeAndSplit(2), ActNorm(4), InvertibleConv1x1(4, "full")]
    transform = randomized(MultiScaleTransform(parts, (2, 2, 4)), 0.2)
    shapes = transform.latent_shapes
    base = ProductDistribution({name: DiagonalNormal(shape) for name, shape in shapes.items()})
    flow = Flow(transform, randomized(base, 0.3))
    images = torch.randn(5, 2, 2, 4, dtype=torch.float64)

    def affine(values):
        return transform(values.reshape(1, 2, 2, 4))[0].flatten()

    zero = torch.zeros(16, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(affine, zero)
    normals = [part.as_torch() for part in base.parts.values()]
    mean = torch.cat([normal.mean.flatten() for normal in normals])
    variance = torch.cat([normal.variance.flatten() for normal in normals])
    inverse = matrix.inverse()
    of_images = distributions.MultivariateNormal(
        inverse @ (mean - affine(zero)), inverse @ variance.diag() @ inverse.T
    )
    torch.testing.assert_close(flow.log_prob(images), of_images.log_prob(images.flatten(1)))


# The base.


def product():
    base = ProductDistribution(
        {
            "split_1": DiagonalNormal((2, 1, 3), learnable=False),
            "split_2": StudentT((2, 2), degrees_of_freedom=3.0),
            "final": NormalMixture((4,), scales=(0.2, 2.0)),
        }
    )
    return randomized(base, 0.3)


def test_product_is_the_sum_of_its_parts():
    base = product()
    latents = torch.randn(5, 14, dtype=torch.float64)
    one, two, three = pieces(latents, [(2, 1, 3), (2, 2), (4,)])
    normal, student, mixture = base.parts.values()
    parts = [
        distributions.Normal(0.0, 1.0).log_prob(one),
        distributions.StudentT(3.0, student.location, student.log_scale.exp()).log_prob(two),
        distributions.MixtureSameFamily(
            distributions.Categorical(logits=mixture.weight_logits),
            distributions.Normal(mixture.location, mixture.log_scale.exp()),
        ).log_prob(three),
    ]
    expected = sum(part.flatten(1).sum(1) for part in parts)
    torch.testing.assert_close(base.log_prob(latents), expected)
    assert base.shape == (14,) and base.sizes == [6, 4, 4]
    assert {name.split(".")[1] for name, _ in base.named_parameters()} == {"split_2", "final"}
    torch.testing.assert_close(base.log_prob(latents, torch.zeros(5, 3)), expected)


def test_product_samples_part_by_part_in_the_shapes_of_nflows():
    base = product()
    torch.manual_seed(3)
    samples = base.sample(4)
    torch.manual_seed(3)
    by_hand = [part.sample(4).flatten(1) for part in base.parts.values()]
    assert torch.equal(samples, torch.cat(by_hand, dim=1))
    context = torch.zeros(5, 3)
    torch.manual_seed(3)
    samples = base.sample(4, context)
    assert samples.shape == (5, 4, 14)
    torch.manual_seed(3)
    by_hand = [part.sample(4, context).flatten(2) for part in base.parts.values()]
    assert torch.equal(samples, torch.cat(by_hand, dim=2))
    _, log_prob = base.sample_and_log_prob(4, context)
    assert log_prob.shape == (5, 4)


def test_temperature_of_a_product_is_that_of_each_part():
    shapes = {"split_1": (2, 2), "final": (3,)}
    base = randomized(ProductDistribution({n: DiagonalNormal(s) for n, s in shapes.items()}), 0.3)
    location = torch.cat([part.location.flatten() for part in base.parts.values()]).detach()
    torch.manual_seed(3)
    away = base.sample(200) - location
    torch.manual_seed(3)
    torch.testing.assert_close(base.sample(200, temperature=0.25) - location, away / 4)
    torch.testing.assert_close(base.sample(2, temperature=0.0), location.expand(2, -1))
    with expect(ValueError, "a temperature of at least 0, got -1"):
        base.sample(2, temperature=-1)


# Errors.


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: SqueezeAndSplit(2, 0), "kept_channels to be a positive integer, got 0"),
        (lambda: SqueezeAndSplit(1).number_kept(1), "1 to 0 of 1 squeezed channels to keep, got 1"),
        (
            lambda: MultiScaleTransform([SqueezeAndSplit(1, 4)], (4, 2, 2)),
            "1 to 3 of 4 squeezed channels to keep, got 4",
        ),
        (lambda: MultiScaleTransform([], (4, 2)), r"image_shape \(channels, height, width\)"),
        (lambda: ProductDistribution({}), r"named parts, got \[\]"),
        (lambda: ProductDistribution({"a.b": StudentT(2)}), r"got \['a.b'\]; name each part"),
    ],
)
def test_choices_that_are_refused(make, pattern):
    with expect(ValueError, pattern):
        make()


class Flatten(nflows_transforms.Transform):
    def forward(self, inputs, context=None):
        return inputs.flatten(1), inputs.new_zeros(len(inputs))


def test_wrong_calls():
    transform = MultiScaleTransform([SqueezeAndSplit(2)], (1, 4, 4))
    with expect(ValueError, r"shape \[B, 1, 4, 4\], got \[2, 1, 4, 6\]"):
        transform(torch.zeros(2, 1, 4, 6))
    for wrong in (torch.zeros(2, 15), torch.zeros(2, 1, 4, 4)):
        for call in (transform.inverse, transform.unflatten):
            with expect(ValueError, r"shape \[B, 16\]"):
                call(wrong)
    with expect(ValueError, r"no noise, got \[2, 0\]; none of its parts draws any"):
        transform(torch.zeros(2, 1, 4, 4), noise=torch.zeros(2, 0))
    # What becomes of the shape is not said by a part of one's own that only flattens.
    silent = MultiScaleTransform([Flatten()], (1, 4, 4))
    with expect(ValueError, r"latents of shapes \[\(1, 4, 4\)\], got \[\(16,\)\]; .*output_shape"):
        silent(torch.zeros(2, 1, 4, 4))
    with expect(ValueError, r"shape \[B, 14\], got \[2, 13\]"):
        product().log_prob(torch.zeros(2, 13))
    with expect(TypeError, "bases of nflows_mixer.distributions, got Linear for 'final'"):
        ProductDistribution({"final": torch.nn.Linear(2, 2)})


def test_shape_of_the_noise_and_of_the_latents_of_parts_that_grow():
    block = DenseFlowBlock(4, 3, partial(GlowStep, conditioner=conv), growth=3)
    parts = [SqueezeTransform(2), block, SqueezeAndSplit(2), CrossUnitCoupling(20, 5)]
    transform = MultiScaleTransform(parts, (1, 8, 4))
    assert transform.latent_shapes == {"split_1": (20, 2, 1), "final": (25, 2, 1)}
    assert transform.noise_shape((1, 8, 4)) == (6 * 4 * 2 + 5 * 2,)
    assert transform.stochastic_forward
    transform(torch.randn(9, 1, 8, 4))
    images = torch.randn(2, 1, 8, 4)
    noise = torch.randn(2, 58)
    latents, _ = transform.eval()(images, noise=noise)
    assert latents.shape == (2, 90)
    # The last part's noise is white, at the end of the row, and the end of the latents.
    assert torch.equal(latents[:, -10:], noise[:, -10:])
    torch.testing.assert_close(transform.inverse(latents)[0], images, atol=1e-4, rtol=1e-4)
