"""The builder: published sizes, every option, precision at depth 30."""

from functools import partial

import numpy as np
import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from sklearn.datasets import load_sample_images

from nflows_mixer.distributions import StudentT
from nflows_mixer.evaluation import round_trip_error
from nflows_mixer.flows import PRESETS, mixerflow
from nflows_mixer.nn import ResidualMLP
from nflows_mixer.transforms import ActNorm, RLULinear, ShiftTransform
from tests.jacobian import jacobian_logabsdet


def count(flow) -> int:
    return sum(p.numel() for p in flow.parameters())


@pytest.mark.parametrize(
    "preset, parameters",
    [
        ("cifar10", 11_343_833),
        ("imagenet32", 11_343_833),
        ("galaxy32", 4_094_937),
        ("imagenet64", 18_904_985),
        ("animefaces", 18_904_985),
        ("mnist", 3_932_941 + 2 * 28 * 28),
    ],
)
def test_parameters_of_the_presets(preset, parameters):
    assert count(mixerflow(preset)) == parameters


def test_parameters_of_the_earlier_variant():
    """7.5M on the author's page: no shift, BatchNorm between the flows, a 128 x 128 layer."""
    flow = mixerflow(
        "cifar10", shift=None, norm="batchnorm", conditioner="mlp", base="standard_normal"
    )
    assert count(flow) == 7_525_449


def test_eight_of_thirty_layers_are_shift_layers():
    layers = list(mixerflow("cifar10")._transform._transforms)[2:]
    assert len(layers) == 30
    shifted = [i for i, layer in enumerate(layers) if isinstance(layer, ShiftTransform)]
    assert shifted == [0, 4, 8, 12, 16, 20, 24, 28]


def test_mnist_is_autoregressive_with_rlu_and_no_shift():
    modules = list(mixerflow("mnist").modules())
    mafs = [m for m in modules if isinstance(m, MaskedAffineAutoregressiveTransform)]
    assert len(mafs) == 30 * 2 * 4
    assert len([m for m in modules if isinstance(m, RLULinear)]) == 30 * 2 * 4
    assert not any(isinstance(m, ShiftTransform) for m in modules)


SMALL = {"image_shape": (3, 8, 8), "patch_size": 2, "num_layers": 2, "hidden_features": 16}
LARGE = {"patch_size": 4, "image_shape": (3, 16, 16)}
MAF = partial(MaskedAffineAutoregressiveTransform, hidden_features=16)
OWN = partial(ResidualMLP, hidden_features=16, batch_norm=False)
# name: (what both models have, what the second has besides)
OPTIONS = {
    "larger shift": (LARGE, {"shift": 3}),
    "shift of its own on each axis": (LARGE, {"shift": (1, 3)}),
    "no shift": ({}, {"shift": None}),
    "shift in every layer": ({}, {"shift_period": 1}),
    "bands": ({"shift": None}, {"layout": "band"}),
    "stripes": ({"shift": None}, {"layout": "stripe"}),
    "dilated": ({}, {"layout": "dilated"}),
    "layouts that alternate": ({}, {"layout": ["patch", "dilated"]}),
    "rectangular patches": ({"shift": None}, {"patch_size": (2, 4)}),
    "patch sizes that change": ({"shift": None}, {"patch_size": [(2, 2), (4, 4)]}),
    "squeeze": ({"shift": None}, {"squeeze": 2}),
    "no 1x1 convolution": ({}, {"conv1x1": False}),
    "no linear block": ({}, {"linear": None}),
    "rlu": ({}, {"linear": "rlu"}),
    "more flow layers": ({}, {"num_flow_layers": 6}),
    "additive": ({}, {"channel_flow": "additive", "patch_flow": "additive"}),
    "maf in the channel flow": ({}, {"channel_flow": "maf"}),
    "factory": ({}, {"patch_flow": MAF}),
    "tanh": ({}, {"scale": "tanh"}),
    "sigmoid": ({}, {"scale": "sigmoid"}),
    "softplus": ({}, {"scale": "softplus"}),
    "batchnorm": ({}, {"norm": "batchnorm"}),
    "mlp": ({}, {"conditioner": "mlp"}),
    "two blocks": ({}, {"num_blocks": 2}),
    "deeper mlp": ({"conditioner": "mlp"}, {"num_blocks": 2}),
    "wider": ({}, {"hidden_features": 24}),
    "conditioner of one's own": ({}, {"conditioner": OWN}),
    "logit": ({}, {"logit": 0.05}),
    "standard normal": ({}, {"base": "standard_normal"}),
    "student t": ({}, {"base": "student_t"}),
    "cauchy": ({"base": "student_t"}, {"base": "cauchy"}),
    "mixture": ({}, {"base": "mixture"}),
    "base of one's own": ({}, {"base": partial(StudentT, degrees_of_freedom=2.0)}),
    "ready base": ({}, {"base": StudentT((3, 8, 8), degrees_of_freedom=2.0)}),
    "sinusoidal positions": ({}, {"positions": "sinusoidal"}),
    "learned positions": ({"positions": "sinusoidal"}, {"positions": "learned"}),
    "fewer position features": ({"positions": "learned"}, {"position_features": 4}),
    "positions for maf": ({"channel_flow": "maf"}, {"positions": "learned"}),
}


