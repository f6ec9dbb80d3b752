"""The command ``nflows-mixer``: flags, files, presets, and messages that say what to do."""

import contextlib
import functools
import io
import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from nflows_mixer import cli
from nflows_mixer.cli import automatic_pixels, build_flow, build_parser, factory_of, run
from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.flows import (
    DENSEFLOW_PRESETS,
    JET_PRESETS,
    MIXERFLOW_PRESETS,
    TARFLOW_PRESETS,
    Pixels,
    grow,
    load_weights,
    mixerflow,
    save_weights,
)
from nflows_mixer.flows.pixels import BACKGROUND
from nflows_mixer.nn import DenseAttentionConditioner
from nflows_mixer.training import Recipe
from nflows_mixer.training.presets import preset_names
from nflows_mixer.training.run_folder import prepare
from nflows_mixer.transforms import AffineCoupling
from nflows_mixer.transforms.reversible import COMPILES
from tests.helpers import size
from tests.training import QUIET_COMMAND

MODEL = ["--model.num_layers=1", "--model.num_flow_layers=1", "--model.hidden_features=8"]
RUN = ["--recipe.steps=2", "--recipe.batch_size=20", "--evaluation_images=8", "--validate_every=9"]
RUN += QUIET_COMMAND
QUICK = ["train", *MODEL, *RUN]
DENSE = ["train", "--config=denseflow-digits", "--model.modules=[1,1]", "--model.noise_channels=4"]
DENSE += ["--model.conditioner.hidden_channels=8", *RUN]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of runs that others start from: of a MixerFlow, and of a DenseFlow."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--seed=3", "--conditional=true", "--recipe.betas=[0.8, 0.9]", "--shuffle=global"]
    with contextlib.redirect_stdout(io.StringIO()):
        run([*QUICK, *flags, "--out", str(folder / "mixer")])
        run([*DENSE, "--recipe.flip=true", "--out", str(folder / "dense")])
    return folder


@pytest.fixture
def unfinished(monkeypatch):
    """Stop where training would start; the arguments that ``fit`` was given."""
    given = []

    @functools.wraps(cli.fit)  # whose signature the command reads
    def fit(module, data, out, **arguments):
        given.append({"module": module, "data": data, "out": out, **arguments})
        return {}

    monkeypatch.setattr(cli, "fit", fit)
    return given


def message(capsys, *arguments):
    """What a user sees of a command that ends with an error; never a traceback."""
    with pytest.raises(SystemExit) as caught:
        run([str(argument) for argument in arguments])
    assert caught.value.code not in (0, None)
    printed = capsys.readouterr().err
    return caught.value.code if isinstance(caught.value.code, str) else printed


def parsed(*arguments):
    return build_parser().parse_args(["train", *map(str, arguments)]).train


def built(*arguments, levels=256):
    """The flow that a command would train on images of 8 x 8 without a dark background."""
    part = ImageDataset(torch.randint(1, levels, (40, 1, 8, 8), dtype=torch.uint8))
    return build_flow(parsed(*arguments).model, ImageData("bright", part, part, None), False)


# The same run, said in several ways.


def test_run_is_that_of_the_configuration_it_leaves_and_can_be_resumed(trained, tmp_path):
    first = json.loads((trained / "mixer/results.json").read_text())
    assert first["seed"] == 3 and first["conditional"] and first["shuffle"]["mode"] == "global"
    assert first["recipe"]["betas"] == [0.8, 0.9] and first["steps"] == 2
    assert first["architecture"]["num_classes"] == 10
    left = ["train", "--config", str(trained / "mixer/config.yaml"), "--out", str(tmp_path)]
    second = run(left)
    third = run([*left, "--resume"])
    measured = {"train_seconds", "train_cpu_seconds", "images_per_second", "peak_memory_mb"}
    reports = [{k: v for k, v in r.items() if k not in measured} for r in (first, second, third)]
    assert reports[0] == reports[1] == reports[2]
    assert json.loads((tmp_path / "results.json").read_text()) == third
    with pytest.raises(SystemExit, match="recipe.batch_size: 20 there, 10 now"):
        run([*left, "--resume", "--recipe.batch_size=10"])


def test_factory_with_a_factory_as_default_is_kept_as_it_is_read_back(unfinished, tmp_path):
    bound = "--model.channel_flow=nflows_mixer.transforms.AffineCoupling"
    words = ["train", "--out", str(tmp_path / "run")]
    run([*words, "--model.num_layers=1", bound, "--model.channel_flow.scale=tanh"])
    kept = tmp_path / "kept.yaml"
    kept.write_text(yaml.safe_dump({"model": unfinished[0]["facts"]["model"]}))
    run([*words, "--config", str(kept)])
    assert unfinished[0]["facts"]["model"] == unfinished[1]["facts"]["model"]


