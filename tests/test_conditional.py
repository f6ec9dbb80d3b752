"""Conditional flows: labels and vectors as context, through every layer."""

import pytest
import torch
from nflows.transforms.made import MADE
from torch import nn

from nflows_mixer.flows import mixerflow
from nflows_mixer.nn import LipschitzMLP, ResidualMLP
from nflows_mixer.transforms import (
    AdditiveCoupling,
    AffineCoupling,
    LULinear,
    RationalQuadraticCoupling,
    ResidualTransform,
    RLULinear,
    identity_maf,
)
from tests.helpers import expect, moved


def conditional(**options):
    torch.manual_seed(0)
    sizes = {"image_shape": (1, 4, 6), "patch_size": 2, "levels": 4, "num_layers": 2}
    sizes |= {"hidden_features": 8, "num_flow_layers": 2, "shift": None}
    flow = mixerflow(**{**sizes, **options})
    images = torch.randint(4, (60, 1, 4, 6), dtype=torch.uint8)
    context = torch.arange(60) % 3
    if options.get("num_classes") is None:
        context = torch.randn(60, options["context_features"])
    flow = moved(flow.initialize(images, context), 0.05).double().eval()
    return flow, images, context


@pytest.mark.parametrize(
    "kind",
    [
        AffineCoupling,
        AdditiveCoupling,
        RationalQuadraticCoupling,
        identity_maf,
        ResidualTransform,
    ],
)
def test_context_reaches_every_flow_of_every_layer(kind):
    options = {"linear": RLULinear} if kind is identity_maf else {}
    flow, images, labels = conditional(
        num_classes=3, channel_flow=kind, patch_flow=kind, shift=None, **options
    )
    noise = torch.full((2, 1, 4, 6), 0.5)
    pair = images[:1].expand(2, -1, -1, -1)
    likelihoods = flow.log_prob(pair, torch.tensor([0, 2]), noise=noise)
    assert likelihoods[0] != likelihoods[1]
    flow.zero_grad()
    flow.log_prob(images, labels).sum().backward()
    read = [slopes.norm().item() for slopes in context_gradients(flow)]
    assert len(read) == 2 * 2 * 2 and min(read) > 0
    assert flow._embedding_net.weight.grad.abs().min() > 0


def context_gradients(flow):
    """Of each row flow's network, the gradient of the weights that read the label's vector."""
    for part in flow.modules():
        if isinstance(part, MADE):
            yield part.context_layer.weight.grad
        elif isinstance(part, ResidualMLP):
            yield part.initial.weight.grad[:, -16:]
        elif isinstance(part, LipschitzMLP):
            yield part.hidden[0].weight.grad[:, -16:]


def test_likelihood_of_labels_is_that_of_their_vectors():
    flow, images, labels = conditional(num_classes=3, context_features=5)
    vectors = flow._embedding_net(labels)
    noise = torch.rand(60, 1, 4, 6)
    got = flow.log_prob(images, labels, noise=noise.double())
    embedding, flow._embedding_net = flow._embedding_net, nn.Identity()
    expected = flow.log_prob(images, vectors, noise=noise.double())
    flow._embedding_net = embedding
    torch.testing.assert_close(got, expected)


def test_samples_of_each_class():
    flow, _, _ = conditional(num_classes=3)
    torch.manual_seed(1)
    samples = flow.sample(4, torch.tensor([2, 0]))
    assert samples.shape == (2, 4, 1, 4, 6) and samples.dtype == torch.uint8
    torch.manual_seed(1)
    in_chunks = flow.sample(4, torch.tensor([2, 0]), batch_size=3)
    assert torch.equal(samples, in_chunks)
    # The same latents, other labels: other images.
    torch.manual_seed(1)
    assert not torch.equal(samples, flow.sample(4, torch.tensor([1, 1])))


def test_layers_that_take_no_context_are_told_of():
    sizes = {"image_shape": (1, 4, 4), "patch_size": 2, "num_layers": 2, "shift": None}
    with pytest.warns(UserWarning, match="8 of 16 FlowLayers take no context"):
        mixerflow(num_classes=3, patch_flow=LULinear, **sizes)


@pytest.mark.parametrize(
    "context, pattern",
    [
        (None, "class labels, 0 to 2, got None"),
        (torch.tensor([0, 1]), r"each of 60 images, got \[2\]"),
        (torch.tensor(1), r"each of 60 images, got \[\]"),
        ([0] * 60, "context as a tensor, got list"),
        (torch.full((60,), 3), "integers from 0 to 2, got labels from 3 to 3"),
        (torch.full((60,), -1), "got labels from -1 to -1"),
        (torch.zeros(60), "torch.float64 of shape"),
        (torch.zeros(60, 3, dtype=torch.long), r"shape \[60, 3\]"),
    ],
)
def test_wrong_labels(context, pattern):
    flow, images, _ = conditional(num_classes=3)
    with expect(ValueError, pattern):
        flow.log_prob(images, context)


@pytest.mark.parametrize("labels", [torch.tensor(1), torch.zeros(0, dtype=torch.long)])
def test_samples_of_no_class(labels):
    flow, _, _ = conditional(num_classes=3)
    with expect(ValueError, r"row.* got \[0?\]"):
        flow.sample(2, labels)


def test_labels_as_uint8_and_saving():
    flow, images, labels = conditional(num_classes=3)
    noise = torch.zeros(60, 1, 4, 6)
    got = flow.log_prob(images, labels.to(torch.uint8), noise=noise)
    again, _, _ = conditional(num_classes=3)
    again.load_state_dict(flow.state_dict())
    assert torch.equal(again.log_prob(images, labels, noise=noise), got)


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"context_features": -1}])
def test_sizes(options):
    with expect(ValueError, "to be a positive integer"):
        mixerflow(image_shape=(1, 4, 4), patch_size=2, **options)
