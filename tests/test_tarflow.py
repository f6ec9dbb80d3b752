"""TarFlow: its builder, presets, and what an image flow of it does."""

import math

import pytest
import torch

from nflows_mixer import load_weights, mixerflow, tarflow
from nflows_mixer.adapters import to_normflows, to_zuko
from nflows_mixer.cli import run
from nflows_mixer.distributions import StudentT
from nflows_mixer.flows import TARFLOW_PRESETS, Pixels, save_weights
from nflows_mixer.nn import OneHotClasses
from nflows_mixer.training import FlowModule, Recipe
from nflows_mixer.transforms import CausalPatchTransform, causal_patch_flow
from tests.helpers import log_prob_by_autograd, moved, pixels, size
from tests.training import assert_same, noise_data, plain, train, train_by_hand
from tests.training import run as fit_quietly

SHAPE = (1, 6, 6)
SMALL = {"image_shape": SHAPE, "patch_size": 3, "levels": 17, "hidden_features": 8}
SMALL |= {"num_blocks": 2, "num_layers": 1}
TINY = SMALL | {"image_shape": (1, 4, 4), "patch_size": 2}


def small(amount=0.1, **options):
    return moved(tarflow(**SMALL | options), amount)


@pytest.mark.parametrize(
    "preset, options, parameters",
    [
        ("tarflow-mnist", {"num_classes": 10}, 3_227_776),
        ("tarflow-mnist", {}, 3_227_776 - 4 * 10 * 128),
        ("tarflow-imagenet64", {}, 460_142_784),
    ],
)
def test_parameters_of_the_presets_are_the_published_ones(preset, options, parameters):
    with torch.device("meta"):
        flow = tarflow(preset, **options)
    assert size(flow) == parameters
    blocks = [part for part in flow.modules() if isinstance(part, CausalPatchTransform)]
    assert [block.reverse for block in blocks] == [i % 2 == 1 for i in range(len(blocks))]
    assert set(TARFLOW_PRESETS) == {"tarflow-mnist", "tarflow-imagenet64"}


def test_it_starts_at_a_standard_normal_of_scaled_pixels():
    images, noise = pixels(5), torch.rand(5, *SHAPE)
    scaled = (images + noise) / 17 - 0.5
    expected = -0.5 * (scaled.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    expected -= 36 * math.log(17)
    assert torch.allclose(tarflow(**SMALL).log_prob(images, noise=noise), expected, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 3, "actnorm": True, "mask": "checkerboard"},
        {"context_features": 2, "start_token": True, "positions": "rotary", "num_heads": 1},
        {"pixels": Pixels(logit=1e-3, squeeze=2), "soft_clip": 4.0, "patch_size": 1},
    ],
)
def test_log_prob_is_that_of_autograd(options):
    flow = small(**options).double()
    images, noise = pixels(4), torch.rand(4, *SHAPE, dtype=torch.float64)
    given = None
    if "num_classes" in options:
        given = torch.tensor([0, 2, -1, 1])
    elif "context_features" in options:
        given = torch.randn(4, 2, dtype=torch.float64)
    flow.initialize(images, given, noise).eval()
    expected = log_prob_by_autograd(flow, images, given, noise)
    torch.testing.assert_close(flow.log_prob(images, given, noise), expected, atol=1e-8, rtol=0)


def test_image_without_a_label_has_the_mean_of_all_classes_vectors():
    flow = small(num_classes=3).double().eval()
    blocks = [part for part in flow.modules() if isinstance(part, CausalPatchTransform)]
    images, noise = pixels(5), torch.rand(5, *SHAPE, dtype=torch.float64)
    found = flow.log_prob(images, torch.full((5,), -1), noise)
    for block in blocks:
        condition = block.network.condition
        condition.weight.data[:, 0] = condition.weight.mean(1)
    assert torch.allclose(found, flow.log_prob(images, torch.zeros(5).long(), noise))
    with pytest.raises(ValueError, match="labels .B., integers from -1 to 2, got labels from 0 to"):
        flow.log_prob(images, torch.tensor([0, 3, 0, 0, 0]), noise)


@plain
def test_training_is_that_of_a_loop_by_hand():
    torch.manual_seed(0)
    flow, data = tarflow(**TINY, actnorm=True), noise_data()
    torch.manual_seed(0)
    twin = tarflow(**TINY, actnorm=True)
    recipe = Recipe(1e-2, steps=4, batch_size=10)
    train(FlowModule(flow, recipe, seed=5), data)
    train_by_hand(twin, data, recipe, 5)
    assert_same(flow, twin)


