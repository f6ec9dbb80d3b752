"""A split is known by what its images are: others than those trained on are refused."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.cli import main
from nflows_mixer.data import ImageData, ImageDataset, cache, load_images
from nflows_mixer.data.image_data import check_same_images
from nflows_mixer.data.npz import npz_images
from nflows_mixer.flows import read_metadata
from tests.test_command import MODEL, RUN


def write_folder(folder, seed):
    folder.mkdir()
    images = np.random.default_rng(seed).integers(256, size=(100, 8, 8), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of images, another of as many, and a run on the first."""
    root = tmp_path_factory.mktemp("identity")
    for seed, name in enumerate(("images", "others")):
        write_folder(root / name, seed)
    quietly("train", "--data", root / "images", *MODEL, *RUN, "--out", root / "run")
    return root


def quietly(*arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        main([str(argument) for argument in arguments])


def refused(*arguments):
    with pytest.raises(SystemExit) as caught:
        quietly(*arguments)
    assert isinstance(caught.value.code, str)
    return caught.value.code


@pytest.mark.parametrize("change", ["a file renamed", "another folder of as many"])
def test_other_images_are_refused_by_evaluation_resuming_and_starting(trained, tmp_path, change):
    run, data = trained / "run", trained / "others"
    if change == "a file renamed":
        data = tmp_path / "images"
        (tmp_path / "images").symlink_to(trained / "images")
        (data / "000.png").rename(data / "zzz.png")
    try:
        weights = ("--weights", run / "weights.safetensors")
        said = refused("evaluate", *weights, "--data", data, "--out", tmp_path / "figures")
        assert "the images of the training run, split_hash" in said
        said = refused("train", "--data", data, *MODEL, *RUN, "--out", run, "--resume")
        assert "one that differs in" in said and "split_hash" in said
        start = ("--start_from", run / "weights.safetensors", "--out", tmp_path / "run")
        said = refused("train", "--data", data, *MODEL, *RUN, *start)
        assert "--start_from: expected the images of the training run, split_hash" in said
        assert not (tmp_path / "figures").exists() and not (tmp_path / "run").exists()
    finally:
        if change == "a file renamed":
            (data / "zzz.png").rename(data / "000.png")


def test_run_that_starts_from_weights_keeps_their_split(trained, tmp_path):
    """Under another seed, which is that of the noise and the order then."""
    before, out = trained / "run/weights.safetensors", tmp_path / "run"
    data = ("--data", trained / "images")
    start = ("--start_from", before, "--seed", 1, "--out", out)
    quietly("train", *data, *MODEL, *RUN, *start)
    first, second = (json.loads((r / "results.json").read_text()) for r in (trained / "run", out))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["split_hash"] == second["split_hash"] and second["split_seed"] == 0
    kept = json.loads(read_metadata(out / "weights.safetensors")["data"])
    assert kept["split_hash"] == first["split_hash"]
    # And so does whoever evaluates, or starts from it once more.
    quick = ("--draws=1", "--images=8", "--out", tmp_path / "figures")
    quietly("evaluate", "--weights", out / "weights.safetensors", *data, *quick)
    report = json.loads((tmp_path / "figures/evaluation.json").read_text())
    assert report["split_hash"] == first["split_hash"]
    assert load_images(trained / "images", seed=1).split_hash != first["split_hash"]
    said = refused("train", *data, *MODEL, *RUN, *start, "--shuffle=global")
    assert "expected the shuffle of the training run, None, got {'mode': 'global'" in said


def test_hash_is_of_pixels_mapped_or_not_and_not_of_where_they_lie(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(60, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    np.savez_compressed(tmp_path / "b.npz", images=images)
    first, second = (load_images(tmp_path / f"{name}.npz", root=tmp_path) for name in "ab")
    monkeypatch.setattr(cache, "MAPPED_BYTES", 0)
    monkeypatch.setattr(cache, "CHUNK_BYTES", 100)
    mapped = [load_images(tmp_path / "a.npz", root=tmp_path) for _ in "ab"]
    assert mapped[1].train.mapped
    assert len({data.split_hash for data in (first, second, *mapped)}) == 1
    images[7, 0, 0] ^= 1
    np.savez(tmp_path / "a.npz", images=images)
    assert load_images(tmp_path / "a.npz", root=tmp_path).split_hash != first.split_hash
    shaped = images.reshape(60, 6, 4)
    hashes = {ImageDataset(torch.from_numpy(x[:, None])).contents_hash for x in (images, shaped)}
    assert len(hashes) == 2


def test_test_images_of_their_own_are_known(tmp_path):
    for seed, name in enumerate("abc"):
        images = np.random.default_rng(seed).integers(256, size=(30, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    one, two = (load_images(tmp_path / "a.npz", test_data=tmp_path / f"{n}.npz") for n in "bc")
    assert one.split_hash == two.split_hash and one.test_hash != two.test_hash


@pytest.mark.parametrize("change", ["none", "a file renamed", "a file left out", "few in common"])
def test_images_that_are_trained_on_are_refused_as_test_images(tmp_path, change):
    write_folder(tmp_path / "train", 0)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    common = 100
    if change == "a file renamed":
        (tmp_path / "test/000.png").rename(tmp_path / "test/zzz.png")
    if change == "a file left out":
        (tmp_path / "test/000.png").unlink()
        common = 99
    if change == "few in common":
        shutil.rmtree(tmp_path / "test")
        write_folder(tmp_path / "test", 1)
        for number in (3, 4):
            shutil.copy(tmp_path / f"train/00{number}.png", tmp_path / "test")
        common = 2
    folders = {"data": tmp_path / "train", "test_data": tmp_path / "test"}
    with pytest.raises(ValueError, match=f"not trained on, got {common} of {100 - (common == 99)}"):
        load_images(**folders)
    if change == "few in common":  # as in the data sets of papers
        (tmp_path / "test/003.png").unlink()
        shutil.copy(tmp_path / "test/005.png", tmp_path / "test/003.png")
        with pytest.warns(UserWarning, match="not trained on, got 1 of 100 that are in"):
            assert len(load_images(**folders).test) == 100


def test_run_of_before_that_knew_row_numbers_alone_is_taken_with_a_warning():
    data = load_images("digits")
    before = {"split_hash": data.split_hash[:16], "version": ""}
    with pytest.warns(UserWarning, match="row numbers alone"):
        check_same_images(before, data, "example")
    with pytest.raises(ValueError, match="images of the training run, split_hash"):
        check_same_images(before, load_images("digits", seed=1), "example")


def test_data_of_ones_own_are_known_by_their_pixels():
    parts = [torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8) for _ in range(4)]
    data = ImageData("x", *map(ImageDataset, parts[:3]))
    assert ImageData("x", *map(ImageDataset, parts[:3])).describe() == data.describe()
    assert ImageData("x", *map(ImageDataset, [parts[3], *parts[1:3]])).split_hash != data.split_hash


def test_hash_beside_a_file_is_believed_of_files_that_the_cache_wrote(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(9, 1, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "x.sha256").write_text(f"{'0' * 64}  x.npy\n")
    expected = ImageDataset(torch.from_numpy(images)).contents_hash
    assert ImageDataset(tmp_path / "x.npy").contents_hash == expected
    np.savez(tmp_path / "y.npz", images=images[:, 0])
    monkeypatch.setattr(cache, "MAPPED_BYTES", 0)
    (mapped, _) = cache.gather(npz_images(tmp_path / "y.npz"), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "sha256", None)  # it is read
        assert ImageDataset(mapped).contents_hash == expected
    np.save(mapped, 255 - images)
    assert ImageDataset(mapped).contents_hash != expected
