"""The command line: flags, files, presets, and messages that say what to do."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nflows_mixer.flows import DENSEFLOW_PRESETS, PRESETS, load_weights
from nflows_mixer.flows.weights import family_of
from nflows_mixer.training import Recipe, run
from nflows_mixer.training.command import build_parser, main, train
from nflows_mixer.transforms.reversible import COMPILES

KEPT = Path(__file__).resolve().parents[1] / "examples" / "results"
MODEL = ["--model.num_layers=1", "--model.num_flow_layers=1", "--model.hidden_features=8"]
RUN = ["--recipe.steps=2", "--recipe.batch_size=20", "--evaluation_images=8"]
DENSE = ["--family=denseflow", "--model.units=[2,1]", "--model.modules=[1,1]"]
DENSE += ["--model.hidden_channels=8", "--model.dense_layers=1", "--model.dense_growth=4"]
DENSE += ["--model.attention_channels=4"]
QUICK = [*MODEL, *RUN, "--validate_every=9", "--accelerator=cpu", "--progress=false"]


QUICK_DENSE = [*DENSE, *QUICK[len(MODEL) :]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of runs that others start from: of a layer, of a list of them, of a DenseFlow."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.redirect_stdout(io.StringIO()):
        main([*QUICK, "--out", str(folder / "one")])
        main([*QUICK_DENSE, "--out", str(folder / "dense")])
        main([*QUICK, "--out", str(folder / "list"), "--model.layout=[band]"])
    return folder


@pytest.fixture
def unfinished(monkeypatch):
    """Stop where training would start; the arguments that ``fit`` was given."""
    given = []

    def fit(module, data, out, **arguments):
        given.append({"module": module, "data": data, "out": out, **arguments})
        return {}

    monkeypatch.setattr("nflows_mixer.training.command.fit", fit)
    return given


def message(capsys, *arguments):
    """What a user sees of a command that ends with an error; never a traceback."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code not in (0, None)
    printed = capsys.readouterr().err
    return caught.value.code if isinstance(caught.value.code, str) else printed


