"""Images from .npz files and folders."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import cache, load_images
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


def test_npz_without_labels_and_stored_by_columns(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(12, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=np.asfortranarray(array))
    data = load_images(tmp_path / "x.npz")
    for part in parts(data):
        assert np.array_equal(part.images()[:, 0].numpy(), array[part.rows.numpy()])
    assert data.num_classes is None and len(data.train[[0, 1]]) == 1
    with pytest.raises(ValueError, match="expected labels, got images alone"):
        data.train.labels()


def test_second_file_is_held_out_whole(tmp_path):
    for name, count in [("a", 50), ("b", 3)]:
        np.savez(tmp_path / f"{name}.npz", images=np.full((count, 4, 4), count, np.uint8))
    data = load_images(tmp_path / "a.npz", test_data=tmp_path / "b.npz")
    assert [len(part) for part in parts(data)] == [48, 2, 3]
    assert (data.train.images() == 50).all() and (data.test.images() == 3).all()
    rows = torch.cat([data.train.rows, data.validation.rows]).numpy().astype("<i8")
    assert data.split_hash[:16] == hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    np.savez(tmp_path / "c.npz", images=np.zeros((2, 6, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r"images of \[1, 4, 4\], got \[3, 6, 6\]"):
        load_images(tmp_path / "a.npz", test_data=tmp_path / "c.npz")


@pytest.mark.parametrize(
    "arrays, pattern",
    [
        ({"pictures": np.zeros(3)}, r"an array 'images', got \['pictures'\]; save"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8)}, "with 1 or 3 channels last, got uint8"),
        ({"images": np.zeros((4, 8, 8))}, "expected uint8 images .* got float64"),
        ({"images": np.zeros((4, 8, 8, 2), np.uint8)}, "expected uint8 images"),
        ({"images": np.zeros(4, np.uint8)}, "expected uint8 images"),
        ({"images": np.array([None, 1, 2])}, "npz file of numbers, got .*[Oo]bject"),
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
def test_npz_of_something_else_is_refused_in_memory_and_mapped(
    tmp_path, arrays, pattern, monkeypatch
):
    np.savez(tmp_path / "x.npz", **arrays)
    for limit in (cache.MAPPED_BYTES, 0):
        monkeypatch.setattr(cache, "MAPPED_BYTES", limit)
        with pytest.raises(ValueError, match=pattern):
            load_images(tmp_path / "x.npz", root=tmp_path)


def test_npz_that_is_damaged_is_refused(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=array)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[1000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("short", "damaged"):
        with pytest.raises(ValueError, match="expected a whole .npz file of numbers, got"):
            load_images(tmp_path / f"{name}.npz")


# Folders.


def test_folder_has_the_images_at_any_depth(tmp_path):
    write_images(tmp_path, 5)
    write_images(tmp_path / "deep" / "deeper", 5, first=5)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._1.png").write_text("not an image either")
    data = load_images(tmp_path)
    assert [len(part) for part in parts(data)] == [8, 1, 1] and data.num_classes is None
    assert data.image_shape == (3, 4, 6)
    assert everything(data)[:, 0, 0, 0].sort().values.tolist() == list(range(10))


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
        write_images(tmp_path / "test" / name, 2, first=30)
    data = load_images(tmp_path / "train", test_data=tmp_path / "test")
    assert data.name == "train" and data.test.labels().tolist() == [1, 1, 2, 2]
    write_images(tmp_path / "test" / "foxes", 1)
    with pytest.raises(ValueError, match=r"class folders \['cats', 'dogs', 'eels'\], got foxes"):
        load_images(tmp_path / "train", test_data=tmp_path / "test")


def test_size_resizes_as_torchvision_does_with_antialias(tmp_path):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    generator = np.random.default_rng(0)
    resize = Compose([Resize(8, InterpolationMode.BILINEAR, antialias=True), CenterCrop(8)])
    expected = []
    for index, (height, width) in enumerate([(64, 81), (33, 16), (8, 8), (9, 8), (5, 7)]):
        pixels = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        picture.save(tmp_path / f"{index}.png")
        expected.append(np.asarray(resize(picture)))
    with pytest.raises(ValueError, match=r"images of one size, got 5 of .*; pass size=\.\.\."):
        load_images(tmp_path)
    for part in parts(load_images(tmp_path, size=8)):
        for row, image in zip(part.rows, part.images()):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected[row])
    assert expected[0].std() < 30  # Noise is averaged where images shrink.


def test_grey_folder_keeps_one_channel_and_sixteen_bits_are_refused(tmp_path):
    write_images(tmp_path, 4, shape=(4, 6))
    assert load_images(tmp_path).image_shape == (1, 4, 6)
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png: expected images of 8 bits, got 16 bits"):
        load_images(tmp_path)


@pytest.mark.parametrize("size", [None, 4])
def test_file_that_is_no_whole_image_is_named(tmp_path, size):
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


def test_folder_may_have_more_files_than_may_be_open(tmp_path):
    import resource

    write_images(tmp_path, 60, shape=(2, 2))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, limits[1]))
    try:
        assert len(everything(load_images(tmp_path))) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_labels_that_are_not_found_are_said(tmp_path):
    for name, first in (("cats", 0), ("dogs", 10)):
        write_images(tmp_path / "folder" / name, 4, first=first)
    write_images(tmp_path / "folder", 1, first=20)
    with pytest.warns(UserWarning, match="1 of 9 files are in no class folder, such as 20.png"):
        assert load_images(tmp_path / "folder").num_classes is None
    images = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((4, 6), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, label=np.arange(9))
    with pytest.warns(UserWarning, match="no array 'labels', .*; 'label' left out"):
        assert load_images(tmp_path / "x.npz").num_classes is None
