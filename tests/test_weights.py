"""Weights as files, and deeper flows from trained ones."""

import json
import os
from functools import partial

import pytest
import torch
import zuko
from nflows.transforms import AffineCouplingTransform
from torch import nn

from nflows_mixer import __version__, _files
from nflows_mixer.distributions import NormalMixture, StudentT
from nflows_mixer.flows import (
    ImageFlow,
    Pixels,
    grow,
    load_weights,
    read_metadata,
    save_weights,
)
from nflows_mixer.flows.pixels import BACKGROUND
from nflows_mixer.flows.weights import save_state
from nflows_mixer.nn import MLP, learned_positions
from nflows_mixer.training import FlowModule, Recipe
from nflows_mixer.transforms import (
    ActNorm,
    AffineCoupling,
    KroneckerLinear,
    PatchTransform,
    PixelScaling,
    RationalQuadraticCoupling,
    ResidualTransform,
    RLULinear,
    identity_maf,
)
from tests import helpers
from tests.helpers import moved
from tests.training import SHAPE, assert_same, noise_data, plain, tiny, tiny_denseflow, train

pixels = partial(helpers.pixels, shape=SHAPE)


def build(**options):
    return tiny(**{"num_flow_layers": 2} | options)


def context_for(options, count):
    if classes := options.get("num_classes"):
        return torch.randint(classes, (count,))
    if features := options.get("context_features"):
        return torch.randn(count, features)
    return None


def trained(**options):
    """A flow with weights that are nowhere special."""
    flow = build(**options)
    shape = options.get("image_shape", SHAPE)
    flow.initialize(pixels(40, shape=shape), context_for(options, 40))
    return moved(flow, 0.05).eval()


SPLINES = partial(RationalQuadraticCoupling, num_bins=4)
BAND = partial(PatchTransform, patch_size=2, layout="band")
KINDS = [
    {},
    {"num_classes": 3},
    {"context_features": 2},
    {"pixels": Pixels(squeeze=2), "patch_size": 1},
    {"channel_flow": identity_maf, "norm": "batch"},
    {"patch_flow": SPLINES, "positions": partial(learned_positions, features=3)},
    {"channel_flow": ResidualTransform},
    {"linear": RLULinear},
    {"linear": KroneckerLinear, "conditioner": partial(MLP, num_layers=1)},
    {"image_shape": (1, 8, 8), "shift": 1},
    {"base": NormalMixture, "pixels": Pixels(logit=1e-3)},
    {"pixels": BACKGROUND},
]
NAMES = [",".join(kind) or "plain" for kind in KINDS]
LISTS = {"num_layers": 2, "patch_size": [BAND, (1, 2)], "shift": [None, None]}


# Files.


def trained_denseflow(**options):
    flow = tiny_denseflow(**options)
    flow.initialize(pixels(40), context_for(options, 40))
    return moved(flow, 0.05).eval()


DENSE = [
    {},
    {"num_classes": 3},
    {"context_features": 2},
    {"conditioner": {"attention": False}, "preconditioning": "previous", "swap": False},
    {"augmentation": "input", "preconditioning": "learned", "noise_channels": 4},
    {"dequantization": "variational", "noise_channels": 4, "base": StudentT},
]


@pytest.mark.parametrize(
    "make, options",
    [
        *((trained, kind) for kind in [*KINDS, LISTS]),
        *((trained_denseflow, kind) for kind in DENSE),
    ],
    ids=[*NAMES, "lists", *("denseflow," + ",".join(kind) for kind in DENSE)],
)
def test_file_gives_back_the_flow_to_the_last_bit(tmp_path, make, options):
    flow, path = make(**options), tmp_path / "flow.safetensors"
    save_weights(flow, path, {"data": "noise"})
    assert read_metadata(path)["builder"] == flow.architecture.builder
    again = load_weights(path)
    assert again.architecture == flow.architecture
    assert_same(again, flow)
    assert [v.dtype for v in again.state_dict().values()] == [
        v.dtype for v in flow.state_dict().values()
    ]
    images, context = pixels(5, shape=flow.image_shape), context_for(options, 5)
    noise = flow.draw_noise(0, 1, torch.arange(5))
    again.eval()
    assert torch.equal(*(each.log_prob(images, context, noise) for each in (again, flow)))
    assert load_weights(path, again) is again


@pytest.mark.parametrize(
    "make, option", [(trained, "positions"), (trained_denseflow, "swap")], ids=["mixer", "dense"]
)
def test_file_of_before_an_option_was_added_has_its_default(tmp_path, make, option):
    flow, path = make(), tmp_path / "flow.safetensors"
    save_weights(flow, path)
    facts = read_metadata(path)
    arguments = json.loads(facts["architecture"])
    del arguments[option]
    save_state(flow, path, {**facts, "architecture": json.dumps(arguments)})
    assert load_weights(path).architecture == flow.architecture