def test_model_whose_arguments_have_no_text_is_trained_as_it_was_said(unfinished, tmp_path):
    def bound(*words):
        run(["train", "--out", str(tmp_path / "run"), "--model.num_layers=1", *words])
        return unfinished[-1]["module"].flow.dequantization

    name = "nflows_mixer.transforms.VariationalDequantization"
    learned = bound(f"--model.pixels.dequantization={name}")
    assert type(learned).__name__ == "VariationalDequantization"


def test_preset_takes_nothing_of_the_model_that_is_trained_where_none_is_named(
    unfinished, tmp_path
):
    images = ["--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "run")]
    np.savez(tmp_path / "x.npz", images=np.ones((50, 8, 8), np.uint8))
    run(["train", "--model.preset=mnist", "--model.patch_size=2", "--model.num_layers=2", *images])
    module = unfinished[0]["module"]
    assert size(module.flow) == size(
        mixerflow("mnist", image_shape=(1, 8, 8), patch_size=2, num_layers=2)
    )
    assert module.recipe.steps == Recipe.from_preset("digits").steps


def test_denseflow_run_is_that_of_the_configuration_it_leaves(trained, tmp_path):
    first = json.loads((trained / "dense/results.json").read_text())
    assert (first["family"], first["steps"], first["recipe"]["flip"]) == ("denseflow", 2, True)
    assert first["recipe"]["optimizer"] == "adamax" and first["round_trip_error"] < 1e-3
    flow = load_weights(trained / "dense/weights.safetensors")
    assert flow.architecture.arguments["units"] == (2, 1)
    left = ["train", "--config", str(trained / "dense/config.yaml"), "--out", str(tmp_path)]
    assert run(left)["bits_per_dim"] == first["bits_per_dim"]


def test_flag_after_a_file_wins_and_what_neither_says_is_the_default(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 3\nrecipe: {steps: 7}\n")
    config = parsed("--config", tmp_path / "run.yaml", "--recipe.steps=9")
    assert (config.seed, config.recipe.steps, config.recipe.learning_rate) == (3, 9, 3e-3)
    assert config.model.init_args.num_layers == 3 and config.data == "digits"


def test_model_of_a_file_is_a_whole_one(tmp_path):
    """Nothing of the small default flow is left in it."""
    model = "model: {class_path: nflows_mixer.mixerflow, init_args: {patch_size: 4}}"
    (tmp_path / "run.yaml").write_text(model)
    given = factory_of(parsed("--config", tmp_path / "run.yaml").model)
    assert given.keywords == {"patch_size": 4}


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--resume"], (True, False)),
        (["--overwrite", "--seed=3"], (False, True)),
        ([], (False, False)),
    ],
)
def test_bare_flags_are_true(words, expected):
    config = parsed(*words)
    assert (config.resume, config.overwrite) == expected


# Presets.

OTHERS = [*TARFLOW_PRESETS, *JET_PRESETS]


def test_every_model_of_the_papers_has_a_configuration():
    assert {*MIXERFLOW_PRESETS, *DENSEFLOW_PRESETS, *OTHERS} == set(preset_names()) - {
        "digits",
        "denseflow-digits",
    }


@pytest.mark.parametrize("preset", [*MIXERFLOW_PRESETS, *DENSEFLOW_PRESETS, *OTHERS])
def test_preset_names_its_architecture_and_holds_its_recipe(preset):
    config = parsed("--config", preset, "--recipe.steps=600000")
    kinds = {"mixerflow": MIXERFLOW_PRESETS, "denseflow": DENSEFLOW_PRESETS}
    kinds |= {"tarflow": TARFLOW_PRESETS, "jet": JET_PRESETS}
    (kind,) = [kind for kind, presets in kinds.items() if preset in presets]
    assert config.model.class_path == f"nflows_mixer.{kind}"
    assert factory_of(config.model).keywords["preset"] == preset
    expected = {**vars(Recipe.from_preset(preset)), "steps": 600_000}
    assert {**vars(config.recipe), "betas": tuple(config.recipe.betas)} == expected
    assert (config.recipe.optimizer == "adamax") == (kind == "denseflow")


