"""What the tables claim, which is the order of their rows, beside what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan, sqrt
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from benchmarks.papers.figures import figure_of
from benchmarks.papers.rows import HIGHER_IS_BETTER, Row

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""(name of a run, seed) -> result."""
SHUFFLED = ("mixerflow-4", "mixerflow-5")
"""Tables of shuffled images."""


@dataclass(frozen=True)
class Comparison:
    """That one row is better than another.

    Args:
        words: which is better than which, as published.
        published: by how much, above 0.
        here: by how much, of each seed that both have; below 0 where it comes out the other way.
    """

    words: str
    published: float
    here: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean(self.here)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None of one seed."""
        if len(self.here) == 1:
            return None
        spread = stdev(self.here) if all(map(isfinite, self.here)) else nan
        return spread / sqrt(len(self.here))

    @property
    def verdict(self) -> str:
        """As published, the other way, or why it is neither.

        Of one seed nothing is decided; of more, what is outside of the 95% of Student's t.
        """
        if not isfinite(self.mean):
            return "not finite"
        if self.error is None:
            return "one seed"
        if abs(self.mean) < student_t.ppf(0.975, len(self.here) - 1) * self.error:
            return "undecided"
        return "as published" if self.mean > 0 else "the other way"


def comparisons(rows: Iterable[Row], results: Results) -> list[Comparison]:
    """Return all pairs of rows of a column that were published in an order."""
    found = []
    for first, second in combinations(rows, 2):
        alike = (first.figure, first.run.shuffle) == (second.figure, second.run.shuffle)
        if not alike or first.published is None or second.published is None:
            continue
        sign = -1 if first.figure in HIGHER_IS_BETTER else 1
        difference = sign * (second.published - first.published)
        better, worse = (first, second) if difference > 0 else (second, first)
        here = _differences(better, worse, sign, results)
        if difference and here:
            words = f"{better.label} better than {worse.label}"
            found.append(Comparison(words, round(abs(difference), 4), tuple(here.values())))
    return found


def costs(shuffled: Row, plain: Row, results: Results) -> dict[int, float]:
    """Return seed -> bits/dim more than without the shuffle, of the seeds that have both."""
    return _differences(plain, shuffled, 1, results)


def published_cost(shuffled: Row, published: Mapping[str, float]) -> float:
    """Return how many bits/dim more than without the shuffle were published."""
    assert shuffled.published is not None
    return shuffled.published - published[shuffled.label]


def degradations(
    shuffled: Sequence[Row], plain: Sequence[Row], published: Mapping[str, float], results: Results
) -> list[Comparison]:
    """Return by how much less a shuffle costs the last of the rows than each of the others."""
    before = {row.run.model: row for row in plain}
    *others, ours = [row for row in shuffled if row.run.model in before]
    own = costs(ours, before[ours.run.model], results)
    found = []
    for other in others:
        difference = published_cost(other, published) - published_cost(ours, published)
        theirs = costs(other, before[other.run.model], results)
        here = [theirs[seed] - own[seed] for seed in theirs if seed in own]
        if here:
            words = f"the shuffle costs {ours.label} less than {other.label}"
            found.append(Comparison(words, round(difference, 4), tuple(here)))
    return found


def _differences(better: Row, worse: Row, sign: int, results: Results) -> dict[int, float]:
    found = {}
    for seed in _seeds(results):
        pair = [
            figure_of(row, results[row.run.name, seed])
            for row in (better, worse)
            if (row.run.name, seed) in results
        ]
        if len(pair) == 2 and None not in pair:
            found[seed] = sign * (pair[1] - pair[0])  # type: ignore[operator]
    return found


def _seeds(results: Results) -> list[int]:
    return sorted({seed for _, seed in results})
