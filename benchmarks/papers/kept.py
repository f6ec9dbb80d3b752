"""Results that are kept, and what they say of the order of rows that the tables claim."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from benchmarks.papers.budgets import BUDGETS
from benchmarks.papers.figures import figure_of
from benchmarks.papers.images import NOISE
from benchmarks.papers.rows import BEYOND, HIGHER_IS_BETTER, ROWS, ROWS_OF, Row, scaled_down
from nflows_mixer._checks import mismatch

RESULTS = Path(__file__).parent / "results"
BITS = ("bits_per_dim", "importance_bits_per_dim")
"""Figures that simple models of the same images have, too."""
SHUFFLED = ("mixerflow-4", "mixerflow-5")
"""Tables of shuffled images."""


@dataclass(frozen=True)
class Comparison:
    """That one row is better than another.

    Args:
        words: which is better than which, as published or expected.
        published: by how much, above 0; None where it is our own expectation.
        here: by how much, of each seed that both have; below 0 where it comes out the other way.
    """

    words: str
    published: float | None
    here: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.here))

    @property
    def verdict(self) -> str:
        """As published (or expected), the other way, or why it is neither.

        Of one seed nothing is decided; of more, what is outside of the 95% of Student's t.
        """
        if not np.isfinite(self.mean):
            return "not finite"
        if len(self.here) == 1:
            return "one seed"
        error = np.std(self.here, ddof=1) / np.sqrt(len(self.here))
        if abs(self.mean) < student_t.ppf(0.975, len(self.here) - 1) * error:
            return "undecided"
        if self.mean < 0:
            return "the other way"
        return "as expected" if self.published is None else "as published"


@dataclass(frozen=True)
class Kept:
    """What there is of one size and budget.

    Args:
        size: "paper" or "small".
        budget: name of a budget of this size.
        folder: where it is.
        results: (name of a run, seed) -> result, of real images alone.
        left_out: how many are of noise, or of another version of the data set than their rows.
        failed: (name of a run, seed) -> why its training stopped, where it has no figures.
    """

    size: str
    budget: str
    folder: Path
    results: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    left_out: int = 0
    failed: dict[tuple[str, int], str] = field(default_factory=dict)

    def of(self, row: Row) -> list[dict[str, Any]]:
        """Return the results of a row, by seed."""
        keys = sorted(key for key in self.results if key[0] == row.run.name)
        return [self.results[key] for key in keys]

    def having(self, row: Row) -> list[dict[str, Any]]:
        """Return the results of a row that have what it reports, by seed."""
        return [result for result in self.of(row) if figure_of(row, result) is not None]

    def figures(self, row: Row) -> dict[int, float]:
        """Return seed -> what a row reports, of each seed that has it."""
        found = {result["seed"]: figure_of(row, result) for result in self.of(row)}
        return {seed: value for seed, value in found.items() if value is not None}

    def differences(self, one: Row, other: Row) -> dict[int, float]:
        """Return seed -> by how much more the other row reports, of the seeds that both have."""
        start, end = self.figures(one), self.figures(other)
        return {seed: end[seed] - start[seed] for seed in start if seed in end}


def read(results: str | Path) -> list[Kept]:
    """Return what is kept, by size and budget, the longest budget of a size last.

    Args:
        results: folder of folders SIZE-BUDGET of JSON files.
    """
    found = []
    for size, budgets in BUDGETS.items():
        for budget in budgets:
            folder = Path(results, f"{size}-{budget}")
            files = sorted(folder.glob("*.json"))
            if files:
                found.append(_sorted_out(size, budget, folder, files))
    return found


def _sorted_out(size: str, budget: str, folder: Path, files: Iterable[Path]) -> Kept:
    versions = {row.run.name: row.version for row in ROWS_OF[size]}
    results, failed, left_out = {}, {}, 0
    for file in files:
        result = json.loads(file.read_text())
        key, there = (result["name"], result["seed"]), result["data"]["version"]
        version = versions.get(result["name"], "")
        if result["synthetic"] or there.startswith(NOISE):
            left_out += 1
        elif version and version not in there.split():
            left_out += 1
        elif "failed" in result:
            failed[key] = result["failed"]
        else:
            results[key] = result
    return Kept(size, budget, folder, results, left_out, failed)


@dataclass(frozen=True)
class Column:
    """Rows whose figures can stand below each other.

    Args:
        table: key of ``TABLES``.
        data: data set.
        version: of the data set.
        figure: key of ``FIGURES``.
        rows: as published, and the same at the size of the column; a row that was published at
            no other size stands for itself.
    """

    table: str
    data: str
    version: str
    figure: str
    rows: tuple[tuple[Row, Row], ...]

    @property
    def name(self) -> str:
        """Of the test of its order."""
        figure = "" if self.figure == "bits_per_dim" else f"-{self.figure}"
        return f"{self.table}-{self.data}{figure}"

    def reference(self, kept: Kept) -> tuple[str, float] | None:
        """Return the best of the simple models of the same images and its bits/dim.

        None where figures are no bits/dim, or no result has a simple model. Images with a shuffle
        and without have the same, but for the draw of noise.
        """
        if self.figure in BITS:
            for result in (result for _, row in self.rows for result in kept.of(row)):
                found = result.get("reference_models", result.get("yardsticks"))
                if found:
                    return min(found.items(), key=lambda scored: scored[1])
        return None

    def claims(self, kept: Kept) -> list[Comparison]:
        """Return what the rows claim beside each other, as far as there are results.

        Of ``BEYOND`` that the last row of each shuffle is better than each other one. Of tables of
        shuffled images also by how much less a shuffle costs the last row than each other.

        Raises:
            ValueError: if these are of different budgets or splits of the data.
        """
        if self.table not in SHUFFLED:
            rows = [row for _, row in self.rows]
            _check_terms(self.name, [result for row in rows for result in kept.of(row)])
            return expected(rows, kept) if self.table == BEYOND else comparisons(rows, kept)
        shuffled = [row for _, row in self.rows if row.run.shuffle]
        costs = self.costs(kept)
        compared = [*shuffled, *map(without_shuffle, costs)]
        _check_terms(self.name, [result for row in compared for result in kept.of(row)])
        found = comparisons(shuffled, kept)
        *others, (ours, (by, own)) = costs.items()
        for other, (difference, theirs) in others:
            words = f"the shuffle costs {ours.label} less than {other.label}"
            here = tuple(theirs[seed] - own[seed] for seed in theirs if seed in own)
            if here:
                found.append(Comparison(words, round(difference - by, 4), here))
        return found

    def costs(self, kept: Kept) -> dict[Row, tuple[float, dict[int, float]]]:
        """Return shuffled row -> bits/dim more than without the shuffle: published, by seed.

        Published ones without a shuffle are those of Table 1, of smaller baselines.
        """
        plain = {
            row.label: row.published
            for row in ROWS
            if row.table == "mixerflow-1" and row.run.data == self.data
        }
        return {
            row: (
                row.published - plain[row.label],  # type: ignore[operator]
                kept.differences(without_shuffle(row), row),
            )
            for _, row in self.rows
            if row.run.shuffle and row.label in plain
        }


def comparisons(rows: Iterable[Row], kept: Kept) -> list[Comparison]:
    """Return all pairs of rows of a column that were published in an order."""
    found = []
    for first, second in combinations(rows, 2):
        alike = (first.figure, first.run.shuffle) == (second.figure, second.run.shuffle)
        if not alike or first.published is None or second.published is None:
            continue
        sign = -1 if first.figure in HIGHER_IS_BETTER else 1
        difference = sign * (second.published - first.published)
        better, worse = (first, second) if difference > 0 else (second, first)
        here = tuple(sign * value for value in kept.differences(better, worse).values())
        if difference and here:
            words = f"{better.label} better than {worse.label}"
            found.append(Comparison(words, round(abs(difference), 4), here))
    return found


def expected(rows: Sequence[Row], kept: Kept) -> list[Comparison]:
    """Return that the last row of each shuffle is better than each other one with it."""
    last, found = {row.run.shuffle: row for row in rows}, []
    for row in rows:
        ours = last[row.run.shuffle]
        sign = -1 if row.figure in HIGHER_IS_BETTER else 1
        here = tuple(sign * value for value in kept.differences(ours, row).values())
        if row is not ours and here:
            words = f"{label_of(ours)} better than {label_of(row)}"
            found.append(Comparison(words, None, here))
    return found


def columns(size: str) -> list[Column]:
    """Return the columns of all tables, in the order of the papers."""
    published = {scaled_down(row): row for row in ROWS} if size == "small" else {}
    found: dict[tuple[str, str, str, str], list[tuple[Row, Row]]] = {}
    for row in ROWS_OF[size]:
        key = (row.table, row.run.data, row.version, row.figure)
        found.setdefault(key, []).append((published.get(row, row), row))
    return [Column(*key, tuple(rows)) for key, rows in found.items()]


def _check_terms(owner: str, results: Iterable[Mapping[str, Any]]) -> None:
    """Raise unless results are of one budget; of each shuffle, one split; of a name, one model."""
    first: dict[str, tuple[str, Any]] = {}
    for result in results:
        terms = {
            "budget": result["budget"],
            "accumulate": result.get("accumulate", 1),
            **{f"{part}, {result['name']}": result.get(part) for part in ("arguments", "recipe")},
            f"split, {result['run']['shuffle'] or 'no'} shuffle": result["data"][
                "split_hash"
            ].partition("-")[0],
        }
        name = f"{result['name']}-{result['seed']}"
        for term, value in terms.items():
            other, known = first.setdefault(term, (name, value))
            if value != known:
                raise mismatch(
                    owner,
                    f"results on equal terms ({term})",
                    f"{known} of {other} and {value} of {name}",
                    "run one of them again, or keep them in folders of their own",
                )


def without_shuffle(row: Row) -> Row:
    """Return the row of the same model on the same images as they are."""
    return replace(row, run=replace(row.run, shuffle=None))


def label_of(row: Row) -> str:
    """Return what the table calls the model, with the shuffle in tables of shuffled images."""
    shuffle = f", {row.run.shuffle or 'no'} shuffle" if row.table in (*SHUFFLED, BEYOND) else ""
    return row.label + shuffle
