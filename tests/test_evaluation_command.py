"""The evaluation of weights as a command."""

import json

import numpy as np
import pytest
import torch

from nflows_mixer.cli import run
from nflows_mixer.data import load_images
from nflows_mixer.evaluation import draw_samples, evaluate, nearest_images, report
from nflows_mixer.flows import load_weights, mixerflow, save_weights
from tests.training import QUIET_COMMAND


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files with weights of an untrained flow on digits, and of a class-conditional one."""
    folder = tmp_path_factory.mktemp("weights")
    data = load_images("digits")
    images, labels = data.train[:]
    for name, classes in (("plain", None), ("conditional", 10)):
        torch.manual_seed(0)
        flow = mixerflow(
            image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1, num_classes=classes
        )
        flow.initialize(images, labels if classes else None)
        save_weights(flow, folder / f"{name}.safetensors", {"data": "digits"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "conditional"])
def test_figures_and_pictures(weights, tmp_path, capsys, name):
    path = weights / f"{name}.safetensors"
    flags = ["--weights", str(path), "--draws=3", "--images=30", "--out", str(tmp_path)]
    report = run(["evaluate", *flags])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert f"see {tmp_path}" in capsys.readouterr().out
    flow, data = load_weights(path), load_images("digits")
    test = data.test.subset(slice(30))
    labels = test.labels() if name == "conditional" else None
    expected = evaluate(flow, test, labels, draws=3)
    assert report["bits_per_dim"]["mean"] == pytest.approx(expected.mean().item())
    assert report["bits_per_dim"]["worst"] == pytest.approx(expected.max().item())
    # The bound by three draws together is at least the mean of three bounds, image by image.
    weighted = report["importance_weighted_bits_per_dim"]
    assert weighted["mean"] < report["bits_per_dim"]["mean"]
    assert report["split_hash"] == data.split_hash
    assert report["weights"]["data"] == "digits"
    copies = report["memorisation"]
    assert copies["samples"]["images"] == 64 and copies["held_out"]["images"] == 30
    _, distances = nearest_images(test.images(), data.train, 1)
    assert copies["held_out"]["mean"] == pytest.approx(distances.mean().item())
    classes = torch.arange(64) % 10 if labels is not None else None
    samples = draw_samples(flow, 64 if classes is None else 1, context=classes)
    indices, distances = nearest_images(samples, data.train, 5)
    assert copies["indices"] == indices.tolist() and copies["distances"] == distances.tolist()
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {"interpolations", "neighbours", "reconstructions", "temperatures"}


@pytest.mark.slow
def test_probe_and_outside_images(weights, tmp_path):
    noise = np.random.default_rng(0).integers(17, size=(40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise)
    flags = ["--weights", str(weights / "plain.safetensors"), "--images=60", "--draws=1"]
    flags += ["--probe_steps=40", "--outside", str(tmp_path / "noise.npz")]
    report = run(["evaluate", *flags, "--out", str(tmp_path)])
    depths = [row["depth"] for row in report["linear_probe"]]
    assert depths == list(range(len(depths))) and len(depths) > 2
    assert all(row["accuracy"] > 0.6 for row in report["linear_probe"])
    assert json.dumps(report["out_of_distribution"]).count("noise")


def test_errors(weights, tmp_path, monkeypatch):
    """All of them before anything is computed."""
    monkeypatch.setattr(report, "evaluate_bounds", None)
    images = np.zeros((20, 4, 4), np.uint8)
    np.savez(tmp_path / "small.npz", images=images)
    weights, out = str(weights / "plain.safetensors"), str(tmp_path / "out")
    small = str(tmp_path / "small.npz")
    for flags, message in (
        (["--data", small], "expected images .1, 8, 8. of 17 levels, got .1, 4, 4."),
        (["--outside=nosuch"], "or a folder that exists, got 'nosuch'"),
        (["--outside", small, "--images=5", "--draws=1"], "outside images .1, 8, 8.*got .1, 4"),
        (["--fid_weights=none.pth", "--images=5"], "a file with Inception's w.* got .*none.pth"),
        (["--crop=9"], "expected a crop of at most 8 x 8 pixels, got 9 x 9"),
        (["--images=-5"], "expected images to be a positive integer, got -5"),
        (["--images=0"], "expected images to be a positive integer, got 0"),
        (["--crop=-1"], "expected crop to be a positive integer, got -1"),
        (["--probe_steps=-1"], "expected probe_steps to be a positive integer, got -1"),
        (["--temperatures=[0.5, -1.0]"], "expected temperatures of 0 or more, got"),
        (["--neighbours=0"], "expected neighbours to be a positive integer, got 0"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(["evaluate", "--weights", weights, "--out", out, *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_figure_that_fails_late_leaves_those_before(weights, tmp_path, monkeypatch):
    """What cannot be known before it is tried."""

    def failing(*_, **__):
        assert (tmp_path / "out/evaluation.json").exists()
        raise OSError("the disk is gone")

    asked = {
        "linear_probe": ("probe_depths", "--probe_steps=5"),
        "out_of_distribution": ("ood_report", "--outside=digits"),
        "frechet_inception_distance": ("frechet_inception_distance", f"--fid_weights={__file__}"),
    }
    for function, _ in asked.values():
        monkeypatch.setattr(report, function, failing)
    monkeypatch.setattr(report, "_draw_pictures", lambda *_: None)
    flags = ["--draws=1", "--images=5", "--out", str(tmp_path / "out")]
    flags += [flag for _, flag in asked.values()]
    with pytest.warns(RuntimeWarning) as said:
        found = run(["evaluate", "--weights", str(weights / "plain.safetensors"), *flags])
    for name in asked:
        assert any(f"{name} is left out: OSError: the disk" in str(each.message) for each in said)
    assert found["linear_probe"] is None and found["bits_per_dim"]["images"] == 5
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == found


@pytest.mark.slow
def test_files_that_no_evaluation_has_written_are_not_written_over(weights, tmp_path):
    flags = ["--weights", str(weights / "plain.safetensors"), "--draws=1", "--images=5"]
    flags += ["--out", str(tmp_path)]
    for name in ("evaluation.json", "neighbours.png"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(SystemExit, match=f"would write over, got '{name}', which no eval"):
            run(["evaluate", *flags])
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    for _ in range(2):  # its own are replaced
        run(["evaluate", *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the training command on shuffled digits, by another seed than 0."""
    out = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--model.num_layers=1", "--recipe.steps=3", "--seed=3", "--shuffle=local"]
    flags += ["--model.patch_flow=zuko.flows.NSF", "--model.patch_flow.transforms=1"]
    flags += [*QUIET_COMMAND, "--out", str(out)]
    return out / "weights.safetensors", run(["train", *flags])