@pytest.mark.parametrize(
    "flow",
    [tiny(levels=None), tiny_denseflow(levels=None, growth=0, dequantization=None)],
    ids=["mixerflow", "denseflow"],
)
def test_file_of_a_flow_on_real_images_keeps_that_it_is_one(tmp_path, flow):
    path, images = tmp_path / "flow.safetensors", torch.randn(30, *SHAPE)
    save_weights(flow.initialize(images), path)
    again = load_weights(path)
    assert again.architecture == flow.architecture and again.dequantization.levels is None
    assert torch.equal(again.eval().log_prob(images), flow.eval().log_prob(images))
    if flow.architecture.builder == "mixerflow":
        deeper = grow(flow, 2).eval()
        torch.testing.assert_close(deeper.log_prob(images), flow.log_prob(images))


def test_file_of_the_layout_before_is_refused_with_its_version(tmp_path):
    path = tmp_path / "flow.safetensors"
    save_state(trained(), path, {"nflows_mixer": "0.1.0", "mixerflow": "{}"})
    for flow in (None, build()):
        with pytest.raises(ValueError, match="layout 2, got one of nflows-mixer 0.1.0"):
            load_weights(path, flow)


class Danger:
    """Makes a mark where it is touched."""

    touched = False

    def __init__(self, *_, **__):
        Danger.touched = True


def rewritten(flow, path, **changes):
    """A file with the flow's weights, and with these arguments."""
    save_weights(flow, path)
    facts = read_metadata(path)
    arguments = {**json.loads(facts["architecture"]), **changes}
    save_state(flow, path, {**facts, "architecture": json.dumps(arguments)})
    return path


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "tests.test_weights.Danger",
        "nflows_mixer._files.os.system",
        "nflows_mixer._files.replace_file",
        "nflows_mixer.flows.save_weights",
        "nflows_mixer.flows.weights.save_state",
        "nflows_mixer.transforms.coupling.call_factory",
        "nflows_mixer.transforms.shift.torch.load",
        "nflows_mixer.distributions.mismatch",
        "nflows_mixer.distributions.torch",
        "nflows_mixer.nn.__builtins__",
        "nflows_mixer.transforms.AffineCoupling.__init__",
        "nflows.utils.torchutils.np.load",
        "nflows.transforms.base",
        "zuko.flows.torch.load",
        "zuko.flows.nothing",
        "AffineCoupling",
        "",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_file_that_names_other_code_is_refused_and_nothing_of_it_runs(tmp_path, name, nested):
    value = {"name": name, "keywords": {"command": f"touch {tmp_path / 'mark'}"}}
    if nested:
        value = {
            "name": "nflows_mixer.transforms.AffineCoupling",
            "keywords": {"conditioner": value},
        }
    flow = trained()
    path = rewritten(flow, tmp_path / "flow.safetensors", channel_flow=value)
    with pytest.raises(
        ValueError, match=r"(?s)flow.safetensors: expected .*load_weights\(path, flow"
    ):
        load_weights(path)
    assert not Danger.touched and os.listdir(tmp_path) == ["flow.safetensors"]


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_file_whose_architecture_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "flow.safetensors"
    save_weights(trained(), path)
    save_state(trained(), path, {**read_metadata(path), "architecture": text})
    with pytest.raises(ValueError, match="flow.safetensors: expected arguments of mixerflow or"):
        load_weights(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_flow": {"name": "zuko.flows.NSF", "keywords": [1]}},
        {"channel_flow": {"call": "zuko.flows.NSF"}},
        {"channel_flow": {"name": "zuko.flows.NSF", "keywords": {"nothing": 1}}},
        {"pixels": {"pixels": {"nothing": 1}}},
        {"pixels": {"pixels": None}},
        {"nothing": 1},
        {"num_layers": "many"},
        {"linear": "lu"},
    ],
    ids=str,
)
def test_file_of_broken_arguments_is_refused(tmp_path, changes):
    path = rewritten(trained(), tmp_path / "flow.safetensors", **changes)
    with pytest.raises(ValueError, match="expected"):
        load_weights(path)


def test_file_has_the_names_of_flows_of_other_libraries(tmp_path):
    spline = partial(zuko.flows.NSF, transforms=1, hidden_features=(8,), bins=3)
    flow, path = trained(channel_flow=spline), tmp_path / "flow.safetensors"
    save_weights(flow, path)
    assert json.loads(read_metadata(path)["architecture"])["channel_flow"] == {
        "name": "zuko.flows.NSF",
        "keywords": {"transforms": 1, "hidden_features": [8], "bins": 3},
    }
    assert_same_map(load_weights(path), flow, rtol=0, atol=0)


