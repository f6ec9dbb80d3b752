"""Images from names, files and folders, and the parts they are split into."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import ImageData, ImageDataset, load_images
from nflows_mixer.data.image_data import split, validation_size
from nflows_mixer.data.torchvision_sets import DOWNLOADS
from nflows_mixer.transforms.permute import PermutePixels


def parts(data):
    return [part for part in (data.train, data.validation, data.test) if part is not None]


def everything(data):
    return torch.cat([part.images() for part in parts(data)])


def write_images(folder, count, shape=(4, 6, 3), first=0):
    """Image files that are constant, each at a value of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        Image.fromarray(np.full(shape, index, np.uint8)).save(folder / f"{index}.png")


# Parts.


def test_digits_are_split_by_seed_without_overlap():
    first, again, other = (load_images("digits", seed=s) for s in (0, 0, 1))
    assert first.levels == 17 and first.train.images().max() == 16
    assert first.image_shape == (1, 8, 8) and first.num_classes == 10
    rows = torch.cat([part.rows for part in parts(first)])
    assert rows.sort().values.tolist() == list(range(1797))
    assert torch.equal(first.test.images(), again.test.images())
    assert not torch.equal(first.test.images(), other.test.images())
    # Results of earlier versions compare with later ones only while this hash stays.
    assert first.split_hash == again.split_hash != other.split_hash
    of_rows, of_pixels = first.split_hash.split("-")
    assert of_rows == "b669f0cb2ebffae4" and other.split_hash.endswith(of_pixels)
    found = hashlib.sha256(rows.numpy().astype("<i8").tobytes()).hexdigest()
    assert of_rows == found[:16] and (first.split_seed, other.split_seed) == (0, 1)


def test_labels_of_digits_follow_their_images():
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = load_images("digits", seed=3)
    for part in parts(data):
        assert np.array_equal(part.images()[:, 0].numpy(), digits.images[part.rows.numpy()])
        assert np.array_equal(part.labels().numpy(), digits.target[part.rows.numpy()])


def test_training_parts_have_the_sizes_of_the_paper():
    sizes = {50_000: 48_000, 60_000: 57_600, 63_565: 61_023, 1_281_149: 1_229_904}
    assert all(count - validation_size(count) == train for count, train in sizes.items())
    assert all(validation_size(n) == max(1, int(0.04 * n)) for n in range(1, 100_000, 7))


def test_split_leaves_something_to_train_on():
    images = ImageDataset(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="split: expected more than 3 images to split, got 3; use"):
        split(images, [1, 2], seed=0)


def test_describe_is_json_with_all_that_a_result_needs():
    data = load_images("digits", shuffle="local", seed=5)
    described = json.loads(json.dumps(data.describe()))
    assert described == {
        "data": "digits",
        "version": "",
        "levels": 17,
        "image_shape": [1, 8, 8],
        "train_images": 1344,
        "validation_images": 56,
        "test_images": 397,
        "split_hash": data.split_hash,
        "split_seed": 5,
        "test_hash": None,
        "shuffle": {"mode": "local", "patch_size": 4, "seed": 5},
    }
    assert "shuffle" not in load_images("digits").describe()


def test_hash_is_that_of_the_split_when_a_part_is_cut_down():
    data = load_images("digits")
    assert replace(data, train=data.train.subset(slice(5))).split_hash == data.split_hash
    images = data.train.subset(slice(4))
    assert ImageData("x", images, images.subset([0]), None).split_hash != data.split_hash


# Folders of the paper.


@pytest.mark.parametrize("name, size", [("animefaces", 64), ("galaxy32", 32)])
def test_folders_of_the_paper_have_no_test_part(tmp_path, name, size):
    write_images(tmp_path / name / "a", 30, shape=(size + 7, size + 3, 3))
    write_images(tmp_path / name / "b", 30, shape=(size, size), first=30)
    data = load_images(name, root=tmp_path)
    assert data.image_shape == (3, size, size) and data.test is None
    assert (len(data.train), len(data.validation), data.num_classes) == (58, 2, None)
    assert data.name == name and data.describe()["test_images"] == 0
    assert everything(data)[:, 1, 5, 5].sort().values.tolist() == list(range(60))
    with pytest.raises(ValueError, match="expected a folder of images, got none; put"):
        load_images(name, root=tmp_path / "elsewhere")


# torchvision: its part is replaced, no test downloads.


