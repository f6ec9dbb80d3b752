"""Image sets that are mapped from a file."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import ImageDataset, archives, imagenet, load_images, mapped
from tests.test_data_imagenet import SMALL_COUNTS, pixels, write_new, write_old


@pytest.fixture(autouse=True)
def small_counts(monkeypatch):
    monkeypatch.setattr(imagenet, "COUNTS", SMALL_COUNTS)


@pytest.fixture
def all_mapped(monkeypatch):
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 10_000)


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


def sources(tmp_path):
    """One of each kind that may be large: a name or path."""
    save_npz(tmp_path / "x.npz")
    write_old(tmp_path / "imagenet32", 32)
    write_new(tmp_path / "imagenet64", 64, "pickle")
    for index in range(40):
        path = tmp_path / "classes" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    return [tmp_path / "x.npz", "imagenet32", "imagenet64", tmp_path / "classes"]


def test_mapped_images_are_those_in_memory(tmp_path, monkeypatch):
    every = sources(tmp_path)
    in_memory = [load_images(source, root=tmp_path, seed=4) for source in every]
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 10_000)
    for source, expected in zip(every, in_memory):
        data = load_images(source, root=tmp_path, seed=4)
        assert data.train.mapped and not expected.train.mapped
        assert_same(data, expected)
        assert_same(load_images(source, root=tmp_path, seed=4), expected)


def test_written_once_and_read_by_mapping_alone(tmp_path, all_mapped, monkeypatch):
    save_npz(tmp_path / "x.npz")
    first = load_images(tmp_path / "x.npz", root=tmp_path)
    names = sorted(file.name for file in (tmp_path / "cache").iterdir())
    assert len(names) == 2 and all(name.startswith("x-") for name in names)
    monkeypatch.setattr(mapped, "_write", None)
    assert_same(load_images(tmp_path / "x.npz", root=tmp_path), first)


def test_another_source_gets_another_file(tmp_path, all_mapped):
    file = tmp_path / "x.npz"
    save_npz(file)
    before = load_images(file, root=tmp_path)
    images = save_npz(file, count=410)
    os.utime(file, ns=(1, 1))
    after = load_images(file, root=tmp_path)
    assert len(after.train.rows) + len(after.validation) + len(after.test) == 410
    assert np.array_equal(after.test.images().permute(0, 2, 3, 1), images[after.test.rows.numpy()])
    assert len(before.train.images()) == 346  # The file mapped before is still the old one.
    for index in range(9):
        path = tmp_path / "folder" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(path)
    shapes = [load_images(path.parent, root=tmp_path, size=s).image_shape for s in (None, 12, 8)]
    assert shapes == [(3, 16, 16), (3, 12, 12), (3, 8, 8)]


def test_file_that_was_cut_short_is_written_again(tmp_path, all_mapped):
    save_npz(tmp_path / "x.npz")
    first = load_images(tmp_path / "x.npz", root=tmp_path)
    expected = first.train.images()
    (cached,) = [f for f in (tmp_path / "cache").iterdir() if "labels" not in f.name]
    content = cached.read_bytes()
    del first
    for damaged in (content[:-1], content[:50], b""):
        cached.unlink()
        cached.write_bytes(damaged)
        again = load_images(tmp_path / "x.npz", root=tmp_path)
        assert torch.equal(again.train.images(), expected)
        assert cached.read_bytes() == content
    cached.with_suffix(".labels.npy").unlink()
    again = load_images(tmp_path / "x.npz", root=tmp_path)
    assert torch.equal(again.train.labels(), again.train.rows)


def test_interrupted_writing_leaves_nothing_that_is_used(tmp_path, all_mapped, monkeypatch):
    save_npz(tmp_path / "x.npz")
    read, calls = archives._read, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(archives, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_images(tmp_path / "x.npz", root=tmp_path)
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / "left over.partial").write_bytes(b"of a process that was killed")
    assert len(load_images(tmp_path / "x.npz", root=tmp_path).train) == 346


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_never_in_memory_as_a_whole(tmp_path, monkeypatch, save):
    images = np.random.default_rng(0).integers(256, size=(3000, 32, 32, 3), dtype=np.uint8)
    save(tmp_path / "x.npz", images=images)
    rows, whole = images[[5, 2000]], images.nbytes
    del images
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 2**20)
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 2**18)
    load_images("digits")  # Imports are not counted.
    tracemalloc.start()
    try:
        data = load_images(tmp_path / "x.npz", root=tmp_path)
        everything = data.train.subset([0, 1])
        everything.images()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data.train.mapped and peak < whole / 4, (peak, whole)
    (cached,) = [f for f in (tmp_path / "cache").iterdir() if "labels" not in f.name]
    stored = ImageDataset(cached).images([5, 2000])
    assert np.array_equal(stored.permute(0, 2, 3, 1), rows)


def test_process_does_not_grow_by_what_is_mapped(tmp_path, monkeypatch):
    """What the operating system counts for a process of its own, beside what Python counts."""
    import subprocess
    import sys

    np.savez(tmp_path / "x.npz", images=np.ones((50_000, 64, 64), np.uint8))  # 205 MB.
    script = """if True:
        import resource, sys, torch
        from nflows_mixer.data import load_images, mapped
        mapped.MAPPED_BYTES, mapped.CHUNK_BYTES = 2**20, 2**20
        load_images("digits")
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        data = load_images(sys.argv[1] + "/x.npz", root=sys.argv[1])
        data.train.images([3, 4])
        print(peak() - before)
    """
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 60_000, found.stdout  # KiB
    assert not found.stderr


def test_mapped_images_travel_as_the_name_of_their_file(tmp_path, all_mapped):
    save_npz(tmp_path / "x.npz")
    data = load_images(tmp_path / "x.npz", root=tmp_path, shuffle="global")
    sent = pickle.dumps(data)
    labels_and_rows = 400 * 8 * 6
    assert len(sent) < labels_and_rows + 10_000 < 400 * 192
    again = pickle.loads(sent)
    assert_same(again, data)
    assert again.train.mapped and again.describe() == data.describe()


def test_shuffled_images_stay_mapped(tmp_path, all_mapped):
    save_npz(tmp_path / "x.npz")
    plain = load_images(tmp_path / "x.npz", root=tmp_path)
    data = load_images(tmp_path / "x.npz", root=tmp_path, shuffle="local", shuffle_patch=2)
    assert data.test.mapped and data.test.shares_images(data.train)
    assert not torch.equal(plain.test.images(), data.test.images())
    histograms = [part.images().flatten(2).sort().values for part in (plain.test, data.test)]
    assert torch.equal(*histograms)


def test_mapped_images_cannot_be_written_through(tmp_path, all_mapped):
    save_npz(tmp_path / "x.npz")
    data = load_images(tmp_path / "x.npz", root=tmp_path)
    for index in (0, slice(3), [1]):
        data.train.images(index).fill_(7)
        assert not (data.train.images(index) == 7).all()


def test_workers_read_the_mapped_file(tmp_path, all_mapped):
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    save_npz(tmp_path / "x.npz")
    data = load_images(tmp_path / "x.npz", root=tmp_path).test
    batches = BatchSampler(SequentialSampler(data), 16, drop_last=False)
    loader = DataLoader(data, None, sampler=batches, num_workers=1)
    assert torch.equal(torch.cat([images for images, _ in loader]), data.images())
