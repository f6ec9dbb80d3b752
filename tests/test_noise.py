"""Noise by counter: known answers, independence of how it is asked for, and its distribution."""

import pytest
import torch

from nflows_mixer.noise import philox, uniform_noise


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # the known answers that come with Random123
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(word.item() for word in words) == expected


def test_values_do_not_depend_on_what_else_is_asked_for():
    whole = uniform_noise(3, 10, torch.arange(12), (2, 3, 5))
    order = torch.randperm(12)
    assert torch.equal(uniform_noise(3, 10, order, (2, 3, 5)), whole[order])
    assert torch.equal(uniform_noise(3, 10, torch.arange(12), (2, 3, 5), torch.float64), whole)
    for other in (
        uniform_noise(4, 10, torch.arange(12), (2, 3, 5)),
        uniform_noise(3, 11, torch.arange(12), (2, 3, 5)),
        uniform_noise(3, 10 + 2**32, torch.arange(12), (2, 3, 5)),
        uniform_noise(3 + 2**32, 10, torch.arange(12), (2, 3, 5)),
        uniform_noise(3, 10, torch.arange(12, 24), (2, 3, 5)),
    ):
        assert (other == whole).float().mean() < 0.01


def test_values_are_uniform_and_uncorrelated():
    noise = uniform_noise(0, 0, torch.arange(2000), (50,), torch.float64)
    assert 0 <= noise.min() and noise.max() < 1
    # Bounds of five standard deviations.
    assert abs(noise.mean() - 0.5) < 5 * (1 / 12 / noise.numel()) ** 0.5
    assert abs(noise.var() - 1 / 12) < 5 * (1 / 180 / noise.numel()) ** 0.5
    counts = torch.histc(noise, bins=64, min=0, max=1)
    expected = noise.numel() / 64
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    correlations = torch.corrcoef(noise.T) - torch.eye(50)
    assert correlations.abs().max() < 5.5 / 2000**0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1, 0, torch.arange(2)), "expected a seed from 0"),
        ((0, 2**64, torch.arange(2)), "expected a step from 0"),
        ((0, 0, torch.zeros(2)), r"expected integers \[B\].*torch.float32"),
        ((0, 0, torch.zeros(2, 2, dtype=torch.long)), r"expected integers \[B\]"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        uniform_noise(*arguments, (3,))