def test_double_precision_comes_back_to_the_last_bit(tmp_path):
    flow = trained().double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 1e-3 * torch.rand_like(parameter)
    save_weights(flow, tmp_path / "flow.safetensors")
    assert_same(load_weights(tmp_path / "flow.safetensors"), flow)


def test_metadata_say_what_the_flow_is(tmp_path):
    path = tmp_path / "flow.safetensors"
    save_weights(trained(num_layers=2), path, {"data": "noise", "step": "7"})
    facts = read_metadata(path)
    assert (facts["data"], facts["step"], facts["nflows_mixer"]) == ("noise", "7", __version__)
    assert (facts["builder"], facts["layout"]) == ("mixerflow", "2")
    arguments = json.loads(facts["architecture"])
    assert (arguments["num_layers"], arguments["levels"]) == (2, 17)


def test_flow_with_a_factory_is_read_into_that_flow_alone(tmp_path):
    network = lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.Linear(4, o))  # noqa: E731
    options = {"conditioner": network, "hidden_features": None}
    flow, path = trained(**options), tmp_path / "flow.safetensors"
    save_weights(flow, path)
    assert "architecture" not in read_metadata(path)
    with pytest.raises(ValueError, match="expected the architecture in its metadata, got none; bu"):
        load_weights(path)
    other = build(**options)
    assert load_weights(path, other) is other
    assert_same_map(other, flow, rtol=0, atol=0)


def test_weights_of_another_flow_change_nothing(tmp_path):
    path = tmp_path / "flow.safetensors"
    save_weights(trained(), path)
    for options, problem in [
        ({"num_layers": 2}, "those of another: no _transform._transforms.3"),
        ({"pixels": Pixels(conv1x1=False)}, "no .* and .* more; build the flow as it was"),
        ({"hidden_features": 9}, r"of shape .*8.* and not .*9"),
    ]:
        flow = build(**options)
        before = {k: v.clone() for k, v in flow.state_dict().items()}
        with pytest.raises(ValueError, match=f"flow.safetensors: expected .*{problem}"):
            load_weights(path, flow)
        assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    deeper = tmp_path / "deeper.safetensors"
    save_weights(trained(num_layers=2), deeper)
    with pytest.raises(ValueError, match="those of another: an unknown _transform._transforms.3"):
        load_weights(deeper, build())


@pytest.mark.parametrize(
    "make, other",
    [
        (trained, partial(build, levels=32)),
        (trained, partial(build, channel_flow=partial(AffineCoupling, scale="sigmoid"))),
        (trained, partial(build, base=StudentT)),
        (trained, partial(build, pixels=Pixels(logit=0.01))),
        (trained_denseflow, partial(tiny_denseflow, {"tokens": "reshaped"})),
        (trained_denseflow, partial(tiny_denseflow, preconditioning="previous")),
        (trained_denseflow, build),
        (trained, tiny_denseflow),
    ],
)
def test_weights_of_another_map_are_refused_also_where_shapes_are_the_same(tmp_path, make, other):
    """The file says of what flow it is; the same numbers in another map are not its weights."""
    path = tmp_path / "flow.safetensors"
    save_weights(make(), path)
    with pytest.raises(ValueError, match="flow.safetensors: expected the weights of this flow"):
        load_weights(path, other())


@pytest.mark.parametrize("kept", [0, 5, 300, -8])
def test_file_that_was_cut_short_is_named(tmp_path, kept):
    path = tmp_path / "flow.safetensors"
    save_weights(trained(), path)
    path.write_bytes(path.read_bytes()[:kept])
    for read in (load_weights, read_metadata):
        with pytest.raises(ValueError, match="flow.safetensors: expected a whole safetensors file"):
            read(path)


def test_file_of_another_kind_and_no_file(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "flow.pt")
    with pytest.raises(ValueError, match="flow.pt: expected a whole safetensors file, got .*copy"):
        load_weights(tmp_path / "flow.pt")
    with pytest.raises(ValueError, match="none.safetensors: expected a safetensors file, got none"):
        load_weights(tmp_path / "none.safetensors")


def test_file_of_before_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "flow.safetensors"
    save_weights(trained(), path, {"run": "before"})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(_files.os, call, full)
            with pytest.raises(OSError, match="No space left"):
                save_weights(trained(), path, {"run": "after"})
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]
    save_weights(trained(), path, {"run": "after"})
    assert read_metadata(path)["run"] == "after"


# Growing.


