"""Results that are kept: which there are, of which rows, and what they say of the claims."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.papers.budgets import BUDGETS
from benchmarks.papers.claims import SHUFFLED, Comparison, comparisons, degradations
from benchmarks.papers.figures import figure_of
from benchmarks.papers.images import NOISE
from benchmarks.papers.rows import ROWS, ROWS_OF, Row, scaled_down
from nflows_mixer._checks import mismatch

RESULTS = Path(__file__).parent / "results"
BITS = ("bits_per_dim", "importance_bits_per_dim")
"""Figures that simple models of the same images have, too."""


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

    def figures(self, row: Row) -> list[float]:
        """Return what a row reports, of each seed that has it."""
        found = (figure_of(row, result) for result in self.of(row))
        return [value for value in found if value is not None]


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

        Raises:
            ValueError: if these are of different budgets or splits of the data.
        """
        rows = [row for _, row in self.rows]
        if self.table not in SHUFFLED:
            _check_terms(self.name, [result for row in rows for result in kept.of(row)])
            return comparisons(rows, kept.results)
        shuffled = [row for row in rows if row.run.shuffle]
        published = unshuffled(self.data)
        plain = [without_shuffle(row) for row in shuffled if row.label in published]
        _check_terms(self.name, [r for row in (*shuffled, *plain) for r in kept.of(row)])
        return [
            *comparisons(shuffled, kept.results),
            *degradations(shuffled, plain, published, kept.results),
        ]


def columns(size: str) -> list[Column]:
    """Return the columns of all tables, in the order of the papers."""
    published = {scaled_down(row): row for row in ROWS} if size == "small" else {}
    found: dict[tuple[str, str, str, str], list[tuple[Row, Row]]] = {}
    for row in ROWS_OF[size]:
        key = (row.table, row.run.data, row.version, row.figure)
        found.setdefault(key, []).append((published.get(row, row), row))
    return [Column(*key, tuple(rows)) for key, rows in found.items()]


def _check_terms(owner: str, results: Iterable[Mapping[str, Any]]) -> None:
    """Raise unless results are of one budget and, of each shuffle, one split."""
    first: dict[str, tuple[str, Any]] = {}
    for result in results:
        terms = {
            "budget": result["budget"],
            "accumulate": result.get("accumulate", 1),
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


def unshuffled(data: str) -> dict[str, float]:
    """Return label -> bits/dim without a shuffle, as published; of models of other sizes, too."""
    return {
        row.label: row.published
        for row in ROWS
        if row.table == "mixerflow-1" and row.run.data == data and row.published is not None
    }


def without_shuffle(row: Row) -> Row:
    """Return the row of the same model on the same images as they are."""
    return replace(row, run=replace(row.run, shuffle=None))


def label_of(row: Row) -> str:
    """Return what the table calls the model, with the shuffle in tables of shuffled images."""
    shuffle = f", {row.run.shuffle or 'no'} shuffle" if row.table in SHUFFLED else ""
    return row.label + shuffle


def command(size: str, budget: str, expression: str, seeds: Iterable[int] = (0,)) -> str:
    """Return the command that runs what an expression of pytest's ``-k`` selects."""
    words = ["pytest benchmarks -m", "gpu" if size == "paper" else "cpu", "-k", expression]
    if budget != "short":
        words += ["--budget", budget]
    if (listed := ",".join(map(str, sorted(seeds)))) not in ("", "0"):
        words += ["--seeds", listed]
    return " ".join(words)