@pytest.mark.parametrize("name, shape", [("cifar10", (50, 4, 4, 3)), ("mnist", (50, 4, 4))])
def test_downloads_keep_the_split_of_their_makers(name, shape, monkeypatch, tmp_path):
    from torchvision import datasets

    class Stub:
        def __init__(self, root, train, download):
            assert download and root == str(tmp_path)
            self.data = np.full(shape, 1 if train else 2, np.uint8)
            self.data[:, 0, 0] = np.arange(50).reshape(50, *[1] * (len(shape) - 3))
            self.targets = list(range(50)) if name == "cifar10" else torch.arange(50)

    monkeypatch.setattr(datasets, DOWNLOADS[name], Stub)
    data = load_images(name, root=tmp_path)
    assert [len(part) for part in parts(data)] == [48, 2, 50]
    assert (data.train.images()[:, :, 1:] == 1).all() and (data.test.images()[..., 1:] == 2).all()
    assert data.image_shape == (3 if name == "cifar10" else 1, 4, 4)
    for part in parts(data):
        assert torch.equal(part.images()[:, 0, 0, 0].long(), part.labels())


def stub_celeba(monkeypatch, tmp_path, sizes, shape=(218, 178, 3)):
    from torchvision import datasets

    base = tmp_path / "celeba" / "img_align_celeba"
    base.mkdir(parents=True)
    names = {}
    generator = np.random.default_rng(0)
    for part, count in sizes.items():
        names[part] = [f"{part}{index}.png" for index in range(count)]
        for name in names[part]:
            pixels = generator.integers(256, size=shape, dtype=np.uint8)
            Image.fromarray(pixels).save(base / name)

    class Stub:
        base_folder = "celeba"

        def __init__(self, root, split, download):
            assert download
            self.root, self.filename = root, names[split]

    monkeypatch.setattr(datasets, "CelebA", Stub)
    return base, names


def test_celeba_has_the_official_parts_and_the_crop_of_realnvp(monkeypatch, tmp_path):
    base, names = stub_celeba(monkeypatch, tmp_path, {"train": 3, "valid": 2, "test": 1})
    data = load_images("celeba64", root=tmp_path)
    assert [len(part) for part in parts(data)] == [3, 2, 1] and data.num_classes is None
    for key, part in zip(("train", "valid", "test"), parts(data)):
        for index, name in enumerate(names[key]):
            rows = np.asarray(Image.open(base / name))[40:188, 15:163]
            expected = Image.fromarray(rows).resize((64, 64), Image.Resampling.BILINEAR)
            found = part.images(index).permute(1, 2, 0).numpy()
            assert np.array_equal(found, np.asarray(expected))


def test_celeba_of_another_size_is_refused(monkeypatch, tmp_path):
    sizes = {"train": 1, "valid": 1, "test": 1}
    stub_celeba(monkeypatch, tmp_path, sizes, shape=(64, 64, 3))
    with pytest.raises(ValueError, match=r"to crop at .*, got \(width, height\) \(64, 64\)"):
        load_images("celeba64", root=tmp_path)


# Shuffles.


@pytest.mark.parametrize(
    "mode, patch, used", [("global", None, None), ("local", None, 4), ("local", 2, 2)]
)
def test_shuffle_is_permute_pixels_in_all_parts(mode, patch, used):
    plain = load_images("digits", seed=2)
    data = load_images("digits", seed=2, shuffle=mode, shuffle_patch=patch)
    permute = PermutePixels((1, 8, 8), mode, used, seed=2)
    for before, after in zip(parts(plain), parts(data)):
        assert torch.equal(permute(before.images())[0], after.images())
        assert torch.equal(after.images(3), after[3][0]) and after.images(3).shape == (1, 8, 8)
        assert torch.equal(after.images(3), after.images()[3])
        assert torch.equal(before.labels(), after.labels())
    assert data.shuffle == {"mode": mode, "patch_size": used, "seed": 2}
    assert data.split_hash == plain.split_hash and data.train.subset([4]).transform is not None


# Arguments.


@pytest.mark.parametrize(
    "arguments, pattern",
    [
        ({"data": "nothing"}, "'galaxy32', an .npz file or a folder that exists, got 'nothing'"),
        ({"data": "none.npz"}, "that exists, got 'none.npz'"),
        ({"data": ".", "size": 0}, "size to be a positive integer, got 0"),
        ({"data": "digits", "test_data": "x.npz"}, "no test images beside 'digits', got x.npz"),
        ({"data": "digits", "size": 8}, "no size but with a folder of image files, got 'digits'"),
        ({"data": "digits", "shuffle": "all"}, "shuffle to be one of 'global', 'local', got"),
        ({"data": "digits", "shuffle_patch": 2}, "with shuffle='local' alone, got shuffle=None"),
        (
            {"data": "digits", "shuffle": "local", "shuffle_patch": 3},
            "divides the image's height 8, got 3",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, pattern):
    with pytest.raises(ValueError, match=pattern):
        load_images(**arguments)