def test_default_is_the_preset_of_digits_with_the_images_left_open():
    torch.manual_seed(0)
    of_preset = mixerflow("digits-local", pixels=Pixels())
    flow = built("--config=digits")
    assert size(of_preset) == size(flow)
    assert vars(Recipe.from_preset("digits")) == vars(Recipe.from_preset("digits-local"))
    both = of_preset.architecture.arguments, flow.architecture.arguments
    of_images = {"pixels": None, "levels": None}
    written_out = "num_steps=3, "  # the default, which the command leaves out
    assert str(both[0] | of_images).replace(written_out, "") == str(both[1] | of_images)


def test_values_of_table_8():
    """A few numbers of the paper, as it has them."""
    galaxy, anime = (Recipe.from_preset(name) for name in ("galaxy32", "animefaces"))
    assert (galaxy.steps, galaxy.learning_rate, galaxy.batch_size) == (50_000, 1e-3, 512)
    assert anime.betas == (0.9, 0.99) and anime.gradient_clip == 5.0
    assert (anime.steps, anime.learning_rate, anime.batch_size) == (400_000, 5e-4, 200)


def test_preset_is_changed_by_arguments():
    flow = built("--config=galaxy32", "--model.num_layers=2", "--model.patch_size=2")
    arguments = flow.architecture.arguments
    assert arguments["hidden_features"] == 64 and arguments["num_layers"] == 2
    assert arguments["image_shape"] == (1, 8, 8) and arguments["patch_size"] == 2


def test_small_denseflow_fits_its_images():
    flow = built("--config=denseflow-digits")
    assert flow.architecture.builder == "denseflow"
    assert 100_000 < sum(p.numel() for p in flow.parameters()) < 300_000
    assert flow._transform.latent_shapes["final"][1:] == (2, 2)


def test_dark_background_puts_a_logit_before_a_mixerflow_that_says_nothing_of_its_pixels():
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    part = ImageDataset(images)
    data = ImageData("dark", part, part, None, levels=17)
    others = (["--model.pixels.logit=0.1"], ["--config=mnist"], ["--config=denseflow-digits"])
    assert automatic_pixels(parsed().model, data) == BACKGROUND
    odd = replace(data, train=ImageDataset(images[..., 1:]))
    assert automatic_pixels(parsed().model, odd) == Pixels(logit=1e-3)
    assert [automatic_pixels(parsed(*each).model, data) for each in others] == [None] * 3


# Factories by their dotted names.


def test_factories_are_named_with_their_arguments():
    import zuko

    flags = ["--model.patch_flow=zuko.flows.NSF", "--model.patch_flow.bins=4"]
    flags += ["--model.channel_flow=nflows_mixer.transforms.AffineCoupling"]
    flags += ["--model.channel_flow.scale=tanh", "--model.linear=null"]
    given = built(*flags, "--model.num_layers=1").architecture
    patch_flow, channel_flow = given.arguments["patch_flow"], given.arguments["channel_flow"]
    assert patch_flow.func is zuko.flows.NSF and patch_flow.keywords["bins"] == 4
    assert channel_flow.func is AffineCoupling and channel_flow.keywords == {"scale": "tanh"}
    assert given.arguments["linear"] is None and given.as_data() is not None


def test_conditioner_is_a_factory_too():
    given = factory_of(parsed("--config=denseflow-digits", "--model.norm=batch").model)
    assert given.keywords["conditioner"].func is DenseAttentionConditioner
    assert given.keywords["conditioner"].keywords["hidden_channels"] == 24
    assert given.keywords["norm"] == "batch"


# Errors.


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config=cifar11"], ["cifar11"]),
        (["--stepz=3"], ["--stepz"]),
        (["--recipe.steps=many"], ["recipe.steps", "int", "many"]),
        (["--recipe.steps=-1"], ["0 steps or more", "-1"]),
        (["--shuffle=all"], ["shuffle", "global", "local", "all"]),
        (["--trainer.precision=16-mixed"], ["bf16-mixed", "16-mixed"]),
        (["--model.num_layerz=3"], ["num_layerz"]),
        (["--model.num_layers=many"], ["num_layers", "int", "many"]),
        (["--model.patch_flow=zuko.flows.NSFF"], ["patch_flow", "NSFF"]),
        (["--model.patch_size=3"], ["patch", "8, got 3"]),
        (["--recipe.layer_rates={'*.none': 0.5}"], ["layer_rates", "*.none"]),
        (["--seed=-1"], ["seed from 0", "-1"]),
        (["--trainer.accumulate_grad_batches=3"], ["evenly in 3 parts", "20"]),
        (["--trainer.devices=0"], ["devices"]),
        (["--data=nowhere"], ["'digits'", "'nowhere'"]),
        (["--start_from=none.safetensors"], ["none.safetensors"]),
        (["--recipe.flip=true", "--shuffle=global"], ["flip", "shuffled pixels"]),
    ],
    ids=lambda value: value[0],
)
def test_error_says_what_was_expected_without_a_traceback(tmp_path, capsys, arguments, said):
    text = message(capsys, *QUICK, *arguments, "--out", tmp_path)
    for words in said:
        assert words in text
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("content, said", [("modell: {a: 1}", "modell"), ("a: [1\n", "config")])
def test_file_that_is_no_configuration_is_refused(tmp_path, capsys, content, said):
    (tmp_path / "run.yaml").write_text(content)
    assert said in message(capsys, "train", "--config", tmp_path / "run.yaml")


