"""ImageNet in two versions, and pickled batches."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import cache, imagenet, load_images, pickles
from nflows_mixer.data.pickles import read_pickle


@pytest.fixture(autouse=True)
def small_counts(monkeypatch):
    assert imagenet.COUNTS == {"old": (1_281_149, 49_999), "new": (1_281_167, 50_000)}
    monkeypatch.setattr(imagenet, "COUNTS", {"old": (60, 5), "new": (70, 6)})


@pytest.fixture
def all_mapped(monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(cache, "CHUNK_BYTES", 10_000)


def pixels(count, size, seed=0):
    shape = (count, 3, size, size)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def write_old(folder, size, train=60, held=5):
    written = []
    for part, count in [("train", train), ("valid", held)]:
        images = pixels(count, size, seed=count)
        path = folder / f"{part}_{size}x{size}"
        path.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{index:04}.png")
        written.append(images)
    return written


def dump(path, arrays, protocol=2):
    with path.open("wb") as file:
        pickle.dump(arrays, file, protocol=protocol)


def write_new(folder, size, layout, train=70, held=6):
    """Ten batches of which the last is the largest, in one of the layouts of the makers."""
    inside = {
        "npz folders": (f"Imagenet{size}_train_npz", f"Imagenet{size}_val_npz"),
        "pickle folders": (f"Imagenet{size}_train", f"Imagenet{size}_val"),
    }.get(layout, ("", ""))
    images, of_held = pixels(train, size, seed=1), pixels(held, size, seed=2)
    labels, labels_held = np.arange(train) % 1000 + 1, np.arange(held) + 1
    bounds = np.linspace(0, train, 11).astype(int) if train > 10 else [0, train]
    batches = [
        (folder / inside[0] / f"train_data_batch_{i + 1}", images[a:b], labels[a:b])
        for i, (a, b) in enumerate(zip(bounds[:-1], bounds[1:]))
    ]
    batches.append((folder / inside[1] / "val_data", of_held, labels_held))
    for path, data, of_data in batches:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"data": data.reshape(len(data), -1), "labels": of_data}
        if "npz" in layout:
            np.savez(path.with_suffix(".npz"), **arrays)
        else:
            dump(path, {**arrays, "labels": of_data.tolist(), "mean": np.zeros(3 * size**2)})
    return images, of_held


# The versions.


@pytest.mark.parametrize("size", [32, 64])
def test_old_imagenet_is_its_folders(tmp_path, size):
    train, held = write_old(tmp_path / f"imagenet{size}", size)
    data = load_images(f"imagenet{size}", root=tmp_path)
    assert data.version == "old (van den Oord et al. 2016), 60 / 5"
    assert data.describe()["version"] == data.version and data.num_classes is None
    assert (len(data.train), len(data.validation), len(data.test)) == (58, 2, 5)
    assert np.array_equal(data.test.images().numpy(), held)
    for part in (data.train, data.validation):
        assert np.array_equal(part.images().numpy(), train[part.rows.numpy()])


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("layout", ["npz", "npz folders", "pickle", "pickle folders"])
def test_new_imagenet_is_its_batches_in_their_order(tmp_path, size, layout):
    train, held = write_new(tmp_path / f"imagenet{size}", size, layout)
    data = load_images(f"imagenet{size}", root=tmp_path)
    assert data.version == "new (Chrabaszcz et al. 2017), 70 / 6"
    assert (len(data.train), len(data.validation), len(data.test)) == (68, 2, 6)
    assert np.array_equal(data.test.images().numpy(), held)
    assert data.test.labels().tolist() == [0, 1, 2, 3, 4, 5]
    for part in (data.train, data.validation):
        # Batch 10 comes after batch 9, and labels go with their images.
        assert np.array_equal(part.images().numpy(), train[part.rows.numpy()])
        assert torch.equal(part.labels(), part.rows)


def test_versions_are_never_mixed(tmp_path):
    write_old(tmp_path / "imagenet32", 32)
    write_new(tmp_path / "imagenet32", 32, "npz folders")
    with pytest.raises(ValueError, match="the old version or the new one, never a mix of both"):
        load_images("imagenet32", root=tmp_path)
    for file in (tmp_path / "imagenet32" / "Imagenet32_train_npz").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="never a mix of both, got .*'val_data.npz'"):
        load_images("imagenet32", root=tmp_path)


@pytest.mark.parametrize("train, held", [(59, 5), (60, 6), (70, 6)])
def test_old_imagenet_of_other_counts_is_refused(tmp_path, train, held):
    write_old(tmp_path / "imagenet32", 32, train, held)
    pattern = rf"60 images to train on and 5 held out, .* version, got {train} and {held}; fetch"
    with pytest.raises(ValueError, match=pattern):
        load_images("imagenet32", root=tmp_path)


@pytest.mark.parametrize("layout", ["npz", "pickle"])
@pytest.mark.parametrize("train, held, pattern", [(69, 6, "70 .*got 69"), (70, 5, "6 .*got 5")])
def test_new_imagenet_of_other_counts_is_refused(
    tmp_path, layout, train, held, pattern, all_mapped
):
    write_new(tmp_path / "imagenet32", 32, layout, train, held)
    with pytest.raises(ValueError, match=f"expected {pattern}; fetch the missing files again"):
        load_images("imagenet32", root=tmp_path)
    assert not [file for file in (tmp_path / "cache").iterdir() if "train" in file.name]


def test_imagenet_that_is_not_there_is_described(tmp_path):
    with pytest.raises(ValueError, match="or train_data_batch_1 .* got no folder; put one version"):
        load_images("imagenet32", root=tmp_path)
    write_old(tmp_path / "imagenet64", 32)
    with pytest.raises(ValueError, match=r"folders train_64x64 .* got \['train_32x32', "):
        load_images("imagenet64", root=tmp_path)


def test_imagenet_of_another_size_is_refused(tmp_path):
    write_old(tmp_path / "imagenet32", 32)
    path = tmp_path / "imagenet32" / "train_32x32" / "0007.png"
    Image.fromarray(np.zeros((32, 31, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match="0007.png: expected an image of 32 x 32, got 32 x 31"):
        load_images("imagenet32", root=tmp_path)
    write_new(tmp_path / "imagenet64", 32, "npz")
    with pytest.raises(ValueError, match=r"'data' as uint8 \[N, 12288\], got uint8 \[6, 3072\]"):
        load_images("imagenet64", root=tmp_path)


@pytest.mark.parametrize(
    "arrays, pattern",
    [
        ({"data": np.zeros((6, 3072), np.uint8)}, r"arrays 'data' and 'labels', got \['data'\]"),
        ({"data": [1], "labels": [1]}, "arrays 'data' and 'labels', got"),
        ({"data": np.zeros((6, 3072), np.uint8), "labels": [1]}, "label for each of 6 images"),
        ({"data": np.zeros((6, 3072), np.uint8), "labels": [0] * 6}, "labels 1 to 1000, got 0 to"),
        ({"data": np.zeros((6, 3072)), "labels": [1] * 6}, r"uint8 \[N, 3072\], got float64"),
    ],
)
def test_batch_of_something_else_is_refused(tmp_path, arrays, pattern):
    write_new(tmp_path / "imagenet32", 32, "pickle")
    dump(tmp_path / "imagenet32" / "val_data", arrays)
    with pytest.raises(ValueError, match=pattern):
        load_images("imagenet32", root=tmp_path)


def test_folder_by_its_path_is_never_called_imagenet(tmp_path):
    write_old(tmp_path / "imagenet32", 32)
    data = load_images(tmp_path / "imagenet32" / "train_32x32", root=tmp_path)
    assert data.name == "train_32x32" and data.version == ""


# Pickles.


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil",)


@pytest.mark.parametrize("thing", [Evil(), OrderedDict(), eval, np.load, {"data": [Evil()]}])
def test_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, thing, capfd):
    write_new(tmp_path / "imagenet32", 32, "pickle")
    dump(tmp_path / "imagenet32" / "train_data_batch_3", thing)
    with pytest.raises(ValueError, match="batch_3: expected a pickle of plain arrays, got .*; use"):
        load_images("imagenet32", root=tmp_path)
    assert "evil" not in capfd.readouterr().out


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    given = {
        "data": np.arange(300, dtype=np.uint8).reshape(3, 100),
        "labels": [1, 2, np.int64(3)],
        "mean": np.linspace(0, 1, 5),
        "by columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    dump(tmp_path / "x", given, protocol)
    found = read_pickle(tmp_path / "x")
    assert list(found) == list(given)
    assert all(np.array_equal(found[key], given[key]) for key in given)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_numpy_1_and_2(core):
    for name in ("_reconstruct", "scalar"):
        assert pickles._ALLOWED[f"{core}.multiarray", name].__name__ == name


def test_pickle_of_python_2_and_keys_of_bytes_are_read(tmp_path):
    """Python 2 wrote keys, and the bytes of an array, as strings of bytes."""
    raw = bytes(range(250, 256))
    python2 = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x06\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x06" + raw + b"tbU\x06labels]K\x07au."
    )
    (tmp_path / "x").write_bytes(python2)
    found = read_pickle(tmp_path / "x")
    assert found["data"].tobytes() == raw and found["labels"] == [7]
    dump(tmp_path / "x", {b"data": np.arange(3)}, protocol=3)
    assert read_pickle(tmp_path / "x")["data"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content, pattern",
    [
        (b"", "of plain arrays, got"),
        (b"nonsense", "of plain arrays, got"),
        (pickle.dumps({"a": np.ones(9)})[:-20], "of plain arrays, got"),
        (pickle.dumps([1, 2]), "a pickled dictionary, got list"),
        (b"c_codecs\nencode\n(Vtext\nVrot13\ntR.", "of plain arrays, got .*codec rot13"),
    ],
)
def test_pickle_that_is_damaged_or_asks_for_a_codec_is_refused(tmp_path, content, pattern):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=pattern):
        read_pickle(tmp_path / "x")