def printed_config(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--print_config"])
    assert caught.value.code == 0
    return capsys.readouterr().out


# The same run, said in several ways.


def test_flags_and_a_file_are_the_same_run(tmp_path):
    flags = ["--seed=3", "--conditional", "--recipe.betas=[0.8, 0.9]", "--shuffle=global"]
    first = main([*QUICK, *flags, "--out", str(tmp_path / "flags")])
    config = {
        "seed": 3,
        "conditional": True,
        "shuffle": "global",
        "model": {"num_layers": 1, "num_flow_layers": 1, "hidden_features": 8},
        "recipe": {"steps": 2, "batch_size": 20, "betas": [0.8, 0.9]},
        "evaluation_images": 8,
        "validate_every": 9,
        "accelerator": "cpu",
        "progress": False,
        "out": str(tmp_path / "file"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    second = main(["--config", str(tmp_path / "run.yaml")])
    # And the file that a run leaves behind.
    left = ["--config", str(tmp_path / "flags/config.yaml"), "--out", str(tmp_path / "again")]
    third = main(left)
    measured = {"train_seconds", "images_per_second", "peak_memory_mb"}
    reports = [{k: v for k, v in r.items() if k not in measured} for r in (first, second, third)]
    assert reports[0] == reports[1] == reports[2]
    assert first["seed"] == 3 and first["conditional"]
    assert first["recipe"]["betas"] == [0.8, 0.9] and first["recipe"]["steps"] == 2
    assert first["shuffle"]["mode"] == "global"
    assert first["model"]["num_classes"] == 10 and first["architecture"]["num_classes"] == 10
    assert json.loads((tmp_path / "again/results.json").read_text()) == third
    assert "pixels shuffled (global)" in (tmp_path / "flags/results.md").read_text()


def test_printed_configuration_is_one_that_gives_itself(tmp_path, capsys):
    flags = ["--preset=galaxy32", "--model.num_layers=2", "--recipe.layer_rates={'*.a': 0.5}"]
    text = printed_config(capsys, *flags, "--seed=5", "--recipe.ema_decay=0.99")
    (tmp_path / "run.yaml").write_text(text)
    again = printed_config(capsys, "--config", tmp_path / "run.yaml")
    assert yaml.safe_load(again) == yaml.safe_load(text)
    config = yaml.safe_load(text)
    assert config["recipe"]["layer_rates"] == {"*.a": 0.5} and config["seed"] == 5
    assert config["model"]["num_layers"] == 2 and config["model"]["hidden_features"] == 64


def test_flag_after_a_file_wins(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("seed: 3\nrecipe: {steps: 7}\npreset: galaxy32\n")
    text = printed_config(capsys, "--config", tmp_path / "run.yaml", "--recipe.steps=9")
    config = yaml.safe_load(text)
    assert (config["seed"], config["recipe"]["steps"]) == (3, 9)
    # The preset of the file gives the rest.
    assert config["model"]["hidden_features"] == 64 and config["recipe"]["batch_size"] == 512


@pytest.mark.parametrize("flags", [["--num-nodes", "3"], ["--num_nodes=3"], ["--num-nodes=3"]])
def test_words_are_joined_either_way(capsys, flags):
    text = printed_config(capsys, *flags, "--model.patch-size=2", "--recipe.learning-rate=0.5")
    config = yaml.safe_load(text)
    assert config["num_nodes"] == 3 and config["recipe"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--resume"], (True, False)),
        (["--resume", "--overwrite"], (True, True)),
        (["--overwrite", "--seed=3"], (False, True)),
        (["--resume", "false", "--overwrite", "true"], (False, True)),
        (["--resume=true"], (True, False)),
        ([], (False, False)),
    ],
)
def test_bare_flags_are_true(capsys, words, expected):
    config = yaml.safe_load(printed_config(capsys, *words))
    assert (config["resume"], config["overwrite"]) == expected


# Presets.


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_its_column_of_the_table(preset, capsys):
    config = yaml.safe_load(printed_config(capsys, "--preset", preset, "--recipe.steps=11"))
    column = PRESETS[preset]
    of_the_data = {"image_shape", "levels", "num_classes"}
    assert not of_the_data & set(config["model"])
    for name, value in vars(column.architecture).items():
        if name not in of_the_data:
            assert config["model"][name] == value, name
    assert config["recipe"]["learning_rate"] == column.learning_rate
    assert tuple(config["recipe"]["betas"]) == column.betas
    assert config["recipe"]["gradient_clip"] == column.gradient_clip
    assert config["recipe"]["batch_size"] == column.batch_size
    assert config["recipe"]["steps"] == 11


def test_values_of_table_8():
    """A few numbers of the paper, as it has them."""
    galaxy = build_parser(None, "galaxy32", None).get_defaults()
    assert (galaxy.recipe.steps, galaxy.recipe.learning_rate) == (50_000, 1e-3)
    anime = build_parser(None, "animefaces", None).get_defaults()
    assert tuple(anime.recipe.betas) == (0.9, 0.99) and anime.recipe.gradient_clip == 5.0
    assert (anime.model.patch_size, anime.model.shift, anime.model.num_layers) == (8, 2, 30)


# Families.


def test_denseflow_from_the_command_line(tmp_path, capsys):
    flags = ["--conditional", "--recipe.flip", "--recipe.steps=3", "--recipe.fine-tune-steps=1"]
    flags += ["--recipe.decay=0.5", "--recipe.decay-every=1", "--recipe.gradient_clip=null"]
    first = main([*QUICK_DENSE, *flags, "--out", str(tmp_path / "flags")])
    assert "| DenseFlow |" in capsys.readouterr().out
    assert (first["family"], first["steps"]) == ("denseflow", 3)
    assert first["recipe"]["flip"] and first["recipe"]["optimizer"] == "adamax"
    assert first["recipe"]["gradient_clip"] is None and first["recipe"]["fine_tune_rate"] == 2e-5
    assert first["architecture"]["num_classes"] == 10 and first["round_trip_error"] < 1e-3
    weights = tmp_path / "flags/weights.safetensors"
    assert load_weights(weights).architecture.units == (2, 1)
    # The file that the run leaves behind is that run again.
    left = ["--config", str(tmp_path / "flags/config.yaml"), "--out", str(tmp_path / "again")]
    assert main(left)["bits_per_dim"] == first["bits_per_dim"]
    # And may be gone on with, by all that it was started with.
    resumed = main([*QUICK_DENSE, *flags, "--out", str(tmp_path / "flags"), "--resume"])
    assert resumed["bits_per_dim"] == first["bits_per_dim"]
    other = message(capsys, *QUICK_DENSE, "--out", tmp_path / "flags", "--resume")
    assert "recipe.flip: True there, False now" in other


def test_family_of_a_script_is_that_of_its_preset_or_argument_first(tmp_path, capsys, unfinished):
    def config(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--print_config"], family="denseflow")
        assert caught.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    chosen = config()
    assert (chosen["family"], chosen["out"]) == ("denseflow", "runs/denseflow")
    assert chosen["recipe"]["optimizer"] == "adamax" and "units" in chosen["model"]
    assert config("--family=mixerflow")["out"] == "runs/mixerflow"
    assert config("--preset=galaxy32")["family"] == "mixerflow"
    (tmp_path / "run.yaml").write_text("family: mixerflow\n")
    assert config("--config", str(tmp_path / "run.yaml"))["family"] == "mixerflow"
    main(["--out", str(tmp_path)], family="denseflow")
    assert family_of(unfinished[0]["module"].flow) == "denseflow"


def test_small_denseflow_fits_its_images(unfinished, tmp_path):
    main(["--family=denseflow", "--out", str(tmp_path)])
    (given,) = unfinished
    count = sum(p.numel() for p in given["module"].flow.parameters())
    assert 100_000 < count < 300_000
    assert given["module"].flow._transform.latent_shapes["final"][1:] == (2, 2)


@pytest.mark.parametrize("preset", DENSEFLOW_PRESETS)
def test_preset_of_the_denseflow_paper(preset, capsys):
    """It says of which family it is."""
    config = yaml.safe_load(printed_config(capsys, "--preset", preset))
    model = DENSEFLOW_PRESETS[preset]
    assert config["family"] == "denseflow" and config["out"] == "runs/denseflow"
    assert (config["model"]["growth"], config["model"]["units"]) == (
        model.architecture.growth,
        list(model.architecture.units),
    )
    epoch = model.training_points // model.batch_size
    recipe = config["recipe"]
    assert recipe["steps"] == (model.epochs + model.fine_tune_epochs) * epoch
    assert recipe["fine_tune_steps"] == model.fine_tune_epochs * epoch
    assert (recipe["decay"], recipe["decay_every"]) == (model.decay, None)
    assert (recipe["warmup"], recipe["flip"], recipe["gradient_clip"]) == (5000, True, None)


def test_preset_is_shortened_as_its_error_says(tmp_path, capsys, unfinished):
    flags = ["--preset=denseflow-74-10", "--recipe.steps=50", "--out", str(tmp_path)]
    flags += [f"--model.{name}" for name in ("units=[2,1]", "modules=[1,1]", "growth=2")]
    for more in ("--recipe.fine_tune_steps=5", "--recipe.warmup=10"):
        text = message(capsys, *flags)
        assert "(give --recipe.fine_tune_steps and --recipe.warmup too)" in text
        flags.append(more)
    main(flags)
    (given,) = unfinished
    assert given["module"].recipe.steps == 50 and given["module"].recipe.decay == 0.9975


def test_small_denseflow_is_the_run_that_is_kept(capsys):
    kept = yaml.safe_load((KEPT / "denseflow-digits/config.yaml").read_text())
    config = yaml.safe_load(printed_config(capsys, "--family=denseflow"))
    assert (config["model"], config["recipe"]) == (kept["model"], kept["recipe"])


def test_file_of_another_family_names_it(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("model: {dense_layers: 2}\n")
    text = message(capsys, "--config", tmp_path / "run.yaml", "--out", tmp_path / "out")
    expected = "expected an argument of a mixerflow, got one of a denseflow"
    assert text == f"error: --model.dense_layers: {expected}; give --family denseflow"


def test_label_of_another_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected denseflow, as the preset denseflow-45-6 is one"):
        train({}, Recipe(steps=0), preset="denseflow-45-6", out=str(tmp_path))


@pytest.mark.parametrize("flag, value", [("5000", 5000), ("1", 1), ("0.25", 0.25), ("0", 0)])
def test_warmup_is_read_as_what_it_is(capsys, flag, value):
    warmup = yaml.safe_load(printed_config(capsys, f"--recipe.warmup={flag}"))["recipe"]["warmup"]
    assert warmup == value and isinstance(warmup, type(value))


# Help and errors.


def test_help_lists_options_with_their_descriptions(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "--recipe.learning_rate LEARNING_RATE the peak, eta. (type: float, default: 0.003)" in text
    )
    assert "--recipe.gradient_clip GRADIENT_CLIP largest norm of the gradient; None for" in text
    assert "--start_from START_FROM weights (.safetensors) to start from" in text
    assert "--model.num_layers NUM_LAYERS mixer layers. (type: int, default: 4)" in text
    assert "--num_nodes NUM_NODES how many machines. (type: int, default: 1)" in text
    assert "--model.image_shape" not in text and "--model.levels" not in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--preset=cifar11"], ["--preset", "cifar10, imagenet32", "cifar11"]),
        (["--stepz=3"], ["--stepz"]),
        (["--recipe.steps=many"], ["recipe.steps", "int", "many"]),
        (["--recipe.steps=1.5"], ["recipe.steps", "int", "1.5"]),
        (["--recipe.steps=-1"], ["0 steps or more", "-1"]),
        (["--recipe.betas=[0.9]"], ["recipe.betas", "2 elements"]),
        (["--shuffle=all"], ["shuffle", "global", "local", "all"]),
        (["--precision=16-mixed"], ["precision", "bf16-mixed"]),
        (["--model.patch_flow=afine"], ["patch_flow", "'affine'", "'afine'"]),
        (["--model.patch_flow=zuko.flows.NSFF"], ["--model.patch_flow", "zuko.flows.NSFF", "path"]),
        (["--model.patch_flow=no_such_module.Flow"], ["no_such_module.Flow", "imported"]),
        (["--model.patch_flow=math.sqrt"], ["factory", "got float"]),
        (["--model.patch_size=3"], ["patches of 3"]),
        (["--recipe.layer_rates={'*.none': 0.5}"], ["layer_rates", "*.none"]),
        (["--recipe.betas=[0.9, 1.5]"], ["betas", "expected", "1.5"]),
        (["--seed=-1"], ["seed from 0", "-1"]),
        (["--accumulate=3"], ["evenly in 3 parts", "20"]),
        (["--accumulate=0"], ["accumulate", "expected"]),
        (["--devices=0"], ["devices"]),
        (["--evaluation_images=-1"], ["evaluation_images"]),
        (["--data=nowhere"], ["'digits'", "'nowhere'", "check the path"]),
        (["--config=none.yaml"], ["none.yaml"]),
        (["--start_from=none.safetensors"], ["none.safetensors"]),
        (["--family=glow"], ["--family", "'mixerflow', 'denseflow'", "'glow'"]),
        (["--family=denseflow"], ["--model.num_layers", "give --family mixerflow"]),
        (["--preset=denseflow-45-6", "--family=mixerflow"], ["expected denseflow", "preset"]),
        (["--preset=cifar10", "--family=denseflow"], ["expected mixerflow, as the preset cifar10"]),
        (["--recipe.decay_every=1"], ["a decay beside decay_every=1"]),
        (["--model.units=[2,1]"], ["--model.units", "one of a denseflow; give --family denseflow"]),
        (["--recipe.flip", "--shuffle=global"], ["flip", "shuffled pixels", "leave out one"]),
        (["--recipe.fine_tune_rate=0.1"], ["fine_tune_steps beside"]),
        (["--recipe.optimizer=sgd"], ["'adam', 'adamax', got 'sgd'"]),
    ],
    ids=lambda value: value[0] if value and value[0].startswith("--") and "=" in value[0] else "",
)
def test_error_says_what_was_expected_without_a_traceback(tmp_path, capsys, arguments, said):
    text = message(capsys, *QUICK, *arguments, "--out", tmp_path)
    for words in said:
        assert words in text
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "content, said", [("modell: {a: 1}", "modell"), ("- 1\n", "yaml"), ("a: [1\n", "yaml")]
)
def test_file_that_is_no_configuration_is_named(tmp_path, capsys, content, said):
    (tmp_path / "run.yaml").write_text(content)
    assert said in message(capsys, "--config", tmp_path / "run.yaml", "--out", tmp_path / "out")


def test_conditional_wants_labels(tmp_path, capsys):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    flags = ["--data", tmp_path / "bare.npz", "--conditional", "--out", tmp_path / "out"]
    assert message(capsys, *QUICK, *flags) == (
        "error: --conditional: expected images with labels, got bare without; leave it out"
    )


def test_run_whose_arguments_were_wrong_can_be_given_the_right_ones(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert "20" in message(capsys, *QUICK, "--accumulate=3", *out)
    assert main([*QUICK, "--accumulate=2", *out])["steps"] == 2


# Flows by their dotted names.


def test_dotted_names_are_what_they_name(tmp_path, unfinished):
    import zuko

    main([*QUICK, "--model.patch_flow", "zuko.flows.NSF", "--out", str(tmp_path)])
    (given,) = unfinished
    architecture = given["module"].flow.architecture
    assert architecture.patch_flow is zuko.flows.NSF and architecture.channel_flow == "affine"
    assert given["facts"]["model"]["patch_flow"] == "zuko.flows.NSF"


def test_both_flows_by_their_dotted_names(tmp_path, unfinished):
    """Then nothing reads hidden_features, which the small flow has by itself."""
    coupling = "nflows_mixer.transforms.AffineCoupling"
    flows = [f"--model.channel_flow={coupling}", f"--model.patch_flow={coupling}"]
    size = [argument for argument in QUICK if "hidden_features" not in argument]
    main([*size, *flows, "--out", str(tmp_path)])
    assert callable(unfinished[0]["module"].flow.architecture.channel_flow)


# Starting from weights.


def test_same_and_fewer_layers_start_from_weights(tmp_path, trained, unfinished):
    source = str(trained / "one/weights.safetensors")
    flow = load_weights(source)
    for layers in (1, 3):
        more = [f"--model.num_layers={layers}", "--start_from", source, "--out", str(tmp_path)]
        main([*QUICK, *more])
        started = unfinished[-1]["module"].flow
        assert started.architecture.num_layers == layers
        state = started.state_dict()
        assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())
        images = unfinished[-1]["data"].test.images(slice(20))
        noise = torch.rand(images.shape)
        torch.testing.assert_close(
            started.eval().log_prob(images, None, noise), flow.eval().log_prob(images, None, noise)
        )
        assert unfinished[-1]["facts"]["from"] == source


def test_way_to_run_is_no_part_of_the_weights(tmp_path, trained, unfinished):
    """Compiled, in constant memory, from weights of a flow that was neither."""
    source = str(trained / "one/weights.safetensors")
    for layers in (1, 2):
        flags = [f"--model.num_layers={layers}", f"--compile={COMPILES}", "--memory=constant"]
        main([*QUICK, *flags, "--start_from", source, "--out", str(tmp_path)])
    for given in unfinished:
        whole = given["module"].flow._transform
        assert whole.memory == "constant" and (whole.compiled is not None) == COMPILES


def test_memory_changes_no_number(tmp_path):
    """The same run, with activations kept and rebuilt."""
    results = []
    for memory in ("full", "checkpoint", "constant"):
        out = str(tmp_path / memory)
        results.append(main([*QUICK, f"--memory={memory}", "--precision=64-true", "--out", out]))
    for other in results[1:]:
        assert other["bits_per_dim"] == pytest.approx(results[0]["bits_per_dim"], abs=1e-9)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--model.hidden_features=9"], "differs in hidden_features; give the same --model"),
        (["--model.base=student_t"], "differs in base"),
        (["--conditional"], "differs in num_classes"),
        (["--model.num_layers=2", "--model.logit=0.1"], "differs in logit"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, capsys, trained, flags, said):
    start = ["--start_from", trained / "one/weights.safetensors", "--out", tmp_path]
    text = message(capsys, *QUICK, *start, *flags)
    assert "--start_from: expected weights of this architecture" in text and said in text


def test_denseflow_starts_from_weights(tmp_path, trained, unfinished):
    source = str(trained / "dense/weights.safetensors")
    flags = ["--memory=checkpoint", "--start_from", source, "--out", str(tmp_path)]
    main([*QUICK_DENSE, *flags])
    flow = load_weights(source)
    state = unfinished[0]["module"].flow.state_dict()
    assert state.keys() == flow.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())


def test_denseflow_does_not_grow(tmp_path, capsys, trained):
    start = ["--start_from", trained / "dense/weights.safetensors", "--out", tmp_path]
    text = message(capsys, *QUICK_DENSE, *start, "--model.modules=[2, 1]")
    expected = "expected weights of this architecture, got one that differs in modules; give the"
    assert f"error: --start_from: {expected} same" in text
    text = message(capsys, *QUICK, *start)
    assert "expected weights of a mixerflow, got those of a denseflow; give --family" in text


def test_denseflow_is_not_compiled(tmp_path, capsys):
    text = message(capsys, *QUICK_DENSE, "--compile", "--out", tmp_path)
    assert text == (
        "error: --compile: expected a mixerflow, of which the flow layers are compiled, got a "
        "denseflow; leave it out"
    )


def test_deeper_weights_are_refused(tmp_path, capsys, trained, unfinished):
    from nflows_mixer.flows import grow, save_weights

    flow = grow(load_weights(trained / "one/weights.safetensors"), 2)
    save_weights(flow, tmp_path / "deep.safetensors")
    text = message(capsys, *QUICK, "--start_from", tmp_path / "deep.safetensors")
    assert "fewer layers, got one that differs in num_layers" in text


@pytest.mark.parametrize("layout", ["[band]", "[band, patch]"])
def test_lists_for_each_layer_start_from_weights(tmp_path, trained, unfinished, layout):
    source = str(trained / "list/weights.safetensors")
    flags = [f"--model.layout={layout}", f"--model.num_layers={layout.count(',') + 1}"]
    main([*QUICK, *flags, "--start_from", source, "--out", str(tmp_path)])
    state = unfinished[0]["module"].flow.state_dict()
    flow = load_weights(source)
    assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())


