"""Image sets that are mapped from a file."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from nflows_mixer.data import cache, load_images, npz
from tests.test_data_imagenet import all_mapped, pixels, small_counts, write_new, write_old  # noqa: F401


@pytest.fixture
def x(tmp_path, all_mapped):  # noqa: F811
    """Loads the same .npz file, which is mapped."""
    save_npz(tmp_path / "x.npz")
    return lambda **arguments: load_images(tmp_path / "x.npz", root=tmp_path, **arguments)


def save_npz(path, count=400, size=8):
    images = pixels(count, size).transpose(0, 2, 3, 1)
    np.savez(path, images=images, labels=np.arange(count))
    return images


def assert_same(first, second):
    assert first.split_hash == second.split_hash
    for name in ("train", "validation", "test"):
        one, two = getattr(first, name), getattr(second, name)
        assert torch.equal(one.images(), two.images()) and torch.equal(one.rows, two.rows)
        assert one.labelled == two.labelled
        if one.labelled:
            assert torch.equal(one.labels(), two.labels())


def test_mapped_images_are_those_in_memory(tmp_path, monkeypatch):
    save_npz(tmp_path / "x.npz")
    write_old(tmp_path / "imagenet32", 32)
    write_new(tmp_path / "imagenet64", 64, "pickle")
    for index in range(40):
        path = tmp_path / "classes" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    every = [tmp_path / "x.npz", "imagenet32", "imagenet64", tmp_path / "classes"]
    in_memory = [load_images(source, root=tmp_path, seed=4) for source in every]
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(cache, "CHUNK_BYTES", 10_000)
    for source, expected in zip(every, in_memory):
        data = load_images(source, root=tmp_path, seed=4)
        assert data.train.mapped and not expected.train.mapped
        assert_same(data, expected)
        assert_same(load_images(source, root=tmp_path, seed=4), expected)


def test_images_are_written_once(tmp_path, x, monkeypatch):
    first = x()
    names = sorted(file.name for file in (tmp_path / "cache").iterdir())
    assert len(names) == 3 and all(name.startswith("x-") for name in names)
    monkeypatch.setattr(cache, "_write", None)
    assert_same(x(), first)


def test_another_source_gets_another_file(tmp_path, x):
    before = x()
    images = save_npz(tmp_path / "x.npz", count=410)
    os.utime(tmp_path / "x.npz", ns=(1, 1))
    after = x()
    assert len(after.train.rows) + len(after.validation) + len(after.test) == 410
    assert np.array_equal(after.test.images().permute(0, 2, 3, 1), images[after.test.rows.numpy()])
    assert len(before.train.images()) == 346  # The file mapped before is still the old one.
    for index in range(9):
        path = tmp_path / "folder" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(path)
    shapes = [load_images(path.parent, root=tmp_path, size=s).image_shape for s in (None, 12, 8)]
    assert shapes == [(3, 16, 16), (3, 12, 12), (3, 8, 8)]


def test_file_that_was_cut_short_is_written_again(tmp_path, x):
    expected = x().train.images()
    (cached,) = [f for f in (tmp_path / "cache").glob("*.npy") if "labels" not in f.name]
    content = cached.read_bytes()
    for damaged in (content[:-1], content[:50], b""):
        cached.unlink()
        cached.write_bytes(damaged)
        assert torch.equal(x().train.images(), expected)
        assert cached.read_bytes() == content
    for beside in (".labels.npy", ".sha256"):
        cached.with_suffix(beside).unlink()
        again = x()
        assert torch.equal(again.train.labels(), again.train.rows)
        assert cached.with_suffix(beside).exists()


def test_interrupted_writing_leaves_nothing_that_is_used(tmp_path, x, monkeypatch):
    original, calls = npz.as_images, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(npz, "as_images", interrupted)
        x()
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / "left over.partial").mkdir()  # By a process that was killed.
    assert len(x().train) == 346


@pytest.mark.slow
def test_process_does_not_grow_by_what_is_mapped(tmp_path):
    images = np.ones((50_000, 64, 64), np.uint8)  # 205 MB.
    np.savez(tmp_path / "x.npz", images=images)
    np.savez_compressed(tmp_path / "y.npz", images=images)
    script = """if True:
        import resource, sys, torch
        from nflows_mixer.data import cache, load_images
        cache.MAPPED_BYTES, cache.CHUNK_BYTES = 2**20, 2**20
        load_images("digits")
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        for name in ("x", "y"):
            data = load_images(f"{sys.argv[1]}/{name}.npz", root=sys.argv[1])
            data.train.images([3, 4])
        print(peak() - before)
    """
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 60_000, found.stdout  # KiB


def test_mapped_images_travel_as_the_name_of_their_file(x):
    data = x(shuffle="global")
    sent = pickle.dumps(data)
    labels_and_rows = 400 * 8 * 6
    assert len(sent) < labels_and_rows + 10_000 < 400 * 192
    again = pickle.loads(sent)
    assert_same(again, data)
    assert again.train.mapped and again.describe() == data.describe()


def test_shuffled_images_stay_mapped(x):
    plain, data = x(), x(shuffle="local", shuffle_patch=2)
    assert data.test.mapped and data.test.shares_images(data.train)
    assert not torch.equal(plain.test.images(), data.test.images())
    histograms = [part.images().flatten(2).sort().values for part in (plain.test, data.test)]
    assert torch.equal(*histograms)


def test_mapped_images_cannot_be_written_through(x):
    data = x()
    for index in (0, slice(3), [1]):
        data.train.images(index).fill_(7)
        assert not (data.train.images(index) == 7).all()


def test_workers_read_the_mapped_file(x):
    data = x().test
    batches = BatchSampler(SequentialSampler(data), 16, drop_last=False)
    loader = DataLoader(data, None, sampler=batches, num_workers=1)
    assert torch.equal(torch.cat([images for images, _ in loader]), data.images())
