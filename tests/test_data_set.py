"""Images as a data set of torch."""

import re

import numpy as np
import pytest
import torch

from nflows_mixer.data import ImageDataset


@pytest.fixture
def dataset():
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    return ImageDataset(images, labels=torch.arange(10) + 100, rows=[9, 7, 5, 3, 1])


@pytest.mark.parametrize(
    "index, expected",
    [
        (slice(None), [9, 7, 5, 3, 1]),
        (slice(1, 3), [7, 5]),
        (slice(None, None, -2), [1, 5, 9]),
        (slice(3, 1), []),
        ([0, -1, 0], [9, 1, 9]),
        ([], []),
        (np.array([2], dtype=np.uint8), [5]),
        (torch.tensor([1, 0], dtype=torch.uint8), [7, 9]),
        ([True, False, False, True, False], [9, 3]),
        (np.array([False, True, False, False, False]), [7]),
        (torch.tensor([False] * 5), []),
    ],
)
def test_rows_are_taken_by_any_index_of_numpy(dataset, index, expected):
    images, labels = dataset[index]
    assert images.flatten().tolist() == expected and images.shape[1:] == (1, 1, 1)
    assert labels.tolist() == [each + 100 for each in expected]
    whole = ImageDataset(dataset.images(), dataset.labels())
    assert torch.equal(whole.images(index), images) and torch.equal(whole.labels(index), labels)
    subset = dataset.subset(index)
    assert len(subset) == len(expected) and subset.images().flatten().tolist() == expected


@pytest.mark.parametrize("index", [5, -6, [0, 5], np.int64(7), [True], 1.5])
def test_rows_that_are_not_there_are_an_index_error(dataset, index):
    with pytest.raises(IndexError):
        dataset[index]


def test_sample_and_iteration(dataset):
    image, label = dataset[-1]
    assert image.shape == (1, 1, 1) and label.item() == 101
    assert [label.item() for _, label in dataset] == [109, 107, 105, 103, 101]


def test_what_is_returned_is_a_copy(dataset):
    for index in (0, slice(None), [0]):
        images, labels = dataset[index]
        images.fill_(77), labels.fill_(77)
    assert (
        dataset.images().flatten().tolist() == [9, 7, 5, 3, 1] == (dataset.labels() - 100).tolist()
    )


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: ImageDataset(torch.zeros(2, 1, 2, 2)), "uint8 images [N, C, H, W], got torch.fl"),
        (
            lambda: ImageDataset(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2)),
            "one integer label for each of 2 images, got torch.float32",
        ),
    ],
)
def test_dataset_of_something_else_is_refused(make, pattern):
    with pytest.raises(ValueError, match=re.escape(pattern)):
        make()


def test_loader_of_torch_gathers_batches(dataset):
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    batches = BatchSampler(SequentialSampler(dataset), 2, drop_last=False)
    found = [labels.tolist() for _, labels in DataLoader(dataset, None, sampler=batches)]
    assert found == [[109, 107], [105, 103], [101]]