def test_backward_pass_that_computes_again_has_the_same_gradients():
    images, noise = pixels(5), torch.rand(5, *SHAPE)
    gradients = []
    for memory in ("full", "checkpoint"):
        torch.manual_seed(1)
        flow = small(memory=memory)
        flow.log_prob(images, noise=noise).sum().backward()
        gradients.append([parameter.grad for parameter in flow.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients))


def test_weights_and_samples_are_read_back(tmp_path):
    flow = small(num_classes=3, num_layers=[1, 2], base=StudentT).eval()
    save_weights(flow, tmp_path / "weights.safetensors")
    again = load_weights(tmp_path / "weights.safetensors")
    assert_same(flow, again)
    assert again.architecture == flow.architecture
    torch.manual_seed(2)
    first = flow.sample(3, torch.tensor([0, -1]))
    torch.manual_seed(2)
    assert torch.equal(first, again.sample(3, torch.tensor([0, -1])))
    assert first.shape == (2, 3, *SHAPE)


def test_fit_resumes_and_reports(tmp_path):
    data = noise_data(classes=3)
    torch.manual_seed(0)
    module = FlowModule(
        tarflow(**TINY, num_classes=3), Recipe(steps=3, batch_size=10), conditional=True
    )
    results = fit_quietly(module, data, tmp_path)
    assert results["name"] == "TarFlow" and results["round_trip_error"] < 1e-4
    module = FlowModule(
        tarflow(**TINY, num_classes=3), Recipe(steps=3, batch_size=10), conditional=True
    )
    resumed = fit_quietly(module, data, tmp_path, resume=True)
    assert resumed["bits_per_dim"] == results["bits_per_dim"]


@pytest.mark.parametrize("convert", [to_zuko, to_normflows])
def test_other_libraries_get_the_same_density(convert):
    flow = small(levels=None).eval()
    values = torch.randn(4, *SHAPE)
    converted = convert(flow)
    found = converted().log_prob(values) if convert is to_zuko else converted.log_prob(values)
    assert torch.allclose(found, flow.log_prob(values), atol=1e-4)


@pytest.mark.slow
def test_command_trains_and_evaluates_one(tmp_path):
    arguments = ["--model=nflows_mixer.tarflow", "--model.patch_size=2", "--recipe.steps=2"]
    arguments += ["--model.hidden_features=16", "--model.num_layers=1", "--conditional=true"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    results = run(["train", *arguments, "--out", str(tmp_path / "run")])
    assert results["family"] == "tarflow" and (tmp_path / "run/samples.png").exists()
    out = ["--out", str(tmp_path / "evaluation"), "--data=digits"]
    out += ["--draws=1", "--images=20"]
    report = run(["evaluate", "--weights", str(tmp_path / "run/weights.safetensors"), *out])
    assert math.isfinite(report["bits_per_dim"]["mean"])


def test_causal_patches_stand_between_mixer_layers():
    flow = mixerflow(
        image_shape=SHAPE,
        patch_size=2,
        levels=17,
        num_layers=2,
        num_classes=3,
        local_flow=lambda shape, index, context_features: causal_patch_flow(
            shape, 3, 8, 1, actnorm=True, index=index, context_features=context_features
        ),
    )
    blocks = [part for part in flow.modules() if isinstance(part, CausalPatchTransform)]
    assert [block.reverse for block in blocks] == [False, True]
    images, labels = pixels(20), torch.arange(20) % 3
    moved(flow.initialize(images, labels), 0.02).eval()
    values = flow.dequantize_mid(images, labels)
    back, _ = flow._transform.inverse(*flow_latents(flow, values, labels))
    assert torch.allclose(back, values, atol=1e-3)


def flow_latents(flow, values, labels):
    embedded = flow._embedding_net(labels)
    return flow._transform(values, embedded)[0], embedded


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory": "constant"}, "memory to be one of 'full', 'checkpoint', got 'constant'"),
        ({"num_layers": [1]}, "num_layers as one number, or one for each of 2 blocks, got .1."),
        ({"num_layers": 0}, "num_layers to be a positive integer, got 0"),
        ({"num_classes": 3, "context_features": 4}, "num_classes or context_features, got both"),
        ({"patch_size": 4}, "a patch height that divides"),
        ({"patch_size": 6}, "two tokens or more, got 1"),
        ({"base": 3}, "expected a base, got 3"),
        ({"scale": "cube"}, "scale to be one of"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tarflow(**SMALL | options)


def test_labels_are_unit_vectors():
    net = OneHotClasses(3)
    assert net(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.allclose(net(torch.tensor([-1])), torch.full((1, 3), 1 / 3))
    assert not list(net.parameters())
    for labels in (torch.tensor([-2]), torch.tensor([0.5]), torch.tensor([[1]])):
        with pytest.raises(ValueError, match="OneHotClasses: expected labels"):
            net(labels)
