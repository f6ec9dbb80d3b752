"""The builder: published sizes, every option, precision at depth 30."""

from functools import partial

import numpy as np
import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from sklearn.datasets import load_sample_images

from nflows_mixer.evaluation import round_trip_error
from nflows_mixer.flows import PRESETS, mixerflow
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


def test_presets_name_their_table():
    for preset in PRESETS.values():
        assert preset.source.startswith("MixerFlow, Table 8, column ")
        # int(0.04 n) images are kept for validation; four of the sizes follow from n exactly.
    for name, total in [("cifar10", 50_000), ("mnist", 60_000), ("imagenet32", 1_281_149)]:
        assert PRESETS[name].training_points == total - int(0.04 * total)


SMALL = {"image_shape": (3, 8, 8), "patch_size": 2, "num_layers": 2, "hidden_features": 16}
OPTIONS = {
    "defaults": {},
    "large shift": {"patch_size": 4, "image_shape": (3, 16, 16), "shift": 3},
    "shift of its own on each axis": {"patch_size": (2, 4), "shift": (1, 3)},
    "shift in every layer": {"shift_period": 1},
    "bands": {"layout": "band", "shift": None},
    "stripes": {"layout": "stripe", "shift": None},
    "dilated": {"layout": "dilated"},
    "layouts that alternate": {"layout": ["patch", "dilated"]},
    "patch sizes that change": {"patch_size": [(2, 2), (4, 4)], "shift": None},
    "squeeze": {"squeeze": 2, "patch_size": 1, "shift": None},
    "no 1x1 convolution": {"conv1x1": False},
    "no linear block": {"linear": None},
    "rlu": {"linear": "rlu"},
    "additive": {"channel_flow": "additive", "patch_flow": "additive"},
    "maf in the channel flow": {"channel_flow": "maf"},
    "factory": {"patch_flow": partial(MaskedAffineAutoregressiveTransform, hidden_features=16)},
    "tanh": {"scale": "tanh"},
    "sigmoid": {"scale": "sigmoid"},
    "softplus": {"scale": "softplus"},
    "batchnorm": {"norm": "batchnorm"},
    "mlp": {"conditioner": "mlp"},
    "two blocks": {"num_blocks": 2},
    "logit": {"logit": 0.05},
    "standard normal": {"base": "standard_normal"},
    "student t": {"base": "student_t"},
    "cauchy": {"base": "cauchy"},
    "mixture": {"base": "mixture"},
    "sinusoidal positions": {"positions": "sinusoidal"},
    "learned positions": {"positions": "learned", "position_features": 4},
    "positions for maf": {"channel_flow": "maf", "positions": "learned"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_option_trains_and_inverts(options):
    flow = mixerflow(**{**SMALL, **options})
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


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_option_changes_the_model(options):
    """An option that does nothing would leave the architecture and the function as they are."""
    if not options:
        return
    torch.manual_seed(0)
    changed = mixerflow(**{**SMALL, **options})
    torch.manual_seed(0)
    shape = {k: v for k, v in options.items() if k == "image_shape"}
    plain = mixerflow(**{**SMALL, **shape})
    images = torch.randint(256, (16, *plain.image_shape), dtype=torch.uint8)
    results = []
    for flow in (plain, changed):
        torch.manual_seed(0)
        flow.initialize(images).double()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.02 * torch.ones_like(parameter)
        flow.eval()
        results.append(flow.log_prob(images, noise=torch.full(images.shape, 0.5)))
    assert not torch.allclose(*results)


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
