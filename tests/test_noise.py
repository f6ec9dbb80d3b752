"""Noise by counter: known answers, independence of how it is asked for, and its distribution."""

import math

import pytest
import torch
from torch import distributions

from nflows_mixer.noise import mixed_noise, philox, to_normal, uniform_noise

NORMAL = distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
UNIFORM = distributions.Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0)


def gap_to(distribution, sample):
    """Kolmogorov and Smirnov's distance by sqrt(n): above 1.95 once in a thousand samples."""
    values = distribution.cdf(sample.double().flatten().sort().values)
    steps = torch.linspace(0, 1, len(values) + 1, dtype=torch.float64)
    gap = torch.maximum((values - steps[:-1]).abs(), (values - steps[1:]).abs()).max()
    return gap.item() * len(values) ** 0.5


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


def test_normal_noise_by_hand():
    u = torch.tensor([[0.0, 0.5, 0.25, 0.75]], dtype=torch.float64)
    # Pairs (0, 1/4) and (1/2, 3/4): angles of a quarter and of three quarters of a turn.
    radius = math.sqrt(2 * math.log(2))
    expected = torch.tensor([[0.0, 0.0, 0.0, -radius]], dtype=torch.float64)
    torch.testing.assert_close(to_normal(u), expected)
    # The largest number below one that 24 bits make has the largest radius.
    assert to_normal(torch.tensor([[1 - 2.0**-24, 0.0]]))[0, 0].item() == pytest.approx(
        5.768, abs=1e-3
    )
    with pytest.raises(ValueError, match="expected an even number of columns, got 3; draw"):
        to_normal(torch.zeros(1, 3))


def test_normal_noise_is_normal():
    noise = mixed_noise(5, 3, torch.arange(500), [("normal", (200,))], torch.float64)
    assert gap_to(NORMAL, noise) < 1.95
    count = noise.numel()
    # Moments 1, 2 and 4 have variances 1, 2 and 96: bounds of five standard deviations.
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (4, 3, 96)]:
        assert abs((noise**power).mean() - expected) < 5 * (variance / count) ** 0.5
    correlations = torch.corrcoef(noise.T) - torch.eye(200)
    assert correlations.abs().max() < 5.5 / 500**0.5
    # Both of a pair have the same radius, and are independent all the same.
    first, second = noise.square().chunk(2, dim=1)
    together = ((first - 1) * (second - 1)).mean() / 2
    assert abs(together) < 5 / (count / 2) ** 0.5


def test_noise_of_several_kinds():
    parts = [("uniform", (3, 5)), ("normal", (7,)), ("normal", (2, 2)), ("uniform", (3,))]
    index = torch.tensor([4, 0, 9])
    noise = mixed_noise(1, 2, index, parts, torch.float64)
    assert noise.shape == (3, 15 + 7 + 4 + 3) and noise.dtype == torch.float64
    # An odd number of normals draws one more uniform number than it keeps.
    uniform = uniform_noise(1, 2, index, (15 + 8 + 4 + 3,), torch.float64)
    assert torch.equal(noise[:, :15], uniform[:, :15])
    assert torch.equal(noise[:, 15:22], to_normal(uniform[:, 15:23])[:, :7])
    assert torch.equal(noise[:, 22:26], to_normal(uniform[:, 23:27]))
    assert torch.equal(noise[:, 26:], uniform[:, 27:])
    for i in range(3):
        assert torch.equal(mixed_noise(1, 2, index[i : i + 1], parts, torch.float64)[0], noise[i])
    torch.testing.assert_close(mixed_noise(1, 2, index, parts), noise.float(), atol=1e-6, rtol=1e-5)
    for other in [(2, 2), (1, 3)]:
        assert (mixed_noise(*other, index, parts, torch.float64) == noise).float().mean() < 0.02
