"""Images from .npz files and folders."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import load_images
from nflows_mixer.data.folders import resize_and_crop
from tests.test_data import everything, parts, write_images

# Files .npz.


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keeps_its_pixels_and_labels(tmp_path, channels, save):
    shape = (50, 4, 6) if channels is None else (50, 4, 6, channels)
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    save(tmp_path / "faces.npz", images=array, labels=np.arange(50, dtype=np.uint8))
    data = load_images(tmp_path / "faces.npz")
    assert data.name == "faces" and data.levels == 256 and data.num_classes is not None
    assert [len(part) for part in parts(data)] == [44, 1, 5]
    assert data.image_shape == (channels or 1, 4, 6)
    for part in parts(data):
        found = part.images().permute(0, 2, 3, 1).reshape(len(part), *shape[1:])
        assert np.array_equal(found.numpy(), array[part.labels().numpy()])
    assert torch.cat([part.labels() for part in parts(data)]).unique().numel() == 50


def test_npz_stored_by_columns(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(12, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=np.asfortranarray(array))
    data = load_images(tmp_path / "x.npz")
    for part in parts(data):
        assert np.array_equal(part.images()[:, 0].numpy(), array[part.rows.numpy()])


def test_npz_without_labels(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 4, 4), np.uint8))
    data = load_images(tmp_path / "x.npz")
    assert data.num_classes is None and len(data.train[[0, 1]]) == 1
    with pytest.raises(ValueError, match="expected labels, got images alone"):
        data.train.labels()


def test_second_file_is_held_out_whole(tmp_path):
    for name, count in [("a", 50), ("b", 3)]:
        np.savez(tmp_path / f"{name}.npz", images=np.full((count, 4, 4), count, np.uint8))
    data = load_images(tmp_path / "a.npz", test=tmp_path / "b.npz")
    assert [len(part) for part in parts(data)] == [48, 2, 3]
    assert (data.train.images() == 50).all() and (data.test.images() == 3).all()
    rows = torch.cat([data.train.rows, data.validation.rows]).numpy().astype("<i8")
    assert data.split_hash == hashlib.sha256(rows.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    "arrays, pattern",
    [
        ({"pictures": np.zeros(3)}, r"an array 'images', got \['pictures'\]; save"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8)}, "with 1 or 3 channels last, got uint8"),
        ({"images": np.array([None, 1, 2])}, "numbers in 'images', got Python objects"),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)},
            r"one integer label for each of 4 images, got int64 \[3\]",
        ),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4)},
            r"one integer label for each of 4 images, got float64 \[4\]",
        ),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "one image or more, got none"),
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "three images or more, got 2; each part"),
    ],
)
def test_npz_of_something_else(tmp_path, arrays, pattern):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=pattern):
        load_images(tmp_path / "x.npz")


def test_npz_that_is_damaged(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=array)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[1000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("short", "damaged"):
        with pytest.raises(ValueError, match="expected a whole .npz file, got"):
            load_images(tmp_path / f"{name}.npz")


# Folders.


def test_folder_of_image_files(tmp_path):
    write_images(tmp_path, 5)
    write_images(tmp_path / "deep" / "deeper", 5, first=5)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._1.png").write_text("not an image either")
    data = load_images(tmp_path)
    assert [len(part) for part in parts(data)] == [8, 1, 1] and data.num_classes is None
    assert data.image_shape == (3, 4, 6)
    assert everything(data)[:, 0, 0, 0].sort().values.tolist() == list(range(10))


def test_channels_stay_apart(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(4, 4, 6, 3), dtype=np.uint8)
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{index}.png")
    data = load_images(tmp_path)
    for part in parts(data):
        assert np.array_equal(part.images().permute(0, 2, 3, 1).numpy(), pixels[part.rows.numpy()])


def test_class_folders_give_labels_as_image_folder_does(tmp_path):
    from torchvision.datasets import ImageFolder

    write_images(tmp_path / "dogs", 6)
    write_images(tmp_path / "cats", 6, first=10)
    write_images(tmp_path / "eels", 3, first=20)
    data, theirs = load_images(tmp_path), ImageFolder(str(tmp_path))
    assert theirs.classes == ["cats", "dogs", "eels"] and data.num_classes == 3
    labels = {np.asarray(picture)[0, 0, 0].item(): label for picture, label in theirs}
    for part in parts(data):
        values = part.images()[:, 0, 0, 0].tolist()
        assert part.labels().tolist() == [labels[value] for value in values]


def test_one_folder_or_mixed_depths_are_no_classes(tmp_path):
    write_images(tmp_path / "one" / "images", 4)
    assert load_images(tmp_path / "one").num_classes is None
    write_images(tmp_path / "two" / "a", 4)
    write_images(tmp_path / "two" / "b" / "c", 4)
    assert load_images(tmp_path / "two").num_classes is None


def test_second_folder_has_the_classes_of_the_first(tmp_path):
    for name, first in [("cats", 0), ("dogs", 10), ("eels", 20)]:
        write_images(tmp_path / "train" / name, 4, first=first)
    for name in ("eels", "dogs"):
        write_images(tmp_path / "test" / name, 2)
    data = load_images(tmp_path / "train", test=tmp_path / "test")
    assert data.name == "train" and data.test.labels().tolist() == [1, 1, 2, 2]
    write_images(tmp_path / "test" / "foxes", 1)
    with pytest.raises(ValueError, match=r"class folders \['cats', 'dogs', 'eels'\], got foxes"):
        load_images(tmp_path / "train", test=tmp_path / "test")


def test_size_resizes_as_torchvision_does(tmp_path):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate([(20, 31), (33, 16), (8, 8), (9, 8), (5, 7)]):
        pixels = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        picture = Image.open(tmp_path / f"{index}.png")
        theirs = Compose([Resize(8, InterpolationMode.BILINEAR), CenterCrop(8)])(picture)
        assert np.array_equal(np.asarray(resize_and_crop(picture, 8)), np.asarray(theirs))
        picture.close()
    with pytest.raises(ValueError, match=r"images of one size, got 5 of .*; pass size=\.\.\."):
        load_images(tmp_path)
    data = load_images(tmp_path, size=8)
    assert data.image_shape == (3, 8, 8) and len(everything(data)) == 5


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::4] = 255
    found = np.asarray(resize_and_crop(Image.fromarray(stripes), 8))
    assert found.std() < 20 and abs(found.mean() - 64) < 5


def test_grey_folder_keeps_one_channel(tmp_path):
    write_images(tmp_path, 4, shape=(4, 6))
    assert load_images(tmp_path).image_shape == (1, 4, 6)


@pytest.mark.parametrize("size", [None, 4])
def test_file_that_is_no_whole_image(tmp_path, size):
    write_images(tmp_path, 3, shape=(40, 60, 3))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="broken.png: expected an image file, got"):
        load_images(tmp_path, size=size)
    whole = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(whole).save(tmp_path / "broken.png")
    content = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="broken.png: expected a whole image file, got"):
        load_images(tmp_path, size=size)


def test_folder_of_more_files_than_may_be_open(tmp_path):
    import resource

    write_images(tmp_path, 60, shape=(2, 2))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, limits[1]))
    try:
        assert len(everything(load_images(tmp_path))) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