def test_truncated_weights_are_named(tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    text = message(capsys, *QUICK, "--start_from", tmp_path / "cut.safetensors")
    assert "cut.safetensors: expected a whole safetensors file" in text


# Seeds.


def test_seed_is_that_of_the_order_of_images_too(unfinished, tmp_path):
    """As the help says: of the parameters, the order of images and the noise."""
    from nflows_mixer.training import ImageDataModule

    orders = []
    for seed in (1, 2):
        main([*QUICK, f"--seed={seed}", "--out", str(tmp_path)])
        given = unfinished[-1]
        module = given["module"]
        images = ImageDataModule(given["data"], module.recipe, module.seed)

        class Alone:
            accumulate_grad_batches, global_step, global_rank, world_size = 1, 0, 0, 1

        images.trainer = Alone()
        orders.append(torch.cat(list(images.train_dataloader().sampler)).tolist())
    assert orders[0] != orders[1]


# Processes.


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    """What a launcher sets in them; the first process has made the folder ready."""
    for name, number in (("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, number)
        assert run._prepare(tmp_path / "out", {"seed": 0}, False, False) is None
        assert not (tmp_path / "out").exists()
        monkeypatch.delenv(name)
    run._prepare(tmp_path / "out", {"seed": 0}, False, False)
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"seed": 0}


def test_module_ends_with_the_message(monkeypatch):
    """A text as SystemExit's code is printed, and the exit status is 1."""
    monkeypatch.setattr(sys, "argv", ["training", "--recipe.steps=-1"])
    with pytest.raises(SystemExit, match="^error: Recipe: expected 0 steps or more, got -1; give"):
        runpy.run_module("nflows_mixer.training", run_name="__main__")


@pytest.mark.parametrize(
    "options",
    [
        ["--model.attention=false"],
        ["--model.dense=false"],
        ["--model.conditioner=conv"],
        ["--model.growth=0"],
        ["--model.dequantization=uniform"],
    ],
)
def test_defaults_that_a_small_denseflow_does_not_read_are_left_out(options, tmp_path):
    sizes = ["--model.units=[2, 1]", "--model.modules=[1, 1]", "--recipe.steps=0"]
    quiet = ["--family=denseflow", "--progress=false", "--accelerator=cpu"]
    assert main([*quiet, *sizes, *options, "--evaluation_images=10", "--out", str(tmp_path)])
