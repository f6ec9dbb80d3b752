"""A run that has trained leaves weights and figures, whatever cannot be drawn of its flow."""

import json

import numpy as np
import pytest
import torch
from nflows.transforms import InverseNotAvailable, Transform

from nflows_mixer.cli import main
from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.evaluation import Evaluation, evaluate_weights
from nflows_mixer.flows import ImageFlow, load_weights, mixerflow, save_weights
from nflows_mixer.training import FlowModule, HybridModule, Recipe
from nflows_mixer.training import run as run_module
from tests.test_command import MODEL, RUN
from tests.training import SHAPE, noise_data, run, tiny

RECIPE = Recipe(steps=2, batch_size=10)


def images_of(channels, count):
    return ImageDataset(torch.randint(17, (count, channels, 4, 4), dtype=torch.uint8))


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_images_that_are_no_pictures_train_and_the_message_names_what_is_left_out(
    tmp_path, channels
):
    data = ImageData("bands", *(images_of(channels, n) for n in (40, 6, 8)), levels=17)
    module = FlowModule(tiny(image_shape=(channels, 4, 4)), RECIPE)
    with pytest.warns(RuntimeWarning) as said:
        results = run(module, data, tmp_path, validate_every=1)
    names = [str(each.message).split(" is left out: ")[0] for each in said]
    assert sorted(names) == ["samples.png", "samples/step-*.png"]  # once, of two validations
    assert results["round_trip_error"] < 1e-3 and (tmp_path / "results.md").exists()
    assert load_weights(tmp_path / "weights.safetensors").image_shape == (channels, 4, 4)


class OneWay(Transform):
    def forward(self, inputs, context=None):
        return inputs / 17 - 0.5, inputs.new_full((len(inputs),), -16 * np.log(17))

    def inverse(self, inputs, context=None):
        raise InverseNotAvailable


def test_flow_without_an_inverse_trains(tmp_path):
    with pytest.warns(RuntimeWarning, match="is left out: InverseNotAvailable") as said:
        results = run(
            FlowModule(ImageFlow(OneWay(), SHAPE, levels=17), RECIPE), noise_data(), tmp_path
        )
    assert len(said) == 2  # the round trip and the samples: no validation
    assert results["round_trip_error"] is None
    assert np.isfinite(results["bits_per_dim"]["test"]) and results["reference_models"]
    for name in ("weights.safetensors", "results.json", "results.md", "last.ckpt"):
        assert (tmp_path / name).exists()
    assert not (tmp_path / "samples.png").exists()


def test_weights_are_there_whatever_fails_behind_the_training(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise MemoryError("no room for the evaluation")

    module = HybridModule(tiny(), RECIPE, num_classes=3)
    monkeypatch.setattr(run_module.Trainer, "test", failing)
    with pytest.raises(MemoryError):
        run(module, noise_data(classes=3), tmp_path)
    flow = load_weights(tmp_path / "weights.safetensors")
    state = module.flow.state_dict()
    assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())
    assert (tmp_path / "head.safetensors").exists()


def labelled(*parts):
    return ImageData(
        "labelled",
        *(
            ImageDataset(images_of(1, 20)._images, None if y is None else torch.tensor(y)[:20])
            for y in parts
        ),
        levels=17,
    )


@pytest.mark.parametrize("part", [1, 2])
def test_classes_and_labels_of_all_parts_are_looked_at_before_training(tmp_path, part):
    name = ("train", "validation", "test")[part]
    for odd, said in ([0, 3] * 10, "got 3 in"), (None, "labels of every part, got none of"):
        labels = [[0, 1] * 10] * 3
        labels[part] = odd
        data, flow = labelled(*labels), tiny(num_classes=4)
        for module in (
            FlowModule(flow, RECIPE, conditional=True),
            HybridModule(tiny(), RECIPE, num_classes=3),
        ):
            with pytest.raises(ValueError, match=f"fit: expected .*{said} {name}"):
                run(module, data, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_test_file_without_labels_is_refused_before_training(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 2)
    np.savez(tmp_path / "b.npz", images=255 - images[:20])
    data = ["--data", str(tmp_path / "a.npz"), "--test_data", str(tmp_path / "b.npz")]
    out = ["--conditional=true", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="expected labels of every part, got none of test"):
        main(["train", *MODEL, *RUN, *data, *out])
    assert not (tmp_path / "run").exists()


def test_evaluation_leaves_out_what_cannot_be_had_and_keeps_the_rest(tmp_path):
    """One held-out image is none to interpolate with."""
    np.savez(tmp_path / "x.npz", images=np.zeros((30, 8, 8), np.uint8))
    flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, num_layers=1, hidden_features=8)
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    save_weights(flow.initialize(images), tmp_path / "weights.safetensors")
    options = Evaluation(draws=1, images=1)
    arguments = {"data": tmp_path / "x.npz", "options": options, "out": tmp_path / "out"}
    with pytest.warns(RuntimeWarning, match="interpolations.png is left out: .*two images"):
        report = evaluate_weights(tmp_path / "weights.safetensors", **arguments)
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["test_images"] == 3
    assert report["bits_per_dim"]["images"] == 1
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"temperatures", "reconstructions", "neighbours"}
