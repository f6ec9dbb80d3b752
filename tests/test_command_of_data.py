"""What the images decide of a flow, and what the user says of it, which stands."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Subset

from nflows_mixer import cli
from nflows_mixer.data import ImageData, ImageDataset, load_images
from nflows_mixer.evaluation import evaluate
from nflows_mixer.flows import load_weights
from tests.test_command import MODEL, RUN
from tests.test_evaluation import pixels, small_flow


@pytest.fixture
def built(monkeypatch, capsys):
    """The flow that a command would train, and what it prints."""

    def build(*words):
        found = []

        def stop(module, images, *_, **keywords):
            found.append((module.flow, keywords["facts"]["model"]))
            return {}

        stop.__signature__ = cli.inspect.signature(cli.fit)
        with monkeypatch.context() as patch:
            patch.setattr(cli, "fit", stop)
            cli.main(["train", "--model.num_layers=1", *map(str, words)])
        return *found[0], capsys.readouterr().out

    return build


@pytest.mark.parametrize("background", ["black", "white", "both"])
def test_mass_at_either_end_puts_a_logit_that_is_said_and_kept(tmp_path, built, background):
    digits = 15 * load_images("digits").train.images(slice(200))[:, 0].numpy()
    stripes = np.broadcast_to(np.array([0, 255, 99, 99, 99] * 2)[:8], (50, 8, 8))
    images = {"black": digits, "white": 255 - digits, "both": stripes.astype(np.uint8)}[background]
    np.savez(tmp_path / "x.npz", images=images)
    data = ["--data", tmp_path / "x.npz"]
    flow, facts, said = built(*data)
    assert flow.architecture.arguments["pixels"].logit == 1e-6
    assert flow.architecture.arguments["pixels"].dequantization == "variational-small"
    assert (
        "variational-small noise and a logit of them (1e-06)" in said
        and facts["init_args"]["pixels"]["logit"] == 1e-6
    )


def test_null_that_is_said_of_the_pixels_stands(tmp_path, built):
    np.savez(tmp_path / "x.npz", images=np.zeros((50, 8, 8), np.uint8))
    data = ["--data", tmp_path / "x.npz"]
    name, null = "nflows_mixer.mixerflow", {"patch_size": 2, "pixels": None}
    (tmp_path / "null.yaml").write_text(yaml.safe_dump({"model": _model(name, null)}))
    file, logit = ["--config", tmp_path / "null.yaml"], ["--model.pixels.logit=0.1"]
    for words in (
        ["--model.pixels=null"],
        ["--model.pixels", "null"],
        ["--model", name, "--model.patch_size=2", "--model.init_args.pixels", "null"],
        ["--model", json.dumps(_model(name, null))],
        file,
        [*file, "--model.num_flow_layers=2"],
        [*logit, "--model.pixels=null"],
        ["--model.preset=mnist", "--model.patch_size=2", "--model.pixels=null"],
    ):
        flow, _, said = built(*words, *data)
        assert flow.architecture.arguments["pixels"].logit is None and "logit" not in said
    for one in ("--model.pixels={logit: null, conv1x1: false}", "--model.pixels.conv1x1=false"):
        flow, _, said = built(one, *data)
        found = flow.architecture.arguments["pixels"]
        assert (found.logit, found.conv1x1) == (None, False) and "logit" not in said
    flow, *_ = built(*file, *logit, *data)
    assert flow.architecture.arguments["pixels"].logit == 0.1


def _model(name, arguments):
    return {"class_path": name, "init_args": arguments}


def test_no_levels_are_refused_of_data_that_have_some():
    with pytest.raises(SystemExit, match="digits: expected 2 to 256 levels, got None"):
        cli.main(["train", *MODEL, *RUN, "--model.levels=null"])


def test_images_in_between_are_scaled_linearly(tmp_path, built):
    images = np.random.default_rng(0).integers(1, 255, size=(50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    flow, facts, _ = built("--data", tmp_path / "x.npz")
    assert flow.architecture.arguments["pixels"].logit is None
    assert facts["init_args"]["pixels"] == "UNSET"


def test_files_of_fewer_levels_train_and_are_evaluated_as_such(tmp_path, capsys):
    images = load_images("digits").train.images(slice(200))[:, 0].numpy()
    np.savez(tmp_path / "x.npz", images=images)
    data = ["--data", str(tmp_path / "x.npz")]
    out = ["--out", str(tmp_path / "run"), "--model.levels=17"]
    cli.main(["train", *MODEL, *RUN, *data, *out])
    weights = tmp_path / "run/weights.safetensors"
    assert load_weights(weights).dequantization.levels == 17
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["init_args"]
    assert config["levels"] == 17 and config["pixels"]["logit"] == 1e-6
    quick = ["--draws=1", "--images=1", "--out", str(tmp_path / "figures")]
    with pytest.warns(RuntimeWarning, match="interpolations.png is left out"):
        cli.main(["evaluate", "--weights", str(weights), *data, *quick])
    report = json.loads((tmp_path / "figures/evaluation.json").read_text())
    assert report["levels"] == 17 and report["bits_per_dim"]["images"] == 1
    with pytest.raises(SystemExit, match="expected pixels from 0 to 15, got one of 16"):
        cli.main(["train", *MODEL, *RUN, *data, "--model.levels=16"])
    with pytest.raises(SystemExit, match="digits: expected 17 levels, got 18"):
        cli.main(["train", *MODEL, *RUN, "--model.levels=18"])


def test_labels_that_leave_out_most_classes_are_refused(tmp_path):
    images = np.zeros((60, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(60) % 3 * 1_000_000)
    flags = ["--data", str(tmp_path / "x.npz"), "--conditional=true", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="count the classes from 0, got 3 labels, up to 2,000,000"):
        cli.main(["train", *MODEL, *RUN, *flags])
    assert load_images(tmp_path / "x.npz").describe()  # they are no fault of a flow without labels


def test_labels_are_numbered_anew_where_it_is_asked_for_and_the_run_knows_them(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    labels = np.array([70, -1, 2_000_000, 5])[np.arange(60) % 4]
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    data, values = load_images(tmp_path / "x.npz", remap_labels=True), [5, 70, 2_000_000]
    plain = load_images(tmp_path / "x.npz")
    assert data.num_classes == 3 and data.label_values == data.describe()["label_values"] == values
    for part, before in zip((data.train, data.validation), (plain.train, plain.validation)):
        again = torch.tensor([*values, -1])[part.labels()]  # -1 is the last of them
        assert torch.equal(again, before.labels())
    np.savez(tmp_path / "x.npz", images=images, labels=np.abs(labels))
    flags = ["--data", str(tmp_path / "x.npz"), "--conditional=true", "--remap_labels=true"]
    cli.main(["train", *MODEL, *RUN, *flags, "--out", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["label_values"] == [1, 5, 70, 2_000_000]
    weights = tmp_path / "run/weights.safetensors"
    assert load_weights(weights)._embedding_net.num_embeddings == 4
    quick = ["--draws=1", "--images=1", "--out", str(tmp_path / "figures")]
    with pytest.warns(RuntimeWarning, match="interpolations.png is left out"):
        cli.main(["evaluate", "--weights", str(weights), *flags[:2], *quick])
    again = ["train", *MODEL, *RUN, *flags[:2], "--start_from", str(weights)]
    with pytest.raises(SystemExit, match=r"classes of the training run, \[1, 5, .* got None"):
        cli.main(again)


def test_classes_are_counted_over_all_parts():
    def part(*labels):
        count = len(labels)
        return ImageDataset(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))

    assert ImageData("x", part(0, 1, 1), part(0), part(2)).num_classes == 3


def test_images_are_taken_in_any_form_that_has_places_and_others_are_refused():
    flow, images = small_flow(), pixels(7)
    expected, dataset = evaluate(flow, images), ImageDataset(images)
    assert torch.equal(evaluate(flow, images.numpy()), expected)
    part = evaluate(flow, Subset(dataset, [0, 1, 2]))
    assert torch.allclose(part, expected[:3])
    again = Subset(Subset(dataset, [6, 0, 1, 2]), [1, 2, 3])
    assert torch.equal(evaluate(flow, again), part)
    assert torch.equal(evaluate(flow, Subset(images, [0, 1, 2])), part)
    for odd in (list(images), DataLoader(dataset), "images"):
        said = f"a tensor or array .* got a {type(odd).__name__}; stack a list"
        with pytest.raises(ValueError, match=said):
            evaluate(flow, odd)
