"""Images from names, files and folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import load_images
from nflows_mixer.data.images import DOWNLOADS


def test_digits_are_split_by_seed_without_overlap():
    first, again, other = (load_images("digits", seed=s) for s in (0, 0, 1))
    assert first.train.shape == (1400, 1, 8, 8) and first.test.shape == (397, 1, 8, 8)
    assert first.levels == 17 and first.train.max() == 16 and first.train.dtype == torch.uint8
    assert torch.equal(first.test, again.test) and not torch.equal(first.test, other.test)
    everything = torch.cat([first.train, first.test]).flatten(1)
    shuffled = torch.cat([other.train, other.test]).flatten(1)
    assert torch.equal(everything.unique(dim=0), shuffled.unique(dim=0))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_keeps_its_pixels(tmp_path, channels):
    shape = (20, 4, 6) if channels is None else (20, 4, 6, channels)
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.savez(tmp_path / "faces.npz", images=array)
    data = load_images(tmp_path / "faces.npz", held_out=0.25)
    assert data.name == "faces" and data.levels == 256
    assert data.train.shape == (15, channels or 1, 4, 6) and data.test.shape[0] == 5
    found = torch.cat([data.train, data.test]).permute(0, 2, 3, 1).reshape(20, -1)
    expected = torch.from_numpy(array).reshape(20, -1)
    assert torch.equal(found.unique(dim=0), expected.unique(dim=0))


def test_second_file_is_held_out_whole(tmp_path):
    for name, count in [("a", 6), ("b", 3)]:
        np.savez(tmp_path / f"{name}.npz", images=np.full((count, 4, 4), count, np.uint8))
    data = load_images(tmp_path / "a.npz", test=tmp_path / "b.npz")
    assert (data.train == 6).all() and data.test.shape == (3, 1, 4, 4) and (data.test == 3).all()


def test_folder_of_image_files(tmp_path):
    (tmp_path / "deeper").mkdir()
    for index in range(10):
        folder = tmp_path / "deeper" if index % 2 else tmp_path
        pixels = np.full((4, 6, 3), index, np.uint8)
        pixels[..., 2] = 100
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_images(tmp_path)
    assert data.train.shape == (9, 3, 4, 6) and data.test.shape == (1, 3, 4, 6)
    everything = torch.cat([data.train, data.test])
    assert everything[:, 0, 0, 0].sort().values.tolist() == list(range(10))
    assert (everything[:, 2] == 100).all()


@pytest.mark.parametrize("name, shape", [("cifar10", (2, 4, 4, 3)), ("mnist", (2, 4, 4))])
def test_downloads_keep_the_split_of_their_makers(name, shape, monkeypatch):
    """torchvision's part is replaced: no test downloads."""
    from torchvision import datasets

    class Stub:
        def __init__(self, root, train, download):
            assert download and root == "somewhere"
            self.data = np.full(shape, 1 if train else 2, np.uint8)

    monkeypatch.setattr(datasets, DOWNLOADS[name], Stub)
    data = load_images(name, root="somewhere")
    assert (data.train == 1).all() and (data.test == 2).all()
    assert data.image_shape == (3 if name == "cifar10" else 1, 4, 4)


def test_grey_folder_keeps_one_channel(tmp_path):
    for index in range(4):
        Image.fromarray(np.full((4, 6), index, np.uint8)).save(tmp_path / f"{index}.png")
    assert load_images(tmp_path).image_shape == (1, 4, 6)


def test_folder_of_more_files_than_may_be_open(tmp_path):
    import resource

    for index in range(60):
        Image.fromarray(np.full((2, 2), index, np.uint8)).save(tmp_path / f"{index}.png")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, limits[1]))
    try:
        assert len(load_images(tmp_path).train) == 54
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