@pytest.mark.parametrize("options", KINDS, ids=NAMES)
def test_grown_flow_is_the_same_map(options):
    flow = trained(**options)
    deeper = grow(flow, 3)
    assert deeper.architecture.arguments["num_layers"] == 3
    images = pixels(6, shape=flow.image_shape)
    context, noise = context_for(options, 6), flow.draw_noise(0, 0, torch.arange(6))
    with torch.no_grad():
        expected = flow.transform_and_log_prob(images, context, noise)
        got = deeper.transform_and_log_prob(images, context, noise)
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=1e-5)
    state = deeper.state_dict()
    for name, value in flow.state_dict().items():
        assert torch.equal(state[name], value), name
    own = {p.data_ptr() for p in flow.parameters()}
    assert not own & {p.data_ptr() for p in deeper.parameters()}
    assert len(state) > len(flow.state_dict())
    assert all(m.initialized for m in deeper.modules() if isinstance(m, ActNorm))


def assert_same_map(deeper, flow, **bounds):
    images, noise = pixels(5), torch.rand(5, *SHAPE, dtype=next(flow.parameters()).dtype)
    expected = flow.eval().log_prob(images, None, noise)
    torch.testing.assert_close(deeper.eval().log_prob(images, None, noise), expected, **bounds)


@pytest.mark.parametrize("training", [True, False])
def test_grown_flow_is_exact_in_double_precision_and_keeps_dtype_and_mode(training):
    flow = trained().double().train(training)
    deeper = grow(flow, 4)
    assert deeper.training == training
    assert {p.dtype for p in deeper.parameters()} == {torch.float64}
    assert_same_map(deeper, flow, rtol=0, atol=1e-10)


def test_flow_that_was_not_trained_yet_grows_and_initializes_the_old_layers():
    flow = build()
    deeper = grow(flow, 2)
    count = sum(isinstance(m, ActNorm) for m in flow.modules())
    flags = [m.initialized for m in deeper.modules() if isinstance(m, ActNorm)]
    assert flags == [False] * count + [True] * (len(flags) - count) and len(flags) > count


@plain
def test_grown_flow_trains_in_its_new_layers_too():
    flow = trained()
    deeper = grow(flow, 2).train()
    start = {name: p.clone() for name, p in deeper.named_parameters()}
    old = {name for name, _ in flow.named_parameters()}
    train(FlowModule(deeper, Recipe(1e-2, steps=3, batch_size=10)), noise_data())
    moved = {name for name, p in deeper.named_parameters() if not torch.equal(p, start[name])}
    assert moved & old and len(moved - old) > 10
    assert all(torch.isfinite(p).all() for p in deeper.parameters())


def test_lists_for_each_layer_are_given_in_their_new_length():
    flow = trained(num_layers=2, patch_size=[2, BAND])
    with pytest.raises(ValueError, match="one patch_size for each of 3 layers, got 2"):
        grow(flow, 3)
    assert_same_map(grow(flow, 3, patch_size=[2, BAND, (1, 2)]), flow)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": 32},
        {"base": StudentT},
        {"linear": None},
        {"patch_size": [(1, 2), (2, 2)]},
        {"shift": [1, None]},
        {"hidden_features": 9},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_change_of_the_layers_that_were_there_is_refused(changes):
    """Only then is the promise kept that the deeper flow starts as the same map."""
    with pytest.raises(ValueError, match="grow: expected"):
        grow(trained(), 2, **changes)


class Doubled(nn.Module):
    """A conditioner that starts away from zero."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, inputs, context=None):
        return self.linear(inputs)


def not_identity(features):
    mask = [i % 2 for i in range(features)]
    return AffineCouplingTransform(mask, Doubled)


def test_flow_that_does_not_start_at_the_identity_is_refused():
    flow = trained(channel_flow=not_identity)
    with pytest.raises(ValueError, match="expected new layers that are the identity, got some tha"):
        grow(flow, 2)


def test_odd_number_of_reversals_grows_by_pairs():
    flow = trained(linear=RLULinear, num_flow_layers=1)
    with pytest.raises(ValueError, match="an even number of reversals"):
        grow(flow, 2)
    assert_same_map(grow(flow, 3), flow)


@pytest.mark.parametrize("number", [1, 0, -1])
def test_flow_grows_by_a_layer_or_more(number):
    with pytest.raises(ValueError, match=f"grow: expected more than 1 layers, got {number}"):
        grow(trained(), number)


def test_flow_that_mixerflow_did_not_build_is_refused():
    for flow in (ImageFlow(PixelScaling(17), SHAPE, levels=17), tiny_denseflow()):
        with pytest.raises(ValueError, match="flow that mixerflow built, got one .*; add layers"):
            grow(flow, 2)
