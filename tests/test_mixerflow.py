"""The builder: its signature, published sizes, every option, precision at depth 30."""

import inspect
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from sklearn.datasets import load_sample_images
from torch import nn

from nflows_mixer.distributions import DiagonalNormal, NormalMixture, StudentT
from nflows_mixer.evaluation import round_trip_error
from nflows_mixer.flows import MIXERFLOW_PRESETS, Pixels, denseflow, mixerflow
from nflows_mixer.nn import MLP, ResidualMLP, learned_positions, sinusoidal_positions
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ButterflyLinear,
    GlowSteps,
    LULinear,
    PatchTransform,
    RationalQuadraticCoupling,
    ResidualTransform,
    RLULinear,
    ShiftTransform,
    identity_maf,
)
from tests.helpers import expect, moved, pixels, size
from tests.jacobian import jacobian_logabsdet


@pytest.mark.parametrize("builder", [mixerflow, denseflow])
def test_signature_is_explicit_typed_and_short(builder):
    parameters = inspect.signature(builder, eval_str=True).parameters.values()
    assert len(parameters) <= 23
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    assert not any(p.annotation is p.empty for p in parameters)
    with pytest.raises(TypeError, match="hidden"):
        builder(hidden=3)


@pytest.mark.slow
def test_main_names_need_no_extra():
    extras = "lightning, jsonargparse, safetensors, sklearn, tensorboard, torchvision, yaml"
    code = f"""
import sys
from nflows_mixer import mixerflow, denseflow, ImageFlow, load_weights, bits_per_dim
mixerflow(image_shape=(1, 4, 4), patch_size=2, num_layers=1, shift=None)
assert not {{name.split(".")[0] for name in sys.modules}} & set({extras!r}.split(", "))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_eight_of_thirty_layers_are_shift_layers():
    layers = list(mixerflow("cifar10")._transform._transforms)[2:]
    assert len(layers) == 30
    shifted = [i for i, layer in enumerate(layers) if isinstance(layer, ShiftTransform)]
    assert shifted == [0, 4, 8, 12, 16, 20, 24, 28]


SMALL = {"image_shape": (3, 8, 8), "patch_size": 2, "num_layers": 2, "hidden_features": 16}
LARGE = {"patch_size": 4, "image_shape": (3, 16, 16)}
NARROW = partial(MaskedAffineAutoregressiveTransform, hidden_features=16)
OWN = partial(ResidualMLP, hidden_features=16, norm=None)


def both(flow):
    return {"channel_flow": flow, "patch_flow": flow}


def cut(layout):
    return {"patch_size": partial(PatchTransform, patch_size=2, layout=layout)}


# name: (what both models have, what the second has besides)
OPTIONS = {
    "larger shift": (LARGE, {"shift": 3}),
    "shift of its own on each axis": (LARGE, {"shift": (1, 3)}),
    "no shift": ({}, {"shift": None}),
    "shift in every layer": ({}, {"shift": [1, (1, 1)]}),
    "bands": ({"shift": None}, cut("band")),
    "stripes": ({"shift": None}, cut("stripe")),
    "dilated": ({}, cut("dilated")),
    "layouts that alternate": ({}, {"patch_size": [2, cut("dilated")["patch_size"]]}),
    "rectangular patches": ({"shift": None}, {"patch_size": (2, 4)}),
    "patch sizes that change": ({"shift": None}, {"patch_size": [(2, 2), (4, 4)]}),
    "squeeze": ({"shift": None}, {"pixels": Pixels(squeeze=2)}),
    "no 1x1 convolution": ({}, {"pixels": Pixels(conv1x1=False)}),
    "no linear block": ({}, {"linear": None}),
    "rlu": ({}, {"linear": RLULinear}),
    "butterfly": ({}, {"linear": ButterflyLinear}),
    "more flow layers": ({}, {"num_flow_layers": 6}),
    "fewer in channel flows": ({}, {"num_flow_layers": (1, 4)}),
    "additive": ({}, both(AdditiveCoupling)),
    "splines": ({}, {"channel_flow": partial(RationalQuadraticCoupling, num_bins=4)}),
    "residual": ({"num_layers": 1}, {"channel_flow": ResidualTransform}),
    "maf in the channel flow": ({}, {"channel_flow": identity_maf}),
    "factory": ({}, {"patch_flow": NARROW}),
    "tanh": ({}, both(partial(AffineCoupling, scale="tanh"))),
    "batch norm": ({}, {"norm": "batch"}),
    "no norm": ({}, {"norm": None}),
    "mlp": ({}, {"conditioner": MLP}),
    "two blocks": ({}, {"conditioner": partial(ResidualMLP, num_blocks=2)}),
    "wider": ({}, {"hidden_features": 24}),
    "conditioner of one's own": ({"hidden_features": None}, {"conditioner": OWN}),
    "logit": ({}, {"pixels": Pixels(logit=0.05)}),
    "standard normal": ({}, {"base": partial(DiagonalNormal, learnable=False)}),
    "student t": ({}, {"base": StudentT}),
    "cauchy": ({"base": StudentT}, {"base": partial(StudentT, degrees_of_freedom=1.0)}),
    "mixture": ({}, {"base": NormalMixture}),
    "ready base": ({}, {"base": StudentT((3, 8, 8), degrees_of_freedom=2.0)}),
    "sinusoidal positions": ({}, {"positions": partial(sinusoidal_positions, features=16)}),
    "learned positions": ({}, {"positions": partial(learned_positions, features=16)}),
    "positions for maf": (
        {"channel_flow": identity_maf},
        {"positions": partial(learned_positions, features=4)},
    ),
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
    # resolution, patch, hidden, shift, linear, and the number of parameters
    "cifar10": (32, 4, 128, 1, LULinear, 11_343_833),
    "imagenet32": (32, 4, 128, 1, LULinear, 11_343_833),
    "galaxy32": (32, 4, 64, 1, LULinear, 4_094_937),
    "imagenet64": (64, 8, 128, 2, LULinear, 18_904_985),
    "animefaces": (64, 8, 128, 2, LULinear, 18_904_985),
    "mnist": (28, 4, 64, None, RLULinear, 3_932_941 + 2 * 28 * 28),
}


def test_presets_are_the_columns_of_table_8_and_our_own():
    assert set(MIXERFLOW_PRESETS) == {*TABLE_8, *LOCAL}


@pytest.mark.parametrize("name", TABLE_8)
def test_preset_is_its_column_of_table_8(name):
    built = mixerflow(name)
    spec = built.architecture.arguments
    # The networks' own default where the preset names no width.
    found = spec["patch_size"], spec["hidden_features"] or 128, spec["shift"], spec["linear"]
    assert TABLE_8[name] == (spec["image_shape"][1], *found, size(built))
    flow = identity_maf if name == "mnist" else AffineCoupling
    assert spec["channel_flow"] is spec["patch_flow"] is flow
    assert spec["image_shape"][0] == (1 if name == "mnist" else 3)
    assert (spec["num_layers"], spec["num_flow_layers"], spec["norm"]) == (30, 4, "batch")
    assert MIXERFLOW_PRESETS[name].source.startswith("MixerFlow, Table 8, column ")


LOCAL = {
    # mixer layers, the published flow that it has no more parameters than, and the number of these
    "cifar10-local": (12, "cifar10", 11_272_287),
    "imagenet64-local": (16, "imagenet64", 18_693_073),
    "mnist-local": (4, "mnist", 420_509),
    "mnist-maf-local": (4, "mnist", 343_833),
    "digits-local": (3, None, 146_213),
}


@pytest.mark.parametrize("name", LOCAL)
def test_preset_of_ours_has_local_flows_and_no_more_parameters_than_the_papers(name):
    flow = mixerflow(name)
    count, like, parameters = LOCAL[name]
    assert size(flow) == parameters
    assert like is None or parameters <= size(mixerflow(like))
    assert sum(isinstance(part, GlowSteps) for part in flow.modules()) == count


@pytest.mark.parametrize("name", LOCAL)
def test_preset_of_ours_rebuilds_in_constant_memory_what_it_computes(name):
    gradients = []
    for memory in ("full", "constant"):
        torch.manual_seed(0)
        flow = mixerflow(name, num_layers=2, hidden_features=8, memory=memory).double()
        images = pixels(3, flow.image_shape)
        noise = flow.draw_noise(0, 0, torch.arange(3), torch.float64)
        moved(flow.initialize(images, noise=noise, whiten=True), 0.01)
        flow.log_prob(images, noise=noise).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
        assert round_trip_error(flow, images) < 1e-8
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6 * gradients[0].abs().max().item())


def test_mnist_preset_takes_training_steps_as_it_is():
    """Ink on a border that is black in all images but a few."""
    flow = mixerflow("mnist", num_layers=2)
    images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 8:20, 8:20] = torch.randint(256, (40, 1, 12, 12), dtype=torch.uint8)
    images[3, :, 0, 0] = 255
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-4)
    for _ in range(5):
        loss = -flow.log_prob(images).mean()
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in flow.parameters())
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()


def test_factory_gets_what_its_signature_names():
    seen = []

    def flow(features, axes, index, context_features, norm, hidden_features=7):
        seen.append((features, axes, index, context_features, norm, hidden_features))
        return AffineCoupling(features, context_features=context_features, norm=norm)

    mixerflow(
        image_shape=(3, 4, 8),
        patch_size=(2, 4),
        num_layers=2,
        num_flow_layers=2,
        channel_flow=flow,
        hidden_features=16,
        norm=None,
        context_features=2,
        positions=partial(learned_positions, features=3),
        shift=None,
    )
    assert seen == [(24, (2, 4, 3), index, 5, None, 16) for index in range(4)]


def test_width_is_the_factories_own_where_it_is_not_given():
    def widths(**options):
        flow = mixerflow(**{**SMALL, "num_layers": 1, "hidden_features": None, **options})
        return {m.initial.out_features for m in flow.modules() if isinstance(m, ResidualMLP)}

    assert widths() == {128} and widths(hidden_features=9) == {9}
    assert widths(conditioner=partial(ResidualMLP, hidden_features=5)) == {5}
    bound = partial(AffineCoupling, conditioner=partial(ResidualMLP, hidden_features=5))
    assert widths(channel_flow=bound, hidden_features=9) == {5, 9}


def test_bound_keywords_leave_the_others_to_be_given():
    flow = mixerflow(
        **SMALL, conditioner=partial(ResidualMLP, norm=None), context_features=5, shift=None
    )
    networks = [m for m in flow.modules() if isinstance(m, ResidualMLP)]
    assert {m.context_features for m in networks} == {5}
    assert not any(isinstance(m, nn.LayerNorm) for m in flow.modules())


@pytest.mark.parametrize(
    "options, unread",
    [
        ({**both(LULinear), "hidden_features": 8}, "hidden_features"),
        ({**both(LULinear), "norm": None}, "norm"),
        ({**both(LULinear), "conditioner": MLP}, "conditioner"),
        ({**both(identity_maf), "conditioner": MLP}, "conditioner"),
        ({**both(ResidualTransform), "norm": "batch"}, "norm"),
        (
            {**both(partial(identity_maf, hidden_features=4)), "hidden_features": 8},
            "hidden_features",
        ),
        ({"conditioner": lambda i, o: nn.Linear(i, o), "norm": "batch"}, "norm"),
        ({"conditioner": partial(ResidualMLP, norm=None), "norm": "batch"}, "norm"),
    ],
)
def test_what_no_factory_reads_is_refused(options, unread):
    sizes = {"image_shape": (1, 4, 4), "patch_size": 2, "num_layers": 1, "shift": None}
    with expect(ValueError, f"a factory that takes {unread}, to read the {unread} given"):
        mixerflow(**sizes, **options)
    # What only a preset says may be left unread.
    presets = {k: v for k, v in options.items() if k not in ("hidden_features", "norm")}
    if "conditioner" not in presets:
        mixerflow("galaxy32", num_layers=1, **presets)


@pytest.mark.slow
@pytest.mark.parametrize("num_flow_layers", [1, 2])
def test_parts_of_couplings_alternate_without_a_linear_block(num_flow_layers):
    """Every latent then depends on pixels other than its own."""
    options = {"linear": None, "shift": None, "pixels": Pixels(conv1x1=False)}
    flow = mixerflow(**SMALL, **options, num_flow_layers=num_flow_layers)
    images = torch.randint(256, (16, *flow.image_shape), dtype=torch.uint8)
    drawn(flow, images, std=0.1)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: flow._transform(x.reshape(1, *flow.image_shape))[0].flatten(),
        images[0].double().flatten() + 0.5,
    )
    jacobian.fill_diagonal_(0)
    assert (jacobian.abs().sum(1) > 0).all()


@pytest.mark.parametrize("preset", ["cifar10", "mnist"])
def test_fresh_flow_is_the_identity_but_for_actnorm(preset):
    """Shapes of the start: linear blocks and flows at the identity, ActNorms affine."""
    flow = mixerflow(preset, num_layers=2, pixels=Pixels()).double()
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


@torch.no_grad()
def drawn(flow, images, std=0.01):
    """Move every parameter off its start, then initialize ActNorm from data."""
    moved(flow.double().eval(), std)
    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.train()
    flow.log_prob(images)
    return flow.eval()


@pytest.mark.slow
def test_thirty_layers_in_float64_invert():
    images = real_images(32, 8)
    flow = drawn(mixerflow("cifar10"), images)
    assert round_trip_error(flow, images[:4]) < 1e-8


@pytest.mark.slow
def test_thirty_layers_in_float64_have_the_logabsdet_of_their_jacobian():
    images = real_images(6, 200)
    flow = drawn(mixerflow(image_shape=(3, 6, 6), patch_size=2, hidden_features=32), images)
    pixels = images[:1].double() + 0.5
    latents, logabsdet = flow._transform(pixels)
    expected = jacobian_logabsdet(flow._transform.forward, pixels)
    torch.testing.assert_close(logabsdet, expected, rtol=1e-8, atol=0)
    latents = latents.detach()
    _, logabsdet = flow._transform.inverse(latents)
    expected = jacobian_logabsdet(flow._transform.inverse, latents)
    torch.testing.assert_close(logabsdet, expected, rtol=1e-8, atol=0)


@pytest.mark.slow
def test_fresh_cifar10_preset_inverts_real_images_in_float32():
    images = real_images(32, 24)
    flow = mixerflow("cifar10").initialize(images)
    assert round_trip_error(flow, images) < 1e-4