@pytest.mark.slow
def test_split_shuffle_and_flow_are_those_of_the_training_run(trained, tmp_path):
    path, results = trained
    flags = ["--weights", str(path), "--draws", "1", "--out", str(tmp_path), "--seed", "0"]
    report = run(["evaluate", *flags])
    assert report["split_hash"] == results["split_hash"]
    assert report["shuffle"] == results["shuffle"]
    # The same images, with other noise.
    expected = results["bits_per_dim"]["test"]
    assert report["bits_per_dim"]["mean"] == pytest.approx(expected, abs=0.02)


def test_other_images_than_those_of_the_run_are_refused(trained, tmp_path):
    path, _ = trained
    images = np.random.default_rng(0).integers(17, size=(90, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", images=images)
    flags = ["evaluate", "--weights", str(path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="expected the images of the training run, split_hash"):
        run([*flags, "--data", str(tmp_path / "other.npz")])


@pytest.mark.slow
def test_conditional_flows_few_images_and_devices_that_are_not_there(weights, tmp_path):
    path = str(weights / "conditional.safetensors")
    flags = ["evaluate", "--weights", path, "--draws", "1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="expected a flow without context, for probe_steps or out"):
        run([*flags, "--probe_steps", "5"])
    with pytest.raises(SystemExit, match="expected a device 'cuda:77'.*--device cpu"):
        run([*flags, "--device", "cuda:77"])
    report = run([*flags, "--images", "5"])
    assert report["bits_per_dim"]["images"] == 5
    assert (tmp_path / "interpolations.png").exists()