def test_conditional_needs_labels(tmp_path, capsys):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    flags = ["--data", tmp_path / "bare.npz", "--conditional=true", "--out", tmp_path / "out"]
    text = message(capsys, *QUICK, *flags)
    assert "--conditional: expected images with labels" in text and "leave it out" in text


def test_python_m_ends_with_the_message(monkeypatch):
    """A text as SystemExit's code is printed, and the exit status is 1."""
    monkeypatch.setattr(sys, "argv", ["nflows-mixer", "train", "--recipe.steps=-1"])
    with pytest.raises(SystemExit, match="^error: Recipe: expected 0 steps or more, got -1; give"):
        runpy.run_module("nflows_mixer", run_name="__main__")


# Starting from weights.


def test_same_and_fewer_layers_start_from_weights(tmp_path, trained, unfinished):
    source = str(trained / "mixer/weights.safetensors")
    flow = load_weights(source)
    more = [f"--model.compile={str(COMPILES).lower()}", "--model.memory=constant"]
    for layers, options in ((1, []), (3, more)):  # the way to run is no part of the weights
        flags = [f"--model.num_layers={layers}", "--conditional=true", "--shuffle=global", *options]
        run([*QUICK, *flags, "--start_from", source, "--out", str(tmp_path)])
        started = unfinished[-1]["module"].flow
        assert started.architecture.arguments["num_layers"] == layers
        state = started.state_dict()
        assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())
        assert unfinished[-1]["facts"]["from"] == source


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--model.hidden_features=9"], "differs in hidden_features"),
        (["--model.base=nflows_mixer.distributions.StudentT"], "differs in base"),
        (["--conditional=false"], "differs in num_classes"),
        (["--model.num_layers=2", "--model.pixels.logit=0.1"], "differs in pixels"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, capsys, trained, flags, said):
    start = ["--start_from", trained / "mixer/weights.safetensors", "--shuffle=global"]
    text = message(capsys, *QUICK, *start, "--conditional=true", *flags, "--out", tmp_path)
    assert "--start_from: expected weights of this architecture" in text and said in text


def test_denseflow_starts_from_its_own_weights_alone(tmp_path, capsys, trained, unfinished):
    source = str(trained / "dense/weights.safetensors")
    start = ["--start_from", source, "--out", str(tmp_path)]
    run([*DENSE, "--model.memory=checkpoint", *start])
    state, flow = unfinished[0]["module"].flow.state_dict(), load_weights(source)
    assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())
    assert "one that differs in modules" in message(capsys, *DENSE, *start, "--model.modules=[2,1]")
    assert "weights of a mixerflow, got those of a denseflow" in message(capsys, *QUICK, *start)


def test_deeper_weights_are_refused(tmp_path, capsys, trained):
    deep = tmp_path / "deep.safetensors"
    save_weights(grow(load_weights(trained / "mixer/weights.safetensors"), 2), deep)
    text = message(capsys, *QUICK, "--conditional=true", "--start_from", deep)
    assert "fewer layers, got one that differs in num_layers" in text


# Processes.


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    """What a launcher sets in them; the first process has made the folder ready."""
    for name, number in (("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, number)
        assert prepare(tmp_path / "out", {"seed": 0}, False, False) is None
        assert not (tmp_path / "out").exists()
        monkeypatch.delenv(name)
    prepare(tmp_path / "out", {"seed": 0}, False, False)
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"seed": 0}


def test_configuration_that_a_run_leaves_does_not_say_where_or_how_it_was_started(trained):
    config = yaml.safe_load((trained / "mixer/config.yaml").read_text())
    assert not {"config", "out", "resume", "overwrite"} & set(config)