@pytest.mark.parametrize("setting, options", OPTIONS.values(), ids=OPTIONS.keys())
def test_option_trains_and_inverts(setting, options):
    flow = mixerflow(**{**SMALL, **setting, **options})
    images = torch.randint(256, (16, *flow.image_shape), dtype=torch.uint8)
    flow.initialize(images)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = -flow.log_prob(images, noise=torch.full(images.shape, 0.5)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert round_trip_error(flow.double(), images) < 1e-9


@pytest.mark.parametrize("setting, options", OPTIONS.values(), ids=OPTIONS.keys())
def test_option_changes_the_model(setting, options):
    """Against a model that differs in this option alone, every parameter moved by the same."""
    likelihoods = []
    for chosen in (setting, {**setting, **options}):
        torch.manual_seed(0)
        flow = mixerflow(**{**SMALL, **chosen}).double()
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (16, *flow.image_shape), generator=generator).to(torch.uint8)
        flow.initialize(images)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.02
        likelihoods.append(flow.eval().log_prob(images, noise=torch.full(images.shape, 0.5)))
    assert not torch.allclose(*likelihoods)


TABLE_8 = {
    # points, resolution, patch, hidden, shift, linear, lr, beta_2, steps, batch
    "cifar10": (48_000, 32, 4, 128, 1, "lu", 1e-3, 0.999, 400_000, 512),
    "imagenet32": (1_229_904, 32, 4, 128, 1, "lu", 1e-3, 0.999, 500_000, 512),
    "galaxy32": (5_000, 32, 4, 64, 1, "lu", 1e-3, 0.999, 50_000, 512),
    "imagenet64": (1_229_904, 64, 8, 128, 2, "lu", 5e-4, 0.999, 400_000, 200),
    "animefaces": (61_023, 64, 8, 128, 2, "lu", 5e-4, 0.99, 400_000, 200),
    "mnist": (57_600, 28, 4, 64, None, "rlu", 5e-4, 0.999, 400_000, 512),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_its_column_of_table_8(name):
    preset, spec = PRESETS[name], PRESETS[name].architecture
    assert TABLE_8[name] == (
        preset.training_points,
        spec.image_shape[1],
        spec.patch_size,
        spec.hidden_features,
        spec.shift,
        spec.linear,
        preset.learning_rate,
        preset.betas[1],
        preset.steps,
        preset.batch_size,
    )
    flow = "maf" if name == "mnist" else "affine"
    assert spec.channel_flow == spec.patch_flow == flow
    assert spec.image_shape[0] == (1 if name == "mnist" else 3)
    assert (spec.num_layers, spec.num_flow_layers, spec.shift_period) == (30, 4, 4)
    assert preset.betas[0] == 0.9 and preset.gradient_clip == 5.0
    assert preset.source.startswith("MixerFlow, Table 8, column ")


def test_training_points_leave_out_the_validation_part():
    """int(0.04 n) images are kept; four of the sizes follow from n exactly."""
    for name, total in [("cifar10", 50_000), ("mnist", 60_000), ("imagenet32", 1_281_149)]:
        assert PRESETS[name].training_points == total - int(0.04 * total)


def test_maf_starts_at_the_identity():
    modules = mixerflow("mnist", num_layers=1).modules()
    mafs = [m for m in modules if isinstance(m, MaskedAffineAutoregressiveTransform)]
    assert len(mafs) == 8
    for maf in mafs:
        rows = torch.randn(5, maf.features)
        outputs, logabsdet = maf(rows)
        torch.testing.assert_close(outputs, rows)
        torch.testing.assert_close(logabsdet, torch.zeros(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_flow_layers", [1, 2])
def test_parts_of_couplings_alternate_without_a_linear_block(num_flow_layers):
    """Every latent then depends on pixels other than its own."""
    options = {"linear": None, "shift": None, "conv1x1": False}
    flow = mixerflow(**SMALL, **options, num_flow_layers=num_flow_layers)
    images = torch.randint(256, (16, *flow.image_shape), dtype=torch.uint8)
    moved(flow, images, std=0.1)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flow._transform(x.reshape(1, *flow.image_shape))[0].flatten(),
        images[0].double().flatten() + 0.5,
    )
    jacobian.fill_diagonal_(0)
    assert (jacobian.abs().sum(1) > 0).all()


@pytest.mark.parametrize("preset", ["cifar10", "mnist"])
def test_fresh_flow_is_the_identity_but_for_actnorm(preset):
    """Shapes of the start: linear blocks and flows at the identity, ActNorms affine."""
    flow = mixerflow(preset, num_layers=2).double()
    images = torch.randint(256, (32, *flow.image_shape), dtype=torch.uint8)
    flow.initialize(images)
    latents = flow.transform_to_noise(images)
    pixels = (images + 0.5).flatten(1).double()
    # Every latent is an affine function of its own pixel.
    centred = pixels - pixels.mean(0)
    latents = latents.flatten(1) - latents.flatten(1).mean(0)
    correlation = (centred * latents).sum(0) / (centred.norm(dim=0) * latents.norm(dim=0))
    torch.testing.assert_close(correlation, torch.ones_like(correlation))


def real_images(size: int, number: int, seed: int = 0) -> torch.Tensor:
    """Crops of the photographs that scikit-learn carries, halved in resolution."""
    generator = np.random.default_rng(seed)
    photos = [photo[::2, ::2] for photo in load_sample_images().images]
    crops = []
    for _ in range(number):
        photo = photos[generator.integers(len(photos))]
        top = generator.integers(photo.shape[0] - size)
        left = generator.integers(photo.shape[1] - size)
        crops.append(photo[top : top + size, left : left + size])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def moved(flow, images, std=0.01):
    """Move every parameter off its start, then initialise ActNorm from data."""
    flow.double().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += std * torch.randn_like(parameter)
        for module in flow.modules():
            if isinstance(module, ActNorm):
                module.train()
        flow.log_prob(images)
    return flow.eval()


def test_thirty_layers_in_float64_invert():
    images = real_images(32, 24)
    flow = moved(mixerflow("cifar10"), images)
    assert round_trip_error(flow, images[:8]) < 1e-8


def test_thirty_layers_in_float64_have_the_logabsdet_of_their_jacobian():
    images = real_images(6, 200)
    flow = moved(mixerflow(image_shape=(3, 6, 6), patch_size=2, hidden_features=32), images)
    pixels = images[:2].double() + 0.5
    latents, logabsdet = flow._transform(pixels)
    expected = jacobian_logabsdet(flow._transform.forward, pixels)
    torch.testing.assert_close(logabsdet, expected, rtol=1e-8, atol=0)
    latents = latents.detach()
    _, logabsdet = flow._transform.inverse(latents)
    expected = jacobian_logabsdet(flow._transform.inverse, latents)
    torch.testing.assert_close(logabsdet, expected, rtol=1e-8, atol=0)


def test_fresh_cifar10_preset_inverts_real_images_in_float32():
    images = real_images(32, 64)
    flow = mixerflow("cifar10").initialize(images)
    assert round_trip_error(flow, images) < 1e-4
